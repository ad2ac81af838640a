r"""What the benchmark does on a GPU, with a CPU in its place and a clock that is no clock."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from manual_rnn.benchmark import __main__, cuda, cuda_contenders, cuda_tables
from manual_rnn.benchmark.cases import CUDA_CASES, Case

CASES = [Case(5, 3, 4, 6), Case(6, 3, 4, 6, 2, True, shortest=2), Case(5, 3, 4, 6, members=3)]
EACH_CASE = pytest.mark.parametrize("case", CASES, ids=str)
SECONDS = {"nn.RNN": 6.0, "aten": 3.0, "triton": 1.5, "torch": 4.0}


def no_clock(call: Any) -> float:
    call()
    return 1.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so_in_a_sentence() -> None:
    with pytest.raises(SystemExit, match=r"^--device cuda: expected a CUDA device, torch \S+ sees none$"):
        __main__.main(["--device", "cuda"])


@EACH_CASE
@pytest.mark.parametrize("mode", list(cuda.MODES))
@pytest.mark.parametrize("precision", list(cuda.PRECISIONS))
def test_every_contender_is_right_or_tells_why_not(case: Case, precision: str, mode: str) -> None:
    row = cuda.measure(case, precision, mode, 0.0, no_clock)
    able = {"nn.RNN", "torch"}
    able |= {"aten"} if case.members == 1 else set()
    assert set(row["seconds"]) == set(row["errors"]) == able
    assert set(row["absent"]) == set(cuda_contenders.CONTENDERS) - able
    assert "can't run here" in row["absent"]["triton"]
    assert max(row["errors"].values()) < cuda.PRECISIONS[precision][2]
    assert row["errors"]["torch"] > 0
    assert json.loads(json.dumps(row)) == row


def test_who_is_wrong_or_raises_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cuda_contenders.CONTENDERS["torch"]

    def wrong(case: Case, training: bool) -> Any:
        call: Any = right(case, training)
        return lambda: (*call()[:-1], call()[-1] * 1.1)

    def not_a_number(case: Case, training: bool) -> Any:
        call: Any = right(case, training)
        return lambda: (*call()[:-1], call()[-1] * torch.nan)

    def raising(case: Case, training: bool) -> Any:
        return lambda: 1 / 0

    monkeypatch.setitem(cuda_contenders.CONTENDERS, "torch", wrong)
    monkeypatch.setitem(cuda_contenders.CONTENDERS, "triton", raising)
    monkeypatch.setitem(cuda_contenders.CONTENDERS, "aten", not_a_number)
    row = cuda.measure(CASES[0], "float32", "training step", 0.0, no_clock)
    assert row["absent"]["torch"] == "off by 1.0e-01"
    assert row["absent"]["triton"] == "ZeroDivisionError: division by zero"
    assert row["absent"]["aten"] == "off by nan"
    assert set(row["seconds"]) == {"nn.RNN"}


def test_they_take_turns_and_the_median_counts() -> None:
    order: list[str] = []
    readings = iter([1.0, 9.0, 2.0, 8.0, 3.0, 7.0, 90.0, 6.0, 4.0, 5.0])

    def clock(call: Any) -> float:
        call()
        return next(readings)

    calls: dict[str, Any] = {name: partial(order.append, name) for name in "ab"}
    assert cuda.in_turns(calls, 0.0, clock) == {"a": 3.0, "b": 7.0}
    assert order == list("ab" * 6)  # the first to warm up


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
    monkeypatch.setattr(cuda, "seconds_on_the_card", no_clock)

    def lines(limit: str) -> list[dict[str, Any]]:
        file = tmp_path / "lines.jsonl"
        command = ["--device", "cuda", "--seconds", "0.0001", "--limit", limit, "--json", str(file)]
        __main__.main(command)
        return [json.loads(line) for line in file.read_text().splitlines()]

    return lines


def test_a_run_leaves_a_line_for_each(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first, *rows = run("450")
    assert first == {"card": "none"}
    assert len(rows) == 2 * len(cuda.PRECISIONS) * len(cuda.MODES)
    printed = capsys.readouterr().out
    assert printed.count("| (5, 3, 4, 6) |") == len(rows) // 2 + len(cuda.PRECISIONS)


def test_a_run_ends_when_its_time_is_up(run: Any) -> None:
    assert run("0")[1:] == [{"stopped": "after 0 s", "left": 16}]


def test_the_card_s_cases_have_what_is_asked_of_them() -> None:
    assert {case.members for case in CUDA_CASES} == {1, 8, 64}
    assert sum(case.shortest is not None for case in CUDA_CASES) == 4
    assert {case.H for case in CUDA_CASES} >= {32, 64, 128, 256, 384, 512, 1024}


def test_the_default_is_chosen_from_a_table() -> None:
    both = [{"case": "a", "precision": "tf32", "mode": mode, "seconds": SECONDS} for mode in cuda.MODES]
    slow = {**both[0], "case": "b", "seconds": {"nn.RNN": 1.0, "torch": 2.0}}
    none = {**both[0], "case": "c", "seconds": {}}
    lines = list(cuda_tables.choices([*both, slow, none]))
    assert lines[2:] == [
        "| a | tf32 | aten | 2.00 | triton | 4.00 |",
        "| b | tf32 | torch | 0.50 | nn.RNN | 1.00 |",
    ]
    assert "| a | 6,000,000 us | 2.00 | 4.00 | 1.50 |" in list(cuda_tables.tables([*both, none]))
