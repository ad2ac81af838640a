r"""Contenders take turns: so whatever else the machine does meets all of them."""

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from .. import ManualRNN, use_kernel
from .cases import Case
from .contenders import CONTENDERS, Call, agree, training_step

__all__ = ["geometric_mean", "medians_in_turns", "peak_memory", "seconds_per_call"]

ROUNDS, AT_LEAST = 9, 3
NO_NUMBERS = "limit"


def seconds_per_call(case: Case, names: list[str], training: bool, seconds: float) -> dict[str, float]:
    """The median time of one call of each contender that can take part, over interleaved rounds.

    Raises:
        RuntimeError: if a contender's numbers differ from those of `nn.RNN`.
    """
    calls = {name: call for name in names if (call := CONTENDERS[name](case, training)) is not None}
    check(case, calls)
    timers = {name: Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
              for name, call in calls.items()}  # fmt: skip
    numbers = {name: _calls_per_round(timer, seconds) for name, timer in timers.items()}
    once = {name: partial(_mean, timer, numbers[name]) for name, timer in timers.items()}
    enough = 2 * seconds * len(timers)  # of a machine that is busy with something else
    return medians_in_turns(once, enough, AT_LEAST, ROUNDS)


def _mean(timer: Timer, calls: int) -> float:
    return timer.timeit(calls).mean


def medians_in_turns(
    once: Mapping[str, Callable[[], float]], seconds: float, at_least: int, at_most: int | None = None
) -> dict[str, float]:
    """The median of what each tells, over rounds in which all take turns, until `seconds` are over."""
    times: dict[str, list[float]] = {name: [] for name in once}
    enough = time.monotonic() + seconds
    for done in count():
        if done == at_most or (done >= at_least and time.monotonic() > enough):
            break
        for name, measure in once.items():
            times[name].append(measure())
    return {name: statistics.median(each) for name, each in times.items()}


def geometric_mean(values: list[float]) -> float:
    r"""$(\prod_i v_i)^{1/n}$"""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def check(case: Case, calls: dict[str, Call]) -> None:
    """Raise unless every contender computes what `nn.RNN` computes."""
    expected = calls["nn.RNN"]()
    wrong = [name for name, call in calls.items()
             if name != NO_NUMBERS and not agree(case, call(), expected)]  # fmt: skip
    if wrong:
        raise RuntimeError(f"{case}: {', '.join(wrong)} differ from nn.RNN, nothing was timed")


def _calls_per_round(timer: Timer, seconds: float) -> int:
    once = timer.timeit(2).mean
    return max(1, round(seconds / ROUNDS / once))


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
