r"""The fast path to cuDNN: which calls take it, and the weights as it hands them over (`standin.py`)."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import assert_same, gradients, twins
from internals import aten, fast_path
from situations import Loud
from standin import Calls
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from manual_rnn import ManualRNN
from manual_rnn.kernels.interface import NetworkOptions

DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def missing(rnn: ManualRNN) -> None:
    del rnn.weight_hh_l0


def transposed(rnn: ManualRNN) -> None:
    """As many numbers as there should be."""
    rnn.weight_ih_l0 = nn.Parameter(torch.zeros(5, 6))


def doubled(rnn: ManualRNN) -> None:
    rnn.bias_hh_l0 = nn.Parameter(torch.zeros(6, **DOUBLE))


def dropping(rnn: ManualRNN) -> None:
    rnn.dropout, rnn.num_layers = 0.5, 2


# What isn't as the constructor leaves it, or as the call should be: the checks of the other way name it.
ODD: dict[str, Callable[[ManualRNN], Any]] = {
    "a missing weight": missing,
    "a weight of another shape": transposed,
    "a weight of another type": doubled,
    "a flag that is none": lambda rnn: setattr(rnn, "bias", 1),
    "a mode that is none": lambda rnn: setattr(rnn, "mode", "RNN_SIN"),
    "dropout": dropping,
    "a projection": lambda rnn: setattr(rnn, "proj_size", 2),
    "assigned weights": lambda rnn: setattr(rnn, "_flat_weights", [w.detach() for w in rnn.parameters()]),
    "a deleted attribute": lambda rnn: delattr(rnn, "batch_first"),
}


WRONG: dict[str, tuple[Any, ...]] = {
    "rank": (torch.zeros(2, 4, 3, 5),),
    "features": (torch.zeros(4, 3, 4),),
    "dtype": (torch.zeros(4, 3, 5, dtype=torch.float64),),
    "hx": (torch.zeros(4, 3, 5), torch.zeros(1, 2, 6)),
    "a subclass that handles operations": (torch.zeros(4, 3, 5).as_subclass(Loud),),
    "a subclass as hx": (torch.zeros(4, 3, 5), torch.zeros(1, 3, 6).as_subclass(type("Own", (Tensor,), {}))),
    "batch_sizes that grow": (torch.zeros(3, 5), None, torch.tensor([1, 2])),
    "batch_sizes of another sum": (torch.zeros(3, 5), None, torch.tensor([2, 2])),
    "batch_sizes of 0": (torch.zeros(3, 5), None, torch.tensor([3, 0])),
    "no batch_sizes": (torch.zeros(0, 5), None, torch.tensor([], dtype=torch.int64)),
    "batch_sizes of another type": (torch.zeros(3, 5), None, torch.tensor([2, 1], dtype=torch.int32)),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_module_goes_another_way(odd: str, calls: Calls) -> None:
    rnn, x = ManualRNN(5, 6), torch.randn(4, 3, 5)
    assert fast_path.try_fast_path(rnn, x, None) is not None
    assert len(calls) == 1
    ODD[odd](rnn)
    assert fast_path.try_fast_path(rnn, x, None) is None
    assert len(calls) == 1


@pytest.mark.parametrize("wrong", WRONG)
def test_an_odd_call_goes_another_way(wrong: str, calls: Calls) -> None:
    x, hx, sizes = (*WRONG[wrong], None, None)[:3]
    given = x if sizes is None else PackedSequence(x, sizes)
    assert fast_path.try_fast_path(ManualRNN(5, 6), given, hx) is None
    assert not calls


def test_memory_that_ends_too_early(calls: Calls) -> None:
    rnn = ManualRNN(5, 6)
    rnn.get_parameter("weight_hh_l0").untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="out of bounds"):
        rnn(torch.randn(4, 3, 5))
    assert not calls


@pytest.fixture
def _autocast_on_cuda() -> Iterator[None]:
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)


@pytest.mark.usefixtures("_autocast_on_cuda")
@pytest.mark.parametrize(("dtype", "makes"), [(torch.float32, False), (torch.float64, True)], ids=str)
def test_under_autocast_pytorch_makes_the_buffer(dtype: torch.dtype, makes: bool, calls: Calls) -> None:
    """In float16, of what it casts."""
    flat = [torch.zeros(shape, dtype=dtype) for shape in ((6, 5), (6, 6))]
    x, hx = torch.zeros(4, 3, 5, dtype=dtype), torch.zeros(1, 3, 6, dtype=dtype)
    try:
        aten.cudnn(x, hx, flat, NetworkOptions(None, "tanh", False, False, "aten"), False, False)
    except AttributeError:  # the stand-in has nothing to read
        assert not makes
    assert (calls[0]["weight_buf"] is not None) == makes


def laid_out(rnn: Any) -> bool:
    """Whether its weights are views of one memory."""
    return len({w.untyped_storage().data_ptr() for w in rnn.parameters()}) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_in_cudnns_order_are_not_copied(dtype: torch.dtype, calls: Calls) -> None:
    """As those of an `nn.RNN` that came from CUDA; read at every call where they are by then."""
    builtin, manual = twins(5, 6, 2, bidirectional=True, dtype=dtype)
    x = torch.randn(4, 3, 5, dtype=dtype, requires_grad=True)
    before = gradients(manual, x)
    weights = list(map(id, manual.parameters()))
    manual.flatten_parameters()
    assert laid_out(manual)
    assert weights == list(map(id, manual.parameters()))
    assert_same(gradients(manual, x), before, bound=0)
    own = manual.get_parameter("weight_ih_l0").data_ptr()
    assert [call["weight_buf"].data_ptr() == own for call in calls] == [False, False, True, True]
    manual.flatten_parameters()
    assert manual.get_parameter("weight_ih_l0").data_ptr() == own
    for rnn in (builtin, manual):
        scaled, moved = map(rnn.get_parameter, ("weight_hh_l1", "bias_ih_l0"))
        scaled.data.mul_(2)  # in its place
        moved.data = moved.data + 1  # elsewhere
    assert_same(gradients(manual, x), gradients(builtin, x), 1e-12 if dtype == torch.float64 else 2e-6)
    assert calls[-1]["weight_buf"].data_ptr() != own


def test_a_weight_transposed_where_it_is_is_copied(calls: Calls) -> None:
    """Its address and its size are those of a weight in cuDNN's order, its numbers aren't."""
    builtin, manual = twins(5, 6)
    manual.flatten_parameters()
    for rnn in (builtin, manual):
        rnn.weight_hh_l0.data = rnn.weight_hh_l0.data.mT
    x = torch.randn(4, 3, 5, requires_grad=True)
    assert_same(gradients(manual, x), gradients(builtin, x), 2e-6)


def tie(rnn: ManualRNN) -> None:
    rnn.bias_hh_l0 = rnn.bias_ih_l0


def compute(rnn: ManualRNN) -> None:
    nn.utils.parametrize.register_parametrization(rnn, "weight_hh_l0", nn.Tanh())


@pytest.mark.parametrize("change", [tie, compute, doubled, missing], ids=lambda change: change.__name__)
def test_odd_weights_stay_where_they_are(change: Callable[[ManualRNN], None], calls: Calls) -> None:
    rnn = ManualRNN(5, 6)
    change(rnn)
    before = [w.data_ptr() for w in rnn.parameters()]
    rnn.flatten_parameters()
    assert before == [w.data_ptr() for w in rnn.parameters()]


def test_neighbours_in_memory_are_no_block(calls: Calls) -> None:
    """Addresses alone don't tell: each of these is the end of its own storage."""
    rnn = ManualRNN(5, 6)
    rnn.flatten_parameters()
    rnn.get_parameter("weight_ih_l0").untyped_storage().resize_(4 * 30)
    with pytest.raises(RuntimeError, match="out of bounds"):
        rnn(torch.randn(4, 3, 5))
    assert aten._block(list(rnn.parameters())) is None
