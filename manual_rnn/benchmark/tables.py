r"""What rows come to: ratios `nn.RNN` / contender, and the table from which a default is chosen.

A row is what `timing.measure` returns, and a line of JSON as well.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import geometric_mean

from .contenders import BUILTIN
from .timing import Row

DEFAULT = ("aten", "triton", "torch")  # on a GPU: the first that can is the default


def keep(row: Row, file: Path | None) -> str:
    """The row as a line of JSON, once the file, if there is one, has it: what was measured stays."""
    text = json.dumps(row)
    if file:
        with file.open("a") as kept:
            kept.write(text + "\n")
    return text


def ratios(row: Row) -> dict[str, float]:
    """How many times as fast as `nn.RNN` each is."""
    return {name: row["seconds"][BUILTIN] / seconds for name, seconds in row["seconds"].items()}


def table(names: Sequence[str], rows: Iterable[Row]) -> Iterator[str]:
    """A line for each row that has been timed, as it comes, then the geometric mean of each column. The last
    column is the share of the processor's peak that the default has."""
    others = [name for name in names if name != BUILTIN]
    peak = {"limit", "default"} <= set(others)
    yield f"| (T, B, I, H) | {BUILTIN} | {' | '.join(others)} |" + " of the peak |" * peak
    yield "|:--|" + "--:|" * (1 + len(others) + peak)
    timed: list[dict[str, float]] = []
    for row in rows:
        if not row["seconds"]:
            continue
        timed.append(times := ratios(row))
        cells = [f"{times[name]:.2f}" if name in times else "" for name in others]
        if peak:
            share = times.keys() >= {"limit", "default"}
            cells.append(f"{times['default'] / times['limit']:.2f}" if share else "")
        yield f"| {row['case']} | {row['seconds'][BUILTIN] * 1e6:,.0f} us | {' | '.join(cells)} |"
    columns = [[times[name] for times in timed if name in times] for name in others]
    cells = [f"{geometric_mean(column):.2f}" if column else "" for column in columns] + [""] * peak
    yield f"| geometric mean | | {' | '.join(cells)} |"


def choices(rows: Sequence[Row]) -> Iterator[str]:
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


def _means(rows: Sequence[Row]) -> dict[str, float]:
    """Of those that were timed in every row, the geometric mean of their ratios."""
    first, *others = [ratios(row) for row in rows]
    names = [name for name in first if all(name in each for each in others)]
    return {name: geometric_mean([first[name], *(each[name] for each in others)]) for name in names}
