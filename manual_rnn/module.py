r"""`ManualRNN`, the module: parameters, checks and layouts. The equations stand in `layer.py`."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import checks, onnx
from .convert import check_target, converted
from .layer import PHI, OwnStep, Weights, run_layer
from .layout import plan
from .rows import Walk

__all__ = ["ManualRNN"]

MODES: dict[str, str] = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}
PHI_OF_MODE = {mode: phi for phi, mode in MODES.items()}
OWN_MODE = "RNN_OWN"


def _orthogonal_(weight: Tensor) -> None:
    """In float32 at least: the QR behind it knows no half precision."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    with torch.no_grad():
        weight.copy_(nn.init.orthogonal_(torch.empty_like(weight, dtype=dtype)))


RECURRENT: dict[str, Callable[[Tensor], Any]] = {"identity": nn.init.eye_, "orthogonal": _orthogonal_}


class ManualRNN(nn.Module):
    r"""A multi-layer Elman network, `torch.nn.RNN` written by hand.

    $$h_t = \phi(x_t W_{ih}^T + b_{ih} + h_{t-1} W_{hh}^T + b_{hh})$$

    Constructor, parameters, `state_dict`, inputs, outputs, errors and initial values from the same seed
    are those of `torch.nn.RNN` (its documentation is the source); see the README for what goes beyond.

    Args:
        input_size: `I`, features of the input.
        hidden_size: `H`, features of the state.
        num_layers: `L`; each further layer reads the states of the one before.
        nonlinearity: "tanh", "relu", or a function of a tensor, elementwise or not. The parameters of
            an `nn.Module` join the `state_dict`, as `nonlinearity.*`.
        bias: whether there are `b_ih` and `b_hh`.
        batch_first: whether padded input and output are `(B, T, ...)` instead of `(T, B, ...)`.
        dropout: probability of zeroing an output of every layer but the last, in training.
        bidirectional: whether a second set of weights reads backward in time (`D` = 2 instead of 1).
        device: of the parameters. An integer must be given by keyword: the ninth positional argument
            of `nn.RNN` is really a `proj_size`, with which it builds a network that can't run.
        dtype: of the parameters.

    Shapes: `weight_ih_l{k} (H, I)`, for k > 0 `(H, D * H)`; `weight_hh_l{k} (H, H)`; `bias_ih_l{k}` and
    `bias_hh_l{k}` `(H,)`; the same with the suffix `_reverse` for the second direction.

    Raises:
        TypeError, ValueError: for arguments out of range, in the words of `nn.RNN`.
    """

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
        checks.check_nonlinearity(nonlinearity, MODES)
        super().__init__()
        self.nonlinearity = nonlinearity
        self.mode = MODES[nonlinearity] if isinstance(nonlinearity, str) else OWN_MODE
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

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        r"""Run over a batch of sequences.

        Args:
            input: `(T, B, I)`, with `batch_first` `(B, T, I)`; `(T, I)` unbatched; a `PackedSequence`; or,
                with `batch_first`, a jagged nested tensor `(B, j, I)`.
            hx: the states to begin with, `(L * D, B, H)`, unbatched `(L * D, H)`; zeros if not given.

        Returns:
            `output`, the last layer's states in the layout of the input with `D * H` features, and
            `h_n`, the state in which each layer and direction ended, shaped as `hx`. No steps give an
            empty output and `h_n = hx`.

        Raises:
            ValueError, RuntimeError: for a wrong dtype, rank, size or device, in the words of `nn.RNN`.
        """
        if onnx.is_exporting():
            onnx.check_exportable(input, self._builtin_phi())
        sequence = plan(input, hx, self.batch_first)
        data, hx = sequence.data, sequence.hx
        if hx is None:
            size = self.get_expected_hidden_size(data, sequence.batch_sizes)
            hx = torch.zeros(size, dtype=data.dtype, device=data.device)
        self.check_forward_args(data, hx, sequence.batch_sizes)
        checks.check_attributes(self)
        if sequence.batch_sizes is not None:
            checks.check_batch_sizes(sequence.batch_sizes, len(data))
        output, h_n = self._run(data, hx, sequence.batch_sizes)
        return sequence.restore(output), sequence.restore_state(h_n)

    def _run(self, data: Tensor, hx: Tensor, batch_sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        swap = self.batch_first and batch_sizes is None
        output = data.transpose(0, 1) if swap else data
        weights, phi = self._weights(), self._builtin_phi()
        output, hx, weights = _autocast(output, hx, weights)
        checks.check_tensors(output, hx, weights, self._all_weights)
        starts = hx.unbind(0)
        last: list[Tensor] = []
        walks = [Walk(0, reverse, batch_sizes) for reverse in (False, True)[: self._directions]]
        for layer in range(self.num_layers):
            if layer and self.training and self.dropout:
                output = torch.dropout(output.contiguous(), self.dropout, True)  # masks in nn.RNN's order
            if phi and onnx.is_exporting():
                here = slice(layer * len(walks), (layer + 1) * len(walks))
                output, h_n = onnx.rnn_node(output, hx[here], weights[here], phi)
                last.extend(h_n)
                continue
            states = []
            for direction, walk in enumerate(walks):
                index = layer * len(walks) + direction
                step = phi or self.begin(starts[index])
                out, h = self._run_layer(output, starts[index], weights[index], step, walk)
                states.append(out)
                last.append(h)
            output = states[0] if len(states) == 1 else torch.cat(states, dim=-1)
        return output.transpose(0, 1) if swap else output, torch.stack(last)

    _run_layer = staticmethod(run_layer)  # `manual_rnn.inspect.trace` looks on from here

    def begin(self, h0: Tensor) -> OwnStep:
        r"""The step to take from here to the end of the sequences.

        Override it to prepare what stays the same over all steps of a call, a dropout mask say. It is
        asked once per call, layer and direction.

        Args:
            h0: the state to begin with, `(B, H)`; of packed input, the longest sequence first.

        Returns:
            A function like `step`.
        """
        own: Any = self._modules.get("step", self.step)
        return own

    def step(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
        r"""The state after one step; override it for a recurrence of your own.

        It needs no derivative written by hand. Python takes the steps, so `torch.compile` unrolls them:
        one graph for each number of steps.

        Args:
            gates: $x_t W_{ih}^T + b_{ih} + b_{hh}$, `(B, H)`; of packed input the sequences still
                alive, the longest first.
            hidden: the state before the step, of the same sequences.
            weight_hh: `(H, H)`.
        """
        phi: Any = PHI[PHI_OF_MODE[self.mode]] if self.mode in PHI_OF_MODE else self.nonlinearity
        return phi(gates + F.linear(hidden, weight_hh))

    def _builtin_phi(self) -> str | None:
        """The name of a nonlinearity that the kernels know, or None for a recurrence of your own."""
        for name, builtin in BUILTIN.items():
            if getattr(type(self), name) is not builtin or name in self.__dict__ or name in self._modules:
                return None
        if self.mode == OWN_MODE:
            return None
        checks.check_mode(self.mode, PHI_OF_MODE)
        return PHI_OF_MODE[self.mode]

    def _weights(self) -> list[Weights]:
        """The weights of every layer and direction, read anew, so that no change goes unseen."""
        weights = [Weights(*(getattr(self, name) for name in names)) for names in self._all_weights]
        checks.check_weights(self, weights)
        return weights

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

    @classmethod
    def from_builtin(cls, rnn: nn.RNN) -> "ManualRNN":
        """A new module with the Parameters and hooks of `rnn`, which stays as it is.

        Raises:
            TypeError: for a subclass of `nn.RNN`, one with methods set on the object, or a projected one.
        """
        check_target(cls, ManualRNN)
        return converted(rnn, nn.RNN, cls)

    def to_builtin(self) -> nn.RNN:
        """A new `nn.RNN` with the Parameters and hooks of this module, which stays as it is.

        Raises:
            TypeError: for a recurrence of your own, which `nn.RNN` can't run.
        """
        return converted(self, ManualRNN, nn.RNN)

    def flatten_parameters(self) -> None:
        """Do nothing: no kernel here wants the weights in one block of memory."""

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Raise unless `input` has the weights' dtype and the rank and features expected."""
        rank = 3 if batch_sizes is None else 2
        dtype = getattr(self, self._all_weights[0][0]).dtype
        checks.check_input(input, rank, self.input_size, dtype)

    def get_expected_hidden_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """`(L * D, B, H)` for this input."""
        if batch_sizes is None:
            B = input.size(0 if self.batch_first else 1)
        else:
            B = int(batch_sizes[0]) if len(batch_sizes) else 0
        return self.num_layers * self._directions, B, self.hidden_size

    def check_hidden_size(
        self,
        hx: Tensor,
        expected_hidden_size: tuple[int, int, int],
        msg: str = "Expected hidden size {}, got {}",
    ) -> None:
        """Raise unless `hx` has the expected size."""
        checks.check_hidden_size(hx, expected_hidden_size, msg)

    def check_forward_args(self, input: Tensor, hidden: Tensor, batch_sizes: Tensor | None) -> None:
        """Raise unless input and state fit this module and each other."""
        self.check_input(input, batch_sizes)
        if batch_sizes is None or not torch.compiler.is_compiling():  # in a graph the op checks it
            self.check_hidden_size(hidden, self.get_expected_hidden_size(input, batch_sizes))

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


BUILTIN = {"begin": ManualRNN.begin, "step": ManualRNN.step}


def _autocast(input: Tensor, hx: Tensor, weights: list[Weights]) -> tuple[Tensor, Tensor, list[Weights]]:
    """Under autocast all but float64 and complex runs in the lower precision, as `nn.RNN` does."""
    kind = input.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return input, hx, weights
    dtype = torch.get_autocast_dtype(kind)

    def cast(x: Tensor | None) -> Any:
        lowered = x is not None and x.is_floating_point() and x.dtype != torch.float64
        return x.to(dtype) if x is not None and lowered else x

    return cast(input), cast(hx), [Weights(*map(cast, w)) for w in weights]
