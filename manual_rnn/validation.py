r"""Every check a user can meet, with the exception types and the words of `torch.nn.RNN`."""

import numbers
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .kernels.interface import check_memory, shapes_of_weights, weight_shapes
from .torch_internals import any_autocast, is_wrapper
from .weights import ASSIGNED


def check_kind(name: str, value: Any, *kinds: type) -> None:
    """An argument of a public function is what it should be, before anything runs."""
    if not any(is_kind(type(value), kind) for kind in kinds):
        names = " or ".join(f"a {kind.__name__}" for kind in kinds)
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name}: expected {names}, got {got}")


def check_rnn(value: Any, kind: type) -> None:
    """`value` is a `kind`, `ManualRNN`; the error for a model around one says where it is."""
    if is_kind(type(value), kind) or not isinstance(value, nn.Module):
        check_kind("rnn", value, kind)
        return
    inside = [f".{name}" for name, module in value.named_modules() if is_kind(type(module), kind)]
    builtin = [f".{name}" for name, module in value.named_modules() if name and type(module) is nn.RNN]
    hint = ""
    if inside:
        hint = f", whose {' and '.join(inside)} {'is one' if len(inside) == 1 else 'are such'}"
    elif builtin:
        hint = f", whose {' and '.join(builtin)} swap_rnn turns into {'one' if len(builtin) == 1 else 'such'}"
    raise TypeError(f"rnn: expected a {kind.__name__}, got {type(value).__name__}{hint}")


def is_kind(cls: type, kind: type) -> bool:
    """Whether `cls` is `kind` or a subclass. Objects outlive a reload of this package, so a class of the same
    module and name counts too."""
    return issubclass(cls, kind) or any(is_same(base, kind) for base in cls.__mro__)


def is_same(cls: type, other: type) -> bool:
    """Whether `cls` is `other`, perhaps from before a reload."""
    return (cls.__module__, cls.__qualname__) == (other.__module__, other.__qualname__)


def check_function(name: str, value: Any) -> None:
    """Something to be called; a class would build an object of what it is given."""
    if isinstance(value, type) or not callable(value):
        got = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        raise TypeError(f"{name}: expected a function of a tensor, got {got}")


def check_mode(mode: str, known: Collection[str]) -> None:
    """`mode` is one that the kernels know."""
    if mode not in known:
        raise AssertionError(f"mode must be {' or '.join(known)}, got {mode}")


def check_alpha(alpha: Any, H: int) -> None:
    """A leak is a number between 0 and 1, or one for each unit."""
    if isinstance(alpha, Tensor):
        if alpha.shape != (H,) or not alpha.is_floating_point():
            got = f"{alpha.dtype} of shape {tuple(alpha.shape)}"
            raise ValueError(
                f"alpha: expected a number or a floating-point tensor of shape ({H},), got {got}"
            )
        fits = alpha.is_meta or is_wrapper(alpha) or bool(((alpha >= 0) & (alpha <= 1)).all())
    else:
        if not isinstance(alpha, numbers.Real) or isinstance(alpha, bool):
            raise TypeError(f"alpha: expected a number or a tensor, got {type(alpha).__name__}")
        fits = 0 <= float(alpha) <= 1
    if not fits:
        raise ValueError(f"alpha: expected values between 0 and 1, got {alpha}")


def check_leak(rnn: Any, alpha: Tensor) -> Tensor:
    """The leak of a call, which code may have replaced since the module was built."""
    if alpha.shape != (rnn.hidden_size,):
        raise RuntimeError(f"alpha must have shape ({rnn.hidden_size},), got {tuple(alpha.shape)}")
    return alpha


def check_ranks(input: Tensor, hx: Tensor | None) -> None:
    """A padded batch and its state have three axes, a single sequence and its state two."""
    rank = input.dim()
    if rank not in (2, 3):
        raise ValueError(f"RNN: Expected input to be 2D or 3D, got {rank}D tensor instead")
    if hx is not None and hx.dim() != rank:
        kind = "unbatched" if rank == 2 else "batched"
        raise RuntimeError(
            f"For {kind} {rank}-D input, hx should also be {rank}-D but got {hx.dim()}-D tensor"
        )


def check_forward_args(self: Any, input: Tensor, hidden: Tensor, batch_sizes: Tensor | None) -> None:
    """Raise unless input and state fit this module and each other."""
    self.check_input(input, batch_sizes)
    if batch_sizes is None or not torch.compiler.is_compiling():  # in a graph the op checks it
        self.check_hidden_size(hidden, self.get_expected_hidden_size(input, batch_sizes))


def check_input(self: Any, input: Tensor, batch_sizes: Tensor | None) -> None:
    """Raise unless `input` has the weights' dtype (autocast aside) and the rank and features expected."""
    name = self._all_weights[0][0]
    if ASSIGNED in self.__dict__:
        dtype = self._flat_weights[0].dtype
    else:
        dtype = (self._parameters[name] if name in self._parameters else getattr(self, name)).dtype
    if input.dtype != dtype and not any_autocast():
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
            f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
        )
    rank = 3 if batch_sizes is None else 2
    if input.dim() != rank:
        raise RuntimeError(f"input must have {rank} dimensions, got {input.dim()}")
    if input.size(-1) != self.input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.size(-1)}"
        )


def check_batch_sizes(batch_sizes: Tensor, rows: int) -> None:
    """Steps that share out all packed rows, none with more rows than the one before."""
    if batch_sizes.dtype != torch.int64:
        raise RuntimeError(f"Expected batch_sizes of dtype torch.int64, got {batch_sizes.dtype}")
    if torch.compiler.is_compiling():  # a graph in the making has no values to look at
        return
    if not is_wrapper(batch_sizes):  # which has no storage of its own
        check_memory([batch_sizes])
    sizes = batch_sizes.tolist()
    falling = all(n >= m for n, m in zip(sizes, [*sizes[1:], 0], strict=False))
    if not falling or sum(sizes) != rows:
        raise RuntimeError(f"Expected batch_sizes that never grow and add up to {rows} rows, got {sizes}")


def check_flags(rnn: Any, *names: str) -> None:
    """These attributes are booleans, nothing that merely looks like one."""
    for name in names:
        value = getattr(rnn, name)
        if value is not True and value is not False:
            raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")


def check_attributes(rnn: Any, padded: bool) -> None:
    """What code may have changed since the module was built is still of the type that it was. Of packed
    input nothing depends on `batch_first`."""
    check_flags(rnn, "bias", "bidirectional", "training", *["batch_first"] * padded)
    if not isinstance(rnn.dropout, (float, numbers.Real, Tensor)):
        raise TypeError(f"dropout should be a number, got: {type(rnn.dropout).__name__}")
    if rnn.proj_size:
        raise RuntimeError(f"Expected proj_size 0, for an RNN can't be projected, got {rnn.proj_size}")


def check_counts(rnn: Any) -> None:
    """As many weights as layers, directions and `bias` ask for."""
    expected = rnn.num_layers * (2 if rnn.bidirectional else 1), 4 if rnn.bias else 2
    counts = len(rnn._all_weights), len(rnn._all_weights[0])
    if counts != expected:
        word = "more" if counts < expected else "fewer"
        raise RuntimeError(f"Expected {word} weights in stacked_rnn")


def check_tensors(rnn: Any, input: Tensor, hx: Tensor, weights: Sequence[Sequence[Any]]) -> None:
    """State and weights fit the input in device and dtype, and the weights are `(H, I)`, `(H, H)`, `(H,)`.

    `nn.RNN` lets a bias of size 1 broadcast; here it raises, as any other wrong shape does. Autocast has
    lowered the precision of all of them by now.
    """
    dtype, place = input.dtype, input.is_cpu or input.device  # of a tensor on the CPU the first is cheaper
    if hx.dtype != dtype or (hx.is_cpu or hx.device) != place:
        _raise_difference("hidden", "hx", input, hx)
    sizes = rnn.num_layers, 1 + rnn.bidirectional, rnn.input_size, rnn.hidden_size
    shapes_of = shapes_of_weights if torch.compiler.is_compiling() else weight_shapes
    flat = [x for group in weights for x in group if x is not None]
    for at, (x, shape) in enumerate(zip(flat, shapes_of(*sizes, rnn.bias), strict=True)):
        if x.shape != shape:
            raise RuntimeError(f"{rnn._flat_weights_names[at]} must have shape {shape}, got {tuple(x.shape)}")
        if x.dtype != dtype or (x.is_cpu or x.device) != place:
            _raise_difference("parameter", rnn._flat_weights_names[at], input, x)


def _raise_difference(kind: str, name: str, input: Tensor, other: Tensor) -> None:
    if other.device != input.device:
        raise RuntimeError(
            f"Input and {kind} tensors are not at the same device, found input tensor at {input.device} "
            f"and {kind} tensor at {other.device}"
        )
    raise RuntimeError(f"{name} must have the dtype of the input, {input.dtype}, got {other.dtype}")


def check_state(state: Any, expected: torch.Size, step: Any) -> Tensor:
    """A step or nonlinearity of one's own gave a state of the same shape."""
    if isinstance(state, Tensor) and state.shape == expected:
        return state
    name = getattr(step, "__qualname__", type(step).__qualname__)
    words = f"a step must return a state of shape {tuple(expected)}, got"
    if isinstance(state, Tensor):
        raise RuntimeError(f"{words} {tuple(state.shape)} from {name}")
    raise TypeError(
        f"{words} a {type(state).__name__} from {name}; a method or module `step` that takes (gates, hidden, "
        "weight_hh) is the recurrence of its network: one for anything else needs another name"
    )


def check_step(step: Any, begin: Any) -> None:
    """`begin` gave something to call."""
    if not callable(step):
        name = getattr(begin, "__qualname__", type(begin).__qualname__)
        raise TypeError(f"begin must return a function like step, got a {type(step).__name__} from {name}")
