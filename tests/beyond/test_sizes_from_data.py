r"""Lengths and batches that only the data know, `x[mask]`: one graph, one program, at any of them.

`nn.RNN` can't be compiled and its program can't leave such a length open; eager `nn.RNN` has the numbers.
`torch.export.draft_export` is tried with both, and gives a program of the same one length.
"""

from typing import Any

import pytest
import torch
from helpers import assert_same, gradients, kernels_for, twins
from internals import KernelName
from torch import Tensor, nn
from torch._dynamo.utils import counters

from manual_rnn import use_kernel

MASKS = [(1, 1, 0, 1, 1), (1, 0, 0, 1, 0), (0, 0, 1, 0, 0), (1, 1, 1, 1, 1)]
OPTIONS: list[dict[str, Any]] = [
    {"nonlinearity": "relu"},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"num_layers": 2, "bias": False},
]
# What nn.RNN and draft_export, which leaves a file open, say of themselves.
DRAFTS = pytest.mark.filterwarnings(
    "ignore:The tensor attributes self:UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def _captured() -> Any:
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        yield


class Masked(nn.Module):
    """Runs over the steps, or the sequences, that a mask picks."""

    def __init__(self, rnn: Any, what: str) -> None:
        super().__init__()
        self.rnn, self.mask = rnn, torch.ones(5, dtype=torch.bool)
        self.leading = (what == "sequences") == rnn.batch_first

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.rnn(x[mask] if self.leading else x.transpose(0, 1)[mask].transpose(0, 1))


def case(options: dict[str, Any], what: str, dtype: torch.dtype) -> tuple[Masked, Masked, Tensor]:
    builtin, manual = (Masked(rnn, what) for rnn in twins(3, 4, dtype=dtype, **options))
    return builtin, manual, torch.randn(5, 5, 3, dtype=dtype, requires_grad=True)


def run(model: Any, x: Tensor, mask: tuple[int, ...]) -> dict[str, Tensor]:
    """`gradients` of a model whose mask isn't an `hx`."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = model

        def forward(self, x: Tensor) -> Any:
            return self.rnn(x, torch.tensor(mask, dtype=torch.bool))

    return gradients(Fixed(), x)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("what", ["steps", "sequences"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_graph(dtype: torch.dtype, what: str, options: dict[str, Any]) -> None:
    builtin, manual, x = case(options, what, dtype)
    manual.compile(fullgraph=True, backend="aot_eager")
    for mask in MASKS:
        assert_same(run(manual, x, mask), run(builtin, x, mask), 1e-12 if dtype == torch.float64 else 5e-6)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("kernel", kernels_for(torch.float64))
def test_on_every_kernel(kernel: KernelName) -> None:
    if kernel in ("reference", "aten"):
        pytest.skip("its loop is unrolled, so it wants to know the length")
    builtin, manual, x = case(OPTIONS[1], "steps", torch.float64)
    manual.compile(fullgraph=True, backend="aot_eager")
    with use_kernel(kernel):
        for mask in MASKS:
            assert_same(run(manual, x, mask), run(builtin, x, mask))


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("what", ["steps", "sequences"])
def test_one_program(what: str, strict: bool) -> None:
    builtin, manual, x = case(OPTIONS[1], what, torch.float64)
    program = torch.export.export(manual, (x, torch.tensor(MASKS[0]).bool()), strict=strict).module()
    for mask in MASKS:
        found = program(x, torch.tensor(mask).bool())
        expected = builtin(x, torch.tensor(mask).bool())
        names = ("output", "h_n")
        assert_same(dict(zip(names, found, strict=True)), dict(zip(names, expected, strict=True)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_steps_at_all(dtype: torch.dtype) -> None:
    """What `nn.RNN` refuses gives an empty output, and the states it began with; gradients are zero."""
    _, manual, x = case({}, "steps", dtype)
    manual.compile(fullgraph=True, backend="aot_eager")
    manual(x, torch.tensor(MASKS[0]).bool())
    output, h_n = manual(x, torch.zeros(5, dtype=torch.bool))
    assert output.shape == (0, 5, 4)
    assert torch.equal(h_n, torch.zeros(1, 5, 4, dtype=dtype))
    h_n.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in manual.parameters())


@DRAFTS
@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
def test_draft_export_gives_what_it_gives_of_a_builtin(options: dict[str, Any]) -> None:
    builtin, manual = twins(3, 4, dtype=torch.float64, **options)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    found, expected = (torch.export.draft_export(rnn, (x,)).module()(x) for rnn in (manual, builtin))
    names = ("output", "h_n")
    assert_same(dict(zip(names, found, strict=True)), dict(zip(names, expected, strict=True)))


@DRAFTS
def test_draft_export_freezes_a_length_from_data_for_both() -> None:
    for model in case({}, "steps", torch.float64)[:2]:
        x = torch.randn(5, 5, 3, dtype=torch.float64)
        program = torch.export.draft_export(model, (x, torch.tensor(MASKS[0]).bool())).module()
        assert torch.allclose(*(m(x, torch.tensor(MASKS[0]).bool())[0] for m in (program, model)))
        with pytest.raises(RuntimeError, match="Runtime assertion failed"):
            program(x, torch.tensor(MASKS[1]).bool())
