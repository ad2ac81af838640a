r"""Names that `ManualRNN` has and `nn.RNN` hasn't, free for a user's modules, parameters and buffers.

Python looks up a method of the class before it asks `nn.Module` for what is registered. So what is registered
under one of these names also stands in the `__dict__` of the object, and there before any method.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

OWN_NAMES = frozenset({"begin", "step", "from_builtin", "to_builtin"})
REGISTRIES = ("_modules", "_parameters", "_buffers")


def builtin(method: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a method of `ManualRNN` as its own; a class from before a reload is known by this too."""
    method._manual_rnn_builtin = True  # type: ignore[attr-defined]
    return method


def is_builtin(function: Any) -> bool:
    """Whether a function is so marked; `functools.wraps` gives the mark to a user's function too."""
    return hasattr(function, "_manual_rnn_builtin") and not hasattr(function, "__wrapped__")


class Registry(dict):
    """What is registered under `OWN_NAMES`, also as attributes of the object."""

    def __init__(self, entries: dict[str, Any], attributes: dict[str, Any]) -> None:
        super().__init__(entries)
        self.attributes = attributes
        attributes.update((name, entries[name]) for name in OWN_NAMES & entries.keys())

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        if name in OWN_NAMES:
            self.attributes[name] = value

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        if name in OWN_NAMES:
            self.attributes.pop(name, None)

    def pop(self, name: str, *default: Any) -> Any:
        if name in OWN_NAMES and name in self:
            self.attributes.pop(name, None)
        return super().pop(name, *default)

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


def make_visible(rnn: Any) -> None:
    """What is registered under `OWN_NAMES` by now, after a pickle or a conversion."""
    for registry in REGISTRIES:
        if not OWN_NAMES.isdisjoint(rnn.__dict__.get(registry, ())):
            _watch(rnn, registry)


def hide(rnn: Any) -> None:
    """Undo `make_visible`, for a class that has none of these names."""
    attributes = without_visible(rnn.__dict__)
    for name in rnn.__dict__.keys() - attributes.keys():
        del rnn.__dict__[name]
    for registry in REGISTRIES:
        if isinstance(rnn.__dict__[registry], Registry):
            rnn.__dict__[registry] = dict(rnn.__dict__[registry])


def without_visible(state: dict[str, Any]) -> dict[str, Any]:
    """The `__dict__` of a module without what also stands in a registry."""
    twice = {name for name in OWN_NAMES & state.keys() if any(name in state[r] for r in REGISTRIES)}
    return {name: value for name, value in state.items() if name not in twice}


def _watch(rnn: Any, registry: str) -> Registry:
    entries = rnn.__dict__[registry]
    if not isinstance(entries, Registry) or entries.attributes is not rnn.__dict__:  # a copy has the other's
        entries = Registry(entries, rnn.__dict__)
        rnn.__dict__[registry] = entries
    return entries


def _free(rnn: Any, registry: str, name: str) -> AbstractContextManager[None]:
    """A block in which `nn.Module` finds this name free to be registered."""
    return _freed(rnn, registry, name) if name in OWN_NAMES else nullcontext()


@contextmanager
def _freed(rnn: Any, registry: str, name: str) -> Iterator[None]:
    own = rnn.__dict__
    if registry not in own or name in own or name in own[registry]:
        yield
        return
    entries = _watch(rnn, registry)
    dict.__setitem__(entries, name, None)
    try:
        yield
    finally:
        if name not in own:
            dict.pop(entries, name)


def set_attribute(self: Any, name: str, value: Any) -> None:
    """As `nn.Module.__setattr__`, which also knows a module under a name that is a method here."""
    if name in OWN_NAMES and isinstance(value, nn.Module) and "_modules" in self.__dict__:
        _watch(self, "_modules")
    nn.Module.__setattr__(self, name, value)


def register_buffer(self: Any, name: str, tensor: Any, persistent: bool = True) -> None:
    with _free(self, "_buffers", name):
        super(nn.RNNBase, self).register_buffer(name, tensor, persistent)


def register_parameter(self: Any, name: str, param: Any) -> None:
    with _free(self, "_parameters", name):
        super(nn.RNNBase, self).register_parameter(name, param)


def add_module(self: Any, name: str, module: Any) -> None:
    with _free(self, "_modules", name):
        super(nn.RNNBase, self).add_module(name, module)
