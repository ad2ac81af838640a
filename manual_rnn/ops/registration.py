r"""The operators `torch.ops.manual_rnn.*`, and the rule that the dispatcher finds for each dispatch key.

    network              network_vjp            elman            linear_recurrence

    Autograd    an autograd node, in eager code and in traces alike; in forward mode the composed form
    vmap        a new axis joins the batch; where members differ in weights, or want gradients of them, it
                becomes the axis of an ensemble
    fake        the shapes of the results, for tracing
    CPU         C, which `kernels/native.py` loads
    otherwise   the kernel that `kernels.choose` finds, in Python

Each has an overload `kernel`, whose argument behind those of the other names the kernel that was asked for.
The first two may have a last argument, `alpha`, of a leak; PyTorch leaves it out where it is None.

`register_autograd` would take no `jvp`: a tangent that reached the operator would be dropped without a word.
And Dynamo can't enter a node with a `jvp`, but it needn't: it stops at the operator.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.interface import NetworkOptions
from ..kernels.native import SCHEMAS
from ..torch_internals import (
    below_autograd,
    carry_tangents,
    run_vmap_rule,
    tracks_gradient,
    under_legacy_vmap,
    without_gradient_levels,
)
from . import composed, dispatch, network
from .dispatch import NAMESPACE, apply_at_functorch_level, run_in_node
from .network import Network, NetworkVjp
from .recurrences import Elman, LinearRecurrence

__all__ = ["NETWORK"]

DEFAULT = "default"


class Rules(NamedTuple):
    """What an operator does for each dispatch key; the last argument of all but `compute` is the operator."""

    compute: Callable[..., Any]
    autograd: Callable[..., Any]
    fake: Callable[..., Any]
    vmap: Callable[..., Any]


def _recurrence_autograd(node: Any, operator: Any, x: Tensor, y: Tensor, w: Tensor, *options: Any) -> Tensor:
    if not _is_differentiated(x, y, w):
        with below_autograd():
            return operator(x, y, w, *options)
    run = partial(run_in_node, operator)
    batch_sizes, phi, reverse, *kernel = options
    how = without_gradient_levels(batch_sizes), phi, reverse, *(kernel or [DEFAULT])
    return apply_at_functorch_level(node, lambda *args: run(*args[:3], *options), x, y, w, *how)


def _network_autograd(
    operator: Any, x: Tensor, hx: Tensor | None, weights: Sequence[Tensor], *options: Any
) -> Any:
    batch_sizes, phi, bidirectional, has_biases, save_states, *rest = options
    kernel, alpha = _kernel_and_leak(rest)
    if not _is_differentiated(x, hx, *weights, leak=alpha):
        with below_autograd():
            return operator(x, hx, weights, *options)
    sizes = without_gradient_levels(batch_sizes)
    named = NetworkOptions(sizes, phi, bidirectional, has_biases, kernel, alpha)
    if carry_tangents(x, hx, *weights) or _has_derivative(alpha):
        output, h_n, states = composed.network(x, hx, weights, named)
        return output.clone(), h_n, states if save_states else []
    rest, named = _without_levels(rest), named._replace(alpha=without_gradient_levels(alpha))
    run = partial(run_in_node, operator)
    eager = dispatch.is_eager(x, hx, *weights)
    inputs = network.aliases(x, hx, weights) if eager else (x, hx, *weights)
    output, h_n, *states = apply_at_functorch_level(Network, lambda *args: run(*args, *rest), named, *inputs)
    if eager:
        output, h_n = network.as_separate_output(output), network.as_separate_output(h_n)
    return output, h_n, states if save_states else []


def _network_vjp_autograd(
    operator: Any,
    need: list[bool],
    x: Tensor,
    hx: Tensor | None,
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    c: Tensor | None,
    c_last: Tensor | None,
    *options: Any,
) -> list[Tensor]:
    batch_sizes, phi, bidirectional, *other = options
    kernel, alpha = _kernel_and_leak(other)
    tensors = x, hx, *matrices, *states, c, c_last
    if not _is_differentiated(*tensors, leak=alpha):
        with below_autograd():
            return operator(need, x, hx, matrices, states, c, c_last, *options)
    sizes, has_biases = without_gradient_levels(batch_sizes), len(need) - 2 == 2 * len(matrices)
    named = NetworkOptions(sizes, phi, bidirectional, has_biases, kernel, alpha)
    if carry_tangents(*tensors) or _has_derivative(alpha):
        found = composed.network_vjp(need, x, hx, matrices, states, (c, c_last), named)
        return [g for g in found if g is not None]
    other, named = _without_levels(other), named._replace(alpha=without_gradient_levels(alpha))
    run = partial(run_in_node, operator)
    rest = len(matrices), x, hx, c, c_last, *matrices, *states
    found = apply_at_functorch_level(NetworkVjp, lambda *args: run(*args, *other), need, named, *rest)
    return list(found)


def _kernel_and_leak(rest: Sequence[Any]) -> tuple[Any, Any]:
    """What an operator was given behind its other arguments."""
    return next((each for each in rest if isinstance(each, str)), DEFAULT), _leak_of(rest)


def _is_differentiated(*tensors: Tensor | None, leak: Tensor | None = None) -> bool:
    """Whether a derivative by any of them may be wanted; compiled code, which has its own, comes here too."""
    return dispatch.requires_grad(*tensors) or carry_tangents(*tensors) or _has_derivative(leak)


def _has_derivative(alpha: Tensor | None) -> bool:
    """Whether a derivative by the leak may be wanted, which the composed form has."""
    return alpha is not None and tracks_gradient(alpha)


def _without_levels(rest: Sequence[Any]) -> list[Any]:
    return [without_gradient_levels(each) if isinstance(each, Tensor) else each for each in rest]


def _leak_of(rest: Sequence[Any]) -> Tensor | None:
    return rest[-1] if rest and isinstance(rest[-1], Tensor) else None


def _fake_recurrence(x: Tensor, y: Tensor, w: Tensor, batch_sizes: Tensor | None, *_: Any) -> Tensor:
    """Shaped as the first tensor."""
    _check_values(x, batch_sizes, y, w)
    return x.new_empty(x.shape)


def _fake_network(
    x: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    _: str,
    bidirectional: bool,
    has_biases: bool,
    save_states: bool,
    *rest: Any,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    alpha = _leak_of(rest)
    _check_values(x, batch_sizes, hx, *weights, alpha)
    groups = len(weights) // (4 if has_biases else 2)
    (*G, H), D = weights[0].shape[:-1], 1 + bidirectional
    B = x.size(-2) if batch_sizes is None else _packed_batch(batch_sizes, hx)
    output = x.new_empty((*x.shape[:-1], D * H))
    count = groups // D * (1 if alpha is None else 2) if save_states else 0
    states = [output.new_empty(output.shape) for _ in range(count)]
    return output, x.new_empty((*G, groups, B, H)), states


def _packed_batch(batch_sizes: Tensor, hx: Tensor | None) -> Any:
    """`B` of a packed batch, which a trace that has no `hx` can't know."""
    return hx.size(-2) if hx is not None else int(batch_sizes[0])


def _fake_network_vjp(
    need: list[bool],
    x: Tensor,
    hx: Tensor | None,
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    c: Tensor | None,
    c_last: Tensor | None,
    batch_sizes: Tensor | None,
    *rest: Any,
) -> list[Tensor]:
    _check_values(x, batch_sizes, hx, *matrices, *states, c, c_last, _leak_of(rest))
    return [
        x.new_empty(shape)
        for shape, needed in zip(_gradient_shapes(need, x, hx, matrices), need, strict=True)
        if needed
    ]


def _gradient_shapes(
    need: list[bool], x: Tensor, hx: Tensor | None, matrices: Sequence[Tensor]
) -> list[Sequence[int]]:
    """Of `x`, `hx` and each weight."""
    shapes: list[Any] = [x.shape, () if hx is None else hx.shape]
    has_biases = len(need) - 2 == 2 * len(matrices)
    for w_ih, w_hh in zip(matrices[::2], matrices[1::2], strict=True):
        shapes += [w_ih.shape, w_hh.shape, *([w_hh.shape[:-1]] * 2 if has_biases else [])]
    return shapes


def _check_values(x: Tensor, batch_sizes: Tensor | None, *others: Tensor | None) -> None:
    """What is made from tensors without values would be memory that nobody wrote."""
    if x.is_meta:
        return
    if batch_sizes is not None and batch_sizes.is_meta:
        raise RuntimeError(f"expected batch_sizes with values for data on {x.device}, got some on meta")
    if any(t is not None and t.is_meta for t in others):
        raise RuntimeError(f"expected all tensors on {x.device}, got one on meta")


def _vmap_recurrence(operator: Any, size: int, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
    """A new axis joins the batch, or the ensemble where members differ in weights."""
    x, y, w, batch_sizes, *options = args
    _reject_batched_sizes(in_dims[3])
    if in_dims[2] is None:
        x, y = (_into_batch(a, d, size) for a, d in zip((x, y), in_dims, strict=False))
        rows = None if batch_sizes is None else batch_sizes * size
        out = operator(x, y, w, rows, *options).unflatten(-2, (-1, size))
        return out, out.dim() - 2
    members, (x, y, w) = _into_ensemble(
        [x, y, w], in_dims[:3], [w.dim() - (in_dims[2] is not None) - 2] * 3, size
    )
    return operator(x, y, w, batch_sizes, *options).unflatten(0, members), 0


def _vmap_network(operator: Any, size: int, in_dims: tuple, *args: Any) -> tuple[Any, Any]:
    x, hx, weights, batch_sizes, *options = args
    x_dim, hx_dim, w_dims, sizes_dim = in_dims[:4]
    _reject_batched_sizes(sizes_dim)
    options, alpha, alpha_dim = _without_leak(options, in_dims)
    if _none_batched(w_dims) and alpha_dim is None:
        folded = _into_batch(x, x_dim, size), hx if hx is None else _into_batch(hx, hx_dim, size)
        rows = None if batch_sizes is None else batch_sizes * size
        output, h_n, states = operator(*folded, weights, rows, *options, *alpha)
        output, h_n, *states = (t.unflatten(-2, (-1, size)) for t in (output, h_n, *states))
        at = output.dim() - 2, h_n.dim() - 2
        return (output, h_n, states), (*at, [at[0]] * len(states))
    w_dims = w_dims or [None] * len(weights)
    tensors, dims = (
        [*alpha, x, *([] if hx is None else [hx]), *weights],
        [*([alpha_dim] if alpha else []), x_dim, *([] if hx is None else [hx_dim]), *w_dims],
    )
    grouped = [weights[0].dim() - (w_dims[0] is not None) - 2] * len(tensors)
    members, found = _into_ensemble(tensors, dims, grouped, size)
    alpha, found = found[: len(alpha)], found[len(alpha) :]
    x, hx, weights = found[0], None if hx is None else found[1], found[len(found) - len(weights) :]
    output, h_n, states = operator(x, hx, weights, batch_sizes, *options, *alpha)
    output, h_n, *states = (t.unflatten(0, members) for t in (output, h_n, *states))
    return (output, h_n, states), (0, 0, [0] * len(states))


def _vmap_network_vjp(operator: Any, size: int, in_dims: tuple, *args: Any) -> tuple[Any, Any]:
    need, x, hx, matrices, states, c, c_last, batch_sizes, *options = args
    _, x_dim, hx_dim, m_dims, s_dims, c_dim, last_dim, sizes_dim = in_dims[:8]
    _reject_batched_sizes(sizes_dim)
    options, alpha, alpha_dim = _without_leak(options, in_dims)
    m_dims, s_dims = m_dims or [None] * len(matrices), s_dims or [None] * len(states)
    if _none_batched(m_dims) and alpha_dim is None and not any(need[2:]):
        x, hx, c, c_last, *states = (
            t if t is None else _into_batch(t, d, size)
            for t, d in zip(
                (x, hx, c, c_last, *states), (x_dim, hx_dim, c_dim, last_dim, *s_dims), strict=True
            )
        )
        rows = None if batch_sizes is None else batch_sizes * size
        found = operator(need, x, hx, matrices, states, c, c_last, rows, *options, *alpha)
        found = [t.unflatten(-2, (-1, size)) for t in found]
        return found, [t.dim() - 2 for t in found]
    optional = [t for t in (hx, c, c_last) if t is not None]
    tensors = [*alpha, x, *matrices, *states, *optional]
    dims = [
        *([alpha_dim] if alpha else []), x_dim, *m_dims, *s_dims,
        *(d for t, d in zip((hx, c, c_last), (hx_dim, c_dim, last_dim), strict=True) if t is not None),
    ]  # fmt: skip
    grouped = [matrices[0].dim() - (m_dims[0] is not None) - 2] * len(tensors)
    members, found = _into_ensemble(tensors, dims, grouped, size)
    alpha, found = found[: len(alpha)], found[len(alpha) :]
    M, S = len(matrices), len(states)
    x, matrices, states, given = (
        found[0],
        found[1 : 1 + M],
        found[1 + M : 1 + M + S],
        iter(found[1 + M + S :]),
    )
    hx, c, c_last = (t if t is None else next(given) for t in (hx, c, c_last))
    found = operator(need, x, hx, matrices, states, c, c_last, batch_sizes, *options, *alpha)
    return [t.unflatten(0, members) for t in found], [0] * len(found)


def _without_leak(options: list[Any], in_dims: tuple) -> tuple[list[Any], list[Tensor], int | None]:
    """Options without the leak; that, or nothing; and its mapped axis."""
    alpha = _leak_of(options)
    return (options, [], None) if alpha is None else (options[:-1], [alpha], in_dims[-1])


def _none_batched(dims: Any) -> bool:
    return dims is None or all(d is None for d in dims)


def _into_batch(x: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped axis behind that of the batch; an unmapped `x` is repeated."""
    return _axis_at(-2, x, dim, size).flatten(-3, -2)


def _into_ensemble(
    tensors: Sequence[Tensor], dims: Sequence[int | None], grouped: Sequence[int], size: int
) -> tuple[tuple[int, ...], list[Tensor]]:
    """The mapped axis in front of all, with an axis of members that is there already as one; and their
    sizes."""
    moved = [_axis_at(0, x, d, size) for x, d in zip(tensors, dims, strict=True)]
    count = 1 + grouped[0]
    return tuple(moved[0].shape[:count]), [x.flatten(0, count - 1) if count > 1 else x for x in moved]


def _axis_at(place: int, x: Tensor, dim: int | None, size: int) -> Tensor:
    """Move the mapped axis of `x` to `place`, or repeat an unmapped `x` along a new one there."""
    if dim is None:
        x, dim = x.expand(size, *x.shape), 0
    return x.movedim(dim, place)


def _reject_batched_sizes(dim: int | None) -> None:
    if dim is not None:
        raise ValueError("vmap over batch_sizes: expected one packing for all, got one for each")


RULES: dict[str, Rules] = {
    "elman": Rules(Elman.compute, partial(_recurrence_autograd, Elman), _fake_recurrence, _vmap_recurrence),
    "linear_recurrence": Rules(
        LinearRecurrence.compute,
        partial(_recurrence_autograd, LinearRecurrence),
        _fake_recurrence,
        _vmap_recurrence,
    ),
    "network": Rules(network.compute, _network_autograd, _fake_network, _vmap_network),
    "network_vjp": Rules(network.compute_vjp, _network_vjp_autograd, _fake_network_vjp, _vmap_network_vjp),
}


def define() -> None:
    """Define every operator with its rules, once in a process, however often this package is imported; an
    import that broke off is taken up where it ended."""
    done: set[Any] = vars(getattr(torch.ops, NAMESPACE)).setdefault("registered", set())
    for name, rules in RULES.items():
        arguments, result, optional = SCHEMAS[name]
        for overload, more in (("", ""), (".kernel", ", str kernel")):
            qualified = f"{NAMESPACE}::{name}{overload}"
            operator = partial(_call, name, overload[1:] or DEFAULT)
            count = len(arguments.split(", "))
            compute = rules.compute if overload else partial(_default, rules.compute, count)
            steps: dict[str, Callable[[], Any]] = {
                "schema": partial(_define_schema, qualified, f"({arguments}{more}{optional}) -> {result}"),
                "autograd": partial(
                    torch.library.impl, qualified, "Autograd", partial(rules.autograd, operator)
                ),
                "compute": partial(torch.library.impl, qualified, "CompositeExplicitAutograd", compute),
                "fake": partial(torch.library.register_fake, qualified, rules.fake),
                "legacy vmap": partial(
                    torch.library.impl, qualified, "Batched", partial(under_legacy_vmap, operator)
                ),
                "vmap": partial(
                    torch.library.impl,
                    qualified,
                    "FuncTorchBatched",
                    partial(run_vmap_rule, operator, partial(rules.vmap, operator)),
                ),
            }
            for step, register in steps.items():
                if (qualified, step) not in done:
                    register()
                    done.add((qualified, step))


def _call(name: str, overload: str, *args: Any) -> Any:
    return getattr(dispatch.packet_of(name), overload)(*args)


def _default(compute: Callable[..., Any], count: int, *args: Any) -> Any:
    """With the kernel behind the arguments that every call has."""
    return compute(*args[:count], DEFAULT, *args[count:])


def _define_schema(qualified: str, schema: str) -> None:
    """Where the library of C was loaded, it has defined the first overload."""
    if not _is_defined(qualified):
        torch.library.define(qualified, schema)


def _is_defined(qualified: str) -> bool:
    name, _, overload = qualified.partition("::")[2].partition(".")
    packet = getattr(getattr(torch.ops, NAMESPACE), name, None)
    return packet is not None and (overload or DEFAULT) in packet.overloads()


define()
NETWORK = dispatch.packet_of("network").default
