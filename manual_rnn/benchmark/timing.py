r"""How one row of a table is measured. The contenders that are right take turns: so whatever else the machine
does meets all of them."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from .. import ManualRNN, use_kernel
from .cases import Case
from .contenders import BUILTIN, CONTENDERS, Call, rows_of, training_step

Row = dict[str, Any]
Reading = Callable[[], float]  # gives the seconds of a call
Clock = Callable[[Call, float], Reading]  # of a call, and of how long all its readings may take
ROUNDS, AT_LEAST = 9, 5
MODES = {"forward": False, "training step": True}
# By name a dtype, whether cuDNN may multiply float32 in tf32, and how far off anyone may be.
PRECISIONS: dict[str, tuple[torch.dtype, bool, float]] = {
    "tf32": (torch.float32, True, 5e-3),
    "float32": (torch.float32, False, 1e-5),
    "float64": (torch.float64, False, 1e-10),
    "float16": (torch.float16, True, 1e-2),
    "bfloat16": (torch.bfloat16, True, 5e-2),
}


def measure(case: Case, precision: str, mode: str, names: Sequence[str], seconds: float, clock: Clock) -> Row:
    """Errors of the named contenders, `nn.RNN` first, seconds of those that are right, and why the others
    have none."""
    dtype, tf32, bound = PRECISIONS[precision]
    case, training = replace(case, dtype=dtype), MODES[mode]
    readings: dict[str, Reading] = {}
    errors: dict[str, float] = {}
    absent: dict[str, str] = {}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
        expected = _numbers(case, CONTENDERS[BUILTIN](case.exact(), training))
        for name in names:
            call = CONTENDERS[name](case, training)
            error = call if isinstance(call, str) else _error(case, call, expected)
            if isinstance(call, str) or isinstance(error, str):
                absent[name] = str(error)
                continue
            errors[name] = error
            if error <= max(bound, 4 * errors.get(BUILTIN, 0.0)):
                readings[name] = clock(call, seconds)
            else:
                absent[name] = f"off by {error:.1e}"
        found = medians_in_turns(readings, seconds * len(readings)) if BUILTIN in readings else {}
    row = {"case": str(case), "precision": precision, "mode": mode}
    return {**row, "seconds": found, "errors": errors, "absent": absent}


def _numbers(case: Case, call: Any) -> list[Tensor]:
    """What a call returns, in float64: all gradients, or the rows of the output; nothing of `limit`."""
    found = call()
    if found is None:
        return []
    if isinstance(found, tuple):
        return [_tensor(x) for x in found]
    output = _tensor(found)
    padded = case.shortest and output.dim() == 3  # of a contender that can't pack
    return [rows_of(case.pack(output)) if padded else output]


def _tensor(x: Any) -> Tensor:
    return (x if isinstance(x, Tensor) else torch.from_dlpack(x)).double()


def _error(case: Case, call: Call, expected: list[Tensor]) -> float | str:
    """The largest relative error of any result, 0 where there are none to be wrong, or why it failed."""
    try:
        found = _numbers(case, call)
        if not found:
            return 0.0
        off = [_relative(x, exact) for x, exact in zip(found, expected, strict=True)]
        return torch.stack(off).max().item()
    except Exception as problem:  # of a kernel, a compiler, a card: the others go on
        return f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"


def _relative(x: Tensor, exact: Tensor) -> Tensor:
    """Of a gradient that is 0, as that of W_hh after one step from a state of zeros, all of the error."""
    if x.shape != exact.shape:
        return exact.new_tensor(torch.inf)
    return (x - exact).norm() / exact.norm().clamp(min=torch.finfo(torch.float64).tiny)


def cpu_clock(call: Call, seconds: float) -> Reading:
    """The mean over as many calls as fit into one of the rounds."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    number = max(1, round(seconds / ROUNDS / timer.timeit(2).mean))
    return lambda: timer.timeit(number).mean


def cuda_clock(call: Call, seconds: float) -> Reading:
    """What one call takes by the card's own clock, the waiting for Python included."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def reading() -> float:
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    return reading


def medians_in_turns(readings: Mapping[str, Reading], seconds: float) -> dict[str, float]:
    """The median reading of each, over rounds in which all take turns, until `seconds` are over."""
    rounds: list[dict[str, float]] = []
    enough = time.monotonic() + seconds
    while len(rounds) < AT_LEAST or time.monotonic() < enough:
        rounds.append({name: reading() for name, reading in readings.items()})
    return {name: statistics.median(each[name] for each in rounds) for name in readings}


def peak_memory(case: Case, kernels: list[str]) -> dict[str, float]:
    """Mebibytes that a training step adds to a fresh process (of Linux) at its peak."""
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for name in ("nn.RNN", *kernels):
        with context.Pool(1) as pool:
            peaks[name] = pool.apply(_peak, (name, case))
    return peaks


def _peak(name: str, case: Case) -> float:
    rnn = case.network()
    weights = list(rnn.parameters())
    step = training_step(rnn if name == "nn.RNN" else ManualRNN.from_builtin(rnn), case, weights)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    kernel: Any = "default" if name == "nn.RNN" else name
    with use_kernel(kernel):
        step()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A line of what Linux says of this process, in kibibytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
