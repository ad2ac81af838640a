r"""A plain call in compiled code: one operator, and few guards.

Whatever Dynamo reads of a module, of a class or of another file becomes a guard, which every call of the
compiled code checks, at some 50 ns; `module.py` has more than 400. So this reads what can differ between two
calls, once, and has its names as literals. Dear are guards that run Python: `hasattr` of what a module lacks
takes 1 us, and where two names are found to be one object (`torch` of two files, the types of two methods),
a function in Python compares them. Anything but the input of a network as the constructor makes it goes on
in `module.py`.

The time of a call of (T, B, I, H) = (3, 2, 4, 8), without gradients, on one thread of a Zen 5, in us:

    input                     nn.RNN, which breaks the graph    by `module.py`    so
    padded                    30                                29                23
    packed with hx            34                                31                26
    packed, which breaks it   36                                65                30
"""

from types import MethodType
from typing import Any

from torch import Tensor, int64
from torch.compiler import is_exporting
from torch.nn import Parameter
from torch.nn.utils.rnn import PackedSequence

from .fast_path import try_fast_path
from .kernels import requested_kernel
from .kernels.nonlinearities import PHI_OF_MODE
from .ops import NETWORK
from .own_names import is_builtin
from .parameters import RNNBase
from .torch_internals import any_autocast, captures_numbers, without_dynamo

run_outside_graph = without_dynamo(try_fast_path)


def breaks_graph(input: Any, hx: Any) -> bool:
    """Whether a number of the input, of how many sequences it is, has to be known to make the graph, where
    it breaks. Then all of a plain call is made outside: what would be left of the graph is one operator."""
    if hx is not None or not isinstance(input, PackedSequence) or input.sorted_indices is not None:
        return False
    return not captures_numbers()


def run_in_graph(rnn: Any, input: Any, hx: Any) -> tuple[Any, Tensor] | None:
    """What `rnn(input, hx)` returns, or None where the call isn't plain."""
    if any_autocast() or is_exporting() or requested_kernel() != "default" or not _is_unmodified(rnn):
        return None
    if isinstance(input, PackedSequence):
        return _run_packed(rnn, input, hx)
    if type(input) is not Tensor or input.dim() not in (2, 3):
        return None
    unbatched, batch_first = input.dim() == 2, rnn.batch_first and input.dim() == 3
    x = input.unsqueeze(1) if unbatched else input.transpose(0, 1) if batch_first else input
    groups, H = rnn.num_layers * (1 + rnn.bidirectional), rnn.hidden_size
    if hx is not None and hx.shape != ((groups, H) if unbatched else (groups, x.size(1), H)):
        return None
    found = _run(rnn, x, hx.unsqueeze(1) if unbatched and hx is not None else hx, None)
    if found is None or not (unbatched or batch_first):
        return found
    output, h_n = found
    return (output.squeeze(1), h_n.squeeze(1)) if unbatched else (output.transpose(0, 1), h_n)


def _run_packed(rnn: Any, input: PackedSequence, hx: Any) -> tuple[PackedSequence, Tensor] | None:
    """With an `hx`, or sequences that were sorted, which tell how many there are."""
    x, sizes, order, inverse = input
    if type(x) is not Tensor or type(sizes) is not Tensor or sizes.dtype != int64 or sizes.dim() != 1:
        return None
    groups, H = rnn.num_layers * (1 + rnn.bidirectional), rnn.hidden_size
    if hx is None:
        if order is None:
            return None
        hx = x.new_zeros(groups, order.size(0), H)
    elif hx.dim() != 3 or hx.size(0) != groups or hx.size(2) != H:
        return None
    elif order is not None:
        hx = hx.index_select(1, order)
    found = _run(rnn, x, hx, sizes)
    if found is None:
        return None
    output, h_n = found
    h_n = h_n if inverse is None else h_n.index_select(1, inverse)
    return PackedSequence(output, sizes, order, inverse), h_n


def _run(rnn: Any, x: Tensor, hx: Tensor | None, batch_sizes: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """The network of `x (T, B, I)` or packed `(N, I)`; None where anything but the plain module is asked for,
    or its weights don't fit."""
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
    if x.dim() != (3 if batch_sizes is None else 2) or x.size(-1) != rnn.input_size:
        return None
    if not x.is_floating_point():
        return None
    for w in weights if hx is None else [hx, *weights]:
        if w.dtype != x.dtype or w.device != x.device or (type(w) is not Parameter and type(w) is not Tensor):
            return None
    output, h_n, _ = NETWORK(x, hx, weights, batch_sizes, phi, D == 2, rnn.bias, False)
    return output, h_n


def _is_unmodified(rnn: Any) -> bool:
    """What `fast_path.py` asks by sets, which Dynamo can't trace: whether nothing that `module.py` would call
    or heed is overridden, on the class or the object. A read of a default of the class makes a cheap guard,
    `hasattr` one that calls `nn.Module.__getattr__`, and `in rnn.__dict__` none."""
    if rnn._modules or rnn._manual_rnn_runner is not None or rnn._manual_rnn_assigned is not None:
        return False
    for name in ("begin", "step", "check_input", "check_forward_args", "get_expected_hidden_size"):
        found = getattr(rnn, name)
        if not isinstance(found, MethodType) or not is_builtin(found.__func__):
            return False
    for name in ("check_hidden_size", "permute_hidden"):  # of torch
        found = getattr(rnn, name)
        if not isinstance(found, MethodType) or found.__func__ is not getattr(RNNBase, name):
            return False
    kind = type(rnn)  # torch 2.15 notices no change of the class by what is read of the object
    return is_builtin(kind.begin) and is_builtin(kind.step) and not rnn._manual_rnn_leaky
