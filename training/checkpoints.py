"""What is read from files: the weights of an nn.RNN, and the settings of a run."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FIRST = "weight_ih_l0"


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
    state = state_dict(path)
    prefixes = [name.removesuffix(FIRST) for name in state if name.endswith(FIRST)]
    if len(prefixes) != 1:
        raise ValueError(f"expected one RNN ('...{FIRST}') in {path}, got {prefixes or 'none'}")
    own = prefixes[0]
    layers = ("weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l")
    return {
        name.removeprefix(own): w
        for name, w in state.items()
        if name.startswith(tuple(own + p for p in layers))
    }


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of model and data in a checkpoint of this package, as the command line takes them."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint, got {path}: no such file")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if "datamodule_hyper_parameters" not in checkpoint:
        raise ValueError(f"expected a checkpoint that python -m training wrote, got {path}")
    model, data = checkpoint["hyper_parameters"], checkpoint["datamodule_hyper_parameters"]
    not_settings = ("_instantiator", "_class_path", "input_size", "output_size", "init_from")
    arguments = {name: value for name, value in data.items() if name not in not_settings}
    return {
        "model": {name: value for name, value in model.items() if name not in not_settings},
        "data": {"class_path": data["_class_path"], "init_args": arguments},
    }


def state_dict(path: Path) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a file with nn.RNN weights, got {path}: no such file")
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise ValueError(
            f"expected a state_dict or a Lightning checkpoint in {path}, got {type(content).__name__}"
        )
    return content.get("state_dict", content)
