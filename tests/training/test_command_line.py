"""The command line: what a run leaves, what the other commands do, and that an error is a line or two."""

import csv
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn
from training_runs import QUIET, SMALL, WARNINGS, CommandLine, checkpoint, last, weights

import manual_rnn
import training
import training.__main__
import training.commands
from training import TRAINER, quieten
from training.__main__ import COMMANDS, main
from training.callbacks import best_and_last
from training.messages import told
from training.settings import CONFIGS, last_value, load_settings, read_config
from training.tasks import TASKS, Adding, Parity
from training.twins import Network

pytestmark = WARNINGS

ECHO = """
import torch
from pytorch_lightning import Callback
from training.datamodule import Task
from training.objective import Batch


class Echo(Task):
    metric = "mse"
    input_size, output_size = 1, 1
    chance, solved = 1 / 12, 1e-3

    def sample(self, generator, count):
        numbers = torch.rand(count, 2 * self.length, 1, generator=generator)
        return Batch(numbers, numbers[:, : self.length])


class Half(Task):
    metric = "mse"


class Wide(Echo):
    input_size = 2


class Early(Echo):
    def __init__(self, **kwargs):
        raise KeyError("a")


class Seen(Callback):
    def __init__(self):
        raise RuntimeError("out of order")


class Begun(Callback):
    def on_train_start(self, trainer, pl_module):
        return [][1]


class Wanting(Echo):
    def __init__(self, widths: list[int], **kwargs):
        super().__init__(**kwargs)


class Bare(Echo):
    def __init__(self):
        super().__init__()


class Listed(Echo):
    def sample(self, generator, count):
        return super().sample(generator, count)._replace(input=[1.0])


class Late(Echo):
    def sample(self, generator, count):
        return 1 / 0
"""


@pytest.fixture
def refused(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a usage error, and returns its words."""

    def run(*args: str) -> str:
        with pytest.raises(SystemExit) as exit:
            cli(*args, small=[])
        words = capsys.readouterr().err
        assert exit.value.code == 2
        assert 1 <= len(words.splitlines()) <= 2
        assert not Path("runs").exists()
        return words

    return run


ERRORS = [
    ("train", "expected a command, got train; there are fit, validate"),
    ("help", "expected a command, got help; there are fit, validate"),
    ("fit --data Addition", "got Addition; did you mean Adding?\nThere are Adding, CopyMemory"),
    ("fit --data nowhere.Task", "--data nowhere.Task: No module named 'nowhere'"),
    ("fit --data torch.nn.RNN", "expected --data to be a class derived from Task, got torch.nn.RNN"),
    ("fit --data os.system", "expected --data to be a class derived from Task, got os.system"),
    ("fit --data echo.py", "--data echo.py: AttributeError: module 'echo' has no attribute 'py'"),
    ("fit --data echo.Half", "Half has no input_size, no output_size, no chance, no solved, no sample"),
    ("fit --data echo.Wide", "expected input of floats (B, T, 2), got float32 (64, 40, 1)"),
    ("fit --data echo.Late", "ZeroDivisionError: division by zero ("),
    ("fit --trainer.callbacks echo.Seen", "python -m training: out of order ("),
    ("fit --data echo.Early", "KeyError: 'a' ("),
    ("fit --data broken.Task", "--data broken.Task: SyntaxError: invalid syntax ("),
    ("fit --data broken.Task", "broken.py, line 3)"),
    ("fit --data unnamed.Task", "NameError: name 'foo' is not defined ("),
    ("fit --data unnamed.Task", "unnamed.py, line 2)"),
    ("fit --config broken.yaml", "broken.py, line 3)"),
    ("fit --data Adding --data.by 3", "expected an option of Adding, got --data.by\nIt has length,"),
    ("fit --data Adding --data.length x", "--data.length: Expected a <class 'int'>. Got value: x"),
    ("fit --data.seed -1", "expected seed of at least 0, got -1"),
    ("fit --data Adding --data.length 1", "expected length of at least 2, got 1"),
    ("fit --data Adding extra", "there is no option extra"),
    ("fit --model.hiden_size 3", "no option --model.hiden_size=3; did you mean --model.hidden_size?"),
    ("fit --model.hidden_size 0", "hidden_size must be greater than zero"),
    ("fit --model.dropout 2", "dropout should be a number in range [0, 1]"),
    ("fit --model.init_from no.pt --model.nonlinearity tanh", "nn.RNN weights, got no.pt: no such file"),
    ("fit --model.kernel nat", "--model.kernel: Expected a typing.Literal['default'"),
    ("fit --model.tbptt_steps 5 --data Adding", "expected targets in every 5 steps"),
    ("fit --model.kernel triton", "can't run here: expected tensors on CUDA, got cpu\n"),
    ("fit --compare.every_n_steps 0", "expected every_n_steps of at least 1, got 0"),
    ("fit --compare.tolerance -1", "expected tolerance of at least 0, got -1"),
    ("fit --threads 0", "--threads: 0 does not conform to restriction v>=1 and v<=1024"),
    ("fit --threads 100000", "--threads: 100000 does not conform to restriction v>=1 and v<=1024"),
    ("fit --seed_everything x", "--seed_everything: invalid literal for int() with base 10: 'x'"),
    ("fit --seed_everything -1", "--seed_everything: -1 does not conform to restriction v>=0"),
    ("fit --seed_everything 4294967296", "--seed_everything: 4294967296 does not conform to restriction"),
    ("fit --name a/b", "expected the name of a folder, got a/b"),
    ("fit --name ../x", "expected the name of a folder, got ../x"),
    ("fit --trainer.max_epoch 3", "no option --trainer.max_epoch=3; did you mean --trainer.max_epochs?"),
    ("fit --trainer.logger Foo", "got Foo\nThere are "),
    ("fit --trainer.callbacks Timr", "got Timr; did you mean Timer?\nThere are "),
    ("fit --config callbacks.yaml", "got Timr; did you mean Timer?\nThere are "),
    ("fit --trainer.precision 7", "or typing.Literal['64', '32', '16', 'bf16'] or NoneType, got 7"),
    ("fit --trainer.accelerator tpus", "tpus"),
    ("fit --trainer.devices 0", "Trainer(devices='0')"),
    (
        "fit --trainer.callbacks ModelCheckpoint --trainer.callbacks.every_n_epochs x",
        "expected --trainer.callbacks.every_n_epochs to be int or NoneType, got x",
    ),
    ("fit --optimizer Adm", "got Adm; did you mean Adam?\nThere are"),
    ("fit --optimizer.lr abc", "expected --optimizer.lr to be float, got abc"),
    ("fit --optimizer.rate 1", "expected an option of Adam, got --optimizer.rate\nIt has lr"),
    ("fit --optimizer LBFGS", "expected an optimizer that moves each parameter by itself, got LBFGS"),
    ("fit --lr_scheduler.gamma 2", "expected --lr_scheduler NAME before the options of one"),
    ("fit --lr_scheduler StepLR", "the following arguments are required: step_size"),
    ("fit --config nowhere", "expected a config (adding, characters, copy_memory"),
    ("fit --config empty", "expected a config with settings, such as 'data: Parity', got none in empty"),
    ("fit --config list.yaml", "expected a config in YAML, got list.yaml: while parsing a flow node"),
    ("fit --config number.yaml", "such as 'data: Parity', got none in number.yaml"),
    ("fit --data echo.Wanting", "TypeError: the following arguments are required: widths\n"),
    ("fit --data echo.Bare --data.length 3", "expected an option of Bare, got --data.length\nIt has none."),
    ("fit --data echo.Listed", "expected sample to return a Batch of two tensors, got one of list, Tensor"),
    ("fit --config modle.yaml", "there is no option modle; did you mean --model"),
    ("fit --config bomb.yaml", "its aliases make more than 100,000 values of it"),
    ("fit --config latin", "or a file) in UTF-8, got latin"),
    ("fit --data CharacterLM --data.path latin", "expected a text in UTF-8, got latin"),
    ("fit --ckpt_path http://localhost/x", "no such file"),
    ("fit --ckpt_path best", "expected a run with a best.ckpt in runs, got none"),
    ("fit --ckpt_path best --data Adding", "expected a run of Adding with a best.ckpt in runs, got none"),
    ("fit --ckpt_path plain.ckpt", "wrote, got plain.ckpt without optimizer_states, lr_schedulers"),
    ("inspect --ckpt_path plain.ckpt", "wrote, got one without the settings of its run"),
    ("fit --ckpt_path pickled.pt", "got pickled.pt, which can't be read: it isn't whole, or holds more"),
    ("export --ckpt_path script.pt", "got script.pt, which can't be read: it isn't whole, or holds more"),
    ("export --ckpt_path nowhere", "a checkpoint, or last or best, got nowhere: no such file"),
    ("export --ckpt_path other.pt", "a checkpoint that python -m training wrote, got other.pt"),
    ("fit --ckpt_path empty", "expected a checkpoint that python -m training wrote, got empty"),
    ("inspect", "the following arguments are required: ckpt_path"),
    ("inspect --ckpt_pth last", "no option --ckpt_pth; did you mean --ckpt_path?"),
    ("test", "expected --ckpt_path with test: a checkpoint, or last or best"),
    ("predict", "expected --ckpt_path with predict"),
    ("validate", "expected --ckpt_path with validate"),
    ("fit --model.init_from empty --model.nonlinearity tanh", "expected a file with nn.RNN weights"),
    ("fit --model.init_from empty", "expected a nonlinearity with init_from"),
    ("fit --optimizer Muon", "Muon only supports 2D parameters"),
    ("fit --trainer.accumulate_grad_batches 0", "accumulate_grad_batches of at least 1, got 0"),
    ("fit --optimizer SparseAdam", "python -m training: SparseAdam does not support dense gradients"),
    ("fit --trainer.barebones true", "Logging can impact raw speed so it is disabled in barebones mode"),
    ("fit --trainer.strategy ddp_spawn", "expected --trainer.strategy to leave the report"),
    ("fit --trainer.callbacks LearningRateFinder", "AttributeError: When using the learning rate finder"),
    ("fit --trainer.callbacks LearningRateFinder", "lr_finder.py, line "),
    ("fit --trainer.callbacks BackboneFinetuning", "'Twins' object has no attribute 'backbone' ("),
    ("fit --trainer.callbacks echo.Begun", "IndexError: list index out of range ("),
    ("export --ckpt_path plain.ckpt", "expected the options of twins in plain.ckpt"),
    ("export --ckpt_path number.ckpt", "AttributeError: 'int' object has no attribute 'shape' ("),
    ("sweep 3", "expected options, such as --seeds 0 1 2, got 3"),
    ("sweep --model.hidden_size 4 0", "hidden_size must be greater than zero"),
    ("sweep --seeds 0 1 --name a/b", "expected the name of a folder, got a/b"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "words"), ERRORS)
def test_a_usage_error_says_what_there_is_and_leaves_no_folder(
    refused: Callable[..., str], options: str, words: str
) -> None:
    Path("echo.py").write_text(ECHO)
    Path("broken.py").write_text("import torch\nclass Task:\n    def f(:\n")
    Path("unnamed.py").write_text("import torch\nfoo.bar()\n")
    Path("broken.yaml").write_text("data: broken.Task")
    Path("list.yaml").write_text("data: [1,")
    Path("callbacks.yaml").write_text("trainer:\n  callbacks: [Timr]")
    Path("number.yaml").write_text("3")
    Path("modle.yaml").write_text("data: Parity\nmodle: 3")
    Path("bomb.yaml").write_text(bomb())
    Path("empty").touch()
    Path("latin").write_bytes(b"caf\xe9 " * 999)
    torch.save(nn.Linear(1, 1), "pickled.pt")
    torch.save({"state_dict": nn.RNN(1, 6).state_dict()}, "other.pt")
    with zipfile.ZipFile("script.pt", "w") as archive:
        archive.writestr("archive/constants.pkl", b"")  # by which torch knows a TorchScript file
    parts: dict[str, Any] = {"hyper_parameters": {}, "datamodule_hyper_parameters": {}, "state_dict": {}}
    torch.save({**parts, "pytorch-lightning_version": "2.6"}, "plain.ckpt")
    twins = {"input_size": 1, "output_size": 1}
    content = {
        **parts,
        "pytorch-lightning_version": "2.6",
        "state_dict": {"builtin": 3},
        "hyper_parameters": twins,
    }
    torch.save(content, "number.ckpt")
    sys.modules.pop("echo", None)
    assert words in refused(*options.split())


def bomb(depth: int = 9) -> str:
    """YAML whose aliases stand for 9 to the power of ``depth`` values."""
    lines = ["a0: &a0 [" + "x," * 9 + "]"]
    lines += [f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]" for i in range(1, depth)]
    return "\n".join([*lines, f"data: *a{depth - 1}"])


def test_a_yaml_bomb_ends_within_a_second_and_aliases_are_taken() -> None:
    start = time.process_time()
    with pytest.raises(yaml.YAMLError, match="its aliases"):
        load_settings(bomb(60))
    with pytest.raises(yaml.YAMLError, match="its aliases"):
        load_settings("data: &a [*a]")
    assert time.process_time() - start < 1
    with pytest.raises(yaml.YAMLError, match="nested too deeply"):
        load_settings("[" * 2000 + "*a")
    assert load_settings("a: &a [1, 2]\nb: *a") == {"a": [1, 2], "b": [1, 2]}


def test_a_config_is_read_as_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("name: '1e-3'\noptimizer: {init_args: {lr: 1e-3}}\ncompare: {tolerance: .inf}")
    expected = {"name": "1e-3", "optimizer": {"init_args": {"lr": 0.001}}, "compare": {"tolerance": inf}}
    assert load_settings(read_config("c.yaml")) == expected
    assert load_settings(read_config(read_config("c.yaml"))) == expected
    assert "Müll" in read_config(" {data: Müll}")


def test_of_options_and_configs_the_last_value_holds() -> None:
    config = ("--config", ['{"data": {"class_path": "mine.Mine"}, "ckpt_path": null}'])
    options = [("--data", ["Parity"]), ("--ckpt_path", ["last"])]
    assert last_value("data", [*options, config]) == "mine.Mine"
    assert last_value("data", [config, *options]) == "Parity"
    assert last_value("ckpt_path", [*options, config]) is None
    assert last_value("ckpt_path", [config, *options]) == "last"
    assert last_value("name", [config, *options]) is None


def test_an_error_is_told_with_its_place_in_the_users_file(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("def f():\n    raise KeyError('a')\n")
    namespace: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    with pytest.raises(KeyError) as found:
        namespace["f"]()
    assert told(found.value) == f"KeyError: 'a' ({path}, line 2)"
    assert told(ValueError("expected a, got b")) == "expected a, got b"
    library = tmp_path / "other" / "site-packages" / "lib.py"  # of no environment that Python knows
    library.parent.mkdir(parents=True)
    library.write_text(path.read_text())
    exec(compile(library.read_text(), str(library), "exec"), namespace)
    with pytest.raises(KeyError) as found:
        namespace["f"]()
    alone = found.value.with_traceback(found.tb.tb_next)  # without this file
    assert told(alone) == "KeyError: 'a'"
    assert told(alone, anywhere=True) == f"KeyError: 'a' ({library}, line 2)"


def test_the_overview_is_instant_and_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    light = (
        "import sys; from training.__main__ import main; main(['--help'])\n"
        "print([name for name in sys.modules if name in ('torch', 'pytorch_lightning', 'yaml')])\n"
        "main(['--version'])"
    )
    root = Path(training.__path__[0]).parent
    done = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, cwd=root)
    version = f"python -m training {manual_rnn.__version__}"
    assert done.stdout.splitlines()[-2:] == ["[]", version], done.stderr
    assert all(command in done.stdout for command in COMMANDS)
    assert ", ".join(sorted(config.stem for config in CONFIGS.glob("*.yaml"))) in done.stdout


@pytest.mark.parametrize("name", ["rich.console", "matplotlib"])
def test_what_an_extra_lacks_is_a_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def missing(module: str, package: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(training.__main__, "import_module", missing)
    with pytest.raises(SystemExit, match=rf"{name} isn't installed; pip install 'manual_rnn\[lab\]' has it"):
        main(["tasks"])


def test_ctrl_c_before_a_run_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(module: str, package: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.__main__, "import_module", interrupted)
    with pytest.raises(SystemExit) as exit:
        main([])
    assert exit.value.code == 130


def test_it_calls_itself_as_it_was_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/manual-rnn-lab", "train"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith("manual-rnn-lab: expected a command")


def test_what_a_pipe_s_reader_does_not_want_is_no_error(tmp_path: Path) -> None:
    """It may go before a word was written, and what was written may wait in a buffer for the end."""
    root = Path(training.__path__[0]).parent
    for unbuffered in ("", "1"):
        read, write = os.pipe()
        os.close(read)
        streams: dict[str, Any] = {"stdout": write, "stderr": subprocess.PIPE, "text": True}
        env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run([sys.executable, "-m", "training", "--help"], cwd=root, env=env, **streams)
        os.close(write)
        assert (done.returncode, done.stderr) == (141, "")


def test_a_pipe_that_breaks_is_no_usage_error(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise BrokenPipeError

    cli("--trainer.max_epochs=1")
    monkeypatch.setattr(training.cli, "say", broken)
    with pytest.raises(BrokenPipeError):
        training.cli.main("fit", ["--ckpt_path=last"])


def test_the_help_has_the_twins_own_options_before_lightnings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    options = re.findall(r"(?m)^  (--[\w.]+)", capsys.readouterr().out)
    order = ["--seed_everything", "--model.hidden_size", "--data", "--compare.tolerance", "--optimizer"]
    assert sorted([*order, "--trainer.max_epochs"], key=options.index) == [*order, "--trainer.max_epochs"]


@pytest.mark.parametrize("command", ["fit", "export", "sweep"])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    if command == "sweep":
        main([command, "--help"])
    else:
        with pytest.raises(SystemExit) as exit:
            main([command, "--help"])
        assert exit.value.code == 0
    assert f"usage: python -m training {command} [" in capsys.readouterr().out


def column(folder: Path, name: str) -> list[float]:
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [float(row[name]) for row in rows if row[name]]


def test_a_run_reports_and_leaves_its_files(cli: CommandLine) -> None:
    out = cli("--trainer.max_epochs=6", "--optimizer.lr=0.3", "--name=mine")
    folder = Path("runs") / "Adding" / "mine"
    said = "24 steps, 6 parameters: every gradient equal to nn.RNN's to round-off; the largest difference"
    assert out.startswith(said)
    assert "rnn.weight_hh_l0" in out
    assert (
        f"Adding: not solved yet after 24 steps, mse of nn.RNN {column(folder, 'val_mse/builtin')[-1]:.4g}"
        in out
    )
    assert "picture: runs/Adding/mine/side_by_side.png run folder: runs/Adding/mine" in out
    assert (folder / "side_by_side.png").stat().st_size > 10_000
    columns = {
        "loss/builtin",
        "loss/manual",
        "gradient/rnn.weight_hh_l0",
        "val_loss/manual",
        "val_mse/builtin",
    }
    assert all(len(column(folder, name)) == (6 if "val" in name else 24) for name in columns)
    best, scores = torch.load(checkpoint(folder, "best"), weights_only=True), column(folder, "val_mse/manual")
    assert scores[-1] > min(scores)
    assert best["epoch"] == scores.index(min(scores))
    assert last(folder)["epoch"] == 5
    assert yaml.safe_load((folder / "config.yaml").read_text()) == last(folder)["settings"]
    assert (Path("runs") / "started.txt").read_text() == f"{folder}\n"  # once, of many checkpoints
    (path,) = folder.glob("events.out.tfevents.*")
    events = EventAccumulator(str(path))
    events.Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["model/hidden_size"].number_value == 6
    assert settings["optimizer/init_args/lr"].number_value == 0.3
    assert settings["data/class_path"].string_value == "training.tasks.Adding"
    (reached,) = events.Scalars("reached/manual")
    assert reached.value == pytest.approx(scores[-1])


def test_the_best_of_an_accuracy_is_the_largest_and_of_an_error_the_smallest() -> None:
    for task, metric, mode in (Parity(), "accuracy", "max"), (Adding(), "mse", "min"):
        best: Any = best_and_last(task, None)[0]
        assert (best.monitor, best.mode) == (f"val_{metric}/manual", mode)


def test_each_epoch_leaves_one_line_with_the_validation(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["fit", *SMALL[1:], "--data=CharacterLM"])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    epochs = [line for line in lines if re.fullmatch(r"Epoch ./1 .*/nn.RNN: [\d.]+ ManualRNN: [\d.]+", line)]
    assert [line[6] for line in epochs] == ["0", "1"]
    assert lines[:2] == epochs  # nothing of them is in a line of its own


def test_a_gradient_past_the_tolerance_is_exit_code_1(cli: CommandLine, capsys: Any) -> None:
    with pytest.raises(
        SystemExit, match=r"the gradient of \S+ parted by more than the tolerance of 0"
    ) as exit:
        cli("--compare.tolerance=0", "--model.kernel=torch")
    assert exit.value.code not in (0, None)
    assert capsys.readouterr().out.startswith("FAILED: the gradient of")


def test_lightning_s_own_options(cli: CommandLine) -> None:
    options = ["--lr_scheduler=ExponentialLR", "--lr_scheduler.gamma=0.1", "--trainer.gradient_clip_val=0.1"]
    options += ["--trainer.accumulate_grad_batches=2", "--optimizer=SGD", "--optimizer.lr=0.5"]
    out = cli(*options, "--trainer.callbacks=Timer", "--compare.every_n_steps=2")
    scheduler = last(Path("runs") / "Adding" / "version_0")["lr_schedulers"][0]
    assert scheduler["_last_lr"] == pytest.approx([0.5 * 0.1**2])
    assert "after 4 steps" in out


@pytest.mark.filterwarnings("ignore:The PyTorch Profiler default schedule will be overridden")
@pytest.mark.parametrize(
    "option", ["--trainer.callbacks=ModelPruning", "--trainer.profiler=pytorch", "--trainer.profiler=simple"]
)
def test_other_tools_of_lightning_go_along(cli: CommandLine, option: str) -> None:
    more = ["--trainer.callbacks.pruning_fn=l1_unstructured"] if "Pruning" in option else []
    assert "equal to nn.RNN's to round-off" in cli(option, *more)


def test_logs_can_be_turned_off(cli: CommandLine) -> None:
    out = cli("--trainer.logger=false", "--trainer.enable_checkpointing=false")
    assert "equal to nn.RNN's to round-off" in out
    assert {path.name for path in Path().iterdir()} == {"config.yaml", "side_by_side.png"}
    cli("--trainer.logger=false")
    assert {path.name for path in Path("checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert not Path("runs").exists()


def test_the_last_run_is_found_where_a_logger_of_ones_own_put_it(cli: CommandLine) -> None:
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs", "--trainer.logger.name=mine"]
    cli(*logger, "--trainer.max_epochs=1")
    assert "restored: logs/mine/version_0/checkpoints/last.ckpt" in cli(
        "test", "--ckpt_path=last", QUIET, small=[]
    )


def test_a_folder_that_cannot_be_written_is_a_line(cli: CommandLine) -> None:
    Path("runs").touch()
    with pytest.raises(SystemExit, match=r"training: \[Errno \d+\] Not a directory"):
        cli()


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda config: config.stem)
def test_every_config_runs_by_its_bare_name(cli: CommandLine, config: Path) -> None:
    out = cli("--config", config.stem, "--trainer.fast_dev_run=true", small=[])
    assert "equal to nn.RNN's to round-off" in out
    assert list(Path().iterdir()) == []  # it is a trial


def test_there_is_a_config_for_every_task() -> None:
    text = "".join(config.read_text() for config in CONFIGS.glob("*.yaml"))
    assert [name for name in TASKS if name not in text] == []


@pytest.mark.parametrize(
    ("config", "options", "task", "length"),
    [
        ("data: SinePrediction", [], "SinePrediction", 50),
        ("{data: {class_path: CopyMemory, init_args: {symbols: 3}}}", [], "CopyMemory", 10),
        ('{"data": {"class_path": "CopyMemory"}}', [], "CopyMemory", 10),
        ("data:\n  init_args:\n    length: 12", ["--data=Parity"], "Parity", 12),
        ("model:\n  nonlinearity: relu", ["--data=Parity", "--data.batch_size=4"], "Parity", 20),
    ],
)
def test_a_config_names_the_task_or_leaves_it(
    cli: CommandLine, config: str, options: list[str], task: str, length: int
) -> None:
    """However it is written: in blocks, in braces, as JSON; a task keeps its own defaults."""
    Path("config.yaml").write_text(config)
    cli(
        *options,
        "--config=config.yaml",
        small=[QUIET, "--trainer.limit_train_batches=1", "--trainer.max_epochs=1"],
    )
    assert last(Path("runs") / task / "version_0")["datamodule_hyper_parameters"]["length"] == length


def test_one_seed_is_that_of_weights_and_batches(cli: CommandLine) -> None:
    for options in (
        ["--seed_everything=1"],
        ["--seed_everything=1", "--data.seed=0"],
        ["--seed_everything=1"],
    ):
        cli(*options, "--trainer.max_epochs=1")
    a, b, c = (weights(Path("runs") / "Adding" / f"version_{i}") for i in range(3))
    assert not torch.equal(a["manual.rnn.weight_hh_l0"], b["manual.rnn.weight_hh_l0"])
    assert torch.equal(a["manual.rnn.weight_hh_l0"], c["manual.rnn.weight_hh_l0"])


def test_the_command_line_and_python_train_alike(cli: CommandLine) -> None:
    cli("--trainer.max_epochs=1")
    torch.manual_seed(0)
    task = Adding(train_batches=4, val_batches=1, batch_size=8)
    model = training.twins.Twins.for_task(task, hidden_size=6)
    training.train(task, model, max_epochs=1, enable_progress_bar=False)
    state = weights(Path("runs") / "Adding" / "version_0")
    assert all(torch.equal(w, state[name]) for name, w in model.state_dict().items())


def test_a_task_may_ask_for_options_and_have_the_numbers_of_numpy(cli: CommandLine) -> None:
    """A run that goes on has them from its settings."""
    sys.modules.pop("echo", None)
    Path("echo.py").write_text(
        ECHO.replace(
            "(Echo):\n    def __init__(self, widths",
            "(Echo):\n    input_size = np.int64(1)\n\n    def __init__(self, widths",
        ).replace("import torch\n", "import numpy as np\nimport torch\n", 1)
    )
    cli("--data=echo.Wanting", "--data.widths=[3, 4]", "--trainer.max_epochs=1")
    cli("--ckpt_path=last", "--data=echo.Wanting", "--trainer.max_epochs=2", QUIET, small=[])
    sys.modules.pop("echo", None)
    found = last(Path("runs") / "Wanting" / "version_1")
    assert found["global_step"] == 8
    assert found["settings"]["data"]["init_args"]["widths"] == [3, 4]
    assert found["hyper_parameters"]["input_size"] == 1


def test_a_task_of_ones_own_is_known_by_its_class_path(cli: CommandLine) -> None:
    sys.modules.pop("echo", None)
    Path("echo.py").write_text(ECHO)
    assert "mse of nn.RNN" in cli("--data=echo.Echo", "--data.length=3")
    path = checkpoint(Path("runs") / "Echo" / "version_0")
    assert len(cli("inspect", f"--ckpt_path={path}", "--data=echo.Echo", small=[]).split()) == 3
    cli("export", "--ckpt_path=best", small=[])
    assert torch.load("rnn.pt", weights_only=True)["weight_ih_l0"].shape == (6, 1)
    assert "test_mse/manual" in cli("test", QUIET, "--ckpt_path=last", "--data=echo.Echo", small=[])


@pytest.fixture
def finished(cli: CommandLine) -> Path:
    cli("--data=Parity", "--model.num_layers=2", "--trainer.max_epochs=1")
    return checkpoint(Path("runs") / "Parity" / "version_0")


def plain_network(path: Path) -> Network:
    """nn.RNN and a readout with the weights of ManualRNN's twin."""
    network = Network(nn.RNN(1, 6, 2, batch_first=True), nn.Linear(6, 2))
    state = torch.load(path, weights_only=True)["state_dict"]
    own = {name: weight for name, weight in state.items() if name.startswith("manual.")}
    network.load_state_dict({name.removeprefix("manual."): weight for name, weight in own.items()})
    return network


def test_a_checkpoint_is_validated_and_tested(cli: CommandLine, finished: Path) -> None:
    assert "val_accuracy/manual" in cli("validate", QUIET, f"--ckpt_path={finished}", small=[])
    assert "test_accuracy/manual" in cli("test", QUIET, f"--ckpt_path={finished}", small=[])


def test_a_checkpoint_predicts(cli: CommandLine, finished: Path) -> None:
    out = cli("predict", QUIET, f"--ckpt_path={finished}", small=[])
    predictions = torch.load(out.split("predictions: ")[1].strip(), weights_only=True)
    network = plain_network(finished)
    assert len(predictions) == 1
    for number, answer in enumerate(predictions):
        batch = Parity(batch_size=8).batch("test", number)
        assert torch.equal(answer["input"], batch.input)
        torch.testing.assert_close(answer["output"], network(batch.input)[0])


@pytest.mark.parametrize("twin", ["manual", "builtin"])
def test_an_export_loads_into_nn_rnn(cli: CommandLine, finished: Path, twin: str) -> None:
    cli("export", f"--ckpt_path={finished}", "--output=rnn.pt", f"--twin={twin}", small=[])
    rnn = nn.RNN(1, 6, 2)
    rnn.load_state_dict(torch.load("rnn.pt", weights_only=True))
    state = torch.load(finished, weights_only=True)["state_dict"]
    for name, weight in rnn.state_dict().items():
        assert torch.equal(weight, state[f"{twin}.rnn.{name}"])


def test_an_onnx_export_answers_as_the_network(cli: CommandLine, finished: Path) -> None:
    cli("export", f"--ckpt_path={finished}", "--onnx=network.onnx", small=[])
    session = onnxruntime.InferenceSession(Path("network.onnx"))
    network, input = plain_network(finished), torch.randn(4, 9, 1)
    found, expected = session.run(None, {"input": input.numpy()}), network(input)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b.detach(), atol=1e-5)


def test_inspect_writes_pictures_of_the_task_it_was_trained_on(cli: CommandLine, finished: Path) -> None:
    pictures = [Path(path) for path in cli("inspect", f"--ckpt_path={finished}", small=[]).split()]
    assert len(pictures) == 3
    assert all(path.stat().st_size > 5000 for path in pictures)


def test_inspect_shows_the_batch_that_a_test_begins_with(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("--data=Parity", "--trainer.max_epochs=1", "--seed_everything=3")
    seen: list[torch.Tensor] = []

    def note(rnn: nn.Module, input: torch.Tensor, folder: Path) -> list[Path]:
        seen.append(input)
        return []

    monkeypatch.setattr(training.commands, "write_pictures", note)
    cli("inspect", "--ckpt_path=last", small=[])
    assert torch.equal(seen[0], Parity(batch_size=8, seed=3).batch("test", 0).input)


def test_the_tasks_are_listed(cli: CommandLine) -> None:
    out = cli("tasks", small=[])
    assert all(name in out for name in TASKS)


def test_warnings_of_what_is_meant_are_left_out_and_no_others() -> None:
    import warnings

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quieten()
        warnings.warn("The number of training batches (4) is smaller than", stacklevel=1)
        warnings.warn("The weights are wrong", stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["The weights are wrong"]
    assert TRAINER["num_sanity_val_steps"] == 0


def test_the_working_folder_is_searched_last(cli: CommandLine) -> None:
    cli("tasks", small=[])
    assert sys.path[-1] == os.getcwd()


def test_what_is_refused_after_the_first_step_keeps_its_folder(
    cli: CommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        cli("--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=nowhere")
    assert exit.value.code == 2
    assert "Early stopping conditioned on metric `nowhere`" in capsys.readouterr().err
    assert (Path("runs") / "Adding" / "version_0" / "config.yaml").is_file()
