r"""`python -m manual_rnn.benchmark [--quick] [--grid] [--dtype float64] [--threads 1 2] [--plot FOLDER]`,
or `python -m manual_rnn.benchmark --device cuda [--quick] [--json FILE] [--limit 450]` (`cuda.py`)

Every contender runs the same weights on the same input, and before it is timed its output, or in training
every gradient, is compared with that of `nn.RNN` in float64. The tables have the median time of `nn.RNN` and
ratios `nn.RNN` / contender: above 1 where the contender is faster. The limit is the processor's peak: as
many multiply-adds as all projections and recurrences have, in training three times as many, of registers
alone. The last column has the default's share of that.
"""

import argparse
import datetime
import multiprocessing
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from . import cuda
from .cases import ALL_CASES, GRID_CASES, MEMORY_CASE, QUICK_CASES, Case
from .contenders import BUILTIN, CONTENDERS
from .tables import keep, table
from .timing import MODES, Row, cpu_clock, measure, peak_memory

KERNELS: list[str] = ["native", "torch"]
DTYPES = ("float32", "float64", "bfloat16", "float16")


def main(arguments: list[str] | None = None) -> None:
    """Print the machine, one table for each mode and number of threads, who was left out, and the memory."""
    options = _parser().parse_args(arguments)
    if options.device == "cuda":
        cuda.run(options.quick, options.seconds or 0.04, options.limit, options.json)
        return
    options.seconds = options.seconds or (0.1 if options.quick else 1.0)
    options.names = [BUILTIN, *(name for name in options.contenders if name != BUILTIN)]
    print(machine())
    rows: list[Row] = []
    for threads in options.threads or ([1] if options.quick else [1, 2]):
        torch.set_num_threads(threads)
        for mode in MODES:
            print(f"\n{mode}, threads: {threads}\n")
            for line in table(options.names, _measured(options, mode, rows)):
                print(line, flush=True)
    print_absent(rows)
    if not (options.quick or options.grid):
        print_memory(MEMORY_CASE)
    if options.plot:
        from .plots import plot_ratio_by_hidden_size, plot_time_by_steps

        for plot in (plot_ratio_by_hidden_size, plot_time_by_steps):
            print(f"wrote {plot(options.plot, options.seconds, options.quick)}", flush=True)


def _measured(options: argparse.Namespace, mode: str, rows: list[Row]) -> Iterator[Row]:
    """A row for each case, once it has been added to all rows and to the file."""
    for case in GRID_CASES if options.grid else QUICK_CASES if options.quick else ALL_CASES:
        row = measure(case, options.dtype, mode, options.names, options.seconds, cpu_clock)
        rows.append({**row, "threads": torch.get_num_threads(), "machine": machine()})
        keep(rows[-1], options.json)
        yield row


def machine() -> str:
    """When, on what, with which torch."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    cores = multiprocessing.cpu_count()
    return f"{datetime.date.today()}, {cpu}, {cores} cores, torch {torch.__version__}"


def print_absent(rows: Sequence[Row]) -> None:
    """Why cells of the tables are empty."""
    absent = dict.fromkeys(pair for row in rows for pair in row["absent"].items())
    print("\nleft out:" if absent else "")
    for name, reason in absent:
        print(f"  {name}: {reason}")


def print_memory(case: Case) -> None:
    """The peak of a training step above input and weights, each in a fresh process."""
    peaks = peak_memory(case, list(KERNELS))
    print(f"\npeak memory of a training step at {case}, in a fresh process of its own each:")
    for name, peak in peaks.items():
        print(f"  {name:8} {peak:7.0f} MiB, {peak / peaks['nn.RNN']:.2f} of nn.RNN's")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m manual_rnn.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    parser.add_argument("--limit", type=float, default=450, help="on a GPU: seconds after which to stop")
    parser.add_argument("--quick", action="store_true", help="three cases, no memory, fewer points")
    parser.add_argument("--grid", action="store_true", help="few steps of few rows, to H = 4096; no memory")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")
    parser.add_argument("--threads", type=thread_count, nargs="+", help="default: 1 2, or 1 if quick")
    parser.add_argument("--seconds", type=float, help="per case and contender, default: 1, or 0.1 if quick")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--plot", metavar="FOLDER", type=Path, help="write pictures there")
    parser.add_argument("--json", metavar="FILE", type=writable_file, help="add every row to it as it comes")
    return parser


def thread_count(given: str) -> int:
    if not 1 <= int(given) <= 1024:
        raise argparse.ArgumentTypeError(f"expected 1 to 1024 threads, got {given}")
    return int(given)


def writable_file(given: str) -> Path:
    """The file to which rows can be added: where they can't, nothing is measured."""
    try:
        Path(given).open("a").close()
    except OSError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None
    return Path(given)


if __name__ == "__main__":
    main()
