r"""The commands beside Lightning's own: tasks, inspect, export, sweep."""

import logging
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from manual_rnn.pictures import write_pictures

from .__main__ import prog
from .datamodule import Task
from .entry import quieten
from .files import find_checkpoint, read_checkpoint, save_whole, write_whole
from .messages import InFewWords, told, usage_error
from .resume import check_weights, settings_of
from .tasks import TASKS
from .twins import Network, Twins

LEAST_STEPS = 3
"""Of the example that an ONNX program is made from; it takes any number."""


def list_tasks() -> None:
    """List the tasks."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("--data", "metric", "chance", "solved", "task and source"):
        table.add_column(heading)
    for name, kind in TASKS.items():
        task, about = kind(), (kind.__doc__ or "").strip().splitlines()[0].replace("`", "")
        figures = (f"{task.chance:.3g}", f"{task.solved:.4g}")
        table.add_row(name, task.metric, *figures, f"{about}\n[dim]{task.source}[/]", end_section=True)
    Console().print(table)


def export_twin(
    ckpt_path: str,
    output: Path = Path("rnn.pt"),
    onnx: Path | None = None,
    twin: Literal["manual", "builtin"] = "manual",
) -> None:
    """Write the weights of a trained twin as a plain nn.RNN state_dict, and the network as ONNX.

    Args:
        ckpt_path: a checkpoint of a run; or last or best of the newest run.
        output: the file for the state_dict; `nn.RNN(...).load_state_dict(torch.load(output))` takes it.
        onnx: a file for the whole network, from input (batch, time, input_size) to every step's output.
        twin: which of the twins.
    """
    missing = [name for name in ("onnx", "onnxscript") if onnx and find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX needs {' and '.join(missing)}: pip install 'manual_rnn[onnx]'")
    network = load_model(find_checkpoint(ckpt_path)).twins[twin]
    save_whole(dict(network.rnn.state_dict()), output)
    print(f"state_dict of {network.rnn}: {output}")
    if onnx is not None:
        write_onnx(network, onnx)
        print(f"ONNX of the network: {onnx}")


def write_onnx(network: Network, path: Path) -> None:
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    rnn: Any = network.rnn
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # its news is that there is no torchvision
    program: Any = torch.onnx.export(
        network,
        (torch.zeros(2, LEAST_STEPS, rnn.input_size),),
        input_names=["input"],
        output_names=["output", "h_n"],
        dynamic_shapes={"input": {0: batch, 1: time}},
        dynamo=True,
        verbose=False,
    )
    write_whole(path, program.model_proto.SerializeToString())


def draw_inside(ckpt_path: str, folder: Path | None = None, data: str | None = None) -> None:
    """Write pictures of a trained ManualRNN at its task: states, gradients in time, eigenvalues.

    Args:
        ckpt_path: a checkpoint of a run; or last or best of the newest run.
        folder: for the pictures; beside the checkpoint where none is given.
        data: the class of the run's task, where it is one of your own, such as my_module.MyTask.
    """
    path = find_checkpoint(ckpt_path)
    task, model = load_task(path, data), load_model(path)
    rnn: Any = model.manual.rnn
    for picture in write_pictures(rnn, task.batch("test", 0).input, folder or path.parent / "inspect"):
        print(picture)


def load_model(ckpt_path: Path) -> Twins:
    """The twins of a checkpoint, ready to answer. Raises ValueError where its weights don't fit."""
    content = read_checkpoint(ckpt_path)
    options = {name: value for name, value in content["hyper_parameters"].items() if name[0] != "_"}
    try:
        model = Twins(**options)
    except TypeError as problem:
        raise ValueError(f"expected the options of twins in {ckpt_path}: {problem}") from None
    check_weights(model, content)
    model.load_state_dict(content["state_dict"])
    return model.eval()


def load_task(ckpt_path: Path, data: str | None) -> Task:
    """The task of a checkpoint, with its settings; one of the user's own where ``data`` names it."""
    settings = settings_of(read_checkpoint(ckpt_path), [data] if data else [])
    spec = settings["data"]
    seed = spec["init_args"].get("seed")
    spec["init_args"]["seed"] = settings["seed_everything"] if seed is None else seed
    parser = InFewWords()
    parser.add_subclass_arguments(Task, "data")
    task: Task = parser.instantiate_classes(parser.parse_object({"data": spec})).data
    return task


COMMANDS: dict[str, Callable[..., None]] = {
    "tasks": list_tasks,
    "export": export_twin,
    "inspect": draw_inside,
}


def main(name: str, options: list[str]) -> None:
    """One command line. What a command refuses is a usage error, and a file that can't be written a line."""
    quieten()
    try:
        if name == "sweep":
            from .sweep import sweep

            sweep(options)
            return
        called = f"{prog()} {name}"
        auto_cli(COMMANDS[name], options, as_positional=False, parser_class=InFewWords, prog=called)
    except (ValueError, FileNotFoundError, ImportError) as refusal:
        usage_error(told(refusal))
    except OSError as problem:
        sys.exit(f"training: {problem}")
