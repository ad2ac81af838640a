r"""What tests know of the package's inside, named in one place: whoever moves it, changes it here.

KernelName         the type of their names; NetworkOptions: what a network is beside its tensors
kernels            the choice of kernel: `KERNELS`, `REFERENCE`, `requested_kernel`, `reasons`
native, aten, triton_launch        kernels: in C, PyTorch's own, Triton's
elman, linear_recurrence      the two recurrences, as functions with derivatives to any order
Walk               the order of steps over rows
rnn, cudnn         which kernel runs a network; how cuDNN does
fast_path, module  the fast path of a call and the other; plain_network: what the former runs
saved_tensors      what a node saves
own_names          names of the class that a user may register
OPS, RULES         the operators of torch, and what each does for a dispatch key
address, is_shared            where memory is, and whether it's shared until someone writes
FUSED              where every call that isn't a recurrence of one's own passes through, to be patched
"""

from typing import Any

import torch

from manual_rnn import fast_path, kernels, module, own_names
from manual_rnn.kernels import KernelName, aten, native, triton_launch
from manual_rnn.kernels.interface import NetworkOptions
from manual_rnn.kernels.time_order import Walk
from manual_rnn.ops import cudnn, plain_network, saved_tensors
from manual_rnn.ops.recurrences import elman, linear_recurrence
from manual_rnn.ops.registration import RULES

rnn: Any = __import__("manual_rnn.ops.rnn", fromlist=["rnn"])

__all__ = [
    "FUSED",
    "OPS",
    "RULES",
    "KernelName",
    "NetworkOptions",
    "Walk",
    "address",
    "aten",
    "cudnn",
    "elman",
    "fast_path",
    "is_shared",
    "kernels",
    "linear_recurrence",
    "module",
    "native",
    "own_names",
    "plain_network",
    "rnn",
    "saved_tensors",
    "triton_launch",
]

address: Any = torch._C._data_address  # type: ignore[attr-defined]
is_shared: Any = torch._C._is_cow_tensor  # type: ignore[attr-defined]
OPS: Any = torch.ops.manual_rnn
FUSED: tuple[Any, str] = (rnn, "network")
