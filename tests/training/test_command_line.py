"""The command line: a usage error is a line or two, with what there is; a task of one's own; a sweep."""

import csv
import math
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from pytorch_lightning import Trainer
from pytorch_lightning.cli import ArgsType, LightningArgumentParser
from torch import nn
from training_runs import (
    QUIET,
    SMALL,
    WARNINGS,
    Train,
    assert_equal_weights,
    checkpoint,
    last,
    runs,
    started,
    wait_for,
    weights,
)

from manual_rnn import ManualRNN
from training import train as train_from_python
from training.__main__ import LABORATORY
from training.early import judge, parser_of
from training.options import UNFIT
from training.outcome import Run, show
from training.settling import Settled
from training.side_by_side import SideBySide
from training.tasks import Adding, Parity

pytestmark = WARNINGS

ECHO = """
import torch
from training.datamodule import Batch, Task


class Echo(Task):
    metric = "mse"
    input_size, output_size = 1, 1
    chance, solved = 1 / 12, 1e-3

    def sample(self, generator, count):
        numbers = torch.rand(count, 2 * self.length, 1, generator=generator)
        return Batch(numbers, numbers[:, : self.length])


class Half(Task):
    metric = "mse"
"""


@pytest.fixture
def train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Train]:
    monkeypatch.syspath_prepend(tmp_path)
    yield from runs(tmp_path, monkeypatch, capsys)
    sys.modules.pop("echo", None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("train", "expected a command, got train; did you mean fit?\nThere are fit, validate"),
        ("help", "expected a command, got help; did you mean --help?"),
        ("fit --data Addition", "got Addition; did you mean Adding?\nThere are Adding, CopyMemory"),
        ("fit --data nowhere.Task", "--data nowhere.Task: No module named 'nowhere'"),
        ("fit --data os.system", "expected --data to be a class derived from Task, got os.system"),
        ("fit --data echo.Half", "Half has no input_size, no output_size, no chance, no solved, no sample"),
        ("fit --data.symbols 3", "expected an option of Adding, got --data.symbols\nIt has length,"),
        ("fit --data.length x", "expected --data.length to be a whole number above 0, got x"),
        ("fit --data.seed -1", "expected --data.seed to be a whole number from 0 on or null, got -1"),
        ("fit --data Adding extra", "expected an option, got extra"),
        ("fit --model.hiden_size 3", "no option --model.hiden_size; did you mean --model.hidden_size?"),
        ("fit --model.hidden_size 0", "expected --model.hidden_size to be a whole number above 0, got 0"),
        ("fit --model.dropout 2", "expected --model.dropout to be a number from 0 to 1, got 2"),
        ("fit --model.init_from no.pt --model.nonlinearity tanh", "nn.RNN weights, got no.pt: no such file"),
        ("fit --model.kernel nat", "expected --model.kernel to be one of 'default'"),
        ("fit --trainer.max_epoch 3", "no option --trainer.max_epoch; did you mean --trainer.max_epochs?"),
        ("fit --optimizer Adm", "got Adm; did you mean Adam?\nThere are"),
        ("fit --optimizer.rate 1", "expected an option of Adam, got --optimizer.rate\nIt has lr"),
        ("fit --lr_scheduler.gamma 2", "expected --lr_scheduler NAME before the options of one"),
        ("fit --config nowhere", "expected a config, got nowhere: no such file"),
        ("fit --config empty", "expected a config with settings, such as 'data: Parity', got an empty one"),
        ("fit --config latin", "expected a config in UTF-8"),
        ("fit --data CharacterLM --data.path latin", "expected a text in UTF-8, got latin"),
        ("fit --ckpt_path http://localhost/x", "expected a checkpoint on this machine"),
        ("fit --ckpt_path best", "expected a run of Adding with a best.ckpt in runs, got none"),
        ("fit --ckpt_path plain.ckpt", "wrote, got one without the settings of its run"),
        ("inspect --ckpt_path plain.ckpt", "wrote, got one without the settings of its run"),
        ("fit --ckpt_path pickled.pt", "got pickled.pt, which can't be read: it isn't whole, or holds more"),
        ("export --ckpt_path script.pt", "got script.pt, which can't be read: it isn't whole, or holds more"),
        ("fit --ckpt_path empty", "expected a checkpoint that python -m training wrote, got empty"),
        ("export --ckpt_path empty", "expected a checkpoint that python -m training wrote, got empty"),
        ("inspect --ckpt_pth last", "no option --ckpt_pth; did you mean --ckpt_path?"),
        ("fit --model.init_from empty --model.nonlinearity tanh", "expected a file with nn.RNN weights"),
        ("fit --model.init_from empty", "expected a nonlinearity with init_from"),
        ("fit --lr_scheduler StepLR", "StepLR: the following arguments are required: step_size"),
        ("fit --optimizer Muon", "Muon only supports 2D parameters"),
        ("fit --trainer.accumulate_grad_batches 0", "accumulate_grad_batches of at least 1, got 0"),
        ("fit --trainer.callbacks Timer", "expected settings that a config can hold, got Interval.step"),
        ("fit --optimizer SparseAdam", "expected an optimizer that takes dense gradients"),
        ("fit --trainer.barebones true", "expected a run that logs"),
        ("fit --trainer.strategy ddp_spawn", "expected --trainer.strategy to leave the report"),
        ("sweep 3", "expected options, such as --seeds 0 1 2, got 3"),
        ("sweep --model.hidden_size 4 0", "expected --model.hidden_size to be a whole number above 0, got 0"),
    ],
)  # fmt: skip
def test_a_usage_error_says_what_there_is_and_leaves_no_folder(
    train: Train, capsys: pytest.CaptureFixture[str], tmp_path: Path, options: str, words: str
) -> None:
    Path("echo.py").write_text(ECHO)
    Path("empty").touch()
    Path("latin").write_bytes(b"caf\xe9 " * 999)
    torch.save(nn.Linear(1, 1), "pickled.pt")
    with zipfile.ZipFile("script.pt", "w") as archive:
        archive.writestr("archive/constants.pkl", b"")  # by which torch knows a TorchScript file
    parts: dict[str, Any] = {"hyper_parameters": {}, "datamodule_hyper_parameters": {}, "state_dict": {}}
    torch.save({**parts, "pytorch-lightning_version": "2.6"}, "plain.ckpt")
    with pytest.raises(SystemExit) as exit:
        train(*options.split(), small=[QUIET] if "fit" in options else [])
    said = capsys.readouterr().err
    assert exit.value.code == 2
    assert words in said
    assert len(said.splitlines()) <= 2
    assert not (tmp_path / "runs").exists()


LIGHT = """
import sys
from training.__main__ import main
for line in sys.stdin:
    try:
        main(line.split())
    except SystemExit as exit:
        assert exit.code == (0 if "help" in line[4:] else 2), line
print("loaded:", [name for name in sys.modules if name in ("torch", "pytorch_lightning", "matplotlib")])
"""


def test_what_is_wrong_is_said_before_torch_is_loaded(tmp_path: Path) -> None:
    """Importing torch and Lightning takes four seconds."""
    (tmp_path / "latin").write_bytes(b"caf\xe9 " * 999)
    (tmp_path / "parity").write_text("data: {class_path: Parity, init_args: {length: 5}}")
    (tmp_path / "modle").write_text("data: Parity\nmodle: 3")
    lines = f"""train
help
--help
fit --help
fit --data.help CopyMemory
fit --data Addition
fit --data.symbols 3
fit --data Parity --data.length 0
fit --model.hidden_size 0
fit --model.kernel nat
fit --config {tmp_path}/latin --model.hiden_size 3
fit --config {tmp_path}/latin
fit --config {tmp_path}/parity --data.symbols 3
fit --config {tmp_path}/modle
fit --data my.Task --model.hiden_size 3
fit --optimizer Adm
fit --optimizer.rate 1
fit --trainer.max_epoch 3
fit --trainer.barebones true
fit --ckpt_path http://localhost/x
validate --ckpt_path {tmp_path}/latin
test --ckpt_path nowhere
export --help
inspect --ckpt_path {tmp_path}
sweep --seeds 0 1 --model.hidden_size 4 0"""
    done = subprocess.run([sys.executable, "-c", LIGHT], input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"


class Unparsed(Settled):
    """The true command line, which stops where it would parse."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        raise StopIteration(self._subcommand_parsers)


OPTIMIZERS = [
    name for name, kind in vars(torch.optim).items() if isinstance(kind, type) and name not in UNFIT
]


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "Optimizer"])
def test_the_early_parser_refuses_no_optimizer_that_torch_has(name: str) -> None:
    judge("fit", ["--optimizer", name, "--optimizer.lr=0.1"])


@pytest.mark.parametrize("command", LABORATORY)
def test_the_early_parser_has_the_options_of_the_true_one_and_their_defaults(command: str) -> None:
    with pytest.raises(StopIteration) as stopped:
        Unparsed([command])
    true, early = stopped.value.value[command], parser_of(command)

    def options(parser: ArgumentParser) -> dict[str, Any]:
        defaults = parser.get_defaults().as_dict()
        flat = {
            f"--{name}.{own}": value for name in ("model", "trainer") for own, value in defaults[name].items()
        }
        skipped = (".help", "+", ".input_size", ".output_size")
        names = [name for name in parser._option_string_actions if not name.endswith(skipped)]
        return {name: flat.get(name, "of its own") for name in names}

    assert options(early) == options(true)


@pytest.mark.slow
def test_a_task_with_the_name_of_another_is_itself(train: Train, tmp_path: Path) -> None:
    """In processes of their own: once imported, a class of this name stays for all tests."""
    Path("echo.py").write_text(ECHO.replace("Echo", "Parity"))
    python = [sys.executable, "-m", "training"]
    subprocess.run([*python, *SMALL, "--data=echo.Parity", "--data.length=3"], check=True)
    done = subprocess.run(
        [*python, "inspect", "--ckpt_path=last"], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.split()) == 3
    assert last(tmp_path / "runs" / "Parity" / "version_0")["hyper_parameters"]["output_size"] == 1


def test_a_task_of_ones_own_is_known_by_its_class_path(train: Train, tmp_path: Path) -> None:
    Path("echo.py").write_text(ECHO)
    out = train("--data=echo.Echo", "--data.length=3")
    assert "mse of nn.RNN" in out
    path = checkpoint(tmp_path / "runs" / "Echo" / "version_0")
    assert len(train("inspect", f"--ckpt_path={path}", small=[]).split()) == 3
    train("export", "--ckpt_path=best", small=[])
    assert torch.load("rnn.pt", weights_only=True)["weight_ih_l0"].shape == (6, 1)
    assert "test_mse/manual" in train("test", QUIET, "--ckpt_path=last", "--data=echo.Echo", small=[])


def test_a_sweep_without_a_validation_has_no_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show([Run("seed 0", {"seed": "0"}, 0, tmp_path / "none")], tmp_path)
    assert "picture: none, for no run came to a validation" in capsys.readouterr().out
    assert (tmp_path / "table.csv").is_file()
    assert not (tmp_path / "sweep.png").exists()


def test_a_sweep_ends_with_a_table_and_a_picture(train: Train, tmp_path: Path) -> None:
    tiny = ["--data.train_batches=2", "--data.val_batches=1", "--trainer.max_epochs=1", "--data.batch_size=4"]
    with pytest.raises(SystemExit) as exit:
        train("sweep", *tiny, "--seeds", "0", "1", "--model.hidden_size=4", small=[])
    assert exit.value.code == 0
    folder = tmp_path / "runs" / "sweeps" / "version_0"
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert [row["verdict"] for row in rows] == ["sound", "sound"]
    assert rows[0]["ManualRNN"] != rows[1]["ManualRNN"]
    assert weights(tmp_path / "runs" / "Adding" / rows[1]["run"])["manual.rnn.weight_hh_l0"].shape == (4, 4)
    assert (folder / "sweep.png").stat().st_size > 10_000


def test_one_seed_is_that_of_weights_and_batches(train: Train, tmp_path: Path) -> None:
    train("--seed_everything=1")
    train("--seed_everything=1", "--data.seed=0")
    a, b = (weights(tmp_path / "runs" / "Adding" / f"version_{i}") for i in range(2))
    assert not torch.equal(a["manual.rnn.weight_hh_l0"], b["manual.rnn.weight_hh_l0"])
    assert torch.equal(Adding(seed=1).batch("train", 0).input, Adding(seed=1).batch("train", 0).input)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_says_how_it_goes_on(train: Train, tmp_path: Path, how: signal.Signals) -> None:
    small = [QUIET, "--data.train_batches=20", "--data.val_batches=1", "--trainer.max_epochs=1000"]
    command = [sys.executable, "-m", "training", *small, "--name=mine", "--stop_when_solved=false"]
    with started(command, tmp_path, stdout=subprocess.PIPE) as run:
        path = checkpoint(Path("runs") / "Adding" / "mine")
        wait_for(path, run)
        run.send_signal(how)
        out, _ = run.communicate(timeout=120)
    assert run.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[how]
    assert "run folder: runs/Adding/mine" in out
    assert f"it goes on with: python -m training fit --ckpt_path {path}" in out


def test_training_from_python_returns_a_history() -> None:
    task = Parity(length=5, train_batches=3, val_batches=1)
    history = train_from_python(task, max_epochs=2, enable_progress_bar=False)
    assert history.steps == history.compared == [1, 2, 3, 4, 5, 6]
    assert history.validated == [3, 6]
    assert repr(history).startswith(
        "History(6 steps, 6 compared, 2 validations, scores at the end: {'builtin': "
    )
    assert len(repr(history)) < 130
    assert all(0 <= p < 16 for values in history.partings.values() for p in values)


def test_the_twins_load_from_a_checkpoint(train: Train, tmp_path: Path) -> None:
    torch.save(nn.RNN(2, 6).state_dict(), "rnn.pt")
    train("--model.init_from=rnn.pt", "--model.nonlinearity=tanh")
    Path("rnn.pt").unlink()
    model = SideBySide.load_from_checkpoint(
        checkpoint(tmp_path / "runs" / "Adding" / "version_0"), weights_only=True
    )
    assert isinstance(model.manual.rnn, ManualRNN)
    assert model.manual.rnn.nonlinearity == "tanh"


class Repeat(Parity):
    metric = "perplexity"  # type: ignore[assignment]


@pytest.mark.parametrize("weights_only", [True, None])
def test_the_twins_and_a_task_go_to_a_plain_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights_only: bool | None
) -> None:
    monkeypatch.chdir(tmp_path)
    options: Any = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    task = Parity(length=5, train_batches=3, val_batches=1, batch_size=4)
    model = SideBySide(task.input_size, task.output_size, hidden_size=6)
    trainer = Trainer(max_epochs=1, num_sanity_val_steps=0, log_every_n_steps=1, **options)
    trainer.fit(model, datamodule=task)
    path = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    again = SideBySide.load_from_checkpoint(path, weights_only=weights_only)
    assert_equal_weights(again.state_dict(), model.state_dict())
    (scores,) = Trainer(**options).test(again, datamodule=task, verbose=False)
    assert set(scores) == {f"test_{name}/{twin}" for name in ("loss", "accuracy") for twin in model.twins}
    (other,) = Trainer(**options).test(again, datamodule=Repeat(length=5, val_batches=1), verbose=False)
    assert other["test_perplexity/manual"] == pytest.approx(math.exp(other["test_loss/manual"]), rel=1e-5)
    on: Any = {
        "max_epochs": 2,
        "default_root_dir": "again",
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    trainer = Trainer(**on, **options)
    trainer.fit(again, datamodule=task, ckpt_path=path, weights_only=weights_only)
    assert trainer.global_step == 6


def test_loaders_without_a_task_are_refused() -> None:
    task = Parity(length=5, train_batches=1, val_batches=1)
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match="expected a Task as the Trainer's datamodule, got NoneType"):
        trainer.fit(SideBySide(1, 2), task.train_dataloader(), task.val_dataloader())


def test_one_callback_may_be_named(train: Train) -> None:
    assert "equal to round-off" in train("--trainer.callbacks=LearningRateMonitor", *SMALL[-1:])
