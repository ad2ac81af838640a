"""The commands beside Lightning's: what tasks there are, and what becomes of a trained model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from manual_rnn.pictures import write_pictures
from training.checkpoints import read_settings
from training.datamodule import Task
from training.networks import Network
from training.side_by_side import SideBySide
from training.tasks import TASKS

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
    ckpt_path: Path, output: Path = Path("rnn.pt"), onnx: Path | None = None, twin: Twin = "manual"
) -> None:
    """Write the weights of a trained twin as a plain nn.RNN state_dict, and the network as ONNX.

    Args:
        ckpt_path: a checkpoint of a run.
        output: the file for the state_dict; `nn.RNN(...).load_state_dict(torch.load(output))` takes it.
        onnx: a file for the whole network, from input (batch, time, input_size) to every step's output.
        twin: which of the twins.
    """
    model = load_model(ckpt_path)
    network = model.twins[twin]
    rnn: nn.Module = network.rnn
    torch.save(dict(rnn.state_dict()), output)
    print(f"state_dict of {rnn}: {output}")
    if onnx is not None:
        export_onnx(network, onnx)
        print(f"ONNX of the network: {onnx}")


def export_onnx(network: Network, path: Path) -> None:
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


def draw_inside(ckpt_path: Path, folder: Path | None = None) -> None:
    """Write pictures of a trained ManualRNN at its task: states, gradients in time, eigenvalues.

    Args:
        ckpt_path: a checkpoint of a run.
        folder: for the pictures; beside the checkpoint where none is given.
    """
    model, task = load_model(ckpt_path), load_task(ckpt_path)
    batch = task.batch("test", 0)
    rnn: Any = model.manual.rnn
    for path in write_pictures(rnn, batch.input, folder or ckpt_path.parent / "inspect"):
        print(path)


def load_model(ckpt_path: Path) -> SideBySide:
    """The twins of a checkpoint, ready to answer."""
    settings = read_settings(ckpt_path)["model"]
    checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=True)
    sizes = {name: checkpoint["hyper_parameters"][name] for name in ("input_size", "output_size")}
    model = SideBySide(**settings, **sizes)
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()


def load_task(ckpt_path: Path) -> Task:
    """The task of a checkpoint, with its settings. Raises ValueError for one that isn't of this package."""
    settings = read_settings(ckpt_path)["data"]
    known = {f"{kind.__module__}.{name}": kind for name, kind in TASKS.items()}
    if settings["class_path"] not in known:
        raise ValueError(
            f"expected a checkpoint of one of the tasks {list(TASKS)}, got {settings['class_path']}"
        )
    return known[settings["class_path"]](**settings["init_args"])


COMMANDS: dict[str, Callable[..., None]] = {"tasks": list_tasks, "export": export, "inspect": draw_inside}
