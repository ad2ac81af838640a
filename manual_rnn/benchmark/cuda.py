r"""`python -m manual_rnn.benchmark --device cuda [--quick] [--json FILE] [--limit 450]`: a card is measured.

Each result is a line of JSON as soon as it is known, so that a run that breaks off keeps what it has. Then
come the tables, and the one from which the default is to choose.
"""

import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from .cases import CUDA_CASES, QUICK_CASES
from .contenders import BUILTIN
from .tables import choices, keep, table
from .timing import MODES, PRECISIONS, Row, cuda_clock, measure

DEVICE = "cuda"
NAMES = [BUILTIN, "aten", "triton", "torch"]


def run(quick: bool, seconds: float, limit: float, file: Path | None) -> None:
    """Measure, until all is known or `limit` seconds are over, and print what came out.

    Raises:
        SystemExit: where torch sees no card.
    """
    if not torch.cuda.is_available():
        raise SystemExit(f"--device cuda: expected a CUDA device, torch {torch.__version__} sees none")
    begun, rows = time.monotonic(), []
    cases = [replace(case, device=DEVICE) for case in (QUICK_CASES if quick else CUDA_CASES)]
    todo = list(product(cases, [name for name in PRECISIONS if name != "float64"], MODES))
    print(keep(card(), file), flush=True)
    for at, (case, precision, mode) in enumerate(todo):
        if time.monotonic() - begun > limit:
            print(keep({"stopped": f"after {limit:.0f} s", "left": len(todo) - at}, file), flush=True)
            break
        rows.append(measure(case, precision, mode, NAMES, seconds, cuda_clock))
        print(keep(rows[-1], file), flush=True)
    for precision, mode in dict.fromkeys((row["precision"], row["mode"]) for row in rows):
        those = [row for row in rows if (row["precision"], row["mode"]) == (precision, mode)]
        print("\n".join(["", f"{mode}, {precision}", "", *table(NAMES, those)]))
    print("\n".join(["", *choices(rows)]), flush=True)


def card() -> Row:
    """On what, with which versions."""
    return {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
