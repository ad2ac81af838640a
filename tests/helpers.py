r"""What every test compares: outputs, final states and every gradient, against `nn.RNN` or a loop."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from internals import kernels
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from manual_rnn import ManualRNN

__all__ = [
    "EVERY_OPTION",
    "KERNELS",
    "LOOPS",
    "PHI",
    "ULPS",
    "Operators",
    "assert_as_accurate",
    "assert_same",
    "assert_same_results",
    "error",
    "gradients",
    "kernels_for",
    "nodes",
    "on_no_card",
    "packed",
    "twins",
]

LOOPS = pytest.mark.skipif(torch.__version__ < "2.13", reason="its scan has wrong gradients")
ULPS = {torch.float32: 8, torch.bfloat16: 4, torch.float16: 4}


def twins(*args: Any, seed: int = 0, **kwargs: Any) -> tuple[nn.RNN, ManualRNN]:
    """An `nn.RNN` and a `ManualRNN` of the same arguments, drawn from the same seed."""
    torch.manual_seed(seed)
    builtin = nn.RNN(*args, **kwargs)
    torch.manual_seed(seed)
    return builtin, ManualRNN(*args, **kwargs)


def kernels_for(dtype: torch.dtype) -> list[str]:
    """The kernels that run in this dtype on the CPU."""
    z = torch.zeros(1, 1, 1, dtype=dtype)
    fused = [
        name for name, reason in kernels.reasons(z).items() if reason is None and name != kernels.REFERENCE
    ]
    return [kernels.REFERENCE, *fused]


def packed(input: Tensor, lengths: list[int], batch_first: bool = False) -> PackedSequence:
    """Packed, sorted if the lengths are."""
    ordered = lengths == sorted(lengths, reverse=True)
    return pack_padded_sequence(input, lengths, batch_first=batch_first, enforce_sorted=ordered)


def gradients(
    rnn: nn.Module,
    input: Tensor,
    hx: Tensor | None = None,
    pack: Callable[[Tensor], Any] = lambda input: input,
    seed: int = 1,
) -> dict[str, Tensor]:
    """Output, `h_n` and every gradient of one run, by name.

    The cotangents of `output` and `h_n` are random; seeds are set before the run, for its dropout masks.
    Frozen parameters, and an input or `hx` that needs no gradient, are left out.
    """
    torch.manual_seed(seed)
    input = input.detach().requires_grad_(input.requires_grad)
    inputs = {"input": input}
    if hx is not None:
        inputs["hx"] = hx = hx.detach().requires_grad_(hx.requires_grad)
    output, h_n = rnn(pack(input), *([] if hx is None else [hx]))
    output = output.data if isinstance(output, PackedSequence) else output
    torch.manual_seed(seed)
    cotangents = [torch.randn(x.shape, dtype=torch.float64).to(x) for x in (output, h_n)]
    leaves = {k: v for k, v in {**inputs, **dict(rnn.named_parameters())}.items() if v.requires_grad}
    if not leaves:
        assert not output.requires_grad
        assert not h_n.requires_grad
        return {"output": output, "h_n": h_n}
    grads = torch.autograd.grad([output, h_n], list(leaves.values()), cotangents)
    return {"output": output.detach(), "h_n": h_n.detach(), **dict(zip(leaves, grads, strict=True))}


def on_no_card(rnn: nn.Module) -> None:
    """Give `rnn` Parameters of the device "cuda" and without numbers, under a FakeTensorMode."""
    for name, p in list(rnn.named_parameters()):
        setattr(rnn, name, nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="cuda")))


def error(found: Tensor, exact: Tensor) -> float:
    """The largest difference, in units of the largest exact magnitude or of 1 if that is more."""
    if not exact.numel():
        return 0.0
    found, exact = found.to(torch.promote_types(found.dtype, torch.float64)), exact.to(found.device)
    return ((found - exact).abs().max() / exact.abs().max().clamp(min=1.0)).item()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float = 1e-12) -> None:
    """Same names, shapes and dtypes; every entry within `bound` of the largest expected magnitude.

    `bound=0` asks for bitwise equality.
    """
    _assert_alike(found, expected)
    for name, right in expected.items():
        left = found[name]
        if bound == 0:
            assert torch.equal(left, right), f"{name} is not bitwise equal"
            continue
        off = error(left, right)
        assert off <= bound, f"{name}: off by {off:.3g}, more than {bound:.3g}"


def assert_as_accurate(
    found: dict[str, Tensor], builtin: dict[str, Tensor], exact: dict[str, Tensor], multiple: float = 2.0
) -> None:
    """Every entry is off the `exact` one, a float64 run, by at most `multiple` times as much as
    `nn.RNN`'s own, or by `ULPS` units in the last place of its dtype if that is more."""
    _assert_alike(found, builtin)
    assert found.keys() == exact.keys(), f"{sorted(found)} != {sorted(exact)}"
    for name, reference in exact.items():
        off, own = error(found[name], reference), error(builtin[name], reference)
        dtype = found[name].dtype
        bound = max(multiple * own, ULPS[dtype] * torch.finfo(dtype).eps)
        assert off <= bound, f"{name}: off by {off:.3g}, more than {bound:.3g}; nn.RNN is off by {own:.3g}"


def _assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys(), f"{sorted(found)} != {sorted(expected)}"
    for name, right in expected.items():
        left = found[name]
        assert left.shape == right.shape, f"{name}: shape {tuple(left.shape)} != {tuple(right.shape)}"
        assert left.dtype == right.dtype, f"{name}: {left.dtype} != {right.dtype}"


def assert_same_results(found: Any, expected: Any, bound: float = 2e-6) -> None:
    """Output and `h_n` of two calls, as `assert_same`."""
    names = ("output", "h_n")
    assert_same(dict(zip(names, found, strict=True)), dict(zip(names, expected, strict=True)), bound)


KERNELS = pytest.mark.parametrize("kernel", kernels_for(torch.float32))
PHI = pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3, "nonlinearity": "relu"},
    {"bias": False, "batch_first": True},
    {"num_layers": 2, "dropout": 0.25, "bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "bias": False, "dtype": torch.float64},
]
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS, ids=str)


class Operators(TorchDispatchMode):
    """The operators that run in a block, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ran.append(func)
        return func(*args, **(kwargs or {}))


def nodes(*roots: Tensor) -> Iterator[Any]:
    """Every autograd node behind these tensors, once."""
    seen, ahead = set(), [root.grad_fn for root in roots]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            ahead += [before for before, _ in node.next_functions]
