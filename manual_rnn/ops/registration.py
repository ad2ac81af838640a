r"""How a rule becomes one operator of torch, whatever transforms and traces it.

A `torch.library` op runs a kernel. Around it stand four rules, each found by the dispatcher where due:

    Autograd    an autograd node: `backward` and `jvp`, in eager code and in traces alike
    vmap        a new axis joins the batch; where members differ in weights it joins the ensemble
    fake        the shape of the result, for tracing
    run         what is left: check the shapes, choose a kernel, call it

`register_autograd` would take no `jvp`: a tangent that reached the op would be dropped without a word.
And Dynamo can't enter a node with a `jvp`, but it needn't: it stops at the op.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..kernels.time_order import Walk
from .dispatch import NAMESPACE, RULES, Rule, node_at_this_level, op

__all__ = [
    "check_layer",
    "check_recurrence",
    "define",
    "fake_layer",
    "fake_recurrence",
    "fold_layer",
    "fold_recurrence",
]

OPTIONS = "Tensor? batch_sizes, str phi, bool reverse, str kernel"


def define(
    rule: type[Rule], name: str, tensors: str, result: str, fake: Callable[..., Any], fold: Callable[..., Any]
) -> None:
    """Define `torch.ops.manual_rnn.<name>(<tensors>, <options>) -> <result>` with its four rules.

    Torch keeps an operator for the life of the process. So each of its rules looks up what the package that
    was imported last, or loaded again, has put there; an import that broke off is taken up where it ended.
    """
    qualified = f"{NAMESPACE}::{name}"
    outputs = result.count("Tensor")

    def autograd(*args: Any) -> Any:
        found = node_at_this_level(rule, *args)
        return found if outputs == 1 else found[:outputs]

    register: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "schema": (None, lambda _: torch.library.define(qualified, f"({tensors}, {OPTIONS}) -> {result}")),
        "autograd": (autograd, partial(torch.library.impl, qualified, "Autograd")),
        "run": (rule.run, partial(torch.library.impl, qualified, "CompositeExplicitAutograd")),
        "fake": (fake, partial(torch.library.register_fake, qualified)),
        "vmap": (fold, partial(torch.library.register_vmap, qualified)),
    }
    newest: dict[tuple[str, str], Any] = vars(getattr(torch.ops, NAMESPACE)).setdefault("newest", {})
    for step, (function, add) in register.items():
        if (name, step) not in newest:
            add(partial(_by_newest, newest, (name, step)))
        newest[name, step] = function
    RULES[name] = rule


def _by_newest(newest: dict[tuple[str, str], Any], key: tuple[str, str], *args: Any, **kwargs: Any) -> Any:
    return newest[key](*args, **kwargs)


def fake_recurrence(x: Tensor, y: Tensor, w: Tensor, batch_sizes: Tensor | None, *_: Any) -> Tensor:
    """Shaped as the first tensor."""
    _check_numbers(x, batch_sizes)
    return x.new_empty(x.shape)


def fake_layer(x: Tensor, h0: Tensor, w_ih: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """States, and the last of each sequence."""
    _check_numbers(x, others[3])
    return x.new_empty((*x.shape[:-1], w_ih.size(0))), h0.new_empty(h0.shape)


def _check_numbers(x: Tensor, batch_sizes: Tensor | None) -> None:
    """Numbers packed by sizes that have none would come out as memory that nobody wrote."""
    if batch_sizes is not None and batch_sizes.is_meta and not x.is_meta:
        raise RuntimeError(f"expected batch_sizes with values for data on {x.device}, got some on meta")


def fold_recurrence(name: str, info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
    """The vmap rule of a recurrence: fold a new axis into the batch, or into the ensemble where members
    differ in weights."""
    x, y, w, batch_sizes, *options = args
    _one_packing(in_dims[3])
    size = info.batch_size
    if in_dims[2] is None:
        x, y = (axis_at(-2, a, d, size).flatten(-3, -2) for a, d in zip((x, y), in_dims, strict=False))
        rows = None if batch_sizes is None else batch_sizes * size
        out = op(name)(x, y, w, rows, *options).unflatten(-2, (-1, size))
        return out, out.dim() - 2
    x, y, w = (axis_at(0, a, d, size) for a, d in zip((x, y, w), in_dims, strict=False))
    members = w.shape[:-2]
    x, y, w = (a.flatten(0, len(members) - 1) for a in (x, y, w))
    return op(name)(x, y, w, batch_sizes, *options).unflatten(0, members), 0


def fold_layer(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """The vmap rule of a layer: fold a new axis into the batch; where members differ in weights project the
    input of each, and leave the rest to the rule of `elman`."""
    x, h0, *weights, batch_sizes, phi, reverse, kernel = args
    _one_packing(in_dims[6])
    size = info.batch_size
    if in_dims[2:6] != (None,) * 4:
        z = _project_members(size, in_dims, x, *weights)
        dims = (0, in_dims[1], in_dims[3], None)
        states, at = fold_recurrence(
            "elman", info, dims, z, h0, weights[1], batch_sizes, phi, reverse, kernel
        )
        states, B = states.movedim(at, 0), axis_at(0, h0, in_dims[1], size).size(1)
        return (states, Walk(1, reverse, batch_sizes).last(states, B).clone()), (0, 0)
    x, h0 = (axis_at(-2, a, d, size).flatten(-3, -2) for a, d in zip((x, h0), in_dims, strict=False))
    rows = None if batch_sizes is None else batch_sizes * size
    found = op("layer")(x, h0, *weights, rows, phi, reverse, kernel)
    states, last = (each.unflatten(-2, (-1, size)) for each in found)
    return (states, last), (states.dim() - 2, last.dim() - 2)


def _project_members(
    size: int, in_dims: tuple, x: Tensor, w_ih: Tensor, _: Tensor, *biases: Tensor | None
) -> Tensor:
    """`z (size, T, B, H)` or `(size, N, H)`, of each member with its own weights and biases."""
    x, w_ih = axis_at(0, x, in_dims[0], size), axis_at(0, w_ih, in_dims[2], size)
    between = (1,) * (x.dim() - 3)
    w_t = w_ih.mT  # (size, I, H)
    z = x @ w_t.reshape(size, *between, *w_t.shape[1:])
    for bias, dim in zip(biases, in_dims[4:6], strict=True):
        if bias is not None:
            z = z + axis_at(0, bias, dim, size).reshape(size, *between, 1, -1)
    return z


def _one_packing(dim: int | None) -> None:
    if dim is not None:
        raise ValueError("vmap over batch_sizes: expected one packing for all, got one for each")


def axis_at(place: int, x: Tensor, dim: int | None, size: int) -> Tensor:
    """Move the mapped axis of `x` to `place`, or repeat an unmapped `x` along a new one there."""
    if dim is None:
        x, dim = x.expand(size, *x.shape), 0
    return x.movedim(dim, place)


def check_recurrence(name: str, x: Tensor, y: Tensor, w: Tensor, batch_sizes: Tensor | None) -> None:
    """Nothing broadcasts: raise unless the shapes fit to the last axis."""
    _check_real(name, x)
    second = x.shape[1:] if name == "elman" else x.shape
    if batch_sizes is None and x.dim() == 3 and w.shape == (x.size(2),) * 2 and y.shape == second:
        return  # the common case, found soon: a call may take a few microseconds in all
    G, H = w.shape[:-2], x.size(-1)
    if x.dim() != w.dim() + (batch_sizes is None):
        rank = w.dim() + (batch_sizes is None)
        raise ValueError(f"{name}: expected its first tensor to have {rank} axes, got {x.dim()}")
    B = x.size(-2) if batch_sizes is None else int(batch_sizes[0]) if len(batch_sizes) else y.size(-2)
    state = (*G, B, H) if name == "elman" else x.shape
    _compare(name, (x, y, w), ((*G, *x.shape[len(G) :]), state, (*G, H, H)))


def check_layer(
    x: Tensor, h0: Tensor, weights: tuple[Tensor | None, ...], batch_sizes: Tensor | None
) -> None:
    """The same of a layer."""
    _check_real("layer", x)
    rank = 3 if batch_sizes is None else 2
    if x.dim() != rank or h0.dim() != 2:
        raise ValueError(f"layer: expected x of {rank} axes and h0 of 2, got {x.dim()} and {h0.dim()}")
    B = x.size(1) if batch_sizes is None else int(batch_sizes[0]) if len(batch_sizes) else h0.size(0)
    H = h0.size(1)
    tensors = [t for t in (h0, *weights) if t is not None]
    _compare("layer", tensors, [(B, H), (H, x.size(-1)), (H, H), (H,), (H,)][: len(tensors)])


def _check_real(name: str, x: Tensor) -> None:
    if x.is_complex():  # a layer of complex numbers runs by the reference, without an operator
        raise TypeError(f"{name}: expected real numbers, for which its derivatives hold, got {x.dtype}")


def _compare(name: str, tensors: Any, expected: Any) -> None:
    shapes = [tuple(map(tuple, each)) for each in (expected, [x.shape for x in tensors])]
    if shapes[0] != shapes[1]:
        raise ValueError("{}: expected tensors of shapes {}, got {}".format(name, *shapes))
