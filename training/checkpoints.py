r"""What is read from files: weights of an nn.RNN, and checkpoints of runs with their settings.

Files are read with ``weights_only=True``: tensors, numbers and names, so that no code of theirs runs.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .folders import CHECKPOINT, no_file

FIRST = "weight_ih_l0"
INSTANTIATOR = "pytorch_lightning.cli.instantiate_module"


def load_rnn(rnn: nn.RNN, path: Path) -> None:
    """Loads the weights of the one RNN in ``path`` into ``rnn``.

    Raises:
        ValueError: where there is none, more than one, or one of another shape.
        FileNotFoundError: where there is no such file.
    """
    weights = rnn_weights(path)
    expected = {name: tuple(p.shape) for name, p in rnn.state_dict().items()}
    got = {name: tuple(p.shape) for name, p in weights.items()}
    if got != expected:
        raise ValueError(
            f"expected RNN weights {expected}, got {got} from {path}; see --model.hidden_size and the others"
        )
    rnn.load_state_dict(weights)


def rnn_weights(path: Path) -> dict[str, Tensor]:
    """The state_dict of the one RNN in ``path``, without the prefix that it has in its model."""
    content = read(path, "a file with nn.RNN weights")
    state = content.get("state_dict", content)
    prefixes = [name.removesuffix(FIRST) for name in state if str(name).endswith(FIRST)]
    if len(prefixes) != 1:
        raise ValueError(f"expected one RNN ('...{FIRST}') in {path}, got {prefixes or 'none'}")
    own = prefixes[0]
    layers = ("weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l")
    return {
        name.removeprefix(own): w
        for name, w in state.items()
        if name.startswith(tuple(own + p for p in layers))
    }


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint that a run wrote.

    Raises:
        ValueError: for any other file.
        FileNotFoundError: where there is no such file.
    """
    content = read(path, CHECKPOINT)
    parts = [content.get(part) for part in ("hyper_parameters", "datamodule_hyper_parameters", "state_dict")]
    if not all(isinstance(part, dict) for part in parts) or "pytorch-lightning_version" not in content:
        raise ValueError(f"expected {CHECKPOINT}, got {path}")
    if any(part.get("_instantiator", INSTANTIATOR) != INSTANTIATOR for part in parts if part):
        raise ValueError(
            f"expected {CHECKPOINT}, got {path}, which asks for another function to make the model"
        )
    return content


def read(path: Path, expected: str) -> dict[str, Any]:
    """The dictionary in a file. Raises ValueError for anything else, and FileNotFoundError for no file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected {expected}, got {path}: {no_file(Path(path))}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that of TorchScript, which is refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # whatever a broken file leads the unpickler to
        why = (
            problem
            if isinstance(problem, OSError)
            else "it isn't whole, or holds more than tensors and names"
        )
        raise ValueError(f"expected {expected}, got {path}, which can't be read: {why}") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected {expected}, got a {type(content).__name__} in {path}")
    return content


def misfit(model: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Raises ValueError where weights of a checkpoint don't fit the model, for the first of them."""
    expected = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    got = {name: tuple(p.shape) for name, p in checkpoint["state_dict"].items()}
    for name in {**expected, **got}:
        if expected.get(name) != got.get(name):
            raise ValueError(
                f"expected {name} of shape {expected.get(name)}, got {got.get(name)} in the checkpoint; "
                "a run goes on with its own task and sizes"
            )
