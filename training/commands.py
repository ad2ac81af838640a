"""The commands beside Lightning's. What they need is loaded once their options are known to be right."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from jsonargparse import auto_cli

from . import sweep
from .folders import find_checkpoint
from .parser import PROG, InFewWords, usage_error
from .quiet import quieten

Twin = Literal["manual", "builtin"]


def list_tasks() -> None:
    """List the tasks."""
    from .trained import print_tasks

    print_tasks()


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
    path = find_checkpoint(ckpt_path)
    missing = [name for name in ("onnx", "onnxscript") if onnx and find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX needs {' and '.join(missing)}: pip install 'manual_rnn[onnx]'")
    from .trained import write_weights

    write_weights(path, twin, output, onnx)


def draw_inside(ckpt_path: str, folder: Path | None = None) -> None:
    """Write pictures of a trained ManualRNN at its task: states, gradients in time, eigenvalues.

    Args:
        ckpt_path: a checkpoint of a run; or last or best of the newest run.
        folder: for the pictures; beside the checkpoint where none is given.
    """
    path = find_checkpoint(ckpt_path)
    from .trained import write_inside

    write_inside(path, folder or path.parent / "inspect")


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
    except OSError as problem:
        sys.exit(f"training: {problem}")
