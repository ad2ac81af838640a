r"""What C reads of a module: its options and weights, and that nothing else than a constructor's is taken."""

from typing import Any

import pytest
import torch
from helpers import assert_same_results
from internals import ATTRIBUTES, native
from torch import Tensor, nn

from manual_rnn import ManualRNN

pytestmark = pytest.mark.skipif(not native._exchanges, reason="no compiler, or another torch")

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "relu, no bias": {"nonlinearity": "relu", "bias": False},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
}
ODD: tuple[Any, ...] = (
    None,
    "x",
    "RNN_TANH",
    1.5,
    -1,
    0,
    2**40,
    2**70,
    True,
    [],
    [[]],
    [["weight_ih_l0"]],
    [1, 2],
    {},
    object(),
)


def call(attributes: Any, x: Any, hx: Any = None, keep: Any = False) -> Any:
    return native._scan.call(native._variant, 1, keep, attributes, None, x, hx)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_the_network_of_the_module(name: str, dtype: torch.dtype) -> None:
    rnn = ManualRNN(4, 6, dtype=dtype, **OPTIONS[name])
    x, hx = torch.randn(5, 3, 4, dtype=dtype), torch.randn(len(rnn._all_weights), 3, 6, dtype=dtype)
    (output, h_n, states), weights = call(vars(rnn), x, hx)
    assert states is None
    assert all(a is b for a, b in zip(weights, rnn.parameters(), strict=True))
    assert_same_results((output, h_n), rnn.to_builtin()(x, hx))


@pytest.mark.parametrize("wrong", [None, [], "x", object(), {}, {1: 2}, {"mode": "RNN_TANH"}])
def test_what_is_no_module_is_refused(wrong: Any) -> None:
    assert call(wrong, torch.randn(5, 3, 4)) is NotImplemented


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_odd_attribute_is_refused(name: str) -> None:
    """Or, where it stands for another network of the same weights, as `nn.RNN` does it."""
    rnn, x = ManualRNN(4, 6), torch.randn(5, 3, 4)
    without = {key: value for key, value in vars(rnn).items() if key != name}
    assert call(without, x) is NotImplemented
    right = [value for value in ODD if call({**vars(rnn), name: value}, x) is not NotImplemented]
    assert right == {
        "mode": ["RNN_TANH"],
        "batch_first": [True],
        "bias": [True],
        "training": [True],
        "dropout": [1.5],  # of one layer there is none
        "proj_size": [0],
    }.get(name, [])


@pytest.mark.parametrize(
    "weight", [None, 1, torch.zeros(6), torch.zeros(6, 6, dtype=torch.float64), nn.RNN(1, 1)]
)
def test_an_odd_weight_is_refused(weight: Any) -> None:
    rnn = ManualRNN(4, 6)
    parameters = {**rnn._parameters, "weight_hh_l0": weight}
    assert call({**vars(rnn), "_parameters": parameters}, torch.randn(5, 3, 4)) is NotImplemented


@pytest.mark.parametrize(
    "args", [(), (0,) * 7, (0, 0, False, {}, None, None, None), (9, 1, False, {}, None, None, None)]
)
def test_wrong_numbers_raise(args: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError), match="expected"):
        native._scan.call(*args)


def test_states_are_kept_where_a_gradient_is_wanted() -> None:
    rnn, x = ManualRNN(4, 6, num_layers=3), torch.randn(5, 3, 4)
    (_, _, states), _ = call(vars(rnn), x, keep=True)
    assert [tuple(kept.shape) for kept in states] == [(5, 3, 6)] * 2
    (_, _, nothing), _ = call(vars(rnn.requires_grad_(False)), x, keep=True)
    assert nothing is None


def test_weights_are_read_anew() -> None:
    rnn, x = ManualRNN(4, 6), torch.randn(5, 3, 4)
    rnn.weight_hh_l0 = nn.Parameter(torch.zeros(6, 6))
    found: tuple[Tensor, ...] = call(vars(rnn), x)[0][:2]
    assert_same_results(found, rnn.to_builtin()(x))
