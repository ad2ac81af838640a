r"""Copies and moves: deepcopy, pickle, meta, shared memory, replicas, swapped parameters."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers import EVERY_OPTION, assert_same, assert_same_results, gradients, twins
from torch import nn

from manual_rnn import ManualRNN


def saved(rnn: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(rnn, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda rnn: pickle.loads(pickle.dumps(rnn)),
    "torch.save": saved,
    "share_memory": lambda rnn: copy.deepcopy(rnn).share_memory(),
    "to_empty": lambda rnn: loaded(copy.deepcopy(rnn).to("meta").to_empty(device="cpu"), rnn),
}


def loaded(rnn: nn.Module, source: nn.Module) -> nn.Module:
    rnn.load_state_dict(source.state_dict())
    return rnn


@pytest.mark.parametrize("after_a_forward", [False, True])
@pytest.mark.parametrize("name", COPIES)
@EVERY_OPTION
def test_copies_run_and_train_alike(options: dict[str, Any], name: str, after_a_forward: bool) -> None:
    rnn, dtype = ManualRNN(4, 6, **options), options.get("dtype")
    input = torch.randn(5, 3, 4, dtype=dtype, requires_grad=True)
    if after_a_forward:
        rnn(input)
    twin = COPIES[name](rnn)
    assert repr(twin) == repr(rnn)
    assert vars(twin).keys() == vars(rnn).keys()
    assert_same(gradients(twin, input), gradients(rnn, input), bound=0)


@pytest.mark.parametrize("name", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_apart(name: str) -> None:
    rnn, input = ManualRNN(4, 6), torch.randn(5, 3, 4)
    twin: Any = COPIES[name](rnn)
    before = rnn(input)[0]
    twin.weight_hh_l0.data.zero_()
    twin.bias_ih_l0 = nn.Parameter(torch.ones(6))
    assert torch.equal(rnn(input)[0], before)
    assert not torch.equal(twin(input)[0], before)


def test_meta() -> None:
    builtin, manual = twins(4, 6, 2, bidirectional=True, batch_first=True, device="meta")
    input = torch.randn(3, 5, 4, device="meta")
    for left, right in zip(manual(input), builtin(input), strict=True):
        assert left.is_meta
        assert (left.shape, left.stride(), left.dtype) == (right.shape, right.stride(), right.dtype)


def test_meta_then_to_empty_then_reset() -> None:
    torch.manual_seed(3)
    expected = ManualRNN(4, 6, 2)
    rnn = ManualRNN(4, 6, 2, device="meta").to_empty(device="cpu")
    torch.manual_seed(3)
    rnn.reset_parameters()
    input = torch.randn(5, 3, 4)
    assert_same_results(rnn(input), expected(input), 0)


def test_shared_memory_is_shared() -> None:
    rnn = ManualRNN(4, 6).share_memory()
    assert all(weight.is_shared() for weight in rnn.parameters())


def test_a_replica_of_data_parallel_runs_on_the_weights_it_is_given() -> None:
    """As `torch.nn.parallel.replicate` does it: a shallow copy, plain tensors for parameters."""
    rnn, input = ManualRNN(4, 6, 2), torch.randn(5, 3, 4)
    replica: Any = rnn._replicate_for_data_parallel()
    replica._former_parameters = {}
    for name, weight in rnn.named_parameters():
        copied = weight * 2
        setattr(replica, name, copied)
        replica._former_parameters[name] = copied
    output, _ = replica(input)
    before = rnn(input)[0]
    assert not torch.equal(output, before)
    output.sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in rnn.parameters())
    doubled = ManualRNN(4, 6, 2)
    doubled.load_state_dict({name: weight * 2 for name, weight in rnn.state_dict().items()})
    assert torch.equal(doubled(input)[0], output)


@contextmanager
def swapped_parameters() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_loading_and_converting_with_swapped_parameters() -> None:
    """`nn.RNN` itself can't: its weak references to the weights stand in the way."""
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
    builtin: Any = nn.RNN(4, 6, **options)
    rnn = ManualRNN(4, 6, **options)
    with torch.no_grad():
        builtin.weight_hh_l0.zero_()
    input = torch.randn(5, 3, 4)
    rnn(input.double())
    weights = list(rnn.parameters())
    with swapped_parameters():
        rnn.load_state_dict(builtin.state_dict())
        assert_same(rnn.state_dict(), builtin.state_dict(), bound=0)
        assert_same(gradients(rnn, input.double()), gradients(builtin, input.double()))
        rnn.float()
        with pytest.raises(RuntimeError, match="weakref"):
            nn.RNN(4, 6, **options).load_state_dict(builtin.state_dict())
    assert_same(rnn.state_dict(), builtin.float().state_dict(), bound=0)
    assert_same(gradients(rnn, input), gradients(builtin, input), bound=1e-6)
    assert [id(weight) for weight in rnn.parameters()] == [id(weight) for weight in weights]
