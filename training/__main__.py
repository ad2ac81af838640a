"""The command line's first word: which command runs. It loads no more than that takes."""

import os
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import Any

PROG = f"python -m {__package__}"
EXTRA = """
jsonargparse lightning_fabric matplotlib pytorch_lightning rich sklearn tensorboard torchmetrics yaml
"""
LABORATORY = ("fit", "validate", "test", "predict")
COMMANDS = {
    "fit": "train the twins, compare their gradients, end with the report; runs where no command is named",
    "validate": "the twins' loss and metric on the validation batches",
    "test": "the same on the test batches",
    "predict": "ManualRNN's answers to the test batches, in a file",
    "sweep": "several seeds or settings one after the other, a table and a picture of all",
    "tasks": "what tasks there are, from whom, and when one is solved",
    "inspect": "pictures of a trained ManualRNN: states, gradients through time, eigenvalues",
    "export": "a trained twin as an nn.RNN state_dict, and as ONNX",
}
OVERVIEW = """usage: {prog} [command] [options]

Trains ManualRNN beside nn.RNN: the same initial weights, the same batches, and at the end a table of how
far their gradients parted. Without a command or options: the adding problem, in under a minute.

commands:
{commands}

options of fit that are used most:
  --data NAME                 the task, by its name or as my_module.MyTask; `tasks` lists them
  --data.length 20            how long its sequences are; --data.help NAME lists a task's options
  --model.hidden_size 32      of both twins; also num_layers, nonlinearity, bidirectional, dropout, kernel ...
  --optimizer.lr 0.005        of Adam, or of what --optimizer names
  --trainer.max_epochs 12     and Lightning's other options
  --seed_everything 0         of the weights, the batches and dropout
  --config FILE               settings from a file, such as {package}/configs/parity.yaml
  --ckpt_path PATH            goes on with a run: a checkpoint, or last or best of the newest one

all options of a command: {prog} COMMAND --help
"""


def main(args: list[str] | None = None) -> None:
    given = sys.argv[1:] if args is None else args
    if given and given[0] in ("-h", "--help"):
        print(overview(), end="")
        return
    named = bool(given) and not given[0].startswith("-")
    name, options = (given[0], given[1:]) if named else ("fit", given)
    if name not in COMMANDS:
        sys.stderr.write(f"{PROG}: {unknown(name)}\n")
        sys.exit(2)
    sys.path.append(os.getcwd())  # for a task of one's own, --data my_module.MyTask
    try:
        if name in LABORATORY:
            loaded("early").judge(name, options)
        loaded("laboratory" if name in LABORATORY else "commands").run(name, options)
    except ModuleNotFoundError as missing:
        if (missing.name or "").split(".")[0] not in EXTRA.split():
            raise
        sys.exit(f"{PROG}: {missing.name} isn't installed; pip install 'manual_rnn[lab]' has it")
    except KeyboardInterrupt:
        sys.exit(130)


def loaded(module: str) -> Any:
    return import_module(f".{module}", __package__)


def overview() -> str:
    commands = "\n".join(f"  {name:9} {about}" for name, about in COMMANDS.items())
    return OVERVIEW.format(prog=PROG, package=(__package__ or "").replace(".", "/"), commands=commands)


def unknown(name: str) -> str:
    near = {"help": ["--help"], "train": ["fit"]}.get(name) or get_close_matches(name, COMMANDS)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"expected a command, got {name}{meant}\nThere are {', '.join(COMMANDS)}, and --help."


if __name__ == "__main__":
    main()
