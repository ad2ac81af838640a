r"""Which calls are left to `nn.RNN` itself: its `forward` runs, on this module's weights.

a trace of TorchScript    every runtime and exporter knows PyTorch's operation
ExpandedWeights           they know the gradient of each sample of PyTorch's operation alone
foreign tensors           complex numbers, sparse tensors, subclasses that handle operations by themselves,
                          packed rows that a subclass counts, of which it makes its results,
                          and nested tensors of the older kind, which it takes for steps of one length
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import kernels
from .kernels.interface import is_subclass, non_plain_reason
from .kernels.nonlinearities import NN_RNN_MODES
from .override import leak_of, nonlinearity_of
from .parameters import RUNNER, RNNBase
from .torch_internals import functorch_active, no_tracing, torchscript
from .weights import is_expanded


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
    if functorch_active():
        return False
    if torchscript() is not None:
        return True
    return no_tracing() and (_is_foreign(input, rnn.batch_first) or _is_sparse(hx))


def _is_foreign(x: Any, batch_first: bool) -> bool:
    """Whether rules of ours don't hold for it. A jagged tensor is a layout of its own (`layout.py`)."""
    if isinstance(x, PackedSequence):
        return is_subclass(x.batch_sizes)
    if not isinstance(x, Tensor):
        return False
    if x.is_nested:
        return x.layout is torch.strided and not batch_first
    return non_plain_reason(x) is not None


def _is_sparse(hx: Any) -> bool:
    return isinstance(hx, Tensor) and hx.layout is not torch.strided
