r"""What becomes of a trained model: its weights as nn.RNN has them, ONNX, pictures of its inside."""

import logging
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from manual_rnn.pictures import write_pictures

from .checkpoints import misfit, read_checkpoint
from .datamodule import Task
from .files import save_whole, write_whole
from .networks import Network
from .parser import InFewWords
from .resuming import settings_of
from .side_by_side import SideBySide
from .tasks import TASKS


def print_tasks() -> None:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("--data", "metric", "chance", "solved", "task and source"):
        table.add_column(heading)
    for name, kind in TASKS.items():
        task, about = kind(), (kind.__doc__ or "").strip().splitlines()[0].replace("`", "")
        figures = (f"{task.chance:.3g}", f"{task.solved:.4g}")
        table.add_row(name, task.metric, *figures, f"{about}\n[dim]{task.source}[/]", end_section=True)
    Console().print(table)


def write_weights(path: Path, twin: str, output: Path, onnx: Path | None) -> None:
    """Those of one twin's RNN; with ``onnx`` its whole network too."""
    network = load_model(path).twins[twin]
    rnn: nn.Module = network.rnn
    save_whole(dict(rnn.state_dict()), output)
    print(f"state_dict of {rnn}: {output}")
    if onnx is not None:
        write_onnx(network, onnx)
        print(f"ONNX of the network: {onnx}")


def write_onnx(network: Network, path: Path) -> None:
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    rnn: Any = network.rnn
    input = torch.zeros(2, 3, rnn.input_size)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # its news is that there is no torchvision
    program: Any = torch.onnx.export(
        network.eval(),
        (input,),
        input_names=["input"],
        output_names=["output", "h_n"],
        dynamic_shapes={"input": {0: batch, 1: time}},
        dynamo=True,
        verbose=False,
    )
    write_whole(path, program.model_proto.SerializeToString())


def write_inside(path: Path, folder: Path) -> None:
    """At a batch of the task that it was trained on."""
    task = load_task(path)
    rnn: Any = load_model(path).manual.rnn
    for picture in write_pictures(rnn, task.batch("test", 0).input, folder):
        print(picture)


def load_model(ckpt_path: Path) -> SideBySide:
    """The twins of a checkpoint, ready to answer."""
    content = read_checkpoint(ckpt_path)
    model = SideBySide.load_from_checkpoint(ckpt_path, map_location="cpu", strict=False, weights_only=True)
    misfit(model, content)
    return model.eval()


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
