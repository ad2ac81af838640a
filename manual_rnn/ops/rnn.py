r"""From rows to results: the user's own step, or the network, with dropout between its layers.

a step of one's own              `custom_step.py`
the reference, ATen's network    PyTorch's own operations, with its derivatives
any other kernel                 `network.py`; on CUDA, where nothing intervenes, cuDNN by `cudnn.py`
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import kernels
from ..kernels import aten, native, reference
from ..kernels.interface import LayerWeights, NetworkOptions
from ..kernels.time_order import Walk
from ..torch_internals import any_autocast, functorch_active, in_draft_export
from . import composed, cudnn, custom_step, dispatch
from .custom_step import CustomStep
from .network import network

Nonlinearity = str | Callable[[Tensor, Tensor], CustomStep]  # a name, or what gives a step of one's own
Dropout = Callable[[Tensor], Tensor]


class Options(NamedTuple):
    """What a call is beside its tensors."""

    nonlinearity: Nonlinearity
    batch_sizes: Tensor | None
    bidirectional: bool
    dropout: Dropout | None = None
    alpha: Tensor | None = None  # of a leak, where the nonlinearity has a name


def run_rnn(
    x: Tensor, hx: Tensor, weights: Sequence[LayerWeights], options: Options
) -> tuple[Tensor, Tensor]:
    r"""Run `x (T, B, I)` or packed `(N, I)` from `hx (L * D, B, H)`, with weights layer after layer and
    direction after direction.

    Returns:
        The last layer's states, `(T, B, D * H)` or `(N, D * H)`, and the last of each sequence, `(L * D, B,
        H)`.

    Raises:
        RuntimeError: if a kernel was asked for that can't run this.
    """
    phi, sizes, bidirectional, dropout, alpha = options
    if not isinstance(phi, str):
        return run_directions(partial(custom_step.run_direction, phi), x, hx, weights, options)
    kernel = choose_network_kernel(phi, x, hx, weights, alpha)
    how = NetworkOptions(sizes, phi, bidirectional, weights[0].bias_ih is not None, kernel, alpha)
    if kernel == kernels.REFERENCE:
        return run_directions(partial(_reference, how), x, hx, weights, options)
    run = _run_aten if kernel == kernels.ATEN and x.size(0) else network
    if dropout is None:
        return run(x, hx, _flat(weights), how)
    return run_layers(lambda x, h, group: run(x, h, _flat(group), how), x, hx, weights, how.D, dropout)


def autocast(
    input: Tensor, hx: Tensor, weights: list[LayerWeights]
) -> tuple[Tensor, Tensor, list[LayerWeights]]:
    """Under autocast all but float64 and complex runs in the lower precision, as `nn.RNN` does: on CUDA in
    float16, the one that PyTorch's autocast knows for cuDNN's networks."""
    if not any_autocast():
        return input, hx, weights
    kind = input.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return input, hx, weights
    dtype = torch.float16 if aten.autocasts_to_half(input) else torch.get_autocast_dtype(kind)

    def cast(x: Tensor | None) -> Any:
        if x is None or not x.is_floating_point() or x.dtype == torch.float64:
            return x
        return x.to(dtype)

    return cast(input), cast(hx), [LayerWeights(*map(cast, group)) for group in weights]


def _run_aten(x: Tensor, hx: Tensor, weights: list[Tensor], options: NetworkOptions) -> tuple[Tensor, Tensor]:
    """PyTorch's own network: what `nn.RNN` runs."""
    if aten.runs_cudnn(x):
        return cudnn.run_cudnn(x, hx, weights, options)
    return aten.nn_rnn(x, hx, weights, options)


def _flat(weights: Sequence[LayerWeights]) -> list[Tensor]:
    return [w for group in weights for w in group if w is not None]


def run_layers(
    run: Callable[[Tensor, Tensor, Sequence[LayerWeights]], tuple[Tensor, Tensor]],
    x: Tensor,
    hx: Tensor,
    weights: Sequence[LayerWeights],
    D: int,
    dropout: Dropout | None = None,
) -> tuple[Tensor, Tensor]:
    """Layer after layer by `run`, each on what `dropout` leaves of the one before."""
    last = []
    for at, h0 in zip(range(0, len(weights), D), hx.split(D), strict=True):
        x = x if dropout is None or not at else dropout(x)
        x, h_n = run(x, h0, weights[at : at + D])
        last.append(h_n)
    return x, last[0] if len(last) == 1 else torch.cat(last)


def run_directions(
    run: Callable[[Tensor, Tensor, LayerWeights, Walk], tuple[Tensor, Tensor]],
    x: Tensor,
    hx: Tensor,
    weights: Sequence[LayerWeights],
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Layer after layer, each direction of time by `run`, which is told how to walk through the steps."""
    walks = [Walk(0, reverse, options.batch_sizes) for reverse in (False, True)[: 1 + options.bidirectional]]

    def run_layer(x: Tensor, h0: Tensor, group: Sequence[LayerWeights]) -> tuple[Tensor, Tensor]:
        found = map(partial(run, x), h0.unbind(0), group, walks)
        states, last = zip(*found, strict=True)
        return states[0] if len(states) == 1 else torch.cat(states, dim=-1), torch.stack(last)

    return run_layers(run_layer, x, hx, weights, len(walks), options.dropout)


def _reference(
    options: NetworkOptions, x: Tensor, h0: Tensor, weights: LayerWeights, walk: Walk
) -> tuple[Tensor, Tensor]:
    if x.size(0):
        return reference.layer(x, h0, weights, walk.reverse, options)
    return composed.input_projection(x, *weights), h0


def choose_network_kernel(
    phi: str, x: Tensor, hx: Tensor, weights: Sequence[LayerWeights], alpha: Tensor | None = None
) -> str:
    """The kernel that runs the network: the one asked for; or "default" where the operator's own choice runs,
    "aten" where no kernel of ours is faster, "reference" where a trace or transform wants PyTorch's
    operations.

    Raises:
        RuntimeError: if the one asked for can't, with the reason.
    """
    asked = kernels.requested_kernel()
    tensors = [x, hx, *_flat(weights), *([] if alpha is None else [alpha])]
    in_nn_rnn = aten.has_recurrence(phi, alpha)
    if dispatch.needs_reference(asked, *tensors):
        traced = functorch_active() or in_draft_export() or not x.size(0)
        own = traced or asked == kernels.REFERENCE or not in_nn_rnn
        return kernels.REFERENCE if own else kernels.ATEN
    if asked == kernels.ATEN:
        _check_aten(phi, tensors, alpha is not None)
    if asked != kernels.DEFAULT or torch.compiler.is_compiling() or not x.size(0):
        return asked
    if not in_nn_rnn:
        return asked
    if not dispatch.can_bypass_dispatcher(*tensors):
        return asked
    able = native.unsupported_reason(*tensors) is None and not aten.is_faster(x.dtype, hx.size(1), hx.size(2))
    return asked if able else kernels.ATEN


def _check_aten(phi: str, tensors: list[Any], leaky: bool) -> None:
    """Raise where PyTorch's own network was asked for and can't run."""
    x, compiling = tensors[0], torch.compiler.is_compiling()
    if not compiling and not x.size(0):
        return
    reason = kernels.unsupported_reason(aten, phi, *tensors, leaky=leaky)
    if reason is None and aten.by_cudnn(x) and (compiling or not dispatch.can_bypass_dispatcher(*tensors)):
        reason = "on CUDA it is one sealed call, and a transform, a trace or a mode is active"
    if reason is not None:
        raise RuntimeError(f"kernel {kernels.ATEN!r} can't run here: {reason}")
