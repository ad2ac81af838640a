r"""Which calls are left to `nn.RNN` itself: its `forward` runs, on this module's weights.

    a trace of TorchScript    every runtime and exporter knows PyTorch's operation
    ExpandedWeights           they know the gradient of each sample of PyTorch's operation alone
    foreign tensors           complex numbers, sparse tensors, subclasses that handle operations by themselves
    a few steps               where the fast path doesn't take the call, and all that is active differentiates

The last has a measurement: under a transform, under autocast or with frozen weights the way to a kernel takes
some 200 us, in which `nn.RNN` trains on four time steps. The time of `nn.RNN` by that of the engine, B = 1
and 8, on a Xeon (Sapphire Rapids), one thread:

    steps    frozen weights    grad    jacrev    Hessian-vector product    autocast
      2           0.46         0.88     0.54             0.35                0.93
      4           0.63         1.08     0.65             0.52             0.7 to 1.5
      8           0.93         1.50     0.80             0.86             1.0 to 2.4
     16           1.5          2.2      1.0              1.5              1.6 to 3.9
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import kernels, validation
from .fast_path import packed_sizes
from .kernels import aten
from .kernels.interface import non_plain_reason
from .kernels.nonlinearities import NN_RNN_MODES
from .override import leak_of, nonlinearity_of
from .parameters import RUNNER, RNNBase, assigned_weights, is_expanded
from .torch_internals import any_autocast, functorch_active, only_differentiates, torchscript

__all__ = ["is_left_to_nn_rnn"]


def is_left_to_nn_rnn(rnn: RNNBase, input: Any, hx: Any) -> bool:
    """Whether `nn.RNN` is to run this call, which the fast path didn't take.

    Raises:
        RuntimeError: with ExpandedWeights, for a recurrence of your own, which they don't know.
    """
    if torch.compiler.is_compiling():
        return False
    builtin = rnn.mode in NN_RNN_MODES and isinstance(nonlinearity_of(rnn), str) and leak_of(rnn) is None
    if is_expanded(rnn._parameters.values()):
        if not builtin:
            raise RuntimeError("ExpandedWeights: expected 'tanh' or 'relu', got a recurrence of your own")
        return True
    if not builtin or kernels.requested_kernel() != kernels.DEFAULT or RUNNER in rnn.__dict__:
        return False
    if torchscript() is not None:
        return not functorch_active()
    return only_differentiates() and (_is_foreign(input) or (_is_short(rnn, input) and _fits(rnn, input, hx)))


def _is_foreign(input: Any) -> bool:
    """Whether rules of ours don't hold for it. A nested tensor is a layout of its own (`layout.py`)."""
    if not isinstance(input, Tensor) or functorch_active():
        return False
    return non_plain_reason(input) is not None and not input.is_nested


def _is_short(rnn: RNNBase, input: Any) -> bool:
    """Whether it takes a few steps on a CPU."""
    if isinstance(input, PackedSequence):
        few = len(input.batch_sizes) <= aten.SHORT and not functorch_active()
        return few and packed_sizes(input.batch_sizes, input.data) is not None
    if not isinstance(input, Tensor) or input.is_nested:
        return False
    sizes = input.shape
    return len(sizes) in (2, 3) and 1 <= sizes[1 if rnn.batch_first and len(sizes) == 3 else 0] <= aten.SHORT


def _fits(rnn: RNNBase, input: Any, hx: Any) -> bool:
    """Whether all tensors are on a CPU and fit each other; if they don't, the checks have the words. Weights
    that are computed when they are read don't fit, since `nn.RNN` reads them twice."""
    x, known = input.data if isinstance(input, PackedSequence) else input, rnn._parameters
    weights: list[Any] = assigned_weights(rnn) or [known.get(n) for names in rnn._all_weights for n in names]
    if not x.is_cpu or aten.by_cudnn(x) or not all(isinstance(w, Tensor) for w in weights):
        return False
    validation.check_attributes(rnn)
    sizes = rnn.num_layers, 1 + rnn.bidirectional, rnn.input_size, rnn.hidden_size, rnn.bias
    if hx is not None and not (
        isinstance(hx, Tensor) and hx.is_cpu and (hx.dtype is x.dtype or any_autocast())
    ):
        return False
    return aten.fit(x, weights, aten.shapes(*sizes))
