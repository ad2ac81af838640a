r"""What an `nn.RNN` owns and answers: constructor, parameters, names, checks. No run, no mathematics."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import checks
from .kernels.phi import PHI

__all__ = ["OWN_MODE", "PHI_OF_MODE", "RNNBase"]

PHI_OF_MODE = {row.mode: name for name, row in PHI.items()}
OWN_MODE = "RNN_OWN"


def _orthogonal_(weight: Tensor) -> None:
    """In float32 at least: the QR behind it knows no half precision."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    with torch.no_grad():
        weight.copy_(nn.init.orthogonal_(torch.empty_like(weight, dtype=dtype)))


RECURRENT: dict[str, Callable[[Tensor], Any]] = {"identity": nn.init.eye_, "orthogonal": _orthogonal_}


class RNNBase(nn.Module):
    r"""The constructor and parameters of `torch.nn.RNN`, and what it tells about them."""

    @checks.refuses_projection
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str | Callable[[Tensor], Tensor] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.check_nonlinearity(nonlinearity, PHI)
        super().__init__()
        self.nonlinearity = nonlinearity
        self.mode = PHI[nonlinearity].mode if isinstance(nonlinearity, str) else OWN_MODE
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = 0
        checks.check_dropout(dropout, num_layers)
        checks.check_flags(bias=bias, batch_first=batch_first)
        checks.check_sizes(input_size, hidden_size, num_layers)
        self._all_weights = [
            self._add_weights(layer, suffix, device, dtype)
            for layer in range(num_layers)
            for suffix in ("", "_reverse")[: self._directions]
        ]
        self.reset_parameters()

    def _add_weights(self, layer: int, suffix: str, device: Any, dtype: Any) -> list[str]:
        """Register the uninitialised parameters of one layer and direction; return their names."""
        H = self.hidden_size
        width = H * self._directions if layer else self.input_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (H, width), "weight_hh": (H, H)}
        if self.bias:
            shapes |= {"bias_ih": (H,), "bias_hh": (H,)}
        names = [f"{name}_l{layer}{suffix}" for name in shapes]
        for name, shape in zip(names, shapes.values(), strict=True):
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        return names

    def reset_parameters(self, recurrent: str | None = None) -> None:
        r"""Draw every weight from $\mathcal{U}(-1/\sqrt{H}, 1/\sqrt{H})$, then change the recurrent ones.

        Args:
            recurrent: "identity" for $W_{hh} = 1$ and both biases 0, which with ReLU is the IRNN of Le,
                Jaitly and Hinton (arXiv 1504.00941, 2015); "orthogonal" for $W_{hh}^T W_{hh} = 1$, after
                Saxe, McClelland and Ganguli (arXiv 1312.6120, 2013); None to leave them as drawn.

        Raises:
            ValueError: for any other `recurrent`.
            RuntimeError: if `recurrent` is given and a weight is computed, by a parametrization say.
        """
        checks.check_recurrent(self, recurrent, RECURRENT)
        bound = 1.0 / math.sqrt(self.hidden_size)
        own = tuple(self._flat_weights_names)  # a nonlinearity's or a subclass's parameters aren't
        for name, weight in self.named_parameters():
            if name.removeprefix("parametrizations.").startswith(own):
                nn.init.uniform_(weight, -bound, bound)
        if recurrent is None:
            return
        for _, weight_hh, *biases in self.all_weights:
            RECURRENT[recurrent](weight_hh)
            for bias in biases if recurrent == "identity" else []:
                nn.init.zeros_(bias)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """Per layer and direction the list of its weights."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._flat_weights_names]

    def flatten_parameters(self) -> None:
        """Do nothing: no kernel here wants the weights in one block of memory."""

    check_forward_args = checks.check_forward_args
    check_input = checks.check_input
    check_hidden_size = staticmethod(checks.check_hidden_size)

    def get_expected_hidden_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """`(L * D, B, H)` for this input."""
        if batch_sizes is None:
            B = input.size(0 if self.batch_first else 1)
        else:
            B = int(batch_sizes[0]) if len(batch_sizes) else 0
        return self.num_layers * (2 if self.bidirectional else 1), B, self.hidden_size

    def permute_hidden(self, hx: Tensor, permutation: Tensor | None) -> Tensor:
        """`hx` with its batch in another order."""
        return hx if permutation is None else hx.index_select(1, permutation)

    def extra_repr(self) -> str:
        """The sizes, and whatever differs from its default."""
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0, "bidirectional": False}
        shown = [f"{k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k) != v]
        if self.mode == OWN_MODE and not isinstance(self.nonlinearity, nn.Module):
            shown.append(f"nonlinearity={getattr(self.nonlinearity, '__name__', self.nonlinearity)}")
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *shown])
