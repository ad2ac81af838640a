r"""Which recurrence a module runs: a nonlinearity that the kernels know, or a step of its user's own.

`step` and `begin` are common words. What takes `(gates, hidden, weight_hh)`, or `(h0)` and perhaps
`weight_hh`, is a recurrence; anything else under these names is the user's, and none of ours.
"""

from collections.abc import Callable
from functools import wraps
from inspect import CO_VARARGS
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from . import validation
from .kernels.nonlinearities import NN_RNN_MODES, PHI_OF_MODE, name_of
from .own_names import is_builtin
from .parameters import CUSTOM_MODE
from .torch_internals import tracks_gradient


def nonlinearity_of(rnn: Any) -> Any:
    """The name of a nonlinearity that the kernels know; or, for a recurrence of one's own, what gives its
    step from `(h0, weight_hh)`.

    Raises:
        AssertionError: for an unknown `mode`.
    """
    begin = _override(rnn, "begin")
    if begin is not None:
        return begin if _accepts(begin, 2) else wraps(begin)(lambda h0, weight_hh: begin(h0))
    if _override(rnn, "step") is None:
        known = known_nonlinearity(rnn)
        if known is not None and not _trains_leak(rnn):
            return known
        if known is None and rnn.mode != CUSTOM_MODE:
            validation.check_mode(rnn.mode, NN_RNN_MODES)
    return stepwise(rnn)


def stepwise(rnn: Any) -> Callable[[Tensor, Tensor], Any]:
    """What gives the module's step from `(h0, weight_hh)`."""
    return lambda h0, weight_hh: step_of(rnn)


def known_nonlinearity(rnn: Any) -> str | None:
    """The nonlinearity that the mode names, or that a function means; None for any other."""
    return PHI_OF_MODE.get(rnn.mode) if rnn.mode != CUSTOM_MODE else name_of(rnn.nonlinearity)


def leak_of(rnn: Any) -> Tensor | None:
    """The alpha of a `LeakyRNN`; None of any other."""
    return rnn.alpha if type(rnn)._manual_rnn_leaky else None


def _trains_leak(rnn: Any) -> bool:
    """Whether a derivative by alpha may be wanted, which no kernel has. A graph lets the operator ask."""
    alpha = leak_of(rnn)
    return alpha is not None and not torch.compiler.is_compiling() and tracks_gradient(alpha)


def overrides_step(rnn: Any) -> bool:
    """Whether the step isn't that of a nonlinearity: it is the user's, or has a leak."""
    return leak_of(rnn) is not None or any(_override(rnn, name) is not None for name in RECURRENCES)


def step_of(rnn: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The user's step, or that of the nonlinearity."""
    own = _override(rnn, "step")
    if own is not None:
        return own
    kind: Any = next(cls for cls in type(rnn).__mro__ if is_builtin(vars(cls).get("step")))
    return kind.step.__get__(rnn)


def _override(rnn: Any, name: str) -> Any:
    """The recurrence of the user's that stands under this name on the object or its class, or None."""
    of_class, modules = getattr(type(rnn), name), rnn.__dict__["_modules"]
    found = getattr(rnn, name)  # a graph notices when this changes, or the attribute of the class
    if isinstance(found, MethodType) and found.__func__ is of_class and is_builtin(of_class):
        found = modules.get(name) if modules else None
    return found if found is not None and RECURRENCES[name](found) else None


def is_recurrence(rnn: nn.Module, name: str) -> bool:
    """Whether what is set on an object under this name would run as its recurrence."""
    found = vars(rnn).get(name, rnn._modules.get(name))
    return name in RECURRENCES and RECURRENCES[name](found)


def _is_step(found: Any) -> bool:
    """A function or module of three arguments; a layer of torch that happens to be called so is none."""
    layer = isinstance(found, nn.Module) and type(found).__module__.startswith("torch.nn")
    return callable(found) and not layer and _accepts(found, 3)


def _is_begin(found: Any) -> bool:
    """A function whose first argument is `h0`, or its second `weight_hh`; a layer of that name is none."""
    code = getattr(found, "__code__", None)
    if isinstance(found, nn.Module) or code is None:
        return False
    names = code.co_varnames[_bound(found) : code.co_argcount]
    return names[:1] == ("h0",) or names[1:2] == ("weight_hh",)


def _accepts(function: Any, count: int) -> bool:
    """Whether it can be called with so many positional arguments. What doesn't tell is believed to."""
    if isinstance(function, nn.Module):
        function = function.forward
    code = getattr(function, "__code__", None)
    if code is None:
        return True
    most = code.co_argcount - _bound(function)
    least = most - len(function.__defaults__ or ())
    return least <= count and (count <= most or bool(code.co_flags & CO_VARARGS))


def _bound(function: Any) -> int:
    return int(isinstance(function, MethodType))


RECURRENCES: dict[str, Callable[[Any], bool]] = {"begin": _is_begin, "step": _is_step}
