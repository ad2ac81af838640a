r"""cuDNN's network among PyTorch's operators, and what its autograd node saves."""

from collections import namedtuple
from collections.abc import Callable, Sequence
from threading import RLock
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .find import MISSING, find

# The numbers of several tensors in one; cuDNN's network, if its node can be read; its derivative,
# and what that is given.
flatten_dense: Callable[[Sequence[Tensor]], Tensor] = find("torch._C._nn", "flatten_dense_tensors")
_current_node = find("torch._C", "_current_autograd_node")
cudnn_rnn: Any = find("torch", "_cudnn_rnn")
cudnn_rnn_packet: Any = getattr(torch.ops.aten, "_cudnn_rnn", None)
CUDNN_DERIVATIVE = "_cudnn_rnn_backward"
_has_kernel = find("torch._C", "_dispatch_has_kernel_for_dispatch_key")
CUDNN_SAVES = (
    "input", "weight", "hx", "weight_stride0", "mode", "num_layers", "batch_first", "batch_sizes",
)  # fmt: skip
CUDNN_SCHEMAS = {
    "_cudnn_rnn": (
        "aten::_cudnn_rnn(Tensor input, Tensor[] weight, int weight_stride0, Tensor? weight_buf, Tensor hx, "
        "Tensor? cx, int mode, SymInt hidden_size, SymInt proj_size, int num_layers, bool batch_first, "
        "float dropout, bool train, bool bidirectional, SymInt[] batch_sizes, Tensor? dropout_state) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    CUDNN_DERIVATIVE: (
        "aten::_cudnn_rnn_backward(Tensor input, Tensor[] weight, int weight_stride0, Tensor weight_buf, "
        "Tensor hx, Tensor? cx, Tensor output, Tensor? grad_output, Tensor? grad_hy, Tensor? grad_cy, "
        "int mode, SymInt hidden_size, SymInt proj_size, int num_layers, bool batch_first, float dropout, "
        "bool train, bool bidirectional, SymInt[] batch_sizes, Tensor? dropout_state, Tensor reserve, "
        "bool[4] output_mask) -> (Tensor, Tensor, Tensor, Tensor[])"
    ),
}
_derivative = getattr(torch.ops.aten, CUDNN_DERIVATIVE, None)
_arguments = [] if _derivative is None else _derivative.default._schema.arguments
CudnnDerivative: Any = namedtuple("CudnnDerivative", [a.name for a in _arguments])  # type: ignore[misc]

_lock = RLock()  # two threads may come first
_libraries: list[Any] = []  # a registration lasts as long as one of these


def offers_cudnn_node() -> bool:
    """Whether cuDNN's operators are those that the engine serves on a CPU, and nobody has a kernel there."""
    if MISSING:
        return False
    for name, schema in CUDNN_SCHEMAS.items():
        packet = getattr(torch.ops.aten, name, None)
        if packet is None or str(packet.default._schema) != schema:
            return False
        if any(_has_kernel(f"aten::{name}", key) for key in ("CPU", "CompositeExplicitAutograd")):
            return False
    return not _has_kernel(f"aten::{CUDNN_DERIVATIVE}", "AutogradCPU")


def cudnn_saved_tensors() -> Any:
    """What cuDNN's node saves, at which the backward pass is, under the names of the operator's arguments."""
    node = _current_node()
    return SimpleNamespace(**{name: getattr(node, f"_saved_{name}") for name in CUDNN_SAVES})


def register_cudnn_backward_vmap(rule: Callable[..., Any]) -> None:
    """For `is_grads_batched`, whose vmap is an older one, and for `torch.vmap`, if torch has none."""
    with _lock:
        for key in ("Batched", "FuncTorchBatched"):
            if not _has_kernel(f"aten::{CUDNN_DERIVATIVE}", key):
                _libraries.append(torch.library.Library("aten", "IMPL"))
                _libraries[-1].impl(CUDNN_DERIVATIVE, rule, key)
