"""A run goes on with its settings to the numbers of one never interrupted; settings of a file are data."""

import csv
import re
import shutil
import signal
import subprocess
import sys
import time
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from torch import nn
from training_runs import (
    QUIET,
    SMALL,
    WARNINGS,
    CommandLine,
    assert_equal_weights,
    checkpoint,
    last,
    started,
    weights,
)

from training.files import STATE
from training.resume import GivenAnew, differences, flat, load_model, why_finished
from training.settings import plain, settings_of
from training.tasks import Adding
from training.twins import Twins

pytestmark = WARNINGS
ADDING = Path("runs") / "Adding"
SGD = ["--optimizer=SGD", "--optimizer.lr=0.1", "--optimizer.momentum=0.5", "--lr_scheduler=ExponentialLR"]
DROPOUT = ["--model.num_layers=2", "--model.dropout=0.3"]
TRUNCATED = ["--data=Parity", "--data.length=7", "--model.tbptt_steps=3"]


def test_a_resumed_run_ends_as_one_never_interrupted(cli: CommandLine) -> None:
    whole = cli("--trainer.max_epochs=3", "--data=CopyMemory", *DROPOUT)
    cli("--trainer.max_epochs=1", "--data=CopyMemory", *DROPOUT)
    folder = Path("runs") / "CopyMemory"
    path = checkpoint(folder / "version_1")
    resumed = cli(QUIET, "--trainer.max_epochs=3", f"--ckpt_path={path}", small=[])
    assert_equal_weights(weights(folder / "version_0"), weights(folder / "version_2"))
    assert resumed.startswith(f"restored: {path}, step 4")
    assert resumed.endswith(whole.replace("version_0", "version_2"))


def test_a_resumed_run_keeps_optimizer_scheduler_clipping_and_threads(cli: CommandLine) -> None:
    own = [*SGD[:2], "--optimizer.momentum=0.9", SGD[3], "--lr_scheduler.gamma=0.9"]
    own += ["--trainer.gradient_clip_val=0.1", "--seed_everything=3", "--threads=2", "--compare.tolerance=99"]
    cli("--trainer.max_epochs=3", *own)
    cli("--trainer.max_epochs=1", *own)
    out = cli(QUIET, "--trainer.max_epochs=3", "--ckpt_path=last", small=[])
    assert_equal_weights(weights(ADDING / "version_0"), weights(ADDING / "version_2"))
    assert torch.get_num_threads() == 2
    assert "the tolerance is 99" in out
    assert "given anew: trainer.max_epochs 3 " in out


@pytest.mark.parametrize(
    ("anew", "rates"),
    [
        (["--optimizer.lr=0.2"], {"lr": 0.1, "momentum": 0.5, "initial_lr": 0.2}),
        (["--optimizer.momentum=0.7"], {"lr": 0.05, "momentum": 0.7, "initial_lr": 0.1}),
        (["--lr_scheduler.gamma=1.0"], {"lr": 0.1 * 0.5 ** (2 / 3), "momentum": 0.5, "initial_lr": 0.1}),
        (["--optimizer=Adam", "--optimizer.lr=0.3"], {"lr": 0.3 * 0.5 ** (1 / 3), "eps": 1e-8}),
    ],
)
def test_what_is_given_anew_takes_effect(cli: CommandLine, anew: list[str], rates: dict[str, Any]) -> None:
    """The rate falls by the third root of 1/2 in an epoch, so to half in three."""
    cli(*SGD, f"--lr_scheduler.gamma={0.5 ** (1 / 3)}")
    cli(QUIET, "--ckpt_path=last", "--trainer.max_epochs=3", *anew, small=[])
    group = last(ADDING / "version_1")["optimizer_states"][0]["param_groups"][0]
    assert {name: group[name] for name in rates} == pytest.approx(rates)


def test_a_new_rate_scales_the_rate_that_was_reached() -> None:
    before, now = {"optimizer": "SGD", "optimizer.lr": 0.1}, {"optimizer": "SGD", "optimizer.lr": 0.4}
    given = GivenAnew(before, now)
    content: dict[str, Any] = {
        "optimizer_states": [{"param_groups": [{"lr": 0.05}]}],
        "lr_schedulers": [{"base_lrs": [0.1]}],
    }
    given.on_load_checkpoint(None, None, content)  # type: ignore[arg-type]
    (group,) = content["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["initial_lr"]) == pytest.approx((0.2, 0.4))
    assert content["lr_schedulers"] == [{"base_lrs": [0.4]}]


def test_beside_another_optimizer_the_scheduler_begins_anew_too() -> None:
    content: dict[str, Any] = {"optimizer_states": [{}], "lr_schedulers": [{"last_epoch": 9}]}
    GivenAnew({"optimizer": "SGD"}, {"optimizer": "Adam"}).on_load_checkpoint(None, None, content)  # type: ignore[arg-type]
    assert content == {"optimizer_states": [], "lr_schedulers": []}


def finished_after(**changed: Any) -> str | None:
    trainer = {"max_epochs": 20, "max_steps": -1, **changed}
    progress = {"epoch_progress": {"current": {"processed": 2}}}
    callbacks = {"Stopper": {"stopping_reason": "x"}}
    content = {"global_step": 8, "loops": {"fit_loop": progress}, "callbacks": callbacks}
    return why_finished(content, {"trainer": trainer, "stop_when_solved": True})


def test_a_run_is_finished_at_its_last_epoch_and_exactly_at_its_last_step() -> None:
    assert finished_after() is None
    assert finished_after(max_epochs=None) is None
    assert finished_after(max_epochs=3) is None
    assert (finished_after(max_epochs=2) or "").startswith(
        "has made its 2 epochs, 8 steps; --trainer.max_epochs"
    )
    assert finished_after(max_steps=9) is None
    assert (finished_after(max_steps=8) or "").startswith("has made its 8 steps; --trainer.max_steps")


@pytest.mark.parametrize("way", ["option", "config", "url"])
def test_a_finished_run_says_so(cli: CommandLine, way: str) -> None:
    cli("--trainer.max_epochs=1")
    path = checkpoint(ADDING / "version_0").absolute()
    Path("c.yaml").write_text(f"ckpt_path: {path}")
    ways = {
        "option": f"--ckpt_path={path}",
        "config": "--config=c.yaml",
        "url": f"--ckpt_path={path.as_uri()}",
    }
    with pytest.raises(SystemExit) as exit:
        cli(ways[way], small=[])
    assert exit.value.code == 0
    assert not (ADDING / "version_1").exists()


def test_a_solved_run_says_so(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Adding, "solved", 1e3)
    cli()
    with pytest.raises(SystemExit):
        cli("--ckpt_path=last", "--trainer.max_epochs=9", small=[])
    assert "the run has solved its task at step 4" in capsys.readouterr().out
    out = cli("--ckpt_path=last", "--trainer.max_epochs=2", "--stop_when_solved=false", QUIET, small=[])
    assert "solved after 8 steps" in out


def test_the_command_line_overrides_the_settings_of_a_checkpoint(cli: CommandLine) -> None:
    cli("--model.nonlinearity=relu", "--trainer.max_epochs=1")
    cli("--model.kernel=reference", "--trainer.max_epochs=2", "--ckpt_path=last", QUIET, small=[])
    found = last(ADDING / "version_1")["hyper_parameters"]
    assert (found["kernel"], found["nonlinearity"], found["hidden_size"]) == ("reference", "relu", 6)


def test_a_resumed_run_reads_every_file_as_data(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("--trainer.max_epochs=1")
    load, as_data = torch.load, []

    def note(*args: Any, **options: Any) -> Any:
        as_data.append(options.get("weights_only"))
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", note)
    cli("--trainer.max_epochs=2", "--ckpt_path=last", QUIET, small=[])
    assert as_data == [True, True]  # the settings, and what Lightning restores


def test_a_run_without_a_tolerance_is_resumed(cli: CommandLine) -> None:
    cli("--trainer.max_epochs=1", "--compare.tolerance=.inf")
    assert "the tolerance is inf" in cli("--ckpt_path=last", "--trainer.max_epochs=2", QUIET, small=[])


def test_a_diverged_run_that_is_resumed_remembers_it(cli: CommandLine) -> None:
    explosive = ["--optimizer=SGD", "--optimizer.lr=1e3", "--trainer.gradient_clip_val=0"]
    explosive += ["--model.nonlinearity=relu", "--data.train_batches=20", "--trainer.max_epochs=1"]
    first = cli(*explosive)
    resumed = cli("--ckpt_path=last", "--trainer.max_epochs=2", QUIET, small=[])
    said = first.split(";")[0]
    assert "diverged at step" in said
    assert said in resumed


def test_callbacks_whose_defaults_no_config_can_hold_are_resumed(cli: CommandLine) -> None:
    cli(
        "--trainer.callbacks=StochasticWeightAveraging",
        "--trainer.callbacks.swa_lrs=0.01",
        "--trainer.max_epochs=2",
    )
    settings = last(ADDING / "version_0")["settings"]
    (averaging,) = (
        settings["trainer"]["callbacks"]
        if isinstance(settings["trainer"]["callbacks"], list)
        else [settings["trainer"]["callbacks"]]
    )
    assert averaging["init_args"]["swa_lrs"] == 0.01
    assert "device" not in averaging["init_args"]
    assert "restored" in cli("--ckpt_path=last", "--trainer.max_epochs=3", QUIET, small=[])
    assert Path(ADDING / "version_1" / "side_by_side.png").is_file()


def test_weights_of_version_0_1_are_exported(cli: CommandLine) -> None:
    """Its checkpoints have no settings to go on with, and options of the twins that there are no more."""
    cli("--trainer.max_epochs=1")
    path = checkpoint(ADDING / "version_0")
    content = torch.load(path, weights_only=True)
    del (
        content["settings"],
        content["hyper_parameters"]["metric"],
        content["hyper_parameters"]["scored_steps"],
    )
    content["hyper_parameters"] |= {"compare_every": 1, "tolerance": 16.0, "init_from": None}
    torch.save(content, path)
    cli("export", f"--ckpt_path={path}", small=[])
    assert torch.equal(torch.load("rnn.pt")["weight_hh_l0"], content["state_dict"]["manual.rnn.weight_hh_l0"])


def test_settings_that_no_option_has_any_more_are_named(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli(f"--ckpt_path={of_settings(settings(model={'width': 3}))}", small=[])
    assert "there is no option model.width" in capsys.readouterr().err


def test_a_checkpoint_of_weights_alone_is_no_run_to_go_on_with(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    path = of_settings(settings())
    content = torch.load(path, weights_only=True)
    del content["optimizer_states"], content["loops"]
    torch.save(content, path)
    with pytest.raises(SystemExit):
        cli(f"--ckpt_path={path}", small=[])
    assert "got empty.ckpt without optimizer_states, loops" in capsys.readouterr().err


class CrashError(Exception):
    pass


@pytest.mark.parametrize("options", [DROPOUT, TRUNCATED, ["--data.num_workers=1"]])
def test_a_run_that_crashed_in_mid_epoch_resumes(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    whole = cli(*options)
    training_step = Twins.training_step

    def crash(self: Twins, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 6:
            raise CrashError
        return training_step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Twins, "training_step", crash)
        with pytest.raises(CrashError):
            cli(*options, "--save_every=5")
    (folder,) = (path for path in Path("runs").iterdir() if path.is_dir())
    assert last(folder / "version_1")["global_step"] == 5
    path = checkpoint(folder / "version_1")
    resumed = cli(f"--ckpt_path={path}", "--trainer.max_epochs=2", QUIET, small=[])
    assert_equal_weights(weights(folder / "version_0"), weights(folder / "version_2"))
    assert resumed.endswith(whole.replace("version_0", "version_2"))


def test_a_run_that_ended_in_mid_epoch_by_its_steps_goes_on(cli: CommandLine) -> None:
    """And makes as many epochs as it would have: the one that was cut off counts once."""
    for steps in (-1, 6):
        cli("--trainer.max_epochs=4", f"--trainer.max_steps={steps}")
    for steps in (8, 9, -1):
        cli("--ckpt_path=last", f"--trainer.max_steps={steps}", QUIET, small=[])
    whole, resumed = last(ADDING / "version_0"), last(ADDING / "version_4")
    assert whole["global_step"] == resumed["global_step"] == 16
    assert_equal_weights(whole["state_dict"], resumed["state_dict"])
    assert torch.equal(*(run["callbacks"]["CompareGradients"]["validated"] for run in (whole, resumed)))


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_was_killed_resumes(
    cli: CommandLine, tmp_path: Path, how: signal.Signals, code: int
) -> None:
    small = [QUIET, "--data=Adding", "--data.train_batches=50", "--data.val_batches=1", "--data.length=100"]
    small += ["--stop_when_solved=false", "--model.hidden_size=6"]
    command = [sys.executable, "-m", "training", *small, "--trainer.max_epochs=1000", "--save_every=7"]
    with started(command, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        killed = ADDING / "version_0"
        while not checkpoint(killed).is_file():
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(how)
        out, _ = run.communicate(timeout=60)
    assert run.returncode == code
    if how != signal.SIGKILL:
        assert "run folder: runs/Adding/version_0" in out
        assert f"it goes on with: python -m training fit --ckpt_path {checkpoint(killed)}" in out
    step = last(killed)["global_step"]
    assert step % 7 == 0
    ends = ["--trainer.max_epochs", str(step // 50 + 1)]
    cli(*small, *ends, small=[])
    cli(f"--ckpt_path={checkpoint(killed)}", *ends, QUIET, small=[])
    uninterrupted, resumed = killed.parent / "version_1", killed.parent / "version_2"
    assert last(resumed)["global_step"] > step
    assert_equal_weights(weights(uninterrupted), weights(resumed))


def test_an_interrupted_run_of_ones_own_task_says_its_class(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.py").write_text(MINE)
    epoch_ends = Twins.on_validation_epoch_end

    def interrupt(self: Twins) -> None:
        epoch_ends(self)
        if self.current_epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Twins, "on_validation_epoch_end", interrupt)
    for task in ("Adding", "mine.Mine"):
        with pytest.raises(SystemExit) as exit:
            cli(f"--data={task}")
        assert exit.value.code == 130
    ours, mine = re.findall(r"it goes on with: .*last\.ckpt(.*)", capsys.readouterr().out)
    assert (ours, mine) == ("", " --data mine.Mine")


def column(folder: Path, name: str) -> list[float]:
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [float(row[name]) for row in rows if row[name]]


@pytest.mark.parametrize("options", [[], TRUNCATED])
def test_two_processes_give_the_curve_of_one(cli: CommandLine, tmp_path: Path, options: list[str]) -> None:
    cli(*options)
    ddp = ["--trainer.strategy=ddp", "--trainer.devices=2"]
    command = [sys.executable, "-m", "training", *SMALL, *ddp, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    if done.returncode == -signal.SIGABRT and "terminate called without an active" in done.stderr:
        # A thread of torch's own, of its rendezvous: seen twice in hundreds of runs, on a loaded machine.
        for begun in Path("runs").glob("*/version_1"):
            shutil.rmtree(begun)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stdout.split()).count("equal to nn.RNN's to round-off") == 1
    (folder,) = (path for path in Path("runs").iterdir() if path.is_dir())
    one, two = folder / "version_0", folder / "version_1"
    for name in ("loss/manual", "loss/builtin", "val_loss/manual"):
        assert column(two, name) == pytest.approx(column(one, name), rel=1e-5)
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(two)[name], weight, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_other_sizes_is_refused(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    cli("--trainer.max_epochs=1")
    with pytest.raises(SystemExit) as exit:
        cli("--ckpt_path=last", "--trainer.max_epochs=2", "--model.hidden_size=7", small=[])
    assert exit.value.code == 2
    assert "expected builtin.rnn.weight_ih_l0 of shape (7, 2), got (6, 2) in" in capsys.readouterr().err


# Settings out of a file


def of_settings(found: dict[str, Any]) -> Path:
    """A checkpoint of a run with these settings that has nothing else."""
    parts = ("hyper_parameters", "datamodule_hyper_parameters", "state_dict", *STATE)
    content: dict[str, Any] = {part: {} for part in parts} | {"pytorch-lightning_version": "2.6"}
    content["loops"] = {"fit_loop": {"epoch_progress": {"current": {"processed": 99}}}}
    torch.save({**content, "global_step": 0, "settings": found}, "empty.ckpt")
    return Path("empty.ckpt")


class Marker:
    """A file that code leaves when it runs."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "it_ran"
        source = f"from pathlib import Path\nPath({str(self.path)!r}).touch()\n"
        (folder / "evil.py").write_text(f"{source}\ndef f(*a, **k):\n    Path({str(self.path)!r}).touch()\n")


def settings(**changed: Any) -> dict[str, Any]:
    data = {"class_path": "training.tasks.Adding", "init_args": {}}
    return {"model": {}, "data": data, "optimizer": None, "lr_scheduler": None, "trainer": {}, **changed}


CODE = [
    {"trainer": {"callbacks": [{"class_path": "evil.Callback"}]}},
    {"trainer": {"callbacks": {"class_path": "evil.Callback"}}},
    {"trainer": {"logger": [{"class_path": "evil.Logger", "init_args": {}}]}},
    {"data": {"class_path": "evil.Task", "init_args": {}}},
    {"optimizer": {"class_path": "evil.Adam"}},
    {
        "lr_scheduler": {
            "class_path": "torch.optim.lr_scheduler.LambdaLR",
            "init_args": {"lr_lambda": "evil.f"},
        }
    },
    {
        "trainer": {
            "callbacks": [
                {
                    "class_path": "pytorch_lightning.callbacks.LambdaCallback",
                    "init_args": {"on_fit_start": "evil.f"},
                }
            ]
        }
    },
    {"trainer": {"callbacks": [{"class_path": "LambdaCallback", "init_args": {"on_fit_start": "evil.f"}}]}},
    {"trainer": {"callbacks": [{"class_path": "torch.os.system"}]}},
    {"trainer": {"profiler": {"class_path": "torch.hub.load"}}},
    {"trainer": {"callbacks": ["evil.yaml"]}},
    {"trainer": {"callbacks": "evil.Callback"}},
    {"trainer": {"callbacks": "evil.f:f"}},  # as importlib has it
    {"trainer": {"callbacks": '["evil\\x2eCallback"]'}},  # YAML's own way to write a dot
    {"trainer": {"callbacks": '{"class_path": "evil\\u002eCallback"}'}},
    {"trainer": {"callbacks+": ["evil.Callback"]}},
    {"trainer.callbacks": ["evil.Callback"]},
    {"optimizer.class_path": "evil.Adam"},
    {"data+": "evil.Task"},
    {"data": {"class_path": "training.tasks.Adding", "init_args": "evil.yaml"}},
    {"trainer": {"nowhere": 1}},
    {"trainer": {"callbacks": ["evil.Callback"]}},
    {"trainer": {"plugins": ["settings_of_a_class"]}},
    {
        "trainer": {
            "strategy": {
                "class_path": "pytorch_lightning.strategies.SingleDeviceStrategy",
                "init_args": {"checkpoint_io": "evil.IO"},
            }
        }
    },
    {"model": "evil.yaml"},
    {"data": {"class_path": "training.tasks.Adding", "init_args": {"seed": {"class_path": "evil.Seed"}}}},
]


@pytest.mark.parametrize("changed", CODE)
def test_settings_of_a_checkpoint_run_no_code(
    cli: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any]
) -> None:
    marker = Marker(tmp_path)
    Path("evil.yaml").write_text("class_path: evil.Callback")
    Path("settings_of_a_class").write_text("class_path: evil.Callback")
    path = of_settings(settings(**changed))
    for command in (["fit", f"--ckpt_path={path}"], ["inspect", f"--ckpt_path={path}"]):
        with pytest.raises(SystemExit) as exit:
            cli(*command, small=[])
        assert exit.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) <= 2
        assert not marker.path.exists()


def test_settings_read_no_other_file_of_settings() -> None:
    found = settings_of({"settings": settings(config="evil.yaml", ckpt_path="x", name="y")})
    assert not {"config", "ckpt_path", "name"} & found.keys()  # where a run began isn't restored either
    found = settings_of({"settings": settings(model={"init_from": "x", "bias": True})})
    assert found["model"] == {"bias": True}


def test_settings_read_no_address(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec, opened = import_module("fsspec"), []
    monkeypatch.setattr(fsspec, "open", lambda *args, **options: opened.append(args))
    with fsspec.filesystem("memory").open("/evil.yaml", "w") as file:
        file.write("max_epochs: 3")
    with pytest.raises(SystemExit):
        cli(f"--ckpt_path={of_settings(settings(trainer='memory://evil.yaml'))}", small=[])
    assert opened == []


@pytest.mark.parametrize("package", ["training", "manual_rnn.training"])
def test_a_task_of_the_laboratory_is_found_wherever_it_was_installed(package: str) -> None:
    found = settings_of({"settings": settings(data={"class_path": f"{package}.tasks.Adding"})})
    assert found["data"]["class_path"] == "training.tasks.Adding"
    own = {"class_path": f"my_{package}.tasks.Adding"}
    assert settings_of({"settings": settings(data=own)})["data"] == own


MINE = """
from training.tasks import Adding
from pytorch_lightning import Callback

class Mine(Adding):
    pass

class Seen(Callback):
    def on_fit_start(self, trainer, pl_module):
        print("seen")
"""


def test_what_the_command_line_names_may_stand_in_settings(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class of one's own is named again: by an option, in a config, or by the name it is imported under."""
    Path("mine.py").write_text(MINE)
    Path("alias.py").write_text("from mine import Mine")
    Path("mine.yaml").write_text("trainer:\n  callbacks: [mine.Seen]")
    path = of_settings(
        settings(data={"class_path": "alias.Mine"}, trainer={"callbacks": {"class_path": "mine.Seen"}})
    )
    with pytest.raises(SystemExit):
        cli(f"--ckpt_path={path}", "--config=mine.yaml", small=[])
    assert (
        "expected alias.Mine, which the checkpoint's settings name, on the command line too: --data"
        in capsys.readouterr().err
    )
    named = [f"--ckpt_path={path}", "--data=alias.Mine", "--config=mine.yaml"]
    with pytest.raises(SystemExit):
        cli(*named, small=[])
    assert "restored: empty.ckpt" in capsys.readouterr().out


def test_texts_of_settings_stay_as_they_are(cli: CommandLine) -> None:
    Path("text.txt").write_text("ab" * 999)
    own = ["--data=CharacterLM", "--data.path=text.txt", "--trainer.callbacks=ModelCheckpoint"]
    own += ["--trainer.callbacks.filename={epoch}.a", "--trainer.callbacks.monitor=val_loss/worse"]
    cli(*own, "--trainer.max_epochs=1")
    cli("--ckpt_path=last", "--trainer.max_epochs=2", QUIET, small=[])
    assert list(Path("runs/CharacterLM/version_1/checkpoints").glob("epoch=1.a.ckpt"))


@pytest.mark.parametrize("options", [{"_class_path": "evil.Twins"}, {"_instantiator": "evil.f"}])
def test_hyperparameters_of_a_checkpoint_run_no_code(
    tmp_path: Path, options: dict[str, str], monkeypatch: Any
) -> None:
    marker = Marker(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    twins = Twins(2, 1, hidden_size=4)
    sizes = {"input_size": 2, "output_size": 1, "hidden_size": 4}
    content: dict[str, Any] = {"hyper_parameters": {**sizes, **options}, "datamodule_hyper_parameters": {}}
    content |= {"state_dict": twins.state_dict(), "pytorch-lightning_version": "2.6"}
    torch.save(content, tmp_path / "bad.ckpt")
    assert_equal_weights(load_model(tmp_path / "bad.ckpt").state_dict(), twins.state_dict())
    assert not marker.path.exists()


def test_settings_are_written_as_data() -> None:
    class Length(int):
        pass

    class Split(Enum):
        TRAIN = "train"

    cpu = torch.device("cpu")
    given = Namespace(a=Namespace(b=Length(3), c=[Path("x")], f=(1, cpu)), d=cpu, e=None, g=Split.TRAIN)
    found = plain(given)
    assert found == {"a": {"b": 3, "c": ["x"]}, "e": None, "g": "train"}  # half of a list would be another
    assert type(found["a"]["b"]) is int
    assert plain({"a": True, "b": 0.5}) == {"a": True, "b": 0.5}


def test_settings_by_the_names_of_their_options() -> None:
    found = flat(
        {"optimizer": {"class_path": "Adam", "init_args": {"lr": 0.1}}, "trainer": {"max_epochs": 2}}
    )
    assert found == {"optimizer": "Adam", "optimizer.lr": 0.1, "trainer.max_epochs": 2}


def test_settings_differ_where_both_have_not_the_same() -> None:
    now = {"name": None, "optimizer": {"class_path": "SGD", "init_args": {"momentum": 0.9}}, "threads": 2}
    assert differences(now, {"threads": 2}) == {"optimizer": "SGD", "optimizer.momentum": 0.9}
    assert differences(now, now) == {}
    assert differences({"trainer": {"max_time": None}}, {"trainer": {"max_time": 3}}) == {
        "trainer.max_time": None
    }


def test_weights_that_no_run_of_the_twins_wrote_are_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"hyper_parameters": {"input_size": 2, "output_size": 1}}
    content["datamodule_hyper_parameters"] = {}
    torch.save(
        {**content, "state_dict": nn.RNN(2, 3).state_dict(), "pytorch-lightning_version": "2"}, tmp_path / "x"
    )
    with pytest.raises(ValueError, match=r"expected builtin\.rnn\.weight_ih_l0 of shape \(32, 2\), got None"):
        load_model(tmp_path / "x")
