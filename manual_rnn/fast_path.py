r"""The fast path: from the module of a plain call to one operator, whose autograd node is PyTorch's, in C++.

    on a CPU     aten::_cudnn_rnn, for which the engine in C is the kernel     `kernels/csrc/aten_operators.c`
    on CUDA      aten::_cudnn_rnn, cuDNN                                       `ops/cudnn.py`

Any other call goes on in `module.py`: under a transform, a mode or a trace, under autocast of more than a
few steps, of a recurrence of one's own, of partly frozen weights, of anything that doesn't fit, for which
the checks have the words.
"""

from collections.abc import Sequence
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import kernels
from .kernels import aten, native
from .kernels.interface import PLAIN_TYPES, NetworkOptions
from .kernels.nonlinearities import PHI, PHI_OF_MODE
from .ops import (
    as_separate_output,
    batching_rule,
    node_inputs,
    record_call,
    register_flop_formulas,
    run_cudnn,
    tell_counters,
)
from .override import is_builtin, known_nonlinearity, leak_of, nonlinearity_of
from .parameters import ASSIGNED, RUNNER, RNNBase
from .torch_internals import (
    MISSING,
    any_autocast,
    as_plain_tensors,
    changes_nothing,
    cudnn_rnn,
    no_interposition,
    no_tracing,
    profiling,
    subclasses_are_kept,
)

__all__ = ["kernel_of_plain_call", "packed_sizes", "try_fast_path"]

METHODS = (
    "check_input", "check_forward_args", "check_hidden_size", "get_expected_hidden_size", "permute_hidden",
)  # fmt: skip
UNCHANGED = {*METHODS, ASSIGNED, RUNNER}
COMMON_WORDS = {"begin", "step"}
FLAGS = frozenset({bool})
_loaded = vars(torch.utils)
_methods_of = attrgetter(*METHODS)
_own_methods = _methods_of(RNNBase)
_NO_STATE = {dtype: torch.empty(0, dtype=dtype, device="cpu") for dtype in native.TYPES}
_read = itemgetter(  # of a module's attributes
    "mode", "bias", "batch_first", "bidirectional", "num_layers", "input_size", "hidden_size", "training",
    "dropout", "proj_size", "_parameters", "_all_weights", "_modules",
)  # fmt: skip


def try_fast_path(rnn: Any, input: Tensor | PackedSequence, hx: Tensor | None) -> tuple[Any, Tensor] | None:
    """What `rnn(input, hx)` returns, or None where the call isn't plain."""
    if torch.compiler.is_compiling():
        return None
    if not no_interposition():
        if not no_tracing():
            return None
        tell_counters()
    if not isinstance(input, PackedSequence):
        return _run(rnn, input, hx) if type(input) in PLAIN_TYPES else _run_subclass(rnn, input, hx)
    data, batch_sizes, order, inverse = input
    sizes = packed_sizes(batch_sizes, data)
    if sizes is None:
        return None
    if hx is not None and order is not None:
        hx = hx.index_select(1, order)
    found = _run(rnn, data, hx, sizes)
    if found is None:
        return None
    rows = PackedSequence(found[0], batch_sizes, order, inverse)
    return rows, found[1] if inverse is None else found[1].index_select(1, inverse)


def _run_subclass(rnn: Any, x: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """With a subclass that changes nothing, which results then belong to."""
    kind = type(x)
    if MISSING or not changes_nothing(kind) or not subclasses_are_kept():
        return None
    with as_plain_tensors():
        found = _run(rnn, x.as_subclass(Tensor), hx)
        return found if found is None else (found[0].as_subclass(kind), found[1].as_subclass(kind))


def packed_sizes(batch_sizes: Tensor, data: Tensor) -> list[int] | None:
    """How many rows each step has, if that is what they say."""
    if type(batch_sizes) not in PLAIN_TYPES or batch_sizes.dtype != torch.int64 or not batch_sizes.is_cpu:
        return None
    kernels.check_memory([batch_sizes])
    sizes = batch_sizes.tolist()
    fits = sizes and sizes[-1] > 0 and sum(sizes) == data.size(0) and sizes == sorted(sizes, reverse=True)
    return sizes if fits else None


def _run(rnn: Any, x: Tensor, hx: Tensor | None, sizes: Sequence[int] = ()) -> tuple[Tensor, Tensor] | None:
    call = _plain_call(rnn, x, hx, bool(sizes))
    if call is None:
        return None
    weights, options, dropout = call
    axis = None if sizes or x.dim() == 3 else 0 if rnn.batch_first else 1
    if axis is not None:
        x, hx = x.unsqueeze(axis), hx if hx is None else hx.unsqueeze(1)
    if dropout:
        found = _run_with_dropout(weights, options, dropout, sizes, x, hx)
    elif aten.by_cudnn(x):
        found = _run_on_cuda(weights, options, sizes, x, hx)
    else:
        found = _run_on_cpu(weights, options, sizes, x, hx)
    return found if axis is None or found is None else (found[0].squeeze(axis), found[1].squeeze(1))


def _plain_call(
    rnn: Any, x: Tensor, hx: Tensor | None, packed: bool
) -> tuple[list[Tensor], list[Any], float] | None:
    """What a call takes from the module: the weights; phi, bias, batch_first, bidirectional, layers, I, H and
    alpha; and the dropout at work. None where anything is out of the ordinary."""
    if type(x) not in PLAIN_TYPES or x.is_nested:
        return None
    if not _is_unmodified(type(rnn), rnn):
        return None
    try:
        *options, training, dropout, projection, parameters, names, _ = _read(rnn.__dict__)
        weights = [parameters[name] for group in names for name in group]
    except KeyError:
        return None
    options[0] = phi = PHI_OF_MODE.get(options[0]) or known_nonlinearity(rnn)
    _, *flags, layers, _, _ = options
    if type(dropout) is not float or projection or phi is None:
        return None
    if {*map(type, flags), type(training)} != FLAGS or not _fit(x, hx, weights, options, packed):
        return None
    dropped = dropout if training and layers > 1 else 0.0
    return None if dropped and aten.by_cudnn(x) else (weights, [*options, leak_of(rnn)], dropped)


def _run_with_dropout(
    weights: list[Tensor],
    options: list[Any],
    dropout: float,
    sizes: Sequence[int],
    x: Tensor,
    hx: Tensor | None,
) -> tuple[Tensor, Tensor] | None:
    """Layer after layer, with dropout between them on memory in the order of time: the masks of `nn.RNN`."""
    phi, bias, batch_first, bidirectional, layers, _, H, alpha = options
    if torch.is_grad_enabled() and _requires_grad(x, hx, weights) is None:
        return None
    first, D, size = batch_first and not sizes, 1 + bidirectional, len(weights) // layers
    output, last = x.transpose(0, 1) if first else x, []
    for at in range(layers):
        layer = weights[at * size : (at + 1) * size]
        how = [phi, bias, False, bidirectional, 1, output.size(-1), H, alpha]
        found = _run_on_cpu(layer, how, sizes, output, hx if hx is None else hx.narrow(0, at * D, D))
        if found is None:
            return None
        output = torch.dropout(found[0], dropout, True) if at + 1 < layers else found[0]
        last.append(found[1])
    return output.transpose(0, 1) if first else output, torch.cat(last)


def _is_unmodified(kind: type, rnn: Any) -> bool:
    """Whether what `module.py` would call is what `ManualRNN` has: no method is overridden, on a class, on an
    object, or by a module of that name. `step` and `begin` may be something else than a recurrence."""
    own, modules = rnn.__dict__, rnn.__dict__["_modules"]
    if not own.keys().isdisjoint(UNCHANGED) or (modules and not modules.keys().isdisjoint(UNCHANGED)):
        return False
    if _methods_of(kind) != _own_methods:
        return False
    taken = not own.keys().isdisjoint(COMMON_WORDS) or (
        modules and not modules.keys().isdisjoint(COMMON_WORDS)
    )
    if not taken and is_builtin(kind.step) and is_builtin(kind.begin):  # type: ignore[attr-defined]
        return True
    return isinstance(nonlinearity_of(rnn), str)


def _run_on_cpu(
    weights: list[Tensor], options: list[Any], sizes: Sequence[int], x: Tensor, hx: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    phi, bias, batch_first, bidirectional, layers, _, H, alpha = options
    recorded = torch.is_grad_enabled() and _requires_grad(x, hx, weights)
    steps, B = _steps_and_batch(x, batch_first, sizes)
    kernel = _kernel_on_cpu(x, options, recorded, steps, B)
    if kernel == kernels.ATEN:
        return _run_short(x, hx, weights, options, sizes)
    if kernel is None:
        return None
    if recorded:
        batching_rule()
        if "flop_counter" in _loaded:  # whose counters may watch the backward pass alone
            register_flop_formulas()
        layer = (1 + bidirectional) * (4 if bias else 2)
        x, hx, weights = node_inputs(x, hx, weights, steps, layer, batch_first and not sizes)
        alpha = alpha if alpha is None else alpha.detach()
    if hx is None:
        hx = _NO_STATE[x.dtype]
    code, step = PHI[phi].code, 4 if bias else 2
    how = code, H, 0, layers, batch_first, 0.0, recorded, bidirectional, sizes, None
    try:
        _, h_n, output, _, _ = cudnn_rnn(x, weights, step, None, hx, alpha, *how)
    except (RuntimeError, TypeError):  # something doesn't fit, for which the checks have the words
        return None
    if profiling():
        record_call(x.transpose(0, 1) if batch_first and not sizes else x, hx, weights, layers, sizes, h_n)
    if not recorded:
        return output, h_n
    return as_separate_output(output), as_separate_output(h_n)


def _kernel_on_cpu(x: Tensor, options: list[Any], recorded: bool | None, steps: int, B: int) -> str | None:
    """The kernel that runs a plain call: the engine; or PyTorch's operation, for the gradients of a few steps
    and where it is faster."""
    asked, phi, H, alpha = kernels.requested_kernel(), options[0], options[-2], options[-1]
    if any_autocast() and torch.is_autocast_enabled("cpu"):
        short = asked == kernels.DEFAULT and 0 < steps <= aten.SHORT and aten.has_recurrence(phi, alpha)
        return kernels.ATEN if short else None
    if not native.has_aten_node or asked not in (kernels.DEFAULT, kernels.NATIVE):
        return None
    if asked == kernels.DEFAULT and aten.has_recurrence(phi, alpha):
        if aten.is_faster(x.dtype, B, H):
            return kernels.ATEN
        few = aten.SHORT if recorded is None or _is_leaf(x) else aten.SINGLE
        if recorded is not False and 0 < steps <= few:
            return kernels.ATEN
    constant = alpha is None or _is_constant(alpha)
    return None if recorded is None or not constant else kernels.NATIVE


def kernel_of_plain_call(rnn: Any, input: Tensor | PackedSequence, hx: Tensor | None) -> str | None:
    """The kernel that the fast path would run on a CPU; None where the call isn't plain."""
    if isinstance(input, PackedSequence):
        x, sizes = input.data, packed_sizes(input.batch_sizes, input.data)
    else:
        x, sizes = input, []
    if sizes is None or not no_tracing():
        return None
    call = _plain_call(rnn, x, hx, bool(sizes))
    if call is None or not x.is_cpu:
        return None
    weights, options, _ = call
    recorded = torch.is_grad_enabled() and _requires_grad(x, hx, weights)
    unbatched = x.dim() == 2 and not sizes
    extent = (x.size(0), 1) if unbatched else _steps_and_batch(x, rnn.batch_first, sizes)
    return _kernel_on_cpu(x, options, recorded, *extent)


def _steps_and_batch(x: Tensor, batch_first: bool, sizes: Sequence[int]) -> tuple[int, int]:
    """`T` and `B` of a padded or packed batch."""
    if sizes:
        return len(sizes), sizes[0]
    return (x.size(1), x.size(0)) if batch_first else (x.size(0), x.size(1))


def _run_short(
    x: Tensor, hx: Tensor | None, weights: list[Tensor], options: list[Any], sizes: Sequence[int]
) -> tuple[Tensor, Tensor] | None:
    """By PyTorch's own operation, which is as fast for the gradients of a single step. It is of a few steps
    where some weights are frozen or where the gradient of a leaf is wanted, which is often differentiated
    itself (a penalty, a Hessian): `delegation.py` has the measurement."""
    phi, bias, batch_first, bidirectional, layers, I, H, _ = options  # noqa: E741
    _, B = _steps_and_batch(x, batch_first, sizes)
    shape = layers * (1 + bidirectional), B, H
    hx = x.new_zeros(shape) if hx is None else hx
    if [w.shape for w in weights] != aten.shapes(layers, 1 + bidirectional, I, H, bias) or hx.shape != shape:
        return None  # the checks have the words
    if {x.dtype, hx.dtype, *[w.dtype for w in weights]} != {x.dtype} and not any_autocast():
        return None
    how = weights, bias, layers, 0.0, False, bidirectional
    if sizes:
        return aten.RUN[phi](x, torch.tensor(sizes, device="cpu"), hx, *how)
    return aten.RUN[phi](x, hx, *how, batch_first)


def _is_leaf(x: Tensor) -> bool:
    """Whether a user asks for the gradient of the input: it is a leaf, or a view of one."""
    return x.requires_grad and (x.is_leaf or (x._base is not None and x._base.is_leaf))


def _requires_grad(x: Tensor, hx: Tensor | None, weights: list[Tensor]) -> bool | None:
    """Whether a gradient is wanted; None unless it is of all weights or of nothing: else ATen's node, which
    has one flag for all of them, would save and compute more than is needed."""
    wanted = [w.requires_grad for w in weights]
    if all(wanted):
        return True
    return None if any(wanted) or x.requires_grad or (hx is not None and hx.requires_grad) else False


def _is_constant(alpha: Tensor) -> bool:
    """Whether a leak is as the engine takes it, a row of numbers without a gradient."""
    return type(alpha) in PLAIN_TYPES and alpha.is_cpu and not alpha.requires_grad


def _run_on_cuda(
    weights: list[Tensor], options: list[Any], sizes: Sequence[int], x: Tensor, hx: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    asked = kernels.requested_kernel()
    phi, bias, batch_first, bidirectional, layers, I, H, alpha = options  # noqa: E741
    D, first = 1 + bidirectional, batch_first and not sizes
    if asked not in (kernels.DEFAULT, kernels.ATEN) or not aten.has_recurrence(phi, alpha):
        return None
    if aten.unsupported_reason(x) is not None or not aten.fit(x, weights, aten.shapes(layers, D, I, H, bias)):
        return None
    shape = layers * D, sizes[0] if sizes else x.size(0 if first else 1), H
    if hx is None:
        hx = x.new_zeros(shape)
    if type(hx) not in PLAIN_TYPES or hx.shape != shape:
        return None
    batch_sizes = torch.tensor(sizes, device="cpu") if sizes else None
    how = NetworkOptions(batch_sizes, phi, bidirectional, bias, asked)
    return run_cudnn(x, hx, weights, how, first)


def _fit(x: Tensor, hx: Tensor | None, weights: list[Tensor], options: list[Any], packed: bool) -> bool:
    """Whether the input is as `nn.RNN` expects it, and the weights are tensors as the constructor makes them,
    as many as it makes. Their shapes are the kernel's to check."""
    _, bias, _, bidirectional, layers, I, _ = options  # noqa: E741
    rank = x.dim()
    if (rank != 2 if packed else rank not in (2, 3)) or x.size(-1) != I:
        return False
    if len(weights) != layers * (1 + bidirectional) * (4 if bias else 2):
        return False
    if hx is not None and (type(hx) not in PLAIN_TYPES or hx.dim() != (3 if packed else rank)):
        return False
    tensors = weights if hx is None else [hx, *weights]
    if not PLAIN_TYPES.issuperset(map(type, tensors)):
        return False
    if aten.by_cudnn(x):
        return True
    return x.is_cpu and x.dtype in native.TYPES and False not in [w.is_cpu for w in tensors]
