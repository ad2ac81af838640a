"""The words of a command line: which command runs, its options. It loads no more than the overview takes."""

import os
import re
import signal
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

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
Option = tuple[str, list[str]]
"""Its name with the dashes, and its values."""
OVERVIEW = """usage: {prog} [command] [options]

Trains ManualRNN beside nn.RNN: the same initial weights, the same batches, and at the end a table of how
far their gradients parted. Without a command or options: handwritten digits, in under a minute.

commands:
{commands}

options of fit that are used most:
  --data NAME                 the task, by its name or as my_module.MyTask; `tasks` lists them
  --data.batch_size 64        and others of the task; --data.help NAME lists them
  --model.hidden_size 32      of both twins; also num_layers, nonlinearity, bidirectional, dropout, kernel ...
  --optimizer.lr 0.002        of Adam, or of what --optimizer names
  --compare.every_n_steps 1   how often gradients are compared; also tolerance
  --trainer.max_epochs 20     and Lightning's other options
  --seed_everything 0         of the weights, the batches and dropout
  --config NAME               settings from a file, or of this package: {configs}
  --ckpt_path PATH            goes on with a run: a checkpoint, or last or best of the newest one

all options of a command: {prog} COMMAND --help
"""


def main(args: list[str] | None = None) -> None:
    """One command line, that of the process where none is given. Raises SystemExit with a code but 0."""
    try:
        run(sys.argv[1:] if args is None else args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of `... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what isn't flushed yet
        sys.exit(128 + signal.SIGPIPE)
    except OSError as problem:  # a file that can't be written
        sys.exit(f"training: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)


def run(given: list[str]) -> None:
    if given and given[0] in ("-h", "--help"):
        print(overview(), end="")
        return
    if given and given[0] == "--version":
        print(prog(), import_module("manual_rnn").__version__)
        return
    named = bool(given) and not given[0].startswith("-")
    name, options = (given[0], given[1:]) if named else ("fit", given)
    if name not in COMMANDS:
        there = f"there are {', '.join(COMMANDS)}, and --help"
        sys.stderr.write(f"{prog()}: expected a command, got {name}; {there}\n")
        sys.exit(2)
    sys.path.append(os.getcwd())  # for a task of one's own, --data my_module.MyTask
    try:
        command = import_module(".cli" if name in LABORATORY else ".commands", __package__)
    except ModuleNotFoundError as missing:
        sys.exit(f"{prog()}: {missing.name} isn't installed; pip install 'manual_rnn[lab]' has it")
    command.main(name, options)


def prog() -> str:
    """The name by which the command line was called."""
    called = Path(sys.argv[0]).name
    return called if called == "manual-rnn-lab" else f"python -m {__package__}"


def overview() -> str:
    commands = "\n".join(f"  {name:9} {about}" for name, about in COMMANDS.items())
    configs = sorted(path.stem for path in (Path(__file__).parent / "configs").glob("*.yaml"))
    return OVERVIEW.format(prog=prog(), commands=commands, configs=", ".join(configs))


def grouped(words: Sequence[str]) -> list[Option]:
    """Each option of a command line with its values; words before the first option are one, too."""
    groups: list[Option] = []
    for word in words:
        if re.match("--?[A-Za-z]", word) or not groups:
            name, equals, value = word.partition("=")
            groups.append(("--config" if name == "-c" else name, [value] * bool(equals)))
        else:
            groups[-1][1].append(word)
    return groups


def as_words(groups: Iterable[Option]) -> list[str]:
    """Options with their values as the words of a command line."""
    words = ([f"{name}={values[0]}"] if len(values) == 1 else [name, *values] for name, values in groups)
    return [word for group in words for word in group]


if __name__ == "__main__":
    main()
