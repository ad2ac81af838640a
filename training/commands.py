"""The commands beside Lightning's: what tasks there are, and what becomes of a trained model."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from manual_rnn.pictures import write_pictures

from . import sweep
from .checkpoints import find_checkpoint, read_checkpoint
from .datamodule import Task
from .networks import Network
from .parser import PROG, InFewWords, usage_error
from .quiet import quieten
from .resuming import settings_of
from .side_by_side import SideBySide
from .tasks import TASKS

Twin = Literal["manual", "builtin"]


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


def export(
    ckpt_path: str, output: Path = Path("rnn.pt"), onnx: Path | None = None, twin: Twin = "manual"
) -> None:
    """Write the weights of a trained twin as a plain nn.RNN state_dict, and the network as ONNX.

    Args:
        ckpt_path: a checkpoint of a run; or last or best of the newest run.
        output: the file for the state_dict; `nn.RNN(...).load_state_dict(torch.load(output))` takes it.
        onnx: a file for the whole network, from input (batch, time, input_size) to every step's output.
        twin: which of the twins.
    """
    model = load_model(find_checkpoint(ckpt_path))
    network = model.twins[twin]
    rnn: nn.Module = network.rnn
    torch.save(dict(rnn.state_dict()), output)
    print(f"state_dict of {rnn}: {output}")
    if onnx is not None:
        export_onnx(network, onnx)
        print(f"ONNX of the network: {onnx}")


def export_onnx(network: Network, path: Path) -> None:
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX needs {' and '.join(missing)}: pip install 'manual_rnn[onnx]'")
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    rnn: Any = network.rnn
    input = torch.zeros(2, 3, rnn.input_size)
    torch.onnx.export(
        network.eval(),
        (input,),
        path,
        input_names=["input"],
        output_names=["output", "h_n"],
        dynamic_shapes={"input": {0: batch, 1: time}},
        dynamo=True,
        verbose=False,
    )


def draw_inside(ckpt_path: str, folder: Path | None = None) -> None:
    """Write pictures of a trained ManualRNN at its task: states, gradients in time, eigenvalues.

    Args:
        ckpt_path: a checkpoint of a run; or last or best of the newest run.
        folder: for the pictures; beside the checkpoint where none is given.
    """
    path = find_checkpoint(ckpt_path)
    model, task = load_model(path), load_task(path)
    batch = task.batch("test", 0)
    rnn: Any = model.manual.rnn
    for picture in write_pictures(rnn, batch.input, folder or path.parent / "inspect"):
        print(picture)


def load_model(ckpt_path: Path) -> SideBySide:
    """The twins of a checkpoint, ready to answer."""
    read_checkpoint(ckpt_path)
    return SideBySide.load_from_checkpoint(ckpt_path, map_location="cpu", weights_only=True).eval()


def load_task(ckpt_path: Path) -> Task:
    """The task of a checkpoint, with its settings."""
    settings = settings_of(read_checkpoint(ckpt_path))
    data = settings["data"]
    if data["init_args"].get("seed") is None:
        data = {**data, "init_args": {**data["init_args"], "seed": settings["seed_everything"]}}
    parser = InFewWords()
    parser.add_subclass_arguments(Task, "data")
    task: Task = parser.instantiate_classes(parser.parse_object({"data": data})).data
    return task


COMMANDS: dict[str, Callable[..., None]] = {"tasks": list_tasks, "export": export, "inspect": draw_inside}


def run(name: str, options: list[str]) -> None:
    """One command line; what a command refuses is a usage error."""
    if name == "sweep":
        sweep.run(options)
        return
    quieten()
    try:
        auto_cli(COMMANDS[name], options, as_positional=False, parser_class=InFewWords, prog=f"{PROG} {name}")
    except (ValueError, FileNotFoundError, ImportError) as refusal:
        usage_error(str(refusal))
