r"""cuDNN's network on a CPU: its two operators, computed by ATen, so that all around them can be tested.

They read the weights as cuDNN does, from the one buffer, and use their reserve up.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch
from warnings import catch_warnings

import torch
from internals import RULES, aten, native
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

__all__ = ["Calls", "cudnn_on_a_cpu"]

Calls = list[dict[str, Any]]  # the arguments of each call by their names, and the operator's name

FRESH = 1.0  # a reserve that no backward pass has used


@contextmanager
def cudnn_on_a_cpu() -> Iterator[Calls]:
    """Whatever would go to cuDNN on CUDA goes there; yields the arguments of each call of its operators."""
    calls: Calls = []
    library, own = torch.library.Library("aten", "IMPL"), torch.library.Library("manual_rnn", "IMPL")
    with catch_warnings(action="ignore"):  # of the kernels of C that are overridden
        for name, run in {"_cudnn_rnn": _forward, "_cudnn_rnn_backward": _backward}.items():
            library.impl(name, _noted(name, run, calls), "CPU", allow_override=True)
        library.impl(
            "_cudnn_rnn_backward", torch.library.fallthrough_kernel, "AutogradCPU", allow_override=True
        )
        for name, rules in RULES.items():
            for overload in ("", ".compiled"):
                run = partial(_by_default, rules.compute)
                own.impl(name + overload, run, "CPU", allow_override=True)
    try:
        with (
            patch.object(aten, "unsupported_reason", _why_not),
            patch.object(native, "unsupported_reason", lambda *_: "expected a CPU"),
            patch.object(aten, "runs_cudnn", lambda x: _why_not(x) is None),
            patch.object(aten, "by_cudnn", lambda _: True),
        ):
            yield calls
    finally:
        library._destroy()
        own._destroy()


def _by_default(compute: Any, *args: Any) -> Any:
    """What a device without a kernel in C does."""
    return compute(*args, "default")


def _why_not(*tensors: Tensor | None) -> str | None:
    """As far as `torch.cudnn_is_acceptable` has no need of a card."""
    fine = all(x is None or (x.numel() and x.is_floating_point()) for x in tensors)
    return None if fine else "expected cuDNN to take it"


def _noted(name: str, run: Any, calls: Calls) -> Any:
    schema = getattr(torch.ops.aten, name).default._schema
    names = [argument.name for argument in schema.arguments]

    def call(*args: Any) -> Any:
        given = dict(zip(names, args, strict=True))
        calls.append({"operator": name, **given})
        with ThreadPoolExecutor(
            1
        ) as pool:  # here autograd is switched off, and what torch switches off stays so
            return pool.submit(run, given).result()

    return call


def _network(given: dict[str, Any], x: Tensor, hx: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor]:
    """Output and `h_n` of rows in time, from weights in cuDNN's own order."""
    assert given["proj_size"] == 0
    assert given["dropout"] == 0
    assert given["cx"] is None
    assert hx.is_contiguous(), "cuDNN refuses it"
    bias, two = given["weight_stride0"] == 4, given["bidirectional"]
    flat = _in_order(given, buffer, x.size(-1))
    how = (flat if bias else [w for w in flat if w.dim() == 2], bias, given["num_layers"], 0.0, False, two)
    run = torch.rnn_tanh if given["mode"] == 1 else torch.rnn_relu
    if sizes := given["batch_sizes"]:
        return run(x, torch.tensor(sizes), hx, *how)
    first = 1 if given["batch_first"] else 0
    output, h_n = run(x.transpose(0, first), hx, *how, False)
    return output.transpose(0, first), h_n


def _in_order(given: dict[str, Any], buffer: Tensor, I: int) -> list[Tensor]:  # noqa: E741
    """The weights of the buffer, as `nn.RNN` has them: biases are there, zero or not."""
    H, D = given["hidden_size"], 1 + given["bidirectional"]
    groups = given["num_layers"] * D
    widths = [I if group < D else D * H for group in range(groups)]
    shapes = [shape for width in widths for shape in ((H, width), (H, H))] + [(H,)] * (2 * groups)
    parts = buffer.split([torch.Size(shape).numel() for shape in shapes])
    found = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    matrices, biases = found[: 2 * groups], found[2 * groups :]
    return [w for at in range(0, 2 * groups, 2) for w in (*matrices[at : at + 2], *biases[at : at + 2])]


def _forward(given: dict[str, Any]) -> Any:
    x, hx, buffer = (unpack_dual(given[name]).primal for name in ("input", "hx", "weight_buf"))
    with torch.no_grad():
        output, h_n = _network(given, x, hx, buffer)
    reserve = torch.full((3 if given["train"] else 0,), FRESH)
    return output.clone(), h_n.clone(), x.new_empty(0), reserve, buffer  # no views of others


def _backward(given: dict[str, Any]) -> Any:
    assert given["train"], "cudnn RNN backward can only be called in training mode"
    assert (given["reserve"] == FRESH).all()
    given["reserve"].zero_()
    x, hx, buffer = (given[name].detach().requires_grad_() for name in ("input", "hx", "weight_buf"))
    results = _network(given, x, hx, buffer)
    cotangents = given["grad_output"], given["grad_hy"]
    pairs = [(r, c) for r, c in zip(results, cotangents, strict=True) if c is not None]
    grads = torch.autograd.grad([r for r, _ in pairs], [x, hx, buffer], [c for _, c in pairs])
    of_x, _, _, of_weights = given["output_mask"]
    flat = _in_order(given, grads[2], x.size(-1))
    own = [dw for dw in flat if given["weight_stride0"] == 4 or dw.dim() == 2]
    dweights = [dw.view_as(w) for dw, w in zip(own, given["weight"], strict=True)]
    return grads[0] if of_x else None, grads[1], None, dweights if of_weights else []
