r"""The fast path: from the module of a plain call to one operator, `ops/plain_network.py`.

Any other call goes on in `module.py`: in a trace, under autocast if it has more than a few steps, of a
recurrence of one's own, of anything that doesn't fit, for which the checks have the words.
"""

from collections.abc import Sequence
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import kernels
from .kernels.interface import PLAIN_TYPES
from .kernels.nonlinearities import PHI_OF_MODE
from .ops import PlainOptions, is_recorded, plain_kernel, run_plain_network, tell_counters
from .override import known_nonlinearity, leak_of, nonlinearity_of
from .own_names import is_builtin
from .parameters import RUNNER, RNNBase
from .torch_internals import (
    as_plain_tensors,
    below_function_modes,
    changes_nothing,
    function_mode_count,
    functorch_active,
    no_interposition,
    no_tracing,
    only_default_device,
    subclasses_are_kept,
    transforms_active,
)
from .weights import ASSIGNED

METHODS = (
    "check_input", "check_forward_args", "check_hidden_size", "get_expected_hidden_size", "permute_hidden",
)  # fmt: skip
UNCHANGED = {*METHODS, ASSIGNED, RUNNER}
READ = {*UNCHANGED, "begin", "step"}
_methods_of = attrgetter(*METHODS)
_own_methods = _methods_of(RNNBase)
_read = itemgetter(  # of a module's attributes
    "mode", "bias", "batch_first", "bidirectional", "num_layers", "input_size", "hidden_size", "training",
    "dropout", "proj_size",
)  # fmt: skip


def try_fast_path(rnn: Any, input: Tensor | PackedSequence, hx: Tensor | None) -> tuple[Any, Tensor] | None:
    """What `rnn(input, hx)` returns, or None where the call isn't plain."""
    if torch.compiler.is_dynamo_compiling():  # in a frame of its own, after an error in that of the caller
        return None
    if not no_interposition():
        if not no_tracing():
            return None
        tell_counters()
    if isinstance(input, PackedSequence):
        return _run_packed(rnn, input, hx)
    return _run(rnn, input, hx) if type(input) in PLAIN_TYPES else _run_subclass(rnn, input, hx)


def _run_packed(rnn: Any, input: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor] | None:
    if functorch_active():  # whose numbers of rows may be wrapped
        return None
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
    if transforms_active() or not changes_nothing(kind) or not subclasses_are_kept():
        return None
    with as_plain_tensors():
        found = _run(rnn, x.as_subclass(Tensor), hx)
        return found if found is None else (found[0].as_subclass(kind), found[1].as_subclass(kind))


def _run(rnn: Any, x: Tensor, hx: Tensor | None, sizes: Sequence[int] = ()) -> tuple[Tensor, Tensor] | None:
    if function_mode_count() and subclasses_are_kept() and only_default_device() and type(x) in PLAIN_TYPES:
        with below_function_modes():  # every tensor that is made in there is given its device
            return _run(rnn, x, hx, sizes)
    call = _plain_call(rnn, x, hx, sizes)
    if call is None:
        return None
    weights, options = call
    if sizes or x.dim() == 3:
        return run_plain_network(x, hx, weights, options)
    axis = 0 if options.batch_first else 1
    hx = hx if hx is None else hx.unsqueeze(1)
    found = run_plain_network(x.unsqueeze(axis), hx, weights, options)
    return found if found is None else (found[0].squeeze(axis), found[1].squeeze(1))


def _plain_call(
    rnn: Any, x: Tensor, hx: Tensor | None, sizes: Sequence[int]
) -> tuple[list[Tensor], PlainOptions] | None:
    """The weights and options of a call; None where anything is out of the ordinary.

    Attributes and tensors have to be as the constructor makes them, but for the shapes of weights, which are
    the kernel's to check. A tiny network takes as long as its call does, so this calls few functions.
    """
    if not _is_unmodified(type(rnn), rnn):
        return None
    own = rnn.__dict__
    try:
        mode, bias, first, both, layers, input_size, hidden_size, training, p, projection = _read(own)
        known = own["_parameters"]
        weights = [known[name] for names in own["_all_weights"] for name in names]
    except KeyError:
        return None
    phi = PHI_OF_MODE.get(mode) or known_nonlinearity(rnn)
    if phi is None or projection or not (type(bias) is type(first) is type(both) is type(training) is bool):
        return None
    if len(weights) != layers * (1 + both) * (4 if bias else 2) or type(p) is not float:
        return None
    if not PLAIN_TYPES.issuperset(map(type, weights)) or x.is_nested:
        return None
    shape = x.shape
    rank = len(shape)
    if hx is not None and (type(hx) not in PLAIN_TYPES or hx.dim() != (3 if sizes else rank)):
        return None
    if rank == 3 and not sizes:
        steps, batch = shape[first], shape[not first]
    elif rank == 2:
        steps, batch = (len(sizes), sizes[0]) if sizes else (shape[0], 1)
    else:
        return None
    if shape[-1] != input_size:
        return None
    dropout = p if training and layers > 1 else 0.0
    first = first and not sizes
    return weights, PlainOptions(
        phi, bias, first, both, layers, input_size, hidden_size, dropout, leak_of(rnn), sizes, steps, batch
    )


def _is_unmodified(kind: type, rnn: Any) -> bool:
    """Whether what `module.py` would call is what `ManualRNN` has: no method is overridden, on a class, on an
    object, or by a module of that name. `step` and `begin` may be something else than a recurrence."""
    own, modules = rnn.__dict__, rnn.__dict__["_modules"]
    names = own.keys() | modules.keys() if modules else own.keys()
    if _methods_of(kind) != _own_methods:
        return False
    if names.isdisjoint(READ) and is_builtin(kind.step) and is_builtin(kind.begin):  # type: ignore[attr-defined]
        return True
    return names.isdisjoint(UNCHANGED) and isinstance(nonlinearity_of(rnn), str)


def packed_sizes(batch_sizes: Tensor, data: Tensor) -> list[int] | None:
    """How many rows each step has, if that is what they say."""
    if type(batch_sizes) not in PLAIN_TYPES or batch_sizes.dtype != torch.int64 or not batch_sizes.is_cpu:
        return None
    if batch_sizes.dim() != 1:
        return None
    kernels.check_memory([batch_sizes])
    sizes = batch_sizes.tolist()
    fits = sizes and sizes[-1] > 0 and sum(sizes) == data.size(0) and sizes == sorted(sizes, reverse=True)
    return sizes if fits else None


def kernel_of_plain_call(rnn: Any, input: Tensor | PackedSequence, hx: Tensor | None) -> str | None:
    """The kernel that the fast path would run on a CPU; None where the call isn't plain."""
    x: Any = input
    sizes: Sequence[int] | None = ()
    if isinstance(input, PackedSequence):
        x, sizes = input.data, packed_sizes(input.batch_sizes, input.data)
    if sizes is None or type(x) not in PLAIN_TYPES or not no_tracing():
        return None
    call = _plain_call(rnn, x, hx, sizes)
    if call is None or not x.is_cpu:
        return None
    weights, options = call
    return plain_kernel(x, hx, is_recorded(x, hx, weights), options)
