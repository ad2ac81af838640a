r"""What a run on a GPU comes to: ratios `nn.RNN` / contender, and the table from which a default is chosen.

A row is what `cuda.measure` returns, and a line of JSON as well.
"""

from collections.abc import Iterator
from typing import Any

from .cuda_contenders import ATEN, BUILTIN, CONTENDERS
from .timing import geometric_mean

__all__ = ["Row", "choices", "tables"]

Row = dict[str, Any]
OTHERS = [name for name in CONTENDERS if name != BUILTIN]
DEFAULT = (ATEN, "triton", "torch")  # the first that can is the default


def ratios(row: Row) -> dict[str, float]:
    """How many times as fast as `nn.RNN` each is."""
    return {name: row["seconds"][BUILTIN] / seconds for name, seconds in row["seconds"].items()}


def tables(rows: list[Row]) -> Iterator[str]:
    """A table for each precision and mode, in it a line for each case that was timed."""
    for precision, mode in dict.fromkeys((row["precision"], row["mode"]) for row in rows):
        yield from ("", f"{mode}, {precision}", "", f"| (T, B, I, H) | {BUILTIN} | {' | '.join(OTHERS)} |")
        yield "|:--|" + "--:|" * len(CONTENDERS)
        for row in rows:
            if (row["precision"], row["mode"]) == (precision, mode) and row["seconds"]:
                times = ratios(row)
                cells = [f"{times[name]:.2f}" if name in times else "" for name in OTHERS]
                yield f"| {row['case']} | {row['seconds'][BUILTIN] * 1e6:,.0f} us | {' | '.join(cells)} |"


def choices(rows: list[Row]) -> Iterator[str]:
    """By case and precision the default and the fastest, in a forward and a training step together."""
    yield "| (T, B, I, H) | precision | default | times as fast | fastest | times as fast |"
    yield "|:--|:--|:--|--:|:--|--:|"
    for case, precision in dict.fromkeys((row["case"], row["precision"]) for row in rows):
        times = _means([row for row in rows if (row["case"], row["precision"]) == (case, precision)])
        default = next((name for name in DEFAULT if name in times), None)
        if default is None:
            continue
        best = max(times, key=lambda name: times[name])
        yield f"| {case} | {precision} | {default} | {times[default]:.2f} | {best} | {times[best]:.2f} |"


def _means(rows: list[Row]) -> dict[str, float]:
    """Of those that were timed in every row, the geometric mean of their ratios."""
    each = [ratios(row) for row in rows]
    return {n: geometric_mean([r[n] for r in each]) for n in CONTENDERS if all(n in r for r in each)}
