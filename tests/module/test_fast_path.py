r"""The fast path from the module to one operator: which calls take it, and that all answers are the same.

Each case builds a network of a kind, `nn.RNN` or ours, and calls it. What comes back, or is raised, is that
of `nn.RNN`; and where it is told, it came by the fast path or by another.
"""

from collections.abc import Callable
from functools import partial
from inspect import getattr_static
from typing import Any

import pytest
import torch
from fast_path_cases import (
    FAST,
    HX,
    OTHER,
    OWN_WAY,
    TRANSFORMED,
    Build,
    Sub,
    X,
    backward,
    builder,
    flat,
    outcome,
)
from helpers import packed
from internals import fast_path, module, native
from situations import Beneath, Through
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from manual_rnn import ManualRNN, use_kernel

pytestmark = pytest.mark.skipif(not native.has_aten_node, reason="no compiler, or another torch")


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every call of a ManualRNN, whether it took the fast path."""
    found: list[bool] = []
    try_fast_path = module.try_fast_path

    def watched(*args: Any) -> Any:
        result = try_fast_path(*args)
        found.append(result is not None)
        return result

    monkeypatch.setattr(module, "try_fast_path", watched)
    return found


def nodes(results: list[Tensor]) -> set[str]:
    """The names of the autograd nodes next to these results."""
    found, open_ = set(), [x.grad_fn for x in results]
    for _ in range(4):
        open_ = [node for node in open_ if node is not None]
        found |= {type(node).__name__ for node in open_}
        open_ = [after for node in open_ if node is not None for after, _ in node.next_functions]
    return found


@pytest.mark.parametrize("name", FAST)
def test_a_plain_call_takes_the_fast_path(name: str, ways: list[bool]) -> None:
    found = compare(FAST[name])
    assert ways == [True]
    if found and found[0].requires_grad:
        assert "CudnnRnnBackward0" in nodes(found)
        assert "NetworkBackward" not in nodes(found)


@pytest.mark.parametrize("name", TRANSFORMED)
def test_under_a_transform_it_is_our_operator(name: str, ways: list[bool]) -> None:
    found = compare(TRANSFORMED[name])
    assert found
    assert ways == [True]
    assert "CudnnRnnBackward0" not in nodes(found)


@pytest.mark.parametrize("name", OTHER)
def test_any_other_takes_another(name: str, ways: list[bool]) -> None:
    found = compare(OTHER[name])
    assert not any(ways)
    assert not found or "CudnnRnnBackward0" not in nodes(found)


@pytest.mark.parametrize("name", OWN_WAY)
@pytest.mark.filterwarnings("ignore")
def test_answers_alike_whichever_path_it_takes(name: str) -> None:
    compare(OWN_WAY[name])


def compare(case: Callable[[Build], Any]) -> list[Tensor] | None:
    """With nn.RNN, or where it raises, or does worse, with the other path. Returns what came back."""
    expected, found = outcome(case, nn.RNN), outcome(case, ManualRNN)
    if isinstance(expected, tuple):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "try_fast_path", lambda *args: None)
            expected = outcome(case, ManualRNN)
    if isinstance(expected, tuple):
        assert found == expected
        return None
    assert isinstance(found, list), found
    for ours, right in zip(found, expected, strict=True):
        assert ours.shape == right.shape
        assert ours.dtype == right.dtype
        assert ours.requires_grad == right.requires_grad
        bound = 2e-2 if right.dtype in (torch.bfloat16, torch.float16) else 2e-6
        torch.testing.assert_close(ours, right, rtol=bound, atol=bound)
    return found


@pytest.mark.parametrize("kernel", ["reference", "torch", "aten"])
def test_another_kernel_is_heeded(kernel: Any, ways: list[bool]) -> None:
    with use_kernel(kernel):
        builder(ManualRNN)()(X)
    with use_kernel("native"):
        builder(ManualRNN)()(X)
    assert ways == [False, True]


@pytest.mark.parametrize("name", fast_path.METHODS)
def test_an_overridden_method_is_heeded(name: str, ways: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a class below, on the object, and on the class itself."""
    method = getattr(ManualRNN, name)

    static = isinstance(getattr_static(ManualRNN, name), staticmethod)

    def own(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    of_class: Any = staticmethod(own) if static else own
    expected = flat(builder(ManualRNN)()(X))
    below, on_object = builder(type("Below", (ManualRNN,), {name: of_class}))(), builder(ManualRNN)()
    setattr(on_object, name, own if static else partial(own, on_object))
    found = [flat(rnn(X)) for rnn in (below, on_object)]
    monkeypatch.setattr(ManualRNN, name, of_class)
    found.append(flat(builder(ManualRNN)()(X)))
    assert ways == [True, False, False, False]
    for results in found:
        for ours, right in zip(results, expected, strict=True):
            torch.testing.assert_close(ours, right, rtol=2e-6, atol=2e-6)


def test_a_subclass_of_the_module_is_as_fast(ways: list[bool]) -> None:
    builder(type("Below", (ManualRNN,), {"more": 1}))()(X)
    assert ways == [True]


def test_a_recurrence_of_ones_own_and_assigned_weights(ways: list[bool]) -> None:
    builder(ManualRNN)(nonlinearity=torch.sin)(X)
    for kind in (nn.RNN, ManualRNN):
        rnn = builder(kind)()
        rnn._flat_weights = [torch.zeros_like(w) for w in rnn.parameters()]
        assert not rnn(X)[0].any()
    assert ways == [False, False]


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")  # of torch 2.11
def test_a_profiler_is_told(ways: list[bool]) -> None:
    with torch.profiler.profile(record_shapes=True) as profile:
        builder(ManualRNN)()(X)
    assert ways == [True]
    assert "aten::_cudnn_rnn" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("mode", [Through, Beneath])
@pytest.mark.parametrize("steps", [3, 5])
@pytest.mark.parametrize("batch_first", [False, True])
def test_what_a_mode_saw_is_recomputed_without_it(batch_first: bool, steps: int, mode: Any) -> None:
    """Either way keeps the same tensors in the same order and shape, of a batch of 3 too."""
    rnn, x = builder(ManualRNN)(batch_first=batch_first), torch.randn(steps, 3, 4)
    x = x.transpose(0, 1) if batch_first else x
    with mode():
        output, h_n = checkpoint(rnn, x, use_reentrant=False)
    loss = output.square().sum() + h_n.sum()
    found = torch.autograd.grad(loss, list(rnn.parameters()))
    for ours, right in zip(found, backward(builder(nn.RNN)(batch_first=batch_first), x), strict=True):
        torch.testing.assert_close(ours, right, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["padded", "hx", "packed", "unbatched"])
def test_both_ways_give_the_same_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, tuple[Any, ...]] = {
        "padded": (X,),
        "hx": (X, HX),
        "packed": (packed(X, [2, 5, 4]), HX),
        "unbatched": (X[:, 0], HX[:, 0]),
    }
    fast = backward(builder(ManualRNN)(), *given[name])
    monkeypatch.setattr(module, "try_fast_path", lambda *args: None)
    other = backward(builder(ManualRNN)(), *given[name])
    for a, b, c in zip(fast, other, backward(builder(nn.RNN)(), *given[name]), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5)


def test_results_belong_to_a_subclass_that_changes_nothing(ways: list[bool]) -> None:
    """As with `nn.RNN`; the gradient of a leaf of it too, and an edit in place before backward."""
    found = []
    for kind in (nn.RNN, ManualRNN):
        rnn, leaf = builder(kind)(), X.clone().as_subclass(Sub).requires_grad_()
        output, h_n = rnn(leaf)
        loss = (output * HX).sum() + h_n.sum()
        output.mul_(0)
        loss.backward()
        assert type(output) is type(h_n) is Sub
        with torch._C.DisableTorchFunctionSubclass():
            assert type(rnn(leaf)[0]) is Tensor
        found.append([output.detach(), h_n.detach(), leaf.grad, *(p.grad for p in rnn.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    assert any(ways)
