r"""What each operator multiplies, for `torch.utils.flop_counter`, which counts 2 for a product and its sum.

    elman                2 N H H            each of the N rows of a batch times W_hh
    linear_recurrence    2 (N - F) H H      the same, but for the rows of the first step taken forward in time
    network              2 N (I + H) H      of each layer and direction
    network_vjp          2 (N - F) H H, and for each gradient wanted as much as its product takes

That is what it finds in `nn.RNN`, product by product. `F` is `B`; of packed input that was run backward, it
is the number of sequences that reach the last step, for the others begin at zeros, which `nn.RNN` multiplies.

Importing the counter may load triton, for a fifth of a second, so nothing here does: a counter at work is
handed the formulas when the first operator comes its way.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from ..kernels import native
from ..kernels.time_order import first_rows
from ..torch_internals import CudnnDerivative, cudnn_rnn_packet

Product = tuple[int, int, int]  # rows, inner size, columns


def elman(z: Any, h0: Any, w: Any, *_: Any, **__: Any) -> int:
    return 2 * z.numel() * w.size(-1)


def linear_recurrence(
    v: Any, h: Any, a: Any, batch_sizes: Any, phi: Any = None, reverse: bool = False, *_: Any, **__: Any
) -> int:
    if not v.size(a.dim() - 2):
        return 0
    first = first_rows(v, batch_sizes, not reverse)
    started = first * a.numel() // a.size(-1)  # B rows of H for each member
    return 2 * (v.numel() - started) * a.size(-1)


def network_products(x: Any, weights: Sequence[Any]) -> Iterator[Product]:
    """Of a network: x_t W_ih^T and h_{t-1} W_hh^T, of each layer and direction."""
    rows = x.numel() // x.size(-1)
    for w in weights:
        if w.dim() == weights[0].dim():  # no bias
            yield rows, w.size(-1), w.size(-2)


def network_vjp_products(
    need: Sequence[bool], x: Any, matrices: Sequence[Any], directions: int, batch_sizes: Any
) -> Iterator[Product]:
    """Of its gradients: the recurrence, and a product for each gradient wanted."""
    need_x, need_hx, *need_w = need
    N, size = x.numel() // x.size(-1), 2 * len(need_w) // len(matrices)
    G = matrices[0].size(0) if matrices[0].dim() == 3 else 1
    for at, (w_ih, w_hh) in enumerate(zip(matrices[::2], matrices[1::2], strict=True)):
        I, H, first = w_ih.size(-1), w_hh.size(-1), at - at % directions  # noqa: E741
        of_ih, of_hh, *of_biases = need_w[at * size : (at + 1) * size]
        started = G * first_rows(x, batch_sizes, at > first) if N else 0
        below = need_x or (first and (need_hx or any(need_w[: first * size])))
        if not (below or need_hx or of_ih or of_hh or any(of_biases)):
            continue
        yield N - started, H, H
        if need_hx:
            yield started, H, H
        if below:
            yield N, H, I
        if of_ih:
            yield H, N, I
        if of_hh:
            yield H, N, H


def _flops(products: Iterable[Product]) -> int:
    return sum(2 * rows * inner * columns for rows, inner, columns in products)


def network(x: Any, hx: Any, weights: Sequence[Any], *_: Any, **__: Any) -> int:
    return _flops(network_products(x, weights))


def network_vjp(need: Sequence[bool], x: Any, hx: Any, matrices: Sequence[Any], *args: Any, **__: Any) -> int:
    batch_sizes, _, bidirectional = args[3:6]
    return _flops(network_vjp_products(need, x, matrices, 1 + bidirectional, batch_sizes))


def cudnn_rnn(x: Any, weight: Sequence[Any], *_: Any, **__: Any) -> int:
    """Of ATen's operator, where the engine is its kernel."""
    return network(x, None, weight) if x.is_cpu else 0


def cudnn_rnn_backward(*args: Any, **__: Any) -> int:
    given: Any = CudnnDerivative(*args)
    if not given.input.is_cpu:
        return 0
    rows = given.input.transpose(0, 1) if given.batch_first and not given.batch_sizes else given.input
    matrices = [w for w in given.weight if w.dim() == 2]
    directions, sizes = 1 + given.bidirectional, given.batch_sizes or None
    return _flops(network_vjp_products(native.need_of(given), rows, matrices, directions, sizes))


FORMULAS = {
    "elman": elman,
    "linear_recurrence": linear_recurrence,
    "network": network,
    "network_vjp": network_vjp,
    "network_backward": cudnn_rnn_backward,
}


def register(modes: Iterable[Any] = ()) -> None:
    """Hand the formulas to the counters among these modes, and to those to come."""
    module = vars(torch.utils).get("flop_counter")
    if module is None:
        return
    known = {
        getattr(torch.ops.manual_rnn, name): formula
        for name, formula in FORMULAS.items()
        if hasattr(torch.ops.manual_rnn, name)
    }
    for packet, formula in known.items():  # by torch's own function two threads at once would fail
        module.flop_registry.setdefault(packet, formula)
    for mode in modes:
        counter = getattr(mode, "counter", None)
        if isinstance(counter, module.FlopCounterMode):
            counter.flop_registry = {cudnn_rnn_packet: cudnn_rnn} | known | counter.flop_registry
