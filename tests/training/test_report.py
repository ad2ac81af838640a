"""The record of a run, its verdict and its pictures."""

from math import inf, nan
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from training.compare import Comparison
from training.curves import draw_run, draw_sweep, mean_over_seeds, stretches
from training.datamodule import Task
from training.report import LOSS, NAMES, Record, show, widen
from training.tasks import Adding, Parity


def comparison(parting: float, absolute: float = 1e-7, loss: float = 0.0) -> Comparison:
    return Comparison({"w": absolute}, {"w": absolute}, {"w": parting}, loss)


def recorded(*partings: float, **options: Any) -> Record:
    record = Record(**options)
    for step, parting in enumerate(partings, 1):
        record.note_comparison(step, comparison(parting))
        record.note_step(step, {"builtin": 1.0, "manual": 1.0})
    return record


def test_the_sentence_says_what_was_shown() -> None:
    said = (
        "3 steps, 1 parameter: every gradient equal to nn.RNN's to round-off; the largest difference is 1.8"
    )
    assert recorded(0.5, 1.8, 0.1).sentence() == f"{said} in units of round-off"
    record = recorded(0.5)
    record.note_step(2, {"builtin": 1.0, "manual": 1.0})
    assert record.sentence().startswith("1 step of 2, 1 parameter: ")
    assert Record().sentence() == "no gradients were compared"


def test_the_first_step_past_the_tolerance_is_the_failure() -> None:
    record = recorded(1.0, 16.5, 99.0)
    assert record.failure == "the gradient of w parted by more than the tolerance of 16 at step 2"
    assert record.sentence() == f"FAILED: {record.failure}"
    assert recorded(16.0).failure is None
    assert "at step 2" in (recorded(1.0, nan).failure or "")


def test_of_several_parameters_the_first_to_part_is_named() -> None:
    record = Record()
    for step, partings in enumerate([{"a": 1.0, "b": 99.0, "c": 1.0}, {"a": 99.0, "b": 99.0, "c": 99.0}], 1):
        record.note_comparison(step, Comparison(partings, partings, partings, 0.0))
    assert record.failure == "the gradient of b parted by more than the tolerance of 16 at step 1"
    assert [record.first_past(name) for name in record.partings] == [2, 1, 2]


def test_nan_is_worse_than_anything() -> None:
    for values in ((1.0, nan), (nan, 1.0), (nan, inf)):
        kept: dict[str, float] = {}
        for value in values:
            widen(kept, {"w": value})
        assert str(kept) == "{'w': nan}"
    kept = {"a": 2.0}
    widen(kept, {"a": 1.0, "b": 0.0})
    assert kept == {"a": 2.0, "b": 0.0}
    assert recorded(nan, 1.0).largest_parting == inf


def test_a_parameter_that_was_left_out_at_a_step_is_not_past_the_tolerance() -> None:
    record = recorded(1.0)
    record.note_comparison(2, Comparison({"v": 1.0}, {"v": 1.0}, {"v": 2.0}, 0.0))
    assert record.failure is None
    assert record.largest_parting == 2


def test_equal_is_bitwise_where_gradients_losses_and_paths_all_are() -> None:
    def equal() -> Record:
        record = Record()
        record.note_comparison(1, comparison(0.0, 0.0))
        record.note_step(1, {"builtin": 1.0, "manual": 1.0}, {"w": 0.0})
        return record

    assert equal().bitwise_equal
    assert "bitwise equal" in equal().sentence()
    for note in (
        lambda record: record.note_comparison(2, comparison(0.1)),
        lambda record: record.note_comparison(2, comparison(0.0, 0.0, loss=1e-9)),
        lambda record: record.note_step(2, {"builtin": 1.0, "manual": 1.0 + 1e-9}),
        lambda record: record.note_step(2, {}, {"w": 1e-9}),
    ):
        record = equal()
        note(record)
        assert not record.bitwise_equal
        assert "bitwise equal" not in record.sentence()


def test_after_a_divergence_paths_are_compared_no_more() -> None:
    record = recorded(1.0)
    record.note_step(2, {"builtin": inf, "manual": nan}, {"w": nan})
    record.note_step(3, {"builtin": 1.0, "manual": 2.0})
    assert record.drift == {LOSS: 0.0}
    assert record.divergence == "nn.RNN diverged at step 2 and ManualRNN diverged at step 2"
    assert record.sentence().startswith(f"{record.divergence}; before that 1 step of 3")
    del record.diverged["manual"]
    assert record.divergence == "nn.RNN diverged at step 2"


def test_a_record_is_the_same_after_a_checkpoint(tmp_path: Path) -> None:
    record = recorded(1.0, 17.0)
    record.note_scores(2, {"builtin": 0.5, "manual": 0.25})
    record.note_comparison(3, comparison(1.0, loss=0.125))
    record.note_step(3, {"builtin": 1.0, "manual": 1.5})
    record.note_step(4, {"builtin": inf, "manual": 1.0})
    assert (record.absolute[LOSS], record.drift[LOSS]) == (0.125, 0.5)
    torch.save(record.state_dict(), tmp_path / "record.pt")
    again = Record()
    again.load_state_dict(torch.load(tmp_path / "record.pt", weights_only=True))
    assert again == record
    assert again.failure == record.failure
    for tolerance, first in (2.0, 2), (99.0, None):  # steps are judged by the tolerance that is given anew
        anew = Record(tolerance)
        anew.load_state_dict(record.state_dict())
        assert anew.tolerance == tolerance
        assert anew.first_past("w") == first
    assert all(isinstance(step, int) for step in [*again.steps, *again.compared, *again.validated])


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ((0.001, 0.002), "Adding: solved after 1 steps, mse of nn.RNN 0.001, ManualRNN 0.002; chance"),
        ((0.001, 0.5), "Adding: not solved yet after 1 steps, mse of nn.RNN 0.001, ManualRNN 0.5; chance"),
        ((), "Adding: not solved yet after 1 steps, no validation yet; chance 0.1667, solved at 0.0064"),
    ],
)
def test_a_task_is_solved_where_both_twins_do_it(
    capsys: pytest.CaptureFixture[str], scores: tuple[float, ...], said: str
) -> None:
    record = recorded(1.0)
    if scores:
        record.note_scores(1, dict(zip(NAMES, scores, strict=True)))
    show(record, Adding())
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_value_that_is_missing_is_nan() -> None:
    record = Record()
    record.note_scores(1, {"builtin": 1.0})
    record.note_scores(2, {"manual": 3.0})
    assert [str(values) for values in record.scores.values()] == ["[1.0, nan]", "[nan, 3.0]"]


def test_stretches_keep_the_largest_and_the_last_step() -> None:
    steps, largest = stretches(list(range(1, 241)), [float(i % 7) for i in range(240)], max)
    assert (len(steps), steps[-1]) == (120, 240)
    assert largest.max() == 6


def curves_in(monkeypatch: pytest.MonkeyPatch, draw: Any) -> Figure:
    """The figure that is saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, dpi: figures.append(self))
    draw()
    return figures[0]


def test_the_picture_shows_losses_scores_and_partings(monkeypatch: pytest.MonkeyPatch) -> None:
    record = recorded(1.0, 2.0, 0.0)  # which a log axis has not
    record.note_scores(3, {"builtin": 0.5, "manual": 0.25})
    figure = curves_in(monkeypatch, lambda: draw_run(record, Adding(), Path("x.png")))
    losses, scores, partings = figure.axes
    assert [line.get_label() for line in losses.get_lines()] == ["nn.RNN", "ManualRNN"]
    assert [line.get_label() for line in scores.get_lines()][2:] == ["chance: 0.167", "solved: 0.0064"]
    np.testing.assert_array_equal(partings.get_lines()[0].get_ydata(), [1.0, 2.0, nan])
    assert partings.get_lines()[1].get_label() == "tolerance: 16"


@pytest.mark.parametrize(("task", "scale"), [(Adding(), "log"), (Parity(), "linear")])
def test_an_error_falls_on_a_log_axis_and_an_accuracy_rises_on_a_linear_one(
    monkeypatch: pytest.MonkeyPatch, task: Task, scale: str
) -> None:
    record = recorded(1.0)
    record.note_scores(1, {"builtin": 0.5, "manual": 0.25})
    scores = curves_in(monkeypatch, lambda: draw_run(record, task, Path("x.png"))).axes[1]
    assert scores.get_yscale() == scale


def test_a_picture_of_equal_gradients_says_so(tmp_path: Path) -> None:
    record = Record()
    record.note_comparison(1, comparison(0.0, 0.0))
    draw_run(record, Adding(), tmp_path / "run.png")
    assert matplotlib.image.imread(tmp_path / "run.png").shape[:2] == (1140, 1080)


def validated(*scores: float) -> Record:
    record = Record()
    for number, score in enumerate(scores, 1):
        record.note_scores(10 * number, {"builtin": score, "manual": score})
    return record


def test_a_sweep_is_averaged_over_seeds_and_seen_after_one_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = [("H 4", validated(0.2)), ("H 4", validated(0.4)), ("H 8", validated(0.9))]
    axes = curves_in(monkeypatch, lambda: draw_sweep(runs, "accuracy", Path("x.png"))).axes[0]
    labelled = {str(line.get_label()): line for line in axes.get_lines()}
    mean = labelled["H 4, mean of 2 seeds"]
    assert mean.get_ydata()[0] == pytest.approx(0.3)  # type: ignore[index]
    assert "H 8" in labelled
    assert axes.get_ylabel() == "validation accuracy"
    assert all(line.get_marker() not in ("None", None) for line in axes.get_lines())


def test_in_the_mean_a_run_that_ended_keeps_its_last_score() -> None:
    late = Record()
    late.note_scores(20, {"manual": 5.0})
    assert mean_over_seeds([validated(1.0, 3.0), validated(3.0)]) == ([10, 20], [2.0, 3.0])
    assert mean_over_seeds([validated(1.0, 3.0), late]) == ([20], [4.0])
    assert mean_over_seeds([validated(1.0), Record()]) == ([10], [1.0])
    assert mean_over_seeds([Record()]) == ([], [])
