r"""Changes of a module that compiled code has to notice, and what it then answers."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manual_rnn import ManualRNN

FEW = 260  # guards; 487 where every part of `module.py` was read
# Dynamo asks a tensor that isn't a leaf for its gradient.
OF_NO_LEAF = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def guards_of(rnn: nn.Module, *args: Any) -> int:
    """How many nodes the tree of guards has."""
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list

    torch.compile(rnn, backend="eager", fullgraph=True)(*args)
    (entry,) = _debug_get_cache_entry_list(ManualRNN.__call__.__code__)
    return str(entry.guard_manager).count("+-")


def own_check(self: Any, input: Tensor, batch_sizes: Tensor | None) -> None:
    raise ValueError("a check of my own")


def own_step(gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
    return gates + 0.5 * hidden @ weight_hh.t()


def own_size(self: Any, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
    raise ValueError("a size of my own")


class Check(ManualRNN):
    check_input = own_check


class Size(ManualRNN):
    get_expected_hidden_size = own_size


class Order(ManualRNN):
    def permute_hidden(self, hx: Tensor, permutation: Tensor | None) -> Tensor:
        raise ValueError("an order of my own")


class Step(ManualRNN):
    def step(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
        return own_step(gates, hidden, weight_hh)


def put(name: str, value: Any) -> Callable[[Any], None]:
    return lambda rnn: setattr(rnn, name, value)


def assign(rnn: Any) -> None:
    rnn._flat_weights = [w.detach() * 2 for w in rnn._flat_weights]


def replace(rnn: Any) -> None:
    rnn.weight_hh_l0 = nn.Parameter(torch.zeros(4, 4))


def widen(rnn: Any) -> None:
    rnn.weight_hh_l0 = nn.Parameter(torch.zeros(5, 5))


def double(rnn: Any) -> None:
    rnn.bias_ih_l0 = nn.Parameter(rnn.bias_ih_l0.double())


def take_off(rnn: Any) -> None:
    del rnn.bias_hh_l0


CHANGES: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda rnn: None,
    "mode": put("mode", "RNN_RELU"),
    "an unknown mode": put("mode", "RNN_GELU"),
    "batch_first": put("batch_first", True),
    "batch_first that is no bool": put("batch_first", 1),
    "a check of the object": lambda rnn: setattr(rnn, "check_input", MethodType(own_check, rnn)),
    "a check of the class": put("__class__", Check),
    "a size of the class": put("__class__", Size),
    "an order of the class": put("__class__", Order),
    "a size of the states of the object": put("check_hidden_size", own_check),
    "a step of the object": put("step", own_step),
    "a step of the class": put("__class__", Step),
    "weights assigned": assign,
    "a weight replaced": replace,
    "a weight of another size": widen,
    "a weight of another dtype": double,
    "a weight taken off": take_off,
    "half the weights in double": lambda rnn: rnn.double(),
    "an input size": put("input_size", 4),
    "a hidden size": put("hidden_size", 5),
    "more layers": put("num_layers", 2),
    "a projection": put("proj_size", 2),
    "dropout of one layer": put("dropout", 0.5),
}


def answer(rnn: Any, *args: Any) -> Any:
    """Results, or the kind of error."""
    try:
        return rnn(*args)
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, KeyError) as error:
        return type(error), str(error)[:60]
