r"""What a training step needs of memory, beside nn.RNN: one copy of the states of every layer."""

import subprocess
import sys
from itertools import accumulate
from typing import Any

import pytest
import torch
from internals import address, is_shared, native
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.profiler import ProfilerActivity, profile

from manual_rnn import ManualRNN

T, B, H = 600, 32, 128
STATES = 4 * T * B * H  # bytes
STEP = """
import re, sys, torch
from manual_rnn import ManualRNN

def most():
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])

kind, layers, T, B, H = eval(sys.argv[1])
torch.set_num_threads(1)
rnn = kind(H, H, layers)
for steps in (10, T):
    before = most()
    input = torch.randn(steps, B, H)
    rnn(input)[0].sum().backward()
print(1024 * (most() - before))
"""

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.skipif(not native.has_aten_node, reason="no compiler, or another torch"),
    pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning"),  # torch up to 2.12
]


def test_a_training_step_needs_little_more_than_half_of_the_memory_of_nn_rnn() -> None:
    """In processes of their own, each after a short step that loads what is loaded late."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", STEP, f"{kind}, 2, {T}, {B}, {H}"], stdout=subprocess.PIPE, text=True
        )
        for kind in ("ManualRNN", "torch.nn.RNN")
    ]
    ours, torchs = (int(run.communicate(timeout=120)[0]) for run in runs)
    assert torchs > 7 * STATES  # the measure works
    assert ours <= 0.6 * torchs
    assert ours <= 4.7 * STATES  # the input, states of both layers, the gradient between them, and a block's


def test_a_result_is_ordinary_memory_and_the_states_are_the_node_s() -> None:
    """One copy, which backward reads where it lies; the output may be written to."""
    rnn, input = ManualRNN(3, 5), torch.randn(6, 4, 3, requires_grad=True)
    output, _ = rnn(input)
    node: Any = output.grad_fn
    while "CudnnRnn" not in type(node).__name__:
        node = node.next_functions[0][0]
    kept = node._saved_result0
    assert kept.shape == (1, *output.shape)
    assert torch.equal(kept[0], output)
    assert not is_shared(output)
    assert output.untyped_storage().data_ptr() != kept.untyped_storage().data_ptr()
    place = address(kept)
    with torch.no_grad():
        output.zero_()
    output.sum().backward()
    assert address(kept) == place
    assert kept.any()


def second_derivative(rnn: nn.Module, input: Tensor) -> None:
    loss = rnn(input)[0].square().sum()
    grads = torch.autograd.grad(loss, list(rnn.parameters()), create_graph=True)
    torch.autograd.grad(torch.cat([g.flatten() for g in grads]).square().sum(), list(rnn.parameters()))


@pytest.mark.parametrize(("layers", "limit"), [(1, 1.3), (2, 1.0)])
def test_a_second_derivative_needs_little_more_memory_than_that_of_nn_rnn(layers: int, limit: float) -> None:
    """Where nn.RNN has one step of a layer in work, ours has all."""
    input, most = torch.randn(12, 64, 16), []
    for kind in (ManualRNN, nn.RNN):
        rnn = kind(16, 64, layers)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            second_derivative(rnn, input)
        results: Any = profiler.profiler
        events = sorted(results.kineto_results.events(), key=lambda event: event.start_ns())
        held = accumulate(event.nbytes() for event in events if event.name() == "[memory]")
        most.append(max(held))
    assert most[0] <= limit * most[1]


@pytest.mark.parametrize("again", [False, True], ids=["backward", "create_graph"])
@pytest.mark.parametrize("form", ["padded", "batch_first", "packed", "unbatched", "hx", "cotangent"])
def test_what_a_network_makes_is_not_copied_in_the_next(form: str, again: bool) -> None:
    """Its output is memory that is kept for backward as well, until someone writes to it."""
    grads = []
    for kind in (nn.RNN, ManualRNN):
        torch.manual_seed(0)
        first, second = (kind(5, 5, dtype=torch.float64, batch_first=form == "batch_first") for _ in "12")
        x = torch.randn(
            *((6,) if form == "unbatched" else (6, 4)), 5, dtype=torch.float64, requires_grad=True
        )
        given: Any = pack_padded_sequence(x, [6, 4, 4, 1]) if form == "packed" else x
        output = first(given)[0]
        numbers = output.data if form == "packed" else output
        place = address(numbers)
        result = second(x, output[-1:]) if form == "hx" else second(x if form == "cotangent" else output)
        result = result[0].data if form == "packed" else result[0]
        given_back = numbers if form == "cotangent" else torch.randn_like(result)
        leaves = [x, *second.parameters()]
        found = torch.autograd.grad(result, leaves, given_back, create_graph=again)
        if again:
            found += torch.autograd.grad(torch.cat([g.flatten() for g in found]).sin().sum(), leaves)
        grads.append(found)
        assert address(numbers) == place
    for ours, theirs in zip(grads[1], grads[0], strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
