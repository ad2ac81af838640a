r"""`python -m manual_rnn.benchmark --device cuda [--quick] [--json FILE] [--limit 450]`: a card is measured.

For each case, precision and mode every contender's output, or in training every gradient, is compared with
`nn.RNN` in float64; those that are right are timed in turns by the card's clock. Each result is a line of
JSON as soon as it is known, so that a run that breaks off keeps what it has. Then come tables of ratios
`nn.RNN` / contender, and the one from which the default is to choose.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from .cases import CUDA_CASES, QUICK_CASES, Case
from .contenders import Call
from .cuda_contenders import BUILTIN, CONTENDERS, seconds_on_the_card
from .cuda_tables import Row, choices, tables
from .timing import medians_in_turns

__all__ = ["Clock", "measure", "run"]

Clock = Callable[[Call], float]  # seconds of one call
# By name a dtype, whether cuDNN may multiply float32 in tf32, and how far off anyone may be.
PRECISIONS: dict[str, tuple[torch.dtype, bool, float]] = {
    "tf32": (torch.float32, True, 5e-3),
    "float32": (torch.float32, False, 1e-5),
    "float16": (torch.float16, True, 1e-2),
    "bfloat16": (torch.bfloat16, True, 5e-2),
}
DEVICE = "cuda"
MODES = {"forward": False, "training step": True}
AT_LEAST = 5  # rounds


def run(quick: bool, seconds: float, limit: float, file: Path | None) -> None:
    """Measure, until all is known or `limit` seconds are over, and print what came out.

    Raises:
        SystemExit: where torch sees no card.
    """
    if not torch.cuda.is_available():
        raise SystemExit(f"--device cuda: expected a CUDA device, torch {torch.__version__} sees none")
    begun, rows = time.monotonic(), []
    cases = [replace(case, device=DEVICE) for case in (QUICK_CASES if quick else CUDA_CASES)]
    todo = list(product(cases, PRECISIONS, MODES))
    tell(card(), file)
    for at, (case, precision, mode) in enumerate(todo):
        if time.monotonic() - begun > limit:
            tell({"stopped": f"after {limit:.0f} s", "left": len(todo) - at}, file)
            break
        rows.append(measure(case, precision, mode, seconds, seconds_on_the_card))
        tell(rows[-1], file)
    print("\n".join([*tables(rows), "", *choices(rows)]), flush=True)


def tell(line: Row, file: Path | None) -> None:
    """A line of JSON, printed and kept."""
    text = json.dumps(line)
    print(text, flush=True)
    if file:
        with file.open("a") as kept:
            kept.write(text + "\n")


def card() -> Row:
    """On what, with which versions."""
    return {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def measure(case: Case, precision: str, mode: str, seconds: float, clock: Clock) -> Row:
    """Errors of all contenders, seconds of those that are right, and why the others have none."""
    dtype, tf32, bound = PRECISIONS[precision]
    case, training = replace(case, dtype=dtype), MODES[mode]
    calls: dict[str, Call] = {}
    errors: dict[str, float] = {}
    absent: dict[str, str] = {}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
        expected = results(CONTENDERS[BUILTIN](case.exact(), training))
        for name, contender in CONTENDERS.items():
            call = contender(case, training)
            off = call if isinstance(call, str) else attempt(call, expected)
            if isinstance(call, str) or isinstance(off, str):
                absent[name] = str(off)
                continue
            errors[name] = off
            if off <= max(bound, 4 * errors.get(BUILTIN, 0.0)):
                calls[name] = call
            else:
                absent[name] = f"off by {off:.1e}"
        found = in_turns(calls, seconds, clock) if BUILTIN in calls else {}
    row = {"case": str(case), "precision": precision, "mode": mode}
    return {**row, "seconds": found, "errors": errors, "absent": absent}


def results(call: Any) -> list[torch.Tensor]:
    """What a call returns, in float64."""
    found = call()
    return [x.double() for x in (found if isinstance(found, tuple) else (found,))]


def attempt(call: Call, expected: list[torch.Tensor]) -> float | str:
    """The largest relative error of any of its results, or why there are none."""
    try:
        pairs = zip(results(call), expected, strict=True)
        return torch.stack([(found - exact).norm() / exact.norm() for found, exact in pairs]).max().item()
    except Exception as problem:  # of a kernel, a compiler, a card: the others go on
        return f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"


def in_turns(calls: dict[str, Call], seconds: float, clock: Clock) -> dict[str, float]:
    """The median of each by this clock, once all are warm."""
    for call in calls.values():
        call()
    once = {name: partial(clock, call) for name, call in calls.items()}
    return medians_in_turns(once, seconds * len(calls), AT_LEAST)
