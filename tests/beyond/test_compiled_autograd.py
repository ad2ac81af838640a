r"""A backward pass that `torch.compile` traces from eager nodes (compiled autograd), against eager `nn.RNN`.

FSDP2 compiles its backward pass so, and so does `torch._dynamo.config.compiled_autograd`.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from helpers import assert_same, packed, twins
from torch import Tensor, nn
from torch._dynamo.compiled_autograd import _enable
from torch._subclasses.fake_utils import CrossRefFakeMode

from manual_rnn import ManualRNN

# torch asks what nodes have kept, which isn't leaves, for its gradient.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def made(dtype: torch.dtype = torch.float64) -> tuple[nn.RNN, ManualRNN]:
    return twins(4, 6, num_layers=2, bidirectional=True, dtype=dtype)


def compiled(backend: str) -> AbstractContextManager[Any]:
    return _enable(torch.compile(backend=backend))


def gradients(
    rnn: nn.Module, around: AbstractContextManager[Any], pack: Any = lambda x: x, wanted: bool = True
) -> dict[str, Tensor]:
    """Every gradient that `backward` leaves; it alone can be traced, `torch.autograd.grad` can't."""
    torch.manual_seed(1)
    dtype = next(rnn.parameters()).dtype
    x, hx = torch.randn(3, 3, 4, dtype=dtype), torch.randn(4, 3, 6, dtype=dtype)
    named = {"input": x, "hx": hx, **dict(rnn.named_parameters())}
    output, h_n = rnn(pack(x.requires_grad_(wanted)), hx.requires_grad_(wanted))
    output = output if isinstance(output, Tensor) else output.data
    terms = [(y * torch.randn(y.shape, dtype=dtype)).sum() for y in (output, h_n)]
    with around:
        torch.stack(terms).sum().backward()
    return {name: leaf.grad for name, leaf in named.items() if leaf.grad is not None}


@pytest.mark.parametrize(
    ("dtype", "bound", "backend"), [(torch.float32, 2e-6, "eager"), (torch.float64, 1e-12, "aot_eager")]
)
def test_gradients(dtype: torch.dtype, bound: float, backend: str) -> None:
    builtin, manual = made(dtype)
    found = gradients(manual, compiled(backend))
    assert len(found) == 18
    assert_same(found, gradients(builtin, nullcontext()), bound)


def test_gradients_of_packed_sequences() -> None:
    """From rows that are packed already: of packing itself torch 2.13 can't trace the derivative."""
    builtin, manual = made()
    pattern = packed(torch.zeros(3, 3, 4), [2, 3, 1])
    pack = lambda x: pattern._replace(data=x.flatten(0, 1)[:6])  # noqa: E731
    found = gradients(manual, compiled("aot_eager"), pack)
    assert len(found) == 18
    assert_same(found, gradients(builtin, nullcontext(), pack))


def test_gradients_of_a_part() -> None:
    """Frozen weights, and none for the input and `hx`."""
    builtin, manual = made()
    for rnn in (builtin, manual):
        for name, p in rnn.named_parameters():
            p.requires_grad_("_hh_" in name)
    found = gradients(manual, compiled("eager"), wanted=False)
    assert len(found) == 8
    assert_same(found, gradients(builtin, nullcontext(), wanted=False))


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_strides_are_foretold(batch_first: bool, packs: bool) -> None:
    """Inductor writes code for the strides that a trace without numbers has."""
    rnn = ManualRNN(4, 6, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(3, 3, 4, requires_grad=True)
    output, h_n = rnn(packed(x, [2, 3, 1], batch_first) if packs else x * 2)
    output = output.data if packs else output
    with CrossRefFakeMode():
        (output.sin().sum() + h_n.sum()).backward()
    assert x.grad is not None
