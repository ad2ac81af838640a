r"""Partly frozen networks: ATen's node serves them, and backward computes and keeps no more than it needs."""

import gc
import random
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same, error, nodes, packed, twins
from internals import native
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from manual_rnn import ManualRNN

pytestmark = pytest.mark.skipif(not native.has_aten_node, reason="no compiler, or another torch")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3, "bias": False},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]


def freeze(rnn: nn.Module, seed: int) -> dict[str, Tensor]:
    """Freeze a random part of the weights; returns the others."""
    draw = random.Random(seed)
    named = dict(rnn.named_parameters())
    for p in named.values():
        p.requires_grad_(draw.random() < 0.5)
    return {name: p for name, p in named.items() if p.requires_grad}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("wanted", [(), ("input",), ("input", "hx")], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients(
    dtype: torch.dtype, form: str, options: dict[str, Any], wanted: tuple[str, ...], seed: int
) -> None:
    """Of first and second order, and for many cotangents at once."""
    found: list[dict[str, Tensor]] = []
    states = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    x = torch.randn(5, 5, 4, dtype=dtype)
    hx = torch.randn(states, 5, 6, dtype=dtype)
    for rnn in twins(4, 6, dtype=dtype, **options):
        leaves = freeze(rnn, seed)
        given = {"input": x.clone(), "hx": hx.clone()}
        leaves |= {name: given[name].requires_grad_() for name in wanted}
        if not leaves:
            pytest.skip("nothing wants a gradient in this draw")
        lengths = [5, 4, 4, 2, 1]
        rows: Any = given["input"] * 1
        if form == "packed":
            rows = packed(rows, lengths, rnn.batch_first)
        output, h_n = rnn(rows, given["hx"])
        output = output.data if form == "packed" else output
        if isinstance(rnn, ManualRNN):
            names = [node.name() for node in nodes(output)]
            assert any("CudnnRnn" in name for name in names)
            assert not any("Network" in name for name in names)
        loss = output.sin().sum() + h_n.square().sum()
        first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, allow_unused=True)
        pairs = [(g, p) for g, p in zip(first, leaves.values(), strict=True) if g is not None]
        second = torch.autograd.grad(
            torch.stack([g.square().sum() for g, _ in pairs]).sum(), [p for _, p in pairs], allow_unused=True
        )
        rows = packed(given["input"], lengths, rnn.batch_first) if form == "packed" else given["input"]
        many = torch.autograd.grad(
            rnn(rows, given["hx"])[1], [p for _, p in pairs], torch.ones(2, *h_n.shape, dtype=dtype),
            is_grads_batched=True, allow_unused=True,
        )  # fmt: skip
        results = {"first": first, "second": second, "many": many}
        found.append(
            {f"{name}{i}": g for name, gs in results.items() for i, g in enumerate(gs) if g is not None}
        )
    assert_same(found[1], found[0], 1e-11 if dtype is torch.float64 else 5e-5)


@pytest.mark.parametrize(
    "frozen", ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "l0", "weight", "bias", ""]
)
@pytest.mark.parametrize("wanted", [(), ("input",)], ids=str)
def test_an_edit_does_what_it_does_with_nn_rnn(wanted: tuple[str, ...], frozen: str) -> None:
    """Of each tensor, between forward and backward: it raises, or changes no gradient."""
    for edited in ["input", *dict(nn.RNN(4, 6, 2).named_parameters())]:
        found: list[Any] = []
        for rnn in twins(4, 6, num_layers=2):
            for name, p in rnn.named_parameters():
                p.requires_grad_(frozen not in name)
            x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1)).requires_grad_(
                "input" in wanted
            )
            tensors = {"input": x, **dict(rnn.named_parameters())}
            leaves = [p for p in tensors.values() if p.requires_grad]
            if not leaves:
                continue
            output, _ = rnn(x)
            with torch.no_grad():
                tensors[edited].add_(1)
            try:
                found.append(torch.autograd.grad(output.sum(), leaves))
            except RuntimeError as reason:
                found.append("inplace" in str(reason))
        if found:
            assert type(found[0]) is type(found[1]), edited
        if found and isinstance(found[0], tuple):
            assert max(map(error, found[1], found[0])) < 2e-6, edited
        elif found:
            assert found == [True, True]


@pytest.mark.parametrize("layout", ["rows", "batch_first", "transposed"])
@pytest.mark.parametrize("frozen", [True, False])
def test_an_input_that_is_not_read_is_not_kept(frozen: bool, layout: str) -> None:
    rnn = ManualRNN(4, 6, batch_first=layout == "batch_first")
    rnn.weight_ih_l0.requires_grad_(not frozen)
    numbers = np.zeros((3, 5, 4), dtype=np.float32)
    alive = weakref.ref(numbers)
    x = torch.from_numpy(numbers)
    output, _ = rnn(x.transpose(0, 1) if layout == "transposed" else x)
    del x, numbers
    gc.collect()
    copied = layout != "rows"  # as nn.RNN copies it
    assert (alive() is None) == (frozen or copied)
    output.sum().backward()


def test_of_a_frozen_weight_nothing_is_copied() -> None:
    """Its memory is kept by the module anyway, and what is done to it changes no gradient."""
    rnn = ManualRNN(4, 6, 2)
    frozen = [p.requires_grad_("l0" not in name) for name, p in rnn.named_parameters() if "l0" in name]
    saved: list[int] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        rnn(torch.randn(3, 5, 4))
    assert {p.data_ptr() for p in frozen} <= set(saved)


def test_more_weights_than_there_are_bits() -> None:
    found = []
    for rnn in twins(3, 4, num_layers=17, dtype=torch.float64):
        leaves = freeze(rnn, 1)
        x = torch.randn(3, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        grads = torch.autograd.grad(rnn(x)[0].sum(), list(leaves.values()))
        found.append(dict(zip(leaves, grads, strict=True)))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_products_are_counted_as_those_of_nn_rnn(options: dict[str, Any], seed: int) -> None:
    counts = []
    for rnn in twins(4, 6, **options):
        freeze(rnn, seed)
        with FlopCounterMode(display=False) as counter:
            output, _ = rnn(torch.randn(5, 3, 4, requires_grad=True))
            output.sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
