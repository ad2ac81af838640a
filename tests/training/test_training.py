"""python -m training: the twins, the report, resuming, and what is refused."""

import csv
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor, nn
from training_runs import QUIET, SMALL, WARNINGS, Train, assert_equal_weights, checkpoint, last, runs, weights

import manual_rnn
import training.gradients
from training.__main__ import COMMANDS, main
from training.gradients import Gradients, Loss
from training.side_by_side import SideBySide
from training.tasks import Adding

pytestmark = WARNINGS


@pytest.fixture
def train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Train]:
    yield from runs(tmp_path, monkeypatch, capsys)


def test_a_run_reports_and_leaves_its_files(train: Train, tmp_path: Path) -> None:
    out = train()
    folder = tmp_path / "runs" / "Adding" / "version_0"
    assert "8 steps compared" in out
    assert "rnn.weight_hh_l0" in out
    assert "equal to round-off" in out
    assert "picture: runs/Adding/version_0/side_by_side.png" in out
    assert (folder / "side_by_side.png").stat().st_size > 10_000
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert {"loss/builtin", "loss/manual", "gradient/rnn.weight_hh_l0"} <= rows[0].keys()
    assert len([row for row in rows if row["loss/manual"]]) == 8


def test_tensorboard_compares_runs_by_their_settings_and_what_they_reached(
    train: Train, tmp_path: Path
) -> None:
    train("--name=mine")
    (path,) = (tmp_path / "runs" / "Adding" / "mine").glob("events.out.tfevents.*")
    events = EventAccumulator(str(path))
    events.Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["model/hidden_size"].number_value == 6
    assert settings["optimizer/init_args/lr"].number_value == 0.005
    assert settings["data/class_path"].string_value == "training.tasks.Adding"
    (last,) = events.Scalars("reached/manual")
    assert last.value == pytest.approx(events.Scalars("val_mse/manual")[-1].value)


def test_each_epoch_leaves_one_line_with_the_validation(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["fit", "--data=CharacterLM", *SMALL[1:]])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    epochs = [line for line in lines if re.fullmatch(r"Epoch ./1 .*/nn.RNN: [\d.]+ ManualRNN: [\d.]+", line)]
    assert [line[6] for line in epochs] == ["0", "1"]
    assert lines[:2] == epochs  # nothing of them is in a line of its own


@pytest.mark.parametrize("task", ["Adding", "CopyMemory"])
def test_with_the_reference_kernel_the_twins_are_bitwise_equal(
    train: Train, tmp_path: Path, task: str
) -> None:
    out = train("--model.kernel", "reference", "--data", task, "--model.num_layers=2", "--model.dropout=0.3")
    state = weights(tmp_path / "runs" / task / "version_0")
    assert "bitwise equal" in out
    for name in state:
        assert torch.equal(state[name], state[name.replace("manual.", "builtin.")])


def test_gradients_beyond_the_tolerance_end_in_failure(train: Train) -> None:
    with pytest.raises(
        SystemExit, match=r"the gradient of \S+ parted by more than 0 times round-off at step 1"
    ):
        train("--model.tolerance", "0", "--model.kernel", "torch")


def test_a_wrong_gradient_is_named_with_its_step(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right, steps = training.gradients.gradients, count(1)

    def wrong(network: Any, loss: Loss) -> tuple[Tensor, dict[str, Tensor]]:
        value, found = right(network, loss)
        if isinstance(network.rnn, manual_rnn.ManualRNN) and next(steps) >= 4:
            found["rnn.weight_hh_l0"] = found["rnn.weight_hh_l0"] * 1.001
        return value, found

    monkeypatch.setattr(training.gradients, "gradients", wrong)
    with pytest.raises(
        SystemExit, match=r"gradient of rnn\.weight_hh_l0 parted by more than 16 .* at step 4"
    ):
        train()
    assert "FAILED" in capsys.readouterr().out


def test_what_parts_far_is_judged_again_by_many_nudges(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    sound, asked = training.gradients.round_off, []

    def lucky(builtin: Gradients, exact: Gradients, nudged: list[Gradients]) -> float:
        asked.append(len(nudged))
        return sound(builtin, exact, nudged) * (1e-9 if len(nudged) == 1 else 1)

    monkeypatch.setattr(training.gradients, "round_off", lucky)
    assert "equal to round-off" in train()
    assert asked == [1, 20] * 8


@pytest.mark.parametrize("clip", ["0.05", "0"])
def test_neither_twin_touches_the_other(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: str
) -> None:
    """Beside another ManualRNN, nn.RNN's twin takes the same path to the last bit."""
    options = ("--model.tolerance=1e30", f"--trainer.gradient_clip_val={clip}")
    train(*options)
    swap = manual_rnn.swap_rnn

    def other_twin(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(3)
        return swap(model)

    monkeypatch.setattr(manual_rnn, "swap_rnn", other_twin)
    train(*options)
    a, b = (weights(tmp_path / "runs" / "Adding" / f"version_{i}") for i in range(2))
    builtin = [name for name in a if name.startswith("builtin.")]
    assert_equal_weights({n: a[n] for n in builtin}, {n: b[n] for n in builtin})
    assert not torch.equal(a["manual.rnn.weight_hh_l0"], b["manual.rnn.weight_hh_l0"])


def test_each_twin_is_clipped_by_its_own_norm() -> None:
    model = SideBySide(2, 1, hidden_size=4)
    optimizer = torch.optim.SGD(model.parameters())
    for i, twin in enumerate(model.twins.values()):
        for p in twin.parameters():
            p.grad = torch.full_like(p, 10.0**i)
    model.configure_gradient_clipping(optimizer, 0.5, "norm")
    for twin in model.twins.values():
        norm = nn.utils.get_total_norm([p.grad for p in twin.parameters() if p.grad is not None])
        assert norm.item() == pytest.approx(0.5, rel=1e-4)
    model.configure_gradient_clipping(optimizer, 0.01, "value")
    assert all(p.grad is not None and p.grad.abs().max() <= 0.01 for p in model.parameters())


def test_a_resumed_run_ends_as_one_never_interrupted(train: Train, tmp_path: Path) -> None:
    stochastic = ("--model.num_layers=2", "--model.dropout=0.3", "--data=CopyMemory")
    whole = train("--trainer.max_epochs=3", *stochastic)
    train("--trainer.max_epochs=1", *stochastic)
    folder = tmp_path / "runs" / "CopyMemory"
    path = checkpoint(folder / "version_1")
    resumed = train(QUIET, "--trainer.max_epochs=3", f"--ckpt_path={path}", small=[])
    assert_equal_weights(weights(folder / "version_0"), weights(folder / "version_2"))
    assert resumed.startswith(f"restored: {path}, step 4")
    assert resumed.endswith(whole.replace("version_0", "version_2"))


SGD = ["--optimizer=SGD", "--optimizer.lr=0.1", "--optimizer.momentum=0.5", "--lr_scheduler=ExponentialLR"]


def test_a_resumed_run_keeps_optimizer_scheduler_clipping_and_threads(train: Train, tmp_path: Path) -> None:
    own = [
        "--optimizer=SGD",
        "--optimizer.lr=0.1",
        "--optimizer.momentum=0.9",
        "--lr_scheduler=ExponentialLR",
    ]
    own += [
        "--lr_scheduler.gamma=0.9",
        "--trainer.gradient_clip_val=0.1",
        "--seed_everything=3",
        "--threads=2",
    ]
    train("--trainer.max_epochs=3", *own)
    train("--trainer.max_epochs=1", *own)
    out = train(QUIET, "--trainer.max_epochs=3", "--ckpt_path=last", small=[])
    folder = tmp_path / "runs" / "Adding"
    assert_equal_weights(weights(folder / "version_0"), weights(folder / "version_2"))
    assert "threads 2, optimizer torch.optim.SGD, optimizer.lr 0.1" in out
    assert "given anew: trainer.max_epochs 3" in out


@pytest.mark.parametrize(
    ("anew", "rates"),
    [
        (["--optimizer.lr=0.2"], {"lr": 0.1, "momentum": 0.5, "initial_lr": 0.2}),
        (["--optimizer.momentum=0.7"], {"lr": 0.05, "momentum": 0.7, "initial_lr": 0.1}),
        (["--lr_scheduler.gamma=1.0"], {"lr": 0.1 * 0.5 ** (2 / 3), "momentum": 0.5, "initial_lr": 0.1}),
        (["--optimizer=Adam", "--optimizer.lr=0.3"], {"lr": 0.3 * 0.5 ** (1 / 3), "eps": 1e-8}),
    ],
)
def test_what_is_given_anew_takes_effect(
    train: Train, tmp_path: Path, anew: list[str], rates: dict[str, Any]
) -> None:
    """The rate falls by the third root of 1/2 in an epoch, so to half in three."""
    own = [
        "--optimizer=SGD",
        "--optimizer.lr=0.1",
        "--optimizer.momentum=0.5",
        "--lr_scheduler=ExponentialLR",
    ]
    train(*own, f"--lr_scheduler.gamma={0.5 ** (1 / 3)}")
    train(QUIET, "--ckpt_path=last", "--trainer.max_epochs=3", *anew, small=[])
    group = last(tmp_path / "runs" / "Adding" / "version_1")["optimizer_states"][0]["param_groups"][0]
    assert {name: group[name] for name in rates} == pytest.approx(rates)


@pytest.mark.parametrize("way", ["option", "config", "url"])
def test_a_finished_run_says_so(train: Train, tmp_path: Path, way: str) -> None:
    train("--model.hidden_size=5")
    path = checkpoint(tmp_path / "runs" / "Adding" / "version_0")
    Path("c.yaml").write_text(f"ckpt_path: {path}")
    ways = {
        "option": f"--ckpt_path={path}",
        "config": "--config=c.yaml",
        "url": f"--ckpt_path={path.as_uri()}",
    }
    with pytest.raises(SystemExit) as exit:
        train(ways[way], small=[])
    assert exit.value.code == 0
    assert not (tmp_path / "runs" / "Adding" / "version_1").exists()


def test_a_solved_run_says_so(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Adding, "solved", 1e3)
    train()
    with pytest.raises(SystemExit):
        train("--ckpt_path=last", "--trainer.max_epochs=9", small=[])
    assert "the run has solved its task at step 4" in capsys.readouterr().out


@pytest.mark.parametrize("kernel", ["default", "reference"])
def test_twins_that_both_diverge_are_no_wrong_gradient(train: Train, kernel: str) -> None:
    explosive = ["--optimizer=SGD", "--optimizer.lr=1e3", "--trainer.gradient_clip_val=0"]
    out = train("--data.train_batches=20", f"--model.kernel={kernel}", *explosive)
    assert re.search(r"both diverged at step \d+; before that (equal to round-off|bitwise equal)", out)
    assert "after 20 steps" in out  # the second epoch is spared


def test_the_command_line_overrides_the_settings_of_a_checkpoint(train: Train, tmp_path: Path) -> None:
    train("--model.nonlinearity=relu")
    path = checkpoint(tmp_path / "runs" / "Adding" / "version_0")
    out = train("--model.kernel=reference", "--trainer.max_epochs=3", f"--ckpt_path={path}", small=SMALL[-3:])
    hparams = last(tmp_path / "runs" / "Adding" / "version_1")["hyper_parameters"]
    assert "12 steps compared" in out
    assert (hparams["kernel"], hparams["nonlinearity"], hparams["hidden_size"]) == ("reference", "relu", 6)


def test_validate_from_a_checkpoint(train: Train, tmp_path: Path) -> None:
    train()
    path = checkpoint(tmp_path / "runs" / "Adding" / "version_0")
    out = train("validate", QUIET, f"--ckpt_path={path}", small=[])
    assert "val_mse/manual" in out


@pytest.mark.parametrize("kind", ["state_dict", "parent", "lightning"])
def test_both_twins_start_from_a_checkpoint_of_nn_rnn(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    rnn = nn.RNN(2, 6, 2, bidirectional=True)
    parent = nn.ModuleDict({"encoder": rnn, "head": nn.Linear(12, 1)})
    content = {
        "state_dict": rnn.state_dict(),
        "parent": parent.state_dict(),
        "lightning": {"state_dict": parent.state_dict(), "epoch": 3},
    }[kind]
    torch.save(content, tmp_path / "rnn.pt")
    model = SideBySide(
        2,
        1,
        hidden_size=6,
        num_layers=2,
        nonlinearity="tanh",
        bidirectional=True,
        init_from=tmp_path / "rnn.pt",
    )
    for twin in model.twins.values():
        assert_equal_weights(dict(twin.rnn.state_dict()), dict(rnn.state_dict()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.RNN(2, 5).state_dict(), r"expected RNN weights .*\(6, 2\).*, got .*\(5, 2\)"),
        (nn.LSTM(2, 6).state_dict(), r"expected RNN weights .*\(6, 6\).*, got .*\(24, 6\)"),
        (nn.Linear(2, 6).state_dict(), "expected one RNN .* got none"),
        (
            {f"{k}.{n}": p for k in "ab" for n, p in nn.RNN(2, 6).state_dict().items()},
            r"got \['a\.', 'b\.'\]",
        ),
        (torch.zeros(3), "expected a file with nn.RNN weights, got a Tensor"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "rnn.pt")
    with pytest.raises(ValueError, match=message):
        SideBySide(2, 1, hidden_size=6, nonlinearity="tanh", init_from=tmp_path / "rnn.pt")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.length=1", "expected length of at least 2, got 1"),
        ("--model.compare_every=0", "expected --model.compare_every to be a whole number above 0"),
        ("--model.tolerance=-1", "expected --model.tolerance to be a number from 0 on, got -1"),
        ("--model.init_from=nowhere.pt", "expected a file with nn.RNN weights, got nowhere.pt: no such file"),
        ("--model.hidden_size=0", "expected --model.hidden_size to be a whole number above 0"),
        ("--threads=0", "expected --threads to be a whole number above 0, got 0"),
    ],
)
def test_what_is_out_of_range_ends_before_training(
    train: Train, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        train(option, "--model.nonlinearity=tanh")
    error = capsys.readouterr().err
    assert exit.value.code == 2
    assert message in error
    assert "Traceback" not in error


def test_help_needs_no_training(train: Train) -> None:
    out = train("--help", small=[])
    assert "python -m training" in out
    assert all(command in out for command in COMMANDS)
