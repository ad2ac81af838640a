r"""`ManualRNN`, the module: it lays out the sequences and sends them through its layers.

The parameters stand in `base.py`, the equations in `layer.py`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import checks, onnx
from .base import OWN_MODE, PHI_OF_MODE, RNNBase
from .convert import check_target, converted
from .layer import PHI, OwnStep, Weights, run_layer
from .layout import plan
from .rows import Walk

__all__ = ["ManualRNN"]


class ManualRNN(RNNBase):
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
        phi, exporting = self._builtin_phi(), onnx.is_exporting()
        if exporting:
            onnx.check_exportable(input, phi)
        checks.check_attributes(self)
        groups = self._weights()
        sequence = plan(input, hx, self.batch_first)
        data, hx, batch_sizes = sequence.data, sequence.hx, sequence.batch_sizes
        checks.check_input(data, 3 if batch_sizes is None else 2, self.input_size, groups[0][0].dtype)
        if hx is None:
            size = self.get_expected_hidden_size(data, batch_sizes)
            hx = data.new_zeros(size)
        elif batch_sizes is None or not torch.compiler.is_compiling():  # in a graph the op checks it
            self.check_hidden_size(hx, self.get_expected_hidden_size(data, batch_sizes))
        if batch_sizes is not None:
            checks.check_batch_sizes(batch_sizes, len(data))
        data, hx, groups = _autocast(data, hx, groups)
        checks.check_tensors(self, data, hx, groups)
        weights = [Weights(*group) for group in groups]
        if exporting:
            output, h_n = self._run_onnx(data, hx, weights, str(phi))
        else:
            output, h_n = self._run(data, hx, weights, phi, batch_sizes)
        return sequence.restore(output), sequence.restore_state(h_n)

    def _run(
        self, data: Tensor, hx: Tensor, weights: list[Weights], phi: str | None, batch_sizes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        swap = self.batch_first and batch_sizes is None
        output = data.transpose(0, 1) if swap else data
        starts = hx.unbind(0)
        last: list[Tensor] = []
        walks = [Walk(0, reverse, batch_sizes) for reverse in (False, True)[: self._directions]]
        for layer in range(self.num_layers):
            if layer:
                output = self._drop(output)
            states = []
            for walk in walks:
                h0 = starts[len(last)]
                out, h = self._run_layer(output, h0, weights[len(last)], phi or self.begin(h0), walk)
                states.append(out)
                last.append(h)
            output = states[0] if len(states) == 1 else torch.cat(states, dim=-1)
        return output.transpose(0, 1) if swap else output, torch.stack(last)

    def _run_onnx(self, data: Tensor, hx: Tensor, weights: list[Weights], phi: str) -> tuple[Tensor, Tensor]:
        output = data.transpose(0, 1) if self.batch_first else data
        last: list[Tensor] = []
        D = self._directions
        for first in range(0, self.num_layers * D, D):
            if first:
                output = self._drop(output)
            here = slice(first, first + D)
            output, h_n = onnx.rnn_node(output, hx[here], weights[here], phi)
            last.append(h_n)
        return output.transpose(0, 1) if self.batch_first else output, torch.cat(last)

    def _drop(self, output: Tensor) -> Tensor:
        """Dropout between layers, on memory in the order of time, so that masks are those of `nn.RNN`."""
        if not (self.training and self.dropout):
            return output
        return torch.dropout(output.contiguous(), self.dropout, True)

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

    def _weights(self) -> list[tuple[Tensor, ...]]:
        """The weights of every layer and direction, read anew, each once, so that no change goes unseen."""
        known: dict[str, Any] = self._parameters  # looked up directly, since nn.Module.__getattr__ is slow
        weights = [
            tuple([known[name] if name in known else getattr(self, name) for name in names])
            for names in self._all_weights
        ]
        checks.check_weights(self, weights)
        return weights

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


BUILTIN = {"begin": ManualRNN.begin, "step": ManualRNN.step}


def _autocast(
    input: Tensor, hx: Tensor, weights: list[tuple[Tensor, ...]]
) -> tuple[Tensor, Tensor, list[tuple[Tensor, ...]]]:
    """Under autocast all but float64 and complex runs in the lower precision, as `nn.RNN` does."""
    if not torch._C._is_any_autocast_enabled():
        return input, hx, weights
    kind = input.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return input, hx, weights
    dtype = torch.get_autocast_dtype(kind)

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x

    return cast(input), cast(hx), [tuple(map(cast, group)) for group in weights]
