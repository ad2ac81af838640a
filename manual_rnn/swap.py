r"""Every `nn.RNN` of a model becomes a `ManualRNN`, and back."""

import warnings
from collections import Counter
from typing import TypeVar

from torch import nn

from .convert import check_target, convert, unsupported_reason
from .module import ManualRNN
from .parameters import NN_RNN
from .validation import check_kind, is_kind

Model = TypeVar("Model", bound=nn.Module)


def swap_rnn(model: Model, to: type[nn.Module] = ManualRNN) -> Model:
    r"""Turn every `nn.RNN` in `model` into a `ManualRNN`, in place.

    The modules stay the same objects with the same Parameters, so an optimizer made before, hooks,
    parametrizations, pruning, tied modules and `requires_grad` keep working. LSTM and GRU are left alone.

    Args:
        model: any module, an `nn.RNN` itself included.
        to: `ManualRNN`; a subclass of it that overrides `step` and has no `__init__`; or `nn.RNN`, which
            turns every `ManualRNN` back.

    Returns:
        `model`.

    Raises:
        TypeError: naming every module whose behaviour would change, before anything is changed: one of
            a subclass, one with `forward` or another method set on the object, a projected `nn.RNN`,
            and on the way back a `ManualRNN` with a recurrence of its own. Also for a `model` that is no
            module.

    Warns:
        UserWarning: where there is nothing to swap, naming what was found instead. Not if the model has
            been swapped already: what was asked for holds then.

    Example:
        >>> model = nn.Sequential(nn.RNN(3, 4), nn.Identity())
        >>> swap_rnn(model)[0]
        ManualRNN(3, 4)
        >>> swap_rnn(model, to=nn.RNN)[0]
        RNN(3, 4)
    """
    check_kind("model", model, nn.Module)
    source = ManualRNN if to is NN_RNN else NN_RNN
    if to is not NN_RNN:
        check_target(to, ManualRNN)
    found = {name: module for name, module in model.named_modules() if is_kind(type(module), source)}
    reasons = {name: unsupported_reason(rnn, source, to) for name, rnn in found.items()}
    refused = [f"{name or 'the model itself'}: {reason}" for name, reason in reasons.items() if reason]
    if refused:
        raise TypeError(f"can't swap to {to.__name__}: {'; '.join(refused)}")
    if not found and not any(is_kind(type(module), to) for module in model.modules()):
        warnings.warn(_nothing_in(model, "a ManualRNN" if to is NN_RNN else "an nn.RNN"), stacklevel=2)
    for rnn in found.values():
        convert(rnn, to)
    return model


def _nothing_in(model: nn.Module, source: str) -> str:
    kinds = Counter(type(module).__name__ for module in model.modules()).most_common()
    found = ", ".join([f"{count} {kind}" for kind, count in kinds[:10]] + ["..."] * (len(kinds) > 10))
    return f"nothing to swap: expected {source} in the model, found {found}"
