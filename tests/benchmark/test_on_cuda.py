r"""What the benchmark does on a GPU, with a CPU in its place and a clock that is no clock."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from manual_rnn.benchmark import __main__, contenders, cuda, tables, timing
from manual_rnn.benchmark.cases import CUDA_CASES, Case

CASES = [
    Case(5, 3, 4, 6), Case(6, 3, 4, 6, 2, True, shortest=2), Case(5, 3, 4, 6, members=3),
    Case(1, 1, 4, 6),  # whose gradient of W_hh is 0
]  # fmt: skip
EACH_CASE = pytest.mark.parametrize("case", CASES, ids=str)
SECONDS = {"nn.RNN": 6.0, "aten": 3.0, "triton": 1.5, "torch": 4.0}


def no_clock(call: Any, seconds: float) -> Any:
    return lambda: float(call() is not None)


def measured(case: Case, precision: str, mode: str) -> timing.Row:
    return timing.measure(case, precision, mode, cuda.NAMES, 0.0, no_clock)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so_in_a_sentence() -> None:
    with pytest.raises(SystemExit, match=r"^--device cuda: expected a CUDA device, torch \S+ sees none$"):
        __main__.main(["--device", "cuda"])


@EACH_CASE
@pytest.mark.parametrize("mode", list(timing.MODES))
@pytest.mark.parametrize("precision", list(timing.PRECISIONS))
def test_every_contender_is_right_or_tells_why_not(case: Case, precision: str, mode: str) -> None:
    row = measured(case, precision, mode)
    able = {"nn.RNN", "torch"}
    able |= {"aten"} if case.members == 1 else set()
    assert set(row["seconds"]) == set(row["errors"]) == able
    assert set(row["absent"]) == set(cuda.NAMES) - able
    assert "can't run here" in row["absent"]["triton"]
    assert max(row["errors"].values()) < timing.PRECISIONS[precision][2]
    assert row["errors"]["torch"] > 0 or precision == "float64"
    assert json.loads(json.dumps(row)) == row


def test_who_is_wrong_or_raises_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = contenders.CONTENDERS["torch"]

    def wrong(case: Case, training: bool) -> Any:
        call: Any = right(case, training)
        return lambda: (*call()[:-1], call()[-1] * 1.1)

    def not_a_number(case: Case, training: bool) -> Any:
        call: Any = right(case, training)
        return lambda: (*call()[:-1], call()[-1] * torch.nan)

    def raising(case: Case, training: bool) -> Any:
        return lambda: 1 / 0

    monkeypatch.setitem(contenders.CONTENDERS, "torch", wrong)
    monkeypatch.setitem(contenders.CONTENDERS, "triton", raising)
    monkeypatch.setitem(contenders.CONTENDERS, "aten", not_a_number)
    row = measured(CASES[0], "float32", "training step")
    assert row["absent"]["torch"] == "off by 1.0e-01"
    assert row["absent"]["triton"] == "ZeroDivisionError: division by zero"
    assert row["absent"]["aten"] == "off by nan"
    assert set(row["seconds"]) == {"nn.RNN"}


def test_they_take_turns_and_the_median_counts() -> None:
    order: list[str] = []
    readings = iter([1.0, 9.0, 2.0, 8.0, 3.0, 7.0, 90.0, 6.0, 4.0, 5.0])

    def reading(name: str) -> float:
        order.append(name)
        return next(readings)

    assert timing.medians_in_turns({name: partial(reading, name) for name in "ab"}, 0.0) == {
        "a": 3.0,
        "b": 7.0,
    }
    assert order == list("ab" * 5)


def test_exact_numbers_are_the_rounded_ones() -> None:
    case = replace(CASES[0], dtype=torch.bfloat16)
    for ours, exact in zip(case.network().parameters(), case.exact().network().parameters(), strict=True):
        assert exact.dtype == torch.float64
        assert torch.equal(ours.double(), exact)
    assert torch.equal(case.input().double(), case.exact().input())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A run with a CPU for a card, and the lines that it leaves."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "card", lambda: {"card": "none"})
    monkeypatch.setattr(cuda, "CUDA_CASES", CASES[:2])
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "cuda_clock", no_clock)

    def lines(limit: str) -> list[dict[str, Any]]:
        file = tmp_path / "lines.jsonl"
        command = ["--device", "cuda", "--seconds", "0.0001", "--limit", limit, "--json", str(file)]
        __main__.main(command)
        return [json.loads(line) for line in file.read_text().splitlines()]

    return lines


def test_a_run_leaves_a_line_for_each(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first, *rows = run("450")
    assert first == {"card": "none"}
    assert len(rows) == 2 * 4 * len(timing.MODES)
    printed = capsys.readouterr().out
    assert printed.count("| (5, 3, 4, 6) |") == len(rows) // 2 + 4


def test_a_run_ends_when_its_time_is_up(run: Any) -> None:
    assert run("0")[1:] == [{"stopped": "after 0 s", "left": 16}]


def test_the_card_s_cases_have_what_is_asked_of_them() -> None:
    assert {case.members for case in CUDA_CASES} == {1, 8, 64}
    assert sum(case.shortest is not None for case in CUDA_CASES) == 4
    assert {case.H for case in CUDA_CASES} >= {32, 64, 128, 256, 384, 512, 1024}


def test_the_default_is_chosen_from_a_table() -> None:
    both = [{"case": "a", "precision": "tf32", "mode": mode, "seconds": SECONDS} for mode in timing.MODES]
    slow = {**both[0], "case": "b", "seconds": {"nn.RNN": 1.0, "torch": 2.0}}
    none = {**both[0], "case": "c", "seconds": {}}
    lines = list(tables.choices([*both, slow, none]))
    assert lines[2:] == [
        "| a | tf32 | aten | 2.00 | triton | 4.00 |",
        "| b | tf32 | torch | 0.50 | nn.RNN | 1.00 |",
    ]
    assert list(tables.table(cuda.NAMES, [both[0], none]))[2:] == [
        "| a | 6,000,000 us | 2.00 | 4.00 | 1.50 |",
        "| geometric mean | | 2.00 | 4.00 | 1.50 |",
    ]


def test_a_run_on_a_cpu_says_who_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    file = tmp_path / "lines.jsonl"
    names = ["default", "triton", "limit"]
    __main__.main(["--quick", "--seconds", "0.0001", "--json", str(file), "--contenders", *names])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 6
    assert all(row["seconds"].keys() == {"nn.RNN", "default", "limit"} for row in rows)
    printed = capsys.readouterr().out
    assert printed.count("| (T, B, I, H) | nn.RNN | default | triton | limit | of the peak |\n") == 2
    assert "left out:\n  triton: RuntimeError: kernel 'triton' can't run here" in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--threads 0", "expected 1 to 1024 threads, got 0"),
        ("--threads 1 2000", "expected 1 to 1024 threads, got 2000"),
        ("--threads x", "invalid thread_count value: 'x'"),
        ("--json nowhere/rows.json", "No such file or directory: 'nowhere/rows.json'"),
    ],
)
def test_what_it_cannot_do_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], options: str, words: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        __main__.main(options.split())
    assert exit.value.code == 2
    assert words in capsys.readouterr().err
