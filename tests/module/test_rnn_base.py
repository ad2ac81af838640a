r"""A `ManualRNN` is an `nn.RNNBase`, to all who ask for one, and `_flat_weights` may be assigned.

`nn.RNN` is the control: what its list of weights does when it is written to, ours does.
"""

import inspect
import io
import pickle
import types
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from helpers import KERNELS, assert_same, gradients, twins
from internals import KernelName
from models import Tagger
from torch import Tensor, nn

from manual_rnn import ManualRNN, swap_rnn, use_kernel

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
BOTH_WAYS: dict[str, Any] = {"num_layers": 2, "bidirectional": True}


def bound(dtype: torch.dtype) -> float:
    return 1e-12 if dtype == torch.float64 else 2e-6


def test_it_is_one_and_no_rnn() -> None:
    manual = ManualRNN(3, 4)
    assert isinstance(manual, nn.RNNBase)
    assert not isinstance(manual, nn.RNN)  # Dynamo refuses those
    assert issubclass(ManualRNN, nn.RNNBase)


def test_nothing_of_its_base_runs_unseen() -> None:
    """What `nn.RNNBase` does about its cache of weights, in this version of torch or a later one."""
    ours = [kind for kind in ManualRNN.__mro__ if kind.__module__.startswith("manual_rnn")]
    code = {
        name
        for name, value in vars(nn.RNNBase).items()
        if isinstance(value, (types.FunctionType, property, staticmethod))
    }
    code.discard("__annotate_func__")  # Python's own, since 3.14
    assert code - {name for kind in ours for name in vars(kind)} == set()


def annotations(rnn: nn.Module) -> dict[str, Any]:
    """Of all its classes but `nn.Module`; asked for, a class without any is given an empty dictionary."""
    kinds = [kind for kind in type(rnn).__mro__ if kind not in nn.Module.__mro__]
    return {k: v for kind in kinds for k, v in inspect.get_annotations(kind).items()}


def test_class_attributes_are_those_of_a_builtin() -> None:
    builtin, manual = twins(3, 4)
    for name in ("__constants__", "__jit_unused_properties__"):
        assert getattr(manual, name) == getattr(builtin, name)
    assert annotations(manual) == annotations(builtin) != {}


def test_loops_that_ask_for_it_find_it() -> None:
    """An initialiser and a `flatten_parameters` loop, as in many a repository."""
    models: list[nn.Module] = [Tagger(rnn) for rnn in twins(3, 4, 2)]
    for model in models:
        torch.manual_seed(3)
        found = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
        assert len(found) == 1
        for module in found:
            module.flatten_parameters()
            for name, weight in module.named_parameters():
                (nn.init.orthogonal_ if weight.dim() > 1 else nn.init.zeros_)(weight)
                assert name in module._flat_weights_names
    assert_same(models[1].state_dict(), models[0].state_dict(), bound=0)


def drawn(rnn: Any, seed: int = 5) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.randn_like(weight) for weight in rnn.parameters()]


def whole(rnn: Any) -> None:
    rnn._flat_weights = drawn(rnn)


def the_same(rnn: Any) -> None:
    rnn._flat_weights = [getattr(rnn, name) for name in rnn._flat_weights_names]


def one_item(rnn: Any) -> None:
    rnn._flat_weights[1] = drawn(rnn)[1]


def two_items(rnn: Any) -> None:
    for at in (0, 2):
        rnn._flat_weights[at] = drawn(rnn)[at]


def then_a_parameter(rnn: Any) -> None:
    whole(rnn)
    rnn.weight_hh_l0 = nn.Parameter(torch.zeros_like(rnn.weight_hh_l0))


def then_in_place(rnn: Any) -> None:
    whole(rnn)
    with torch.no_grad():
        rnn.weight_hh_l0.zero_()


def then_moved(rnn: Any) -> None:
    whole(rnn)
    rnn.to("cpu")


def then_begun_anew(rnn: Any) -> None:
    whole(rnn)
    rnn._init_flat_weights()


WRITES: list[Callable[[Any], None]] = [
    whole, the_same, one_item, two_items, then_a_parameter, then_in_place, then_moved, then_begun_anew,
]  # fmt: skip


def output_of(rnn: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return dict(zip(("output", "h_n"), rnn(x), strict=True))


def own_weights(rnn: Any) -> list[bool]:
    return [w is v for w, v in zip(rnn._flat_weights, rnn.parameters(), strict=True)]


@DTYPES
@KERNELS
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_what_is_assigned_runs_as_it_does_in_a_builtin(
    write: Callable[[Any], None], kernel: KernelName, dtype: torch.dtype
) -> None:
    builtin, manual = twins(3, 4, **BOTH_WAYS, dtype=dtype)
    x = torch.randn(5, 2, 3, dtype=dtype)
    for rnn in (builtin, manual):
        write(rnn)
    if dtype == torch.float64 and kernel == "native":
        kernel = "default"
    with use_kernel(kernel):
        for _ in range(2):
            assert_same(output_of(manual, x), output_of(builtin, x), bound(dtype))
    assert own_weights(manual) == own_weights(builtin)
    assert_same(manual.state_dict(), builtin.state_dict(), bound=0)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": deepcopy,
    "pickle": lambda rnn: pickle.loads(pickle.dumps(rnn)),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_forget_it_as_a_builtin_does(name: str) -> None:
    builtin, manual = twins(3, 4, **BOTH_WAYS)
    x = torch.randn(5, 2, 3)
    before = output_of(builtin, x)
    for rnn in (builtin, manual):
        whole(rnn)
        assert_same(output_of(COPIES[name](rnn), x), before, 2e-6)


def test_conversions_keep_it() -> None:
    builtin, manual = twins(3, 4, **BOTH_WAYS)
    x = torch.randn(5, 2, 3)
    for rnn in (builtin, manual):
        whole(rnn)
    expected = output_of(builtin, x)
    for rnn in (ManualRNN.from_builtin(builtin), manual.to_builtin(), manual):
        assert_same(output_of(rnn, x), expected, 2e-6)
    assert_same(output_of(swap_rnn(nn.Sequential(builtin))[0], x), expected, 2e-6)


def test_a_gradient_reaches_what_was_assigned() -> None:
    for rnn in twins(3, 4):
        weights = [weight.requires_grad_() for weight in drawn(rnn)]
        rnn._flat_weights = [*weights]
        rnn(torch.ones(5, 2, 3))[0].sum().backward()
        assert all(weight.grad is not None for weight in weights)
        assert all(weight.grad is None for weight in rnn.parameters())


def test_another_dtype_may_be_assigned() -> None:
    builtin, manual = twins(3, 4)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    rnn: Any
    for rnn in (builtin, manual):
        rnn._flat_weights = [weight.double() for weight in rnn._flat_weights]
    assert_same(output_of(manual, x), output_of(builtin, x))


def test_what_does_not_fit_raises() -> None:
    rnn: Any
    for rnn in twins(3, 4):
        rnn._flat_weights = list(rnn.parameters())[:3]
        with pytest.raises(RuntimeError):
            rnn(torch.ones(5, 2, 3))
    manual = ManualRNN(3, 4)
    manual._flat_weights_names = list(manual._flat_weights_names)
    with pytest.raises(AttributeError, match="expected _flat_weights_names"):
        manual._flat_weights_names = ["weight"]


def state_of_torch_1_0(rnn: nn.RNN) -> dict[str, Any]:
    """`all_weights` held tensors once, and there was no `proj_size`."""
    state = {
        k: v for k, v in vars(rnn).items() if k not in ("_all_weights", "proj_size", "_flat_weight_refs")
    }
    return state | {"all_weights": rnn.all_weights}


@pytest.mark.parametrize("age", [lambda rnn: rnn.__getstate__(), state_of_torch_1_0], ids=["new", "old"])
def test_the_state_of_a_pickled_builtin_sets_it(age: Callable[[nn.RNN], dict[str, Any]]) -> None:
    builtin, _ = twins(3, 4, **BOTH_WAYS)
    x = torch.randn(5, 2, 3, requires_grad=True)
    expected = gradients(builtin, x)
    manual = ManualRNN.__new__(ManualRNN)
    manual.__setstate__(age(builtin))
    assert_same(gradients(manual, x), expected, 2e-6)
    assert not {"_flat_weights", "_flat_weights_names", "_flat_weight_refs"} & vars(manual).keys()
    file = io.BytesIO()
    torch.save(manual, file)
    file.seek(0)
    assert_same(gradients(torch.load(file, weights_only=False), x), expected, 2e-6)
