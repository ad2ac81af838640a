r"""What autograd keeps and what it skips; checkpointing, hooks, anomaly mode."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import pytest
import torch
from helpers import KERNELS, assert_same, assert_same_results, gradients, twins
from internals import KernelName
from loop import NETWORKS, Loop, build, case_id, sample
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from manual_rnn import ManualRNN, use_kernel

TWO = [NETWORKS[0], NETWORKS[-2]]


def loss(output: Tensor, h_n: Tensor) -> Tensor:
    return output.sin().sum() + h_n.cos().sum()


def leaves(rnn: torch.nn.Module, network: dict) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    input, hx = (x.requires_grad_() for x in sample(network, "batched"))
    return input, hx, {"input": input, "hx": hx, **dict(rnn.named_parameters())}


def slopes(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients that arrived; there must be one for every leaf."""
    found = {name: leaf.grad for name, leaf in named.items()}
    assert None not in found.values()
    return cast(dict[str, Tensor], found)


def keeping(saved: list[Tensor]) -> saved_tensors_hooks:
    """Puts every tensor that autograd saves into `saved` too."""

    def pack(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    return saved_tensors_hooks(pack, lambda x: x)


def total(gradients: Iterable[Tensor]) -> Tensor:
    return torch.stack([g.sin().sum() for g in gradients]).sum()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("network", TWO, ids=case_id)
def test_checkpoint(network, reentrant):
    results = []
    for kind in (ManualRNN, Loop):
        rnn = build(kind, network)
        input, hx, named = leaves(rnn, network)
        again = lambda x, h, rnn=rnn: checkpoint(rnn, x, h, use_reentrant=reentrant)  # noqa: E731
        loss(*(again if kind is ManualRNN else rnn)(input, hx)).backward()
        results.append(slopes(named))
    found, expected = results
    assert_same(found, expected)


def test_checkpoint_keeps_no_states():
    network = TWO[1]
    rnn = build(ManualRNN, network)
    plain: list[Tensor] = []
    kept: list[Tensor] = []
    with keeping(plain):
        rnn(*sample(network, "batched"))
    with keeping(kept):
        checkpoint(rnn, *sample(network, "batched"), use_reentrant=False)
    assert sum(x.numel() for x in kept) < sum(x.numel() for x in plain) / 2


@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning", "ignore:Error detected:UserWarning")
@pytest.mark.parametrize("network", TWO, ids=case_id)
def test_anomaly_mode(network):
    rnn = build(ManualRNN, network)
    input, hx, named = leaves(rnn, network)
    with torch.autograd.detect_anomaly():
        first = torch.autograd.grad(loss(*rnn(input, hx)), list(named.values()), create_graph=True)
        total(first).backward()
        with pytest.raises(RuntimeError, match="returned nan values"):
            rnn(input, hx)[0].backward(torch.full_like(rnn(input, hx)[0], float("nan")))


@pytest.mark.parametrize("network", TWO, ids=case_id)
def test_hooks_on_saved_tensors(network):
    """`save_on_cpu` and copies that travel through a list: the same gradients, of both orders."""
    results = []
    for kind, around in ((ManualRNN, save_on_cpu()), (Loop, torch.enable_grad())):
        rnn = build(kind, network)
        input, hx, named = leaves(rnn, network)
        with around:
            value = loss(*rnn(input, hx))
            first = torch.autograd.grad(value, list(named.values()), create_graph=True)
            second = torch.autograd.grad(total(first), list(named.values()))
        results.append({str(n): g.detach() for n, g in enumerate((*first, *second))})
    found, expected = results
    assert_same(found, expected)


def _states_alive(step: Callable) -> list[bool]:
    """Which of the tensors that autograd saved in `step` live on after it."""
    saved: list[weakref.ref] = []

    def pack(x: Tensor) -> Tensor:
        copy = x.clone()
        saved.append(weakref.ref(copy))
        return copy

    with saved_tensors_hooks(pack, lambda x: x):
        result = step()
    gc.collect()
    alive = [ref() is not None for ref in saved]
    del result
    return alive


PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "a pool": lambda x: torch.cat([x.new_ones(3), x.flatten(), x.new_ones(2)])[3:-2].view(x.shape),
    "wider rows": lambda x: torch.cat([x, x, x], -1).narrow(-1, x.size(-1), x.size(-1)),
    "columns": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x.clone(),
    "every second number": lambda x: torch.stack([x, x + 1], -1)[..., 0],
}


@KERNELS
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_saved_tensors_come_back_as_views(dtype: torch.dtype, place: str, kernel: KernelName) -> None:
    """Of memory of the user's own, in any order in it."""
    builtin, manual = twins(3, 4, 2, bidirectional=True, dtype=dtype)
    input, hx = torch.randn(5, 2, 3, dtype=dtype), torch.randn(4, 2, 4, dtype=dtype)
    found = []
    for rnn in (builtin, manual):
        with saved_tensors_hooks(lambda x: PLACES[place](x.detach()), lambda x: x), use_kernel(kernel):
            found.append(gradients(rnn, input.requires_grad_(), hx.requires_grad_()))
    assert_same(found[1], found[0], 1e-12 if dtype == torch.float64 else 2e-6)


def test_memory_is_freed_by_backward():
    rnn = build(ManualRNN, TWO[1])
    input, hx, _ = leaves(rnn, TWO[1])
    assert any(_states_alive(lambda: rnn(input, hx)))

    def step() -> Tensor:
        value = loss(*rnn(input, hx))
        value.backward()
        return value

    assert not any(_states_alive(step))


def test_a_second_order_graph_is_built_only_when_asked_for():
    rnn = build(ManualRNN, TWO[1])
    input, hx, named = leaves(rnn, TWO[1])
    saved: list[Tensor] = []
    for create_graph in (False, True):
        value = loss(*rnn(input, hx))
        saved.clear()
        with keeping(saved):
            torch.autograd.grad(value, list(named.values()), create_graph=create_graph)
        assert bool(saved) == create_graph


PRODUCTS = ("mm", "bmm", "addmm", "addmm_")


def _backward_calls(frozen: str, input_grad: bool) -> Counter[str]:
    """The operators that a backward pass of one layer runs when weights of that name are frozen."""
    rnn = build(ManualRNN, NETWORKS[0])
    for name, p in rnn.named_parameters():
        p.requires_grad_(not name.startswith(frozen))
    with use_kernel("torch"):
        output, _ = rnn(torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=input_grad))
    return _profiled(lambda: output.sum().backward())


def _profiled(run: Callable[[], Any]) -> Counter[str]:
    """How often each operator runs in there."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        run()
    return Counter(event.name.split("::")[-1] for event in profiler.events())


def test_frozen_weights_cost_nothing():
    count = lambda frozen, input_grad=True: sum(  # noqa: E731
        _backward_calls(frozen, input_grad)[name] for name in PRODUCTS
    )
    everything = count("none")
    assert count("weight_hh") == everything - 2  # one over the steps, one for the step from h0
    assert count("weight_ih") == everything - 1
    assert count("none", input_grad=False) == everything - 1
    assert _backward_calls("weight", False)["linear_recurrence"] == 1  # the biases still need the recurrence


def test_a_frozen_network_builds_no_graph():
    rnn = build(ManualRNN, NETWORKS[-2]).requires_grad_(False)
    input, hx = sample(NETWORKS[-2], "batched")
    assert all(x.grad_fn is None for x in rnn(input, hx))
    first = {name: p for name, p in rnn.named_parameters() if "_l0" not in name}
    for p in first.values():
        p.requires_grad_()
    with use_kernel("torch"):
        counts = _profiled(lambda: torch.autograd.grad(rnn(input, hx)[0].sum(), list(first.values())))
    assert counts["linear_recurrence"] == 2  # the second layer's two directions, nothing of the first


def test_gradients_accumulate_and_reach_hooks():
    builtin, rnn = twins(2, 3, dtype=torch.float64)
    seen: list[Tensor] = []
    dict(rnn.named_parameters())["weight_hh_l0"].register_hook(seen.append)
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    for _ in range(2):
        for module in (builtin, rnn):
            module(x)[0].sin().sum().backward()
    assert len(seen) == 2
    assert_same(slopes(dict(rnn.named_parameters())), slopes(dict(builtin.named_parameters())))
    assert_same(gradients(rnn, x), gradients(builtin, x))


@KERNELS
def test_backward_twice(kernel: KernelName) -> None:
    """With `retain_graph` the same gradients again; without, torch's own error."""
    rnn = build(ManualRNN, TWO[1], dtype=torch.float32)
    named = {"input": torch.randn(3, 2, 2), "hx": torch.randn(4, 2, 3)}
    input, hx = (x.requires_grad_() for x in named.values())
    leaves = [input, hx, *rnn.parameters()]
    with use_kernel(kernel):
        value = loss(*rnn(input, hx))
    once, twice = (torch.autograd.grad(value, leaves, retain_graph=True) for _ in range(2))
    last = torch.autograd.grad(value, leaves)
    for again in (twice, last):
        assert all(map(torch.equal, once, again))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(value, leaves)


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "set_grad_enabled(False)": lambda: torch.set_grad_enabled(False),
}


@pytest.mark.parametrize("mode", MODES)
@KERNELS
def test_without_gradients(mode: str, kernel: KernelName) -> None:
    builtin, manual = twins(4, 6, 2, bidirectional=True)
    input, hx = torch.randn(5, 3, 4), torch.randn(4, 3, 6)
    for given in ((input,), (input, hx)):
        with MODES[mode](), use_kernel(kernel):
            found, expected = manual(*given), builtin(*given)
        assert_same_results(found, expected)
        assert [x.requires_grad for x in found] == [x.requires_grad for x in expected] == [False, False]
        assert [x.is_inference() for x in found] == [x.is_inference() for x in expected]
