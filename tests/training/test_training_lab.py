"""Training as users expect it: every task, stopping, resuming, two processes, truncation, exports."""

import csv
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
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

import training
from training.networks import Network
from training.side_by_side import SideBySide
from training.tasks import TASKS, Parity

pytestmark = WARNINGS

CONFIGS = sorted(Path(training.__path__[0], "configs").glob("*.yaml"))


@pytest.fixture
def train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Train]:
    yield from runs(tmp_path, monkeypatch, capsys)


@pytest.fixture
def refused(train: Train, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs what is a usage error, and returns its words."""

    def run(*args: str) -> str:
        with pytest.raises(SystemExit) as exit:
            train(*args, small=[])
        words = capsys.readouterr().err
        assert exit.value.code == 2
        assert 1 <= len(words.splitlines()) <= 2
        return words

    return run


def column(folder: Path, name: str) -> list[float]:
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [float(row[name]) for row in rows if row[name]]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains(train: Train, name: str) -> None:
    out = train(f"--data={name}", "--trainer.fast_dev_run=true", small=["--model.hidden_size=6"])
    assert f"{name}: not solved yet after 1 steps, {TASKS[name].metric} of nn.RNN" in out
    assert "equal to round-off" in out


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_every_config_runs(train: Train, config: Path) -> None:
    out = train("--config", str(config), "--trainer.fast_dev_run=true", small=[])
    assert "equal to round-off" in out


def test_there_is_a_config_for_every_task() -> None:
    text = "".join(config.read_text() for config in CONFIGS)
    assert [name for name in TASKS if name not in text] == []


def test_the_tasks_are_listed(train: Train) -> None:
    out = train("tasks", small=[])
    assert all(name in out for name in TASKS)


def test_a_solved_task_ends_the_run(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TASKS["Adding"], "solved", 1e3)
    assert "Adding: solved after 4 steps" in train()
    assert "Adding: solved after 8 steps" in train("--stop_when_solved=false")


def test_a_task_that_one_twin_alone_solved_is_not_solved(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([True, False] * 9)
    monkeypatch.setattr(TASKS["Adding"], "is_solved", lambda task, value: next(answers))
    assert "not solved yet after 8 steps" in train()


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("Adding", {"val_loss", "val_mse"}),
        ("Parity", {"val_loss", "val_accuracy"}),
        ("CharacterLM", {"val_loss", "val_perplexity"}),
    ],
)
def test_what_is_logged_fits_the_task(train: Train, tmp_path: Path, task: str, names: set[str]) -> None:
    train(f"--data={task}", "--data.val_batches=3")
    folder = tmp_path / "runs" / task / "version_0"
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    validated = {name for name in rows.fieldnames or [] if name.startswith("val_")}
    assert validated == {f"{name}/{twin}" for name in names for twin in ("builtin", "manual")}
    assert list(folder.glob("events.out.tfevents*"))
    if task == "CharacterLM":
        losses = column(folder, "val_loss/manual")
        assert column(folder, "val_perplexity/manual") == pytest.approx(np.exp(losses), rel=1e-5)


def test_best_and_last_checkpoints(train: Train, tmp_path: Path) -> None:
    train("--trainer.max_epochs=6", "--optimizer.lr=0.3")
    folder = tmp_path / "runs" / "Adding" / "version_0"
    scores = column(folder, "val_mse/manual")
    best = torch.load(checkpoint(folder, "best"), weights_only=True)
    assert scores[-1] > min(scores)
    assert best["epoch"] == scores.index(min(scores))
    assert last(folder)["epoch"] == 5


def test_lightning_s_own_options(train: Train, tmp_path: Path) -> None:
    options = ["--lr_scheduler=ExponentialLR", "--lr_scheduler.gamma=0.1", "--trainer.gradient_clip_val=0.1"]
    out = train(*options, "--trainer.accumulate_grad_batches=2", "--optimizer=SGD", "--optimizer.lr=0.5")
    scheduler = last(tmp_path / "runs" / "Adding" / "version_0")["lr_schedulers"][0]
    assert scheduler["_last_lr"] == pytest.approx([0.5 * 0.1**2])
    assert "after 4 steps" in out
    assert "equal to round-off" in out


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("task", ["Adding", "CharacterLM"])
def test_precisions(train: Train, precision: str, task: str) -> None:
    out = train(f"--trainer.precision={precision}", f"--data={task}")
    assert "equal to round-off" in out or "bitwise equal" in out


def test_an_optimizer_that_would_couple_the_twins_is_refused(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train("--optimizer=LBFGS")
    assert "expected an optimizer that moves each parameter by itself, got LBFGS" in capsys.readouterr().err


@pytest.mark.parametrize("recurrent", ["identity", "orthogonal"])
def test_both_twins_start_from_the_chosen_recurrent_weights(recurrent: Any) -> None:
    model = SideBySide(2, 1, hidden_size=5, recurrent=recurrent)
    for twin in model.twins.values():
        weight: Any = twin.rnn.weight_hh_l0
        assert torch.allclose(weight.T @ weight, torch.eye(5), atol=1e-6)
        assert (weight.equal(torch.eye(5))) == (recurrent == "identity")


def truncated(network: Network, steps: int, batches: int) -> list[Tensor]:
    """Truncated backpropagation through time written out, with plain SGD; the losses."""
    optimizer, losses = torch.optim.SGD(network.parameters(), 0.1), []
    for number in range(batches):
        input, target, _ = Parity(7, batch_size=8).batch("train", number)
        h = None
        for x, y in zip(input.split(steps, 1), target.split(steps, 1), strict=True):
            output, h = network(x, h)
            loss = F.cross_entropy(output.flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            h = h.detach()
    return losses


TRUNCATED = ["--data=Parity", "--data.length=7", "--model.tbptt_steps=3"]


def test_truncated_backpropagation_is_what_a_loop_does(train: Train, tmp_path: Path) -> None:
    plain = [
        "--model.nonlinearity=tanh",
        "--optimizer=SGD",
        "--optimizer.lr=0.1",
        "--trainer.gradient_clip_val=0",
    ]
    out = train(*TRUNCATED, *plain, "--trainer.max_epochs=1")
    folder = tmp_path / "runs" / "Parity" / "version_0"
    torch.manual_seed(0)
    network = Network(nn.RNN(1, 6, batch_first=True), nn.Linear(6, 2))
    losses = truncated(network, 3, 4)
    assert column(folder, "loss/builtin") == pytest.approx([x.item() for x in losses], rel=1e-6)
    trained = {n.removeprefix("builtin."): w for n, w in weights(folder).items() if n.startswith("builtin.")}
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(trained[name], weight, rtol=1e-6, atol=1e-8)
    assert "12 steps compared" in out
    assert "equal to round-off" in out


def test_no_truncation_where_a_piece_would_have_no_target(train: Train, capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit:
        train("--model.tbptt_steps=5")
    assert exit.value.code == 2
    assert "expected targets in every 5 steps" in capsys.readouterr().err


class CrashError(Exception):
    pass


@pytest.mark.parametrize("options", [["--model.num_layers=2", "--model.dropout=0.3"], TRUNCATED])
def test_a_run_that_crashed_in_mid_epoch_resumes(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    whole = train(*options)
    training_step = SideBySide.training_step

    def crash(self: SideBySide, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 6:
            raise CrashError
        return training_step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SideBySide, "training_step", crash)
        with pytest.raises(CrashError):
            train(*options, "--save_every=5")
    (folder,) = (tmp_path / "runs").iterdir()
    assert last(folder / "version_1")["global_step"] == 5
    path = checkpoint(folder / "version_1")
    resumed = train(f"--ckpt_path={path}", "--trainer.max_epochs=2", QUIET, small=[])
    assert_equal_weights(weights(folder / "version_0"), weights(folder / "version_2"))
    assert resumed.endswith(whole.replace("version_0", "version_2"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_killed_resumes(train: Train, tmp_path: Path, how: signal.Signals) -> None:
    small = [QUIET, "--data.train_batches=50", "--data.val_batches=1", "--data.length=100"]
    command = [sys.executable, "-m", "training", *small, "--trainer.max_epochs=1000", "--save_every=7"]
    with started(command, tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        killed = tmp_path / "runs" / "Adding" / "version_0"
        wait_for(checkpoint(killed), run)
        run.send_signal(how)
        assert run.wait(timeout=120) != 0
    step = last(killed)["global_step"]
    assert step % 7 == 0
    ends = ["--trainer.max_epochs", str(step // 50 + 1)]
    train(*small, *ends, small=[])
    train(f"--ckpt_path={checkpoint(killed)}", *ends, QUIET, small=[])
    uninterrupted, resumed = killed.parent / "version_1", killed.parent / "version_2"
    assert last(resumed)["global_step"] > step
    assert_equal_weights(weights(uninterrupted), weights(resumed))


@pytest.mark.parametrize("options", [[], TRUNCATED])
def test_two_processes_give_the_curve_of_one(train: Train, tmp_path: Path, options: list[str]) -> None:
    train(*options)
    ddp = ["--trainer.strategy=ddp", "--trainer.devices=2"]
    command = [sys.executable, "-m", "training", *SMALL, *ddp, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if done.returncode == -signal.SIGABRT and "terminate called without an active" in done.stderr:
        # A thread of torch's own, of its rendezvous: seen twice in hundreds of runs, on a loaded machine.
        shutil.rmtree(tmp_path / "runs" / "Adding" / "version_1", ignore_errors=True)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal to round-off") == 1
    (folder,) = (tmp_path / "runs").iterdir()
    one, two = folder / "version_0", folder / "version_1"
    for name in ("loss/manual", "loss/builtin", "val_loss/manual"):
        assert column(two, name) == pytest.approx(column(one, name), rel=1e-5)
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(two)[name], weight, rtol=1e-4, atol=1e-5)


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    task = Parity(batch_size=5)
    task.trainer = type("Trainer", (), {"global_rank": 0, "world_size": 2})()
    with pytest.raises(ValueError, match="expected a batch_size that 2 processes can share, got 5"):
        task.val_dataloader()


@pytest.fixture
def trained(train: Train, tmp_path: Path) -> Path:
    train("--data=Parity", "--model.num_layers=2")
    return checkpoint(tmp_path / "runs" / "Parity" / "version_0")


def plain_network(trained: Path) -> Network:
    """nn.RNN and a readout with the weights of ManualRNN's twin."""
    network = Network(nn.RNN(1, 6, 2, nonlinearity="relu", batch_first=True), nn.Linear(6, 2))
    state = torch.load(trained, weights_only=True)["state_dict"]
    own = {name: weight for name, weight in state.items() if name.startswith("manual.")}
    network.load_state_dict({name.removeprefix("manual."): weight for name, weight in own.items()})
    return network


def test_a_checkpoint_is_tested(train: Train, trained: Path) -> None:
    out = train("test", QUIET, f"--ckpt_path={trained}", small=[])
    assert "test_accuracy/manual" in out


def test_a_checkpoint_predicts(train: Train, trained: Path) -> None:
    out = train("predict", QUIET, f"--ckpt_path={trained}", small=[])
    predictions = torch.load(out.split("predictions: ")[1].strip(), weights_only=True)
    network = plain_network(trained)
    for number, answer in enumerate(predictions):
        batch = Parity(batch_size=8).batch("test", number)
        assert torch.equal(answer["input"], batch.input)
        torch.testing.assert_close(answer["output"], network(batch.input)[0])


@pytest.mark.parametrize("twin", ["manual", "builtin"])
def test_an_export_loads_into_nn_rnn(train: Train, trained: Path, twin: str) -> None:
    train("export", f"--ckpt_path={trained}", "--output=rnn.pt", f"--twin={twin}", small=[])
    rnn = nn.RNN(1, 6, 2)
    rnn.load_state_dict(torch.load("rnn.pt", weights_only=True))
    state = torch.load(trained, weights_only=True)["state_dict"]
    for name, weight in rnn.state_dict().items():
        assert torch.equal(weight, state[f"{twin}.rnn.{name}"])


def test_an_onnx_export_answers_as_the_network(train: Train, trained: Path, tmp_path: Path) -> None:
    train("export", f"--ckpt_path={trained}", "--onnx=network.onnx", small=[])
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    network = plain_network(trained)
    input = torch.randn(4, 9, 1)
    output, h_n = session.run(None, {"input": input.numpy()})
    expected = network(input)
    np.testing.assert_allclose(output, expected[0].detach(), atol=1e-5)
    np.testing.assert_allclose(h_n, expected[1].detach(), atol=1e-5)


def test_inspect_writes_pictures(train: Train, trained: Path) -> None:
    out = train("inspect", f"--ckpt_path={trained}", small=[])
    pictures = [Path(path) for path in out.split()]
    assert len(pictures) == 3
    assert all(path.stat().st_size > 5000 for path in pictures)


@pytest.mark.parametrize("command", ["export", "inspect"])
def test_what_is_no_checkpoint_of_a_run_is_refused(
    refused: Callable[..., str], tmp_path: Path, command: str
) -> None:
    torch.save({"state_dict": nn.RNN(1, 6).state_dict()}, tmp_path / "other.pt")
    for path, expected in (
        ("nowhere", "a checkpoint, or last or best, got nowhere: no such file"),
        ("other.pt", "a checkpoint that python -m training wrote, got other.pt"),
    ):
        assert f"expected {expected}" in refused(command, f"--ckpt_path={path}")


def test_a_task_keeps_its_own_defaults(train: Train, tmp_path: Path) -> None:
    """jsonargparse would hand a default task's parameters on to the task that is asked for."""
    for options in (["--data=CopyMemory"], ["--data=SinePrediction", "--data.batch_size=4"]):
        train(*options)
    assert last(tmp_path / "runs" / "CopyMemory" / "version_0")["datamodule_hyper_parameters"]["length"] == 10
    assert (
        last(tmp_path / "runs" / "SinePrediction" / "version_0")["datamodule_hyper_parameters"]["length"]
        == 50
    )


@pytest.mark.parametrize(
    ("config", "task", "length"),
    [
        ("data: SinePrediction", "SinePrediction", 50),
        ("{data: {class_path: CopyMemory, init_args: {symbols: 3}}}", "CopyMemory", 10),
        ('{"data": {"class_path": "CopyMemory"}}', "CopyMemory", 10),
        ("data:\n  init_args:\n    length: 12", "Adding", 12),
        ("model:\n  nonlinearity: relu", "Adding", 20),
    ],
)
def test_a_config_names_the_task_or_leaves_it(
    train: Train, tmp_path: Path, config: str, task: str, length: int
) -> None:
    """However it is written: in blocks, in braces, as JSON; whole or in part."""
    Path("config.yaml").write_text(config)
    train("--config=config.yaml")
    assert last(tmp_path / "runs" / task / "version_0")["datamodule_hyper_parameters"]["length"] == length


def test_a_config_that_is_no_yaml_is_refused(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text("data: [1,")
    with pytest.raises(SystemExit) as exit:
        train("--config=config.yaml")
    assert exit.value.code == 2
    assert "expected a config in YAML or JSON" in capsys.readouterr().err


def test_logs_can_be_turned_off(train: Train, tmp_path: Path) -> None:
    out = train("--trainer.logger=false", "--trainer.enable_checkpointing=false")
    assert "equal to round-off" in out
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "side_by_side.png"}
