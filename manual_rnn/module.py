r"""`ManualRNN`, the module: it lays out the sequences and sends them through its layers.

A call of plain numbers on a CPU goes from `fast_path.py` to C and back. Any other goes on like this, each
step in the file of its name:

    sequences.plan                  whatever form the batch has becomes rows
    recurrence/network.py           all layers as one job, where a kernel takes them so
    recurrence/layer.py             else each layer, in each direction
    recurrence/layer_rule.py        operator, autograd node or kernel

The parameters stand in `parameters.py`, the equations in `ops/recurrences.py`.
"""

import warnings
from functools import partial
from types import MappingProxyType
from typing import Any, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import kernels, onnx, validation
from .convert import check_target, converted
from .fast_path import Called, at_once
from .kernels.aten import casts_to_half
from .kernels.nonlinearities import PHI, PHI_OF_MODE
from .layout import Sequences, plan
from .ops import (
    OwnStep,
    Phi,
    RunLayer,
    Weights,
    chosen,
    is_expanded,
    run_layer,
    run_layer_per_sample,
    run_layers,
    run_network,
)
from .parameters import OWN_MODE, RNNBase
from .torch_internals import any_autocast, torchscript, transformed

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

    _builtin = MappingProxyType[str, Any]({})  # what a subclass may override for a recurrence of its own
    _called = cast(Any, None)  # and all that a call comes by

    @overload
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...

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
        if torchscript() is not None and self._is_builtin():
            builtin: Any = nn.RNN.forward  # the operation of torch, which every runtime and exporter knows
            return builtin(self, input, hx)
        found = at_once(self, input, hx, self._called)
        if found is not None:
            return found
        batch = plan(self, input, hx)
        hx, weights, phi, run = self._check(input, batch)
        output, h_n = self._run(batch.rows, hx, weights, phi, batch.batch_sizes, batch.hx is None, run)
        return batch.restore(output, h_n)

    def _check(
        self, input: Tensor | PackedSequence, batch: Sequences
    ) -> tuple[Tensor, list[Weights], Phi, RunLayer]:
        """The states to begin with, the weights, the recurrence and what runs it, once all fit each other."""
        phi, run = self._builtin_phi(), run_layer
        if onnx.is_exporting():
            onnx.check_exportable(input, phi)
            run = onnx.run_layer
        validation.check_attributes(self)
        weights = self._weights()
        data, batch_sizes, hx = batch.data, batch.batch_sizes, batch.hx
        if hx is None:
            size = self.get_expected_hidden_size(data, batch_sizes)  # a graph may break here
            hx = data.new_zeros(size)
        self.check_forward_args(data, hx, batch_sizes)
        if batch_sizes is not None:
            validation.check_batch_sizes(batch_sizes, len(data))
        return hx, weights, phi or self.begin, run

    def _run(
        self,
        output: Tensor,
        hx: Tensor,
        weights: list[Weights],
        phi: Phi,
        batch_sizes: Tensor | None,
        from_zero: bool,
        run: RunLayer,
    ) -> tuple[Tensor, Tensor]:
        """All layers, each by `run`; the first reads `output (T, B, I)`, the others what it became."""
        output, hx, weights = autocast(output, hx, weights)
        if not torch.compiler.is_compiling() and is_expanded(weights):
            run = run_layer_per_sample
        else:
            validation.check_tensors(self, output, hx, weights)
        whole = run is run_layer and isinstance(phi, str) and chosen(output, hx, weights, batch_sizes)
        if whole:
            run = partial(run_network, whole, bidirectional=self.bidirectional, from_zero=from_zero)
            if not (self.training and self.dropout):
                return run(output, hx, weights, phi, batch_sizes)
        return run_layers(output, hx, weights, phi, batch_sizes, self.num_layers, run, self._drop)

    def _drop(self, output: Tensor) -> Tensor:
        """Dropout between layers, on memory in the order of time, so that masks are those of `nn.RNN`."""
        if not (self.training and self.dropout):
            return output
        return torch.dropout(output.contiguous(), self.dropout, True)

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
        one graph for each number of steps. `torch.export.export` makes a loop of them where the length of
        padded input stays open (torch 2.13 or newer).

        Args:
            gates: $x_t W_{ih}^T + b_{ih} + b_{hh}$, `(B, H)`; of packed input the sequences still
                alive, the longest first.
            hidden: the state before the step, of the same sequences.
            weight_hh: `(H, H)`.
        """
        phi: Any = PHI[PHI_OF_MODE[self.mode]].apply if self.mode in PHI_OF_MODE else self.nonlinearity
        return phi(gates + F.linear(hidden, weight_hh))

    def _builtin_phi(self) -> str | None:
        """The name of a nonlinearity that the kernels know, or None for a recurrence of your own."""
        for name, builtin in self._builtin.items():
            if getattr(type(self), name) is not builtin or name in self.__dict__ or name in self._modules:
                return None
        if self.mode == OWN_MODE:
            return None
        if self.mode not in PHI_OF_MODE:
            validation.check_mode(self.mode, PHI_OF_MODE)
        return PHI_OF_MODE[self.mode]

    def _is_builtin(self) -> bool:
        """Whether a call is what `nn.RNN` computes, and neither a kernel nor torch.func has a say."""
        return kernels.asked() == kernels.DEFAULT and not transformed() and self._builtin_phi() is not None

    def __prepare_scriptable__(self) -> nn.RNN:
        """The module that `torch.jit.script` is to compile, with the same Parameters.

        Raises:
            TypeError: for a recurrence of your own, or a subclass, which `nn.RNN` can't run.
        """
        warnings.warn(
            "torch.jit.script takes a ManualRNN as the nn.RNN it equals, and leaves that in the model around "
            "it. To keep the model as it is, script copy.deepcopy(model)",
            stacklevel=2,
        )
        return self.to_builtin()

    def _weights(self) -> list[Weights]:
        """The weights of every layer and direction, read anew, so that no change goes unseen."""
        validation.check_counts(self, self._all_weights)
        if self._assigned is not None and (assigned := self._assigned_weights()) is not None:
            return self._grouped(assigned)
        known: dict[str, Any] = self._parameters  # looked up directly, since nn.Module.__getattr__ is slow
        weights: list[Weights] = []
        for names in self._all_weights:
            group: list[Any] = []
            for name in names:
                weight = known[name] if name in known else getattr(self, name)
                if not isinstance(weight, Tensor):
                    raise TypeError(f"{name} must be a Tensor, got {type(weight).__name__}")
                group.append(weight)
            weights.append(group if self.bias else [*group, None, None])
        return weights

    def _grouped(self, weights: list[Any]) -> list[Weights]:
        """What was assigned to `_flat_weights`, for each layer and direction."""
        size = len(self._all_weights[0])
        if len(weights) != size * len(self._all_weights):
            raise RuntimeError(f"Expected {size * len(self._all_weights)} _flat_weights, got {len(weights)}")
        none = [] if self.bias else [None, None]
        return [[*weights[at : at + size], *none] for at in range(0, len(weights), size)]

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


# Kept on the class, not beside it: a class from before this file was loaded again compares with its own.
ManualRNN._builtin = MappingProxyType({"begin": ManualRNN.begin, "step": ManualRNN.step})
ManualRNN._called = Called(
    ManualRNN, "begin", "step", "check_input", "check_forward_args", "check_hidden_size",
    "get_expected_hidden_size", "permute_hidden", "_run",
)  # fmt: skip
# It is sizes and weights, as nn.RNN: `torch.load(file, weights_only=True)` takes it once a client has allowed
# the rest of its model.
torch.serialization.add_safe_globals([ManualRNN])


def autocast(input: Tensor, hx: Tensor, weights: list[Weights]) -> tuple[Tensor, Tensor, list[Weights]]:
    """Under autocast all but float64 and complex runs in the lower precision, as `nn.RNN` does: on CUDA in
    float16, the one that PyTorch's autocast knows for cuDNN's networks."""
    if not any_autocast():
        return input, hx, weights
    kind = input.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return input, hx, weights
    dtype = torch.float16 if casts_to_half(input) else torch.get_autocast_dtype(kind)

    def cast(x: Tensor | None) -> Any:
        if x is None or not x.is_floating_point() or x.dtype == torch.float64:
            return x
        return x.to(dtype)

    return cast(input), cast(hx), [list(map(cast, group)) for group in weights]
