r"""What a profiler is told of products that it doesn't see a kernel make: events of no length, from whose
shapes `with_flops` counts."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..torch_internals import below_autograd, record_function_fast
from .flop_formulas import Product, network_products, network_vjp_products


def record_network(x: Tensor, weights: Sequence[Tensor]) -> None:
    """Tell it of the products of a network."""
    _record(x, network_products(x, weights))


def record_network_vjp(
    need: Sequence[bool], x: Tensor, matrices: Sequence[Tensor], directions: int, batch_sizes: Any
) -> None:
    """Tell it of the products of a network's gradients."""
    _record(x, network_vjp_products(need, x, matrices, directions, batch_sizes))


def record_recurrence(x: Tensor, w: Tensor, started: int) -> None:
    """Tell it of the products of a recurrence, which has nothing to multiply at `started` rows."""
    members = w.size(0) if w.dim() == 3 else 1
    rows = x.numel() // x.size(-1) - members * started if x.numel() else 0
    _record(x, [(rows, w.size(-1), w.size(-2))])


def record_call(
    x: Tensor, hx: Tensor, weights: Sequence[Tensor], layers: int, sizes: Sequence[int], h_n: Tensor
) -> None:
    """Tell it of the products of a call that has ATen's node: of the backward pass by a hook on that, unless
    that pass is itself recorded, and composed of products that are seen."""
    record_network(x, weights)
    if h_n.grad_fn is None:
        return
    need = x.requires_grad, hx.requires_grad, *(w.requires_grad for w in weights)
    matrices = [w.detach() for w in weights if w.dim() == 2]
    batch_sizes, directions = torch.tensor(sizes) if sizes else None, len(matrices) // 2 // layers
    rows = x.detach()

    def before(_: object) -> None:
        if not torch.is_grad_enabled():
            record_network_vjp(need, rows, matrices, directions, batch_sizes)

    h_n.grad_fn.register_prehook(before)


def _record(like: Tensor, products: Iterable[Product]) -> None:
    with below_autograd():
        number = like.new_empty(1, 1)
        for rows, inner, columns in products:
            with record_function_fast(
                "aten::mm", [number.expand(rows, inner), number.expand(inner, columns)]
            ):
                pass
