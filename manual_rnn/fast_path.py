r"""The fast path: from the module of a plain call to one operator, whose autograd node is PyTorch's, in C++.

    on a CPU     aten::_cudnn_rnn, for which the engine in C is the kernel     `kernels/csrc/aten_operators.c`
    on CUDA      aten::_cudnn_rnn, cuDNN                                       `ops/cudnn.py`

Any other call goes on in `module.py`: under a transform, a mode, a trace or autocast, of a recurrence of
one's own, of partly frozen weights, with dropout at work, of anything that doesn't fit, for which the checks
have the words.
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
    as_nn_rnn,
    as_separate_output,
    batching_rule,
    record_call,
    register_flop_formulas,
    run_cudnn,
    tell_counters,
)
from .override import BUILTIN, known_nonlinearity, leak_of, nonlinearity_of
from .parameters import ASSIGNED, RUNNER, RNNBase
from .torch_internals import any_autocast, cudnn_rnn, no_interposition, no_tracing, profiling, unnoticed_alias

__all__ = ["try_fast_path"]

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
        return _run(rnn, input, hx)
    data, batch_sizes, order, inverse = input
    sizes = _packed_sizes(batch_sizes, data)
    if sizes is None:
        return None
    if hx is not None and order is not None:
        hx = hx.index_select(1, order)
    found = _run(rnn, data, hx, sizes)
    if found is None:
        return None
    rows = PackedSequence(found[0], batch_sizes, order, inverse)
    return rows, found[1] if inverse is None else found[1].index_select(1, inverse)


def _packed_sizes(batch_sizes: Tensor, data: Tensor) -> list[int] | None:
    """How many rows each step has, if that is what they say."""
    if type(batch_sizes) not in PLAIN_TYPES or batch_sizes.dtype != torch.int64 or not batch_sizes.is_cpu:
        return None
    kernels.check_memory([batch_sizes])
    sizes = batch_sizes.tolist()
    fits = sizes and sizes[-1] > 0 and sum(sizes) == data.size(0) and sizes == sorted(sizes, reverse=True)
    return sizes if fits else None


def _run(rnn: Any, x: Tensor, hx: Tensor | None, sizes: Sequence[int] = ()) -> tuple[Tensor, Tensor] | None:
    own = rnn.__dict__
    if type(x) not in PLAIN_TYPES or x.is_nested or not _is_unmodified(type(rnn), rnn):
        return None
    try:
        *options, training, dropout, projection, parameters, names, _ = _read(own)
        weights = [parameters[name] for group in names for name in group]
    except KeyError:
        return None
    options[0] = phi = PHI_OF_MODE.get(options[0]) or known_nonlinearity(rnn)
    _, *flags, layers, _, _ = options
    if type(dropout) is not float or (training and dropout and layers > 1):
        return None
    if projection or phi is None:
        return None
    if {*map(type, flags), type(training)} != FLAGS or not _fit(x, hx, weights, options, bool(sizes)):
        return None
    options.append(leak_of(rnn))
    run = _run_on_cuda if aten.by_cudnn(x) else _run_on_cpu
    if x.dim() == 2 and not sizes:
        axis = 0 if own["batch_first"] else 1
        found = run(x.unsqueeze(axis), hx if hx is None else hx.unsqueeze(1), weights, options, sizes)
        return found and (found[0].squeeze(axis), found[1].squeeze(1))
    return run(x, hx, weights, options, sizes)


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
    if not taken and hasattr(kind.step, BUILTIN) and hasattr(kind.begin, BUILTIN):  # type: ignore[attr-defined]
        return True
    return isinstance(nonlinearity_of(rnn), str)


def _run_on_cpu(
    x: Tensor, hx: Tensor | None, weights: list[Tensor], options: list[Any], sizes: Sequence[int]
) -> tuple[Tensor, Tensor] | None:
    if not native.has_aten_node or kernels.requested_kernel() not in (kernels.DEFAULT, kernels.NATIVE):
        return None
    phi, bias, batch_first, bidirectional, layers, _, H, alpha = options
    recorded = torch.is_grad_enabled() and _requires_grad(x, hx, weights)
    if recorded is None or (alpha is not None and not _is_constant(alpha)):
        return None
    if recorded:
        batching_rule()
        if "flop_counter" in _loaded:  # whose counters may watch the backward pass alone
            register_flop_formulas()
        steps = len(sizes) or x.size(1 if batch_first else 0)
        reads = x.requires_grad, steps > 1 or (hx is not None and hx.requires_grad)
        weights = _aliases(weights, reads, (1 + bidirectional) * (4 if bias else 2))
        x, hx = _input_alias(x, batch_first and not sizes), hx if hx is None else hx.view_as(hx)
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


def _aliases(weights: list[Tensor], reads: tuple[bool, bool], layer: int) -> list[Tensor]:
    """What the node saves, as tensors of its own: `w.data = ...` leaves them as they are.

    An edit in place is noticed, but of a matrix that backward doesn't read: `weight_ih` of the first `layer`
    weights where the input wants no gradient, `weight_hh` of a single step. It reads no bias.
    """
    reads_dx, carried = reads
    found = []
    for at, w in enumerate(weights):
        if w.dim() == 2:
            needed = carried if at % 2 else reads_dx or at >= layer
            w = w.view_as(w) if needed else unnoticed_alias(w, w.shape)
        found.append(w)
    return found


def _input_alias(x: Tensor, batch_first: bool) -> Tensor:
    """The same of the input. Where its rows aren't evenly spaced it is copied, as `nn.RNN` copies it, so that
    its memory may be filled anew before backward."""
    if batch_first:
        return as_nn_rnn(x.transpose(0, 1)).transpose(0, 1)
    if not x.is_contiguous():
        return as_nn_rnn(x.view_as(x))
    return x.view_as(x) if x.requires_grad else x.detach()


def _run_on_cuda(
    x: Tensor, hx: Tensor | None, weights: list[Tensor], options: list[Any], sizes: Sequence[int]
) -> tuple[Tensor, Tensor] | None:
    asked = kernels.requested_kernel()
    phi, bias, batch_first, bidirectional, layers, I, H, alpha = options  # noqa: E741
    D, first = 1 + bidirectional, batch_first and not sizes
    if asked not in (kernels.DEFAULT, kernels.ATEN) or phi not in aten.NONLINEARITIES or alpha is not None:
        return None
    if not _fits_cudnn(x, weights, aten.shapes(layers, D, I, H, bias)):
        return None
    shape = layers * D, sizes[0] if sizes else x.size(0 if first else 1), H
    if hx is None:
        hx = x.new_zeros(shape)
    if type(hx) not in PLAIN_TYPES or hx.shape != shape:
        return None
    batch_sizes = torch.tensor(sizes, device="cpu") if sizes else None
    how = NetworkOptions(batch_sizes, phi, bidirectional, bias, asked)
    return run_cudnn(x, hx, weights, how, first)


def _fits_cudnn(x: Tensor, weights: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> bool:
    if aten.unsupported_reason(x) is not None or [w.shape for w in weights] != shapes:
        return False
    dtype, place = weights[0].dtype, x.get_device()
    alike = all(w.dtype is dtype and w.get_device() == place for w in weights)
    return alike and (x.dtype is dtype or torch.is_autocast_enabled("cuda"))


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
    if not all(type(w) in PLAIN_TYPES for w in tensors):
        return False
    if aten.by_cudnn(x):
        return True
    return x.is_cpu and x.dtype in native.TYPES and not any_autocast() and all(w.is_cpu for w in tensors)
