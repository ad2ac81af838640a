r"""What every test compares: outputs, final states and every gradient, against `nn.RNN` or a loop."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from manual_rnn import ManualRNN

__all__ = ["assert_same", "gradients", "packed", "twins"]


def twins(*args: Any, seed: int = 0, **kwargs: Any) -> tuple[nn.RNN, ManualRNN]:
    """An `nn.RNN` and a `ManualRNN` of the same arguments, drawn from the same seed."""
    torch.manual_seed(seed)
    builtin = nn.RNN(*args, **kwargs)
    torch.manual_seed(seed)
    return builtin, ManualRNN(*args, **kwargs)


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
    input = input.detach().clone().requires_grad_(input.requires_grad)
    inputs = {"input": input}
    if hx is not None:
        inputs["hx"] = hx = hx.detach().clone().requires_grad_(hx.requires_grad)
    output, h_n = rnn(pack(input), *([] if hx is None else [hx]))
    output = output.data if isinstance(output, PackedSequence) else output
    torch.manual_seed(seed)
    cotangents = [torch.randn(x.shape, dtype=x.dtype, device=x.device) for x in (output, h_n)]
    leaves = {k: v for k, v in {**inputs, **dict(rnn.named_parameters())}.items() if v.requires_grad}
    grads = torch.autograd.grad([output, h_n], list(leaves.values()), cotangents)
    return {"output": output.detach(), "h_n": h_n.detach(), **dict(zip(leaves, grads, strict=True))}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float = 1e-12) -> None:
    """Same names, shapes and dtypes; every entry within `bound` of the largest expected magnitude.

    `bound=0` asks for bitwise equality.
    """
    assert found.keys() == expected.keys(), f"{sorted(found)} != {sorted(expected)}"
    for name, right in expected.items():
        left = found[name]
        assert left.shape == right.shape, f"{name}: shape {tuple(left.shape)} != {tuple(right.shape)}"
        assert left.dtype == right.dtype, f"{name}: {left.dtype} != {right.dtype}"
        if bound == 0:
            assert torch.equal(left, right), f"{name} is not bitwise equal"
            continue
        scale = max(1.0, right.abs().max().item()) if right.numel() else 1.0
        error = (left - right).abs().max().item() / scale if right.numel() else 0.0
        assert error <= bound, f"{name}: off by {error:.3g}, more than {bound:.3g}"
