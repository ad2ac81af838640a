"""Several runs one after the other: their table, their picture and the exit code."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import SMALL, WARNINGS, CommandLine, last, weights

import training.commands
from training.cli import Laboratory
from training.commands import Outcome, combinations, show
from training.report import Record

pytestmark = WARNINGS
TINY = [*SMALL[1:], "--trainer.max_epochs=1", "--data.train_batches=2"]


def swept(cli: CommandLine, *options: str) -> tuple[int | str | None, list[dict[str, str]]]:
    with pytest.raises(SystemExit) as exit:
        cli("sweep", *TINY, *options, small=[])
    table = Path("runs") / "sweeps" / "version_0" / "table.csv"
    return exit.value.code, list(csv.DictReader(table.read_text().splitlines()))


def test_a_sweep_ends_with_a_table_and_a_picture(cli: CommandLine) -> None:
    code, rows = swept(cli, "--seeds", "0", "1", "--model.hidden_size", "4", "5")
    assert code == 0
    assert [(row["seed"], row["hidden_size"]) for row in rows] == [
        ("0", "4"),
        ("0", "5"),
        ("1", "4"),
        ("1", "5"),
    ]
    assert {row["verdict"] for row in rows} == {"sound"}
    assert {row["steps"] for row in rows} == {"2"}
    assert len({row["ManualRNN"] for row in rows}) == 4
    assert weights(Path("runs") / "Adding" / rows[1]["run"])["manual.rnn.weight_hh_l0"].shape == (5, 5)
    assert (Path("runs") / "sweeps" / "version_0" / "sweep.png").stat().st_size > 10_000


def test_a_run_of_a_sweep_is_the_run_alone(cli: CommandLine) -> None:
    _, rows = swept(cli, "--seeds", "0", "1")
    cli("fit", *TINY, "--seed_everything=1", "--trainer.enable_progress_bar=false", "--name=alone", small=[])
    a, b = (weights(Path("runs") / "Adding" / name) for name in (rows[1]["run"], "alone"))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_the_exit_code_is_that_of_the_first_run_that_was_not_sound(cli: CommandLine) -> None:
    code, rows = swept(cli, "--compare.tolerance", "16", "0", "--model.kernel=torch")
    assert code == 1
    assert [row["verdict"] for row in rows] == ["sound", "FAILED"]


@pytest.mark.parametrize(
    ("ends", "code", "count"),
    [
        (lambda: None, 0, 2),
        (lambda: exec("raise SystemExit(143)"), 143, 1),
        (lambda: exec("raise KeyboardInterrupt"), 130, 1),
        (lambda: exec("raise OSError(28, 'No space left on device')"), 1, 2),
        (lambda: exec("raise KeyError('of a task of ones own')"), 1, 2),
    ],
)
def test_a_run_that_was_stopped_ends_the_sweep(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, ends: Callable[[], None], code: int, count: int
) -> None:
    monkeypatch.setattr(Laboratory, "start", lambda run: ends())
    found, rows = swept(cli, "--seeds", "0", "1")
    assert found == code
    assert len(rows) == count
    assert rows[0]["verdict"] == {0: "sound", 1: "FAILED"}.get(code, "stopped")


def test_a_sweep_without_a_validation_has_no_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show([Outcome({"seed": "0"}, 0, tmp_path / "none", "mse", Record())], tmp_path)
    assert "picture: none, for no run came to a validation" in capsys.readouterr().out
    assert (tmp_path / "table.csv").is_file()
    assert not (tmp_path / "sweep.png").exists()


def test_options_with_several_values_are_combined() -> None:
    common, own, name = combinations(
        ["--seeds=0", "--data", "Adding", "--a.b", "1", "2", "--name", "n", "-c", "p"]
    )
    assert common == ["--seed_everything=0", "--data=Adding", "--config=p"]
    assert own == [{"--a.b": "1"}, {"--a.b": "2"}]
    assert name == "n"


def test_the_picture_averages_over_the_seeds_of_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    record, drawn = Record(), []
    record.note_scores(1, {"builtin": 1.0, "manual": 1.0})
    monkeypatch.setattr(
        training.commands, "draw_sweep", lambda runs, metric, path: drawn.append((runs, metric))
    )
    settings = [{"seed": seed, "hidden_size": "4"} for seed in "01"]
    show([Outcome(own, 0, tmp_path, "accuracy", record) for own in settings], tmp_path)
    assert drawn == [([("hidden_size 4", record)] * 2, "accuracy")]


def test_a_swept_config_is_taken(cli: CommandLine) -> None:
    Path("c.yaml").write_text("optimizer:\n  class_path: SGD\n  init_args:\n    lr: 0.1")
    swept(cli, "--config=c.yaml", "--seeds", "0", "1")
    assert "SGD" in last(Path("runs") / "Adding" / "sweep_0_run_0")["settings"]["optimizer"]["class_path"]
