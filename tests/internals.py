r"""What tests know of the package's inside, named in one place: whoever moves it, changes it here.

KernelName         the type of their names
kernels            the choice of kernel: `KERNELS`, `REFERENCE`, `asked`, `reasons`
native, aten, triton_launch        kernels: in C, PyTorch's own, Triton's
elman, linear_recurrence      the two recurrences, as functions with derivatives to any order
Walk               the order of steps over rows
network, cudnn     whether a kernel runs the whole network at once; how cuDNN does
entrance, module   the short and the long way of a call
OPS                the same two, and the layer, as operators of torch
address, is_shared            where memory is, and whether it's shared until someone writes
ATTRIBUTES         of a module, that C reads
FUSED              where every call that isn't a recurrence of one's own passes through, to be patched
"""

from typing import Any

import torch

from manual_rnn import fast_path, kernels, module
from manual_rnn.kernels import KernelName, aten, native, triton_launch
from manual_rnn.kernels.time_order import Walk
from manual_rnn.ops import cudnn, layer_rule, network
from manual_rnn.ops.layer_rule import layer
from manual_rnn.ops.recurrences import elman, linear_recurrence

__all__ = [
    "ATTRIBUTES",
    "FUSED",
    "OPS",
    "KernelName",
    "Walk",
    "address",
    "aten",
    "cudnn",
    "elman",
    "fast_path",
    "is_shared",
    "kernels",
    "layer",
    "linear_recurrence",
    "module",
    "native",
    "network",
    "triton_launch",
]

address: Any = torch._C._data_address  # type: ignore[attr-defined]
is_shared: Any = torch._C._is_cow_tensor  # type: ignore[attr-defined]
OPS: Any = torch.ops.manual_rnn
FUSED: tuple[Any, str] = (layer_rule, "layer")
ATTRIBUTES = (
    "mode", "bias", "batch_first", "bidirectional", "training", "dropout", "proj_size", "hidden_size",
    "input_size", "num_layers", "_parameters", "_all_weights",
)  # fmt: skip
