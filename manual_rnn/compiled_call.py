r"""A plain call in compiled code: one operator, and few guards.

Whatever Dynamo reads of a module, of a class or of another file becomes a guard, which every call of the
compiled code checks, at some 50 ns; `module.py` has more than 400. So this reads what can differ between two
calls, once, and has its names as literals. Anything but a padded or unbatched input of a network as the
constructor makes it goes on in `module.py`.

The time of a call of (T, B, I, H) = (3, 2, 4, 3), without gradients, on one thread of a Zen 4: 78 us by way
of `module.py`, 57 so, 43 with the overload `compiled` of the operator (`ops/registration.py`). That of
`nn.RNN`, which breaks the graph, is 54.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from . import kernels
from .kernels.nonlinearities import PHI_OF_MODE
from .ops import NETWORK
from .override import is_builtin
from .parameters import RNNBase
from .torch_internals import any_autocast


def run_in_graph(rnn: Any, x: Any, hx: Any) -> tuple[Tensor, Tensor] | None:
    """What `rnn(x, hx)` returns, or None where the call isn't plain."""
    if type(x) is not Tensor or x.dim() not in (2, 3) or not x.is_floating_point():
        return None
    if any_autocast() or torch.compiler.is_exporting():
        return None
    if kernels.requested_kernel() != kernels.DEFAULT or not _is_unmodified(rnn):
        return None
    phi, H, L, D = PHI_OF_MODE.get(rnn.mode), rnn.hidden_size, rnn.num_layers, 1 + rnn.bidirectional
    if phi is None or rnn.proj_size or (rnn.training and rnn.dropout):
        return None
    for flag in (rnn.bias, rnn.batch_first, rnn.bidirectional, rnn.training):
        if flag is not True and flag is not False:
            return None
    known = rnn._parameters
    weights = [known[name] for group in rnn._all_weights for name in group if name in known]
    widths = [rnn.input_size] * D + [H * D] * (L * D - D)
    biases = [(H,), (H,)] if rnn.bias else []
    if [w.shape for w in weights] != [shape for I in widths for shape in ((H, I), (H, H), *biases)]:  # noqa: E741
        return None
    unbatched, batch_first = x.dim() == 2, rnn.batch_first and x.dim() == 3
    rows = x.unsqueeze(1) if unbatched else x.transpose(0, 1) if batch_first else x
    shape = (L * D, H) if unbatched else (L * D, rows.size(1), H)
    if rows.size(2) != rnn.input_size or (hx is not None and hx.shape != shape):
        return None
    for w in weights if hx is None else [hx, *weights]:
        if w.dtype != x.dtype or w.device != x.device or (type(w) is not Parameter and type(w) is not Tensor):
            return None
    hx = hx.unsqueeze(1) if unbatched and hx is not None else hx
    output, h_n, _ = NETWORK(rows, hx, weights, None, phi, D == 2, rnn.bias, False)
    if unbatched:
        return output.squeeze(1), h_n.squeeze(1)
    return (output.transpose(0, 1) if batch_first else output), h_n


def _is_unmodified(rnn: Any) -> bool:
    """What `fast_path.py` asks by sets, which Dynamo can't trace: whether nothing that `module.py` would call
    or heed is overridden, on the class or the object. What is absent is asked for by `hasattr` or a read: no
    guard comes of `in rnn.__dict__`."""
    if rnn._modules or hasattr(rnn, "_manual_rnn_runner") or hasattr(rnn, "_manual_rnn_assigned"):
        return False
    kind = type(rnn)
    for name in ("begin", "step", "check_input", "check_forward_args", "get_expected_hidden_size"):
        found = getattr(rnn, name)
        if type(found) is not MethodType or found.__func__ is not getattr(kind, name):
            return False
    for name in ("check_input", "check_forward_args", "check_hidden_size", "get_expected_hidden_size"):
        if getattr(kind, name) is not getattr(RNNBase, name):
            return False
    return is_builtin(kind.begin) and is_builtin(kind.step) and not kind._manual_rnn_leaky
