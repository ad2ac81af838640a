r"""How a recurrence becomes one operator of torch, whatever transforms and traces it.

A `torch.library` op runs a kernel. Around it stand four rules, each found by the dispatcher where due:

    Autograd    an `autograd.Function`: `backward` and `jvp`, in eager code and in traces alike
    vmap        a new axis joins the batch; where members differ in weights it joins the ensemble
    fake        the shape of the result, for tracing
    run         what is left: check the shapes, choose a kernel, call it

`register_autograd` would take no `jvp`: a tangent that reached the op would be dropped without a word.
And Dynamo can't enter a Function with a `jvp`, but it needn't: it stops at the op.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import Function, forward_ad

from . import kernels
from .modes import plain

__all__ = ["call", "define", "differentiable", "forward_of", "nestable", "run"]

OPTIONS = "Tensor? batch_sizes, str phi, bool reverse, str kernel"


def call(name: str, derivatives: type[Function], *args: Any) -> Tensor:
    """The op wherever something looks on; plain eager tensors go straight to the kernel."""
    x, y, w = args[:3]
    if torch.compiler.is_compiling() or not plain(x, y, w):
        return _op(name)(*args)
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad or w.requires_grad):
        return differentiable(derivatives, *args)
    return run(name, *args)


def define(name: str, tensors: str, derivatives: type[Function]) -> None:
    """Define `torch.ops.manual_rnn.<name>` of three tensors, named by `tensors`, with its four rules."""
    qualified = f"manual_rnn::{name}"

    def autograd(*args: Any) -> Tensor:
        with enable_single_level_autograd_function():  # of the one transform that the dispatcher is at
            return differentiable(derivatives, *args)

    torch.library.define(qualified, f"({tensors}, {OPTIONS}) -> Tensor")
    torch.library.impl(qualified, "Autograd", autograd)
    torch.library.impl(qualified, "CompositeExplicitAutograd", partial(run, name))
    torch.library.register_fake(qualified, lambda x, *_: x.new_empty(x.shape))
    torch.library.register_vmap(qualified, partial(_vmap, name))


def forward_of(name: str) -> Any:
    """The `forward` of a Function: the op without its own derivatives.

    `apply` turns off all differentiation, but a transform around the present one still wants its own.
    """

    def forward(*args: Any) -> Tensor:
        if plain(args[0], args[1], args[2]):
            return run(name, *args)
        with (
            torch.enable_grad(),
            forward_ad._set_fwd_grad_enabled(True),
            torch._C._AutoDispatchBelowAutograd(),
        ):
            return _op(name)(*args)

    return staticmethod(forward)


def nestable(jvp: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A Function's `jvp` that another jvp around it can differentiate.

    PyTorch turns forward mode off in there, and the saved inputs still carry the tangents at work: a
    jvp of a jvp would silently take it all for constant. So forward mode goes on, without those tangents.
    """

    def differentiable(ctx: Any, *tangents: Any) -> Tensor:
        with forward_ad._set_fwd_grad_enabled(True):
            saved = [x if x is None else forward_ad.unpack_dual(x, level=0).primal for x in ctx.saved_tensors]
            return jvp(SimpleNamespace(saved_tensors=saved, options=ctx.options), *tangents)

    return differentiable


def _op(name: str) -> Callable[..., Tensor]:
    return getattr(torch.ops.manual_rnn, name)


def differentiable(derivatives: Any, *args: Any) -> Tensor:
    """`derivatives.apply`, but at its C++ entry: the Python one binds a signature first, for 40 us."""
    return super(Function, derivatives).apply(*args)


def run(name: str, *args: Any) -> Tensor:
    """Compute, by the chosen kernel."""
    x, y, w, batch_sizes, phi, reverse, kernel = args
    _check_shapes(name, x, y, w, batch_sizes)
    return getattr(kernels.choose(kernel, x), name)(x, y, w, phi, reverse, batch_sizes)


def _vmap(name: str, info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
    """Fold a new axis into the batch, or into the ensemble where members differ in weights."""
    x, y, w, batch_sizes, *options = args
    if in_dims[3] is not None:
        raise ValueError("vmap over batch_sizes: expected one packing for all, got one for each")
    op, size = _op(name), info.batch_size
    if in_dims[2] is None:
        x, y = (_axis_at(-2, a, d, size).flatten(-3, -2) for a, d in zip((x, y), in_dims, strict=False))
        rows = None if batch_sizes is None else batch_sizes * size
        out = op(x, y, w, rows, *options).unflatten(-2, (-1, size))
        return out, out.dim() - 2
    x, y, w = (_axis_at(0, a, d, size) for a, d in zip((x, y, w), in_dims, strict=False))
    members = w.shape[:-2]
    x, y, w = (a.flatten(0, len(members) - 1) for a in (x, y, w))
    return op(x, y, w, batch_sizes, *options).unflatten(0, members), 0


def _axis_at(place: int, x: Tensor, dim: int | None, size: int) -> Tensor:
    """Move the mapped axis of `x` to `place`, or repeat an unmapped `x` along a new one there."""
    if dim is None:
        x, dim = x.expand(size, *x.shape), 0
    return x.movedim(dim, place)


def _check_shapes(name: str, x: Tensor, y: Tensor, w: Tensor, batch_sizes: Tensor | None) -> None:
    """Nothing broadcasts: raise unless the shapes fit to the last axis."""
    second = x.shape[1:] if name == "elman" else x.shape
    if batch_sizes is None and x.dim() == 3 and w.shape == (x.size(2),) * 2 and y.shape == second:
        return  # the common case, found soon: a call may take a few microseconds in all
    G, H = w.shape[:-2], x.size(-1)
    if x.dim() != w.dim() + (batch_sizes is None):
        rank = w.dim() + (batch_sizes is None)
        raise ValueError(f"{name}: expected its first tensor to have {rank} axes, got {x.dim()}")
    B = x.size(-2) if batch_sizes is None else int(batch_sizes[0]) if len(batch_sizes) else y.size(-2)
    state = (*G, B, H) if name == "elman" else x.shape
    expected = (*G, *x.shape[len(G) :]), state, (*G, H, H)
    found = x.shape, y.shape, w.shape
    if found != expected:
        shapes = [tuple(map(tuple, each)) for each in (expected, found)]
        raise ValueError("{}: expected tensors of shapes {}, got {}".format(name, *shapes))
