r"""An `nn.RNN` becomes a `ManualRNN`, or the other way, by changing the class of the object.

Both keep the same parameters under the same names and the same attributes; `nn.RNN` has three caches of
its weights besides. So the change leaves alone what hangs on the object: the Parameters an optimizer
holds, hooks and their handles, parametrizations, pruning masks, tied modules, attributes of your own.
Nothing is initialised, and no random number drawn.
"""

from copy import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from .kernels.nonlinearities import NN_RNN_MODES
from .override import is_recurrence
from .own_names import OWN_NAMES, hide, make_visible
from .parameters import NN_RNN, NN_RNN_CACHES, RNNBase
from .validation import is_kind, is_same
from .weights import ASSIGNED, assigned_weights, same_objects

ALLOWED_OVERRIDES = {"flatten_parameters"}  # the weight-drop recipe of AWD-LSTM sets it on the module


def check_target(to: type, base: type) -> None:
    """`to` is `base`, or a subclass of it without a constructor, which would never run."""
    if not (isinstance(to, type) and is_kind(to, base)):
        raise TypeError(f"expected nn.RNN, {base.__name__} or a subclass of it, got {to!r}")
    if not any(is_same(cls, base) for cls in to.__mro__ if cls.__init__ is to.__init__):  # type: ignore[misc]
        raise TypeError(
            f"{to.__name__} has an __init__ of its own, which a conversion doesn't run: expected one "
            f"inherited from {base.__name__}. Build it and load the state_dict instead"
        )


def unsupported_reason(rnn: nn.Module, source: type, to: type) -> str | None:
    """The reason why `rnn` can't become a `to` with the same behaviour, or None."""
    kind: type = type_before_parametrizations(rnn)
    if not is_same(kind, source):
        return f"expected {source.__name__} itself, got {kind.__name__}, whose own code would be lost"
    own = [
        name
        for name in (vars(rnn).keys() | rnn._modules.keys()) - ALLOWED_OVERRIDES
        if (callable(getattr(source, name, None)) or callable(getattr(to, name, None)))
        and (name not in OWN_NAMES or is_recurrence(rnn, name))
    ]
    if own:
        return f"expected the methods of its class, got {', '.join(sorted(own))} set on the module itself"
    if rnn.mode not in NN_RNN_MODES:
        return f"expected nonlinearity 'tanh' or 'relu', got {rnn.nonlinearity}"
    if getattr(rnn, "proj_size", 0):
        return f"expected proj_size 0, got {rnn.proj_size}: an Elman network has no projection"
    return None


def convert(rnn: nn.Module, to: type) -> Any:
    """Make `rnn` a `to` in place, once `unsupported_reason` has found nothing."""
    state, assigned = vars(rnn), _assigned_weights(rnn)
    for cache in (*NN_RNN_CACHES, ASSIGNED):
        state.pop(cache, None)
    state.setdefault("proj_size", 0)  # modules pickled long ago lack these two
    state.setdefault("nonlinearity", rnn.mode.removeprefix("RNN_").lower())  # type: ignore
    rnn.__class__ = _with_parametrizations(rnn, to)
    if isinstance(rnn, NN_RNN):
        hide(rnn)
        _fill_caches(rnn)
    else:
        make_visible(rnn)
    if assigned is not None:
        rnn._flat_weights = assigned  # type: ignore[assignment]
    return rnn


def shared_copy(rnn: nn.Module, source: type, to: type) -> Any:
    """A new `to` that shares the parameters of `rnn`, which stays as it is."""
    reason = unsupported_reason(rnn, source, to)
    if reason is not None:
        raise TypeError(f"can't convert to {to.__name__}: {reason}")
    return convert(_clone(rnn), to)


def _with_parametrizations(rnn: nn.Module, to: type) -> type:
    """`to`, or a class like the one that `torch.nn.utils.parametrize` puts over it."""
    if not is_parametrized(rnn):
        return to
    return type(f"Parametrized{to.__name__}", (to,), dict(vars(type(rnn))))


def _assigned_weights(rnn: Any) -> list[Any] | None:
    """What somebody assigned to `_flat_weights` and would run now, if it isn't the parameters."""
    if isinstance(rnn, RNNBase):
        return assigned_weights(rnn)
    if not vars(rnn).keys() >= set(NN_RNN_CACHES) or rnn._weights_have_changed():
        return None
    own = [getattr(rnn, name, None) for name in rnn._flat_weights_names]
    return None if same_objects(own, rnn._flat_weights) else rnn._flat_weights


def _fill_caches(rnn: nn.RNN) -> None:
    rnn._flat_weights_names = [name for names in rnn._all_weights for name in names]
    with torch.no_grad():  # a cached weight with a graph, as parametrizations give, can't be deep-copied
        rnn._init_flat_weights()


def _clone(module: nn.Module) -> nn.Module:
    """A copy with the same tensors and hooks in registries of its own, so that later changes stay in one."""
    twin = module.__new__(type(module))
    registries = dict | list | set
    vars(twin).update({k: copy(v) if isinstance(v, registries) else v for k, v in vars(module).items()})
    twin._modules = {name: c if c is None else _clone(c) for name, c in module._modules.items()}
    return twin
