r"""What is told of a command line before torch is loaded: its help, and most of what can be wrong with it.

The parser here is of outlines, with the names, types and defaults of the true one in ``laboratory.py``, which
parses once more what this one finds no fault with. Left to that one is what can't be known yet: classes given
by their path, what a checkpoint says, and the objects that Lightning's Trainer is handed.
"""

import re
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import yaml

from .folders import NAMED, find_checkpoint, no_file
from .options import (
    OPTIMIZER,
    TASK,
    TRAINER,
    add_options_of_a_run,
    check_run,
    check_twins,
    grouped,
    name_of,
    values_of,
)
from .outline import PLAIN, Known, aliases, only, outlines, package_file
from .parser import PROG, InFewWords, no_settings, no_yaml, usage_error

CLASSES = {"data": TASK, "optimizer": OPTIMIZER, "lr_scheduler": None}
"""Those whose options are options, with what they are where none is named."""
EPILOG = """The options of a class: --data.help NAME, --optimizer.help NAME, --lr_scheduler.help NAME,
--trainer.callbacks.help NAME, --trainer.logger.help NAME and so on."""
HERE = Path(__file__).parent


@cache
def outlined() -> dict[str, type]:
    """The classes whose options there are, by name."""
    kernels = package_file("manual_rnn", "kernels", "selection.py")
    names = Known({**PLAIN, **aliases(kernels), **aliases(HERE / "networks.py")})
    found = {
        name: only(path, name, __name__, names)
        for name, path in (
            ("Task", HERE / "datamodule.py"),
            ("SideBySide", HERE / "side_by_side.py"),
            ("Trainer", package_file("pytorch_lightning", "trainer", "trainer.py")),
            ("Optimizer", package_file("torch", "optim", "optimizer.py")),
            ("LRScheduler", package_file("torch", "optim", "lr_scheduler.py")),
        )
    }
    optimizers = sorted(package_file("torch", "optim").glob("*.py"))
    for path in HERE / "tasks.py", *optimizers, package_file("pytorch_lightning", "cli.py"):
        found |= outlines(path, __name__, found, names)
    return found


def __getattr__(name: str) -> type:
    """jsonargparse imports a class from where it says that it is."""
    if name in outlined():
        return outlined()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def parser_of(command: str) -> InFewWords:
    """The options of fit, validate, test or predict."""
    task, twins, trainer = (outlined()[name] for name in ("Task", "SideBySide", "Trainer"))
    parser = InFewWords(
        prog=f"{PROG} {command}", usage="%(prog)s [options]", epilog=EPILOG, allow_abbrev=False
    )
    parser.add_argument("-c", "--config", action="config", help="file with settings, in YAML or JSON")
    parser.add_argument(
        "--seed_everything",
        type=bool | int,
        default=0,
        help="of weights, batches and dropout; false: none is set",
    )
    parser.add_argument(
        "--ckpt_path", type=str | None, help="a checkpoint, or last or best of the newest run"
    )
    if command != "fit":
        own = "--return_predictions" if command == "predict" else "--verbose"
        parser.add_argument(own, type=bool | None, help=f"as of Lightning's Trainer.{command}")
    add_options_of_a_run(parser)
    parser.add_subclass_arguments(task, "data", required=False)
    parser.add_class_arguments(twins, "model", skip={"input_size", "output_size"}, sub_configs=True)
    optimizer, scheduler = (outlined()[name] for name in ("Optimizer", "LRScheduler"))
    parser.add_subclass_arguments(optimizer, "optimizer", skip={"params"}, required=False)
    parser.add_subclass_arguments(scheduler, "lr_scheduler", skip={"optimizer"}, required=False)
    parser.add_class_arguments(trainer, "trainer", sub_configs=True)
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER.items()})
    return parser


def judge(command: str, options: list[str]) -> None:
    """Prints the help that was asked for, or refuses what can be refused by now; else does nothing."""
    try:
        parser = parser_of(command)
    except (OSError, StopIteration):  # a torch or Lightning with other files: the true parser judges alone
        return
    groups = grouped(options)
    given = {name_of(group).lstrip("-"): values_of(group) for group in groups}
    try:
        elsewhere = "ckpt_path" in given or not all(map(check_config, configs_of(groups)))
        check_checkpoint(given)
        later = {name for name in CLASSES if told_later(given.get(name), elsewhere)}
        later |= {"print_config", *["config"] * elsewhere}
        config = parser.parse_args(told(groups, later))
        if not elsewhere:
            check_run(config.trainer, config.optimizer.class_path if config.optimizer else "")
            check_twins(**{name: config.model[name] for name in signature(check_twins).parameters})
    except (ValueError, FileNotFoundError) as refusal:
        usage_error(str(refusal))


def configs_of(groups: list[list[str]]) -> list[str]:
    return [path for group in groups if name_of(group) == "--config" for path in values_of(group)]


def told_later(given: list[str] | None, elsewhere: bool) -> bool:
    """Whether which class it is can't be told yet: it has a path, or another place may name it."""
    return elsewhere if given is None else bool(re.search(r"\W", "".join(given)))


def told(groups: list[list[str]], later: set[str]) -> list[str]:
    """What can be judged now: all but ``later``. Classes come first, since their options need them."""
    default = [[f"--{name}", value] for name, value in CLASSES.items() if value and name not in later]
    now = [group for group in groups if is_told(group, later)]
    classes = [group for group in now if name_of(group)[2:] in CLASSES]
    return [word for group in [*default, *classes, *now] for word in group]


def is_told(group: list[str], later: set[str]) -> bool:
    """Whether an option with its values can be judged now."""
    key, *rest = name_of(group).lstrip("-").split(".")
    if key in later or len(rest) > 1 or name_of(group).endswith("+"):
        return False
    return rest != ["help"] or all(word.isidentifier() for word in values_of(group))


def check_config(path: str) -> bool:
    """Whether its settings can be judged now: they are in a file, and no class of them has a path.

    Raises:
        ValueError: where it isn't a file with settings.
        FileNotFoundError: where it is no file.
    """
    if path.lstrip().startswith("{"):  # the settings themselves
        return False
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a config, got {path}: {no_file(Path(path))}")
    try:
        text = Path(path).read_text(encoding="utf-8")
        settings = yaml.safe_load(text)
    except UnicodeDecodeError as problem:
        raise ValueError(f"expected a config in UTF-8: {problem}") from None
    except yaml.YAMLError as problem:
        raise ValueError(no_yaml(str(problem))) from None
    if not isinstance(settings, dict):
        raise ValueError(no_settings(str(settings or "")))
    return not any(re.search(r"\W", class_in(settings.get(name))) for name in CLASSES)


def class_in(setting: Any) -> str:
    """The class that a config names, by itself or as ``class_path``; empty where it names none."""
    return str(setting.get("class_path") or "" if isinstance(setting, dict) else setting or "")


def check_checkpoint(given: dict[str, list[str]]) -> None:
    """Raises as ``find_checkpoint``; of which task ``last`` and ``best`` are a config may yet say."""
    for path in given.get("ckpt_path", []):
        if not (path in NAMED and "config" in given and "data" not in given):
            find_checkpoint(path, "".join(given.get("data", [TASK])).rpartition(".")[2])
