r"""What counters of cost report of an `nn.RNN` they report of a `ManualRNN`, forward and backward."""

import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from helpers import EVERY_OPTION, KERNELS, kernels_for, packed, twins
from internals import KernelName
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from manual_rnn import ManualRNN, use_kernel

# Torch's own, up to 2.12.
pytestmark = pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")


def counted(rnn: Any, x: Tensor, hx: Tensor | None, pack: Any = lambda x: x) -> tuple[int, int]:
    """Forward, and backward."""
    with FlopCounterMode(display=False) as forward:
        output, h_n = rnn(pack(x), hx)
    output = output if isinstance(output, Tensor) else output.data
    with FlopCounterMode(display=False) as backward:
        (output.sum() + h_n.sum()).backward()
    return forward.get_total_flops(), backward.get_total_flops()


@KERNELS
@EVERY_OPTION
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("wanted", [False, True], ids=["weights", "all"])
def test_flops(wanted: bool, given: bool, options: dict[str, Any], kernel: KernelName) -> None:
    """With the gradients of the weights alone, and with those of input and state too."""
    builtin, manual = twins(5, 7, **options)
    dtype = options.get("dtype", torch.float32)
    if kernel not in kernels_for(dtype):
        kernel = "default"
    x = torch.randn(4, 3, 5, dtype=dtype, requires_grad=wanted)
    states, B = builtin.num_layers * (1 + builtin.bidirectional), 4 if builtin.batch_first else 3
    hx = torch.randn(states, B, 7, dtype=dtype, requires_grad=wanted) if given else None
    with use_kernel(kernel):
        assert counted(manual, x, hx) == counted(builtin, x, hx)


@KERNELS
@pytest.mark.parametrize("both", [False, True], ids=["forward", "both directions"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("lengths", [[4, 3, 1], [2, 4, 4], [3, 3, 3]], ids=["sorted", "unsorted", "equal"])
def test_flops_of_a_packed_input(lengths: list[int], given: bool, both: bool, kernel: KernelName) -> None:
    """Backward `nn.RNN` also multiplies zeros where a sequence is at its end, which count."""
    builtin, manual = twins(5, 7, 2, bidirectional=both)
    x, pack = torch.randn(4, 3, 5), partial(packed, lengths=lengths)
    hx = torch.randn(2 * (1 + both), 3, 7, requires_grad=True) if given else None
    with use_kernel(kernel):
        assert counted(manual, x, hx, pack) == counted(builtin, x, hx, pack)


@KERNELS
@pytest.mark.parametrize("layer", [0, 1])
def test_flops_of_a_direction_that_is_frozen(layer: int, kernel: KernelName) -> None:
    """Below it nothing wants a gradient either, so that there is no backward pass through it."""
    builtin, manual = twins(5, 7, 2, bidirectional=True)
    for rnn in (builtin, manual):
        for name, weight in rnn.named_parameters():
            weight.requires_grad_(f"l{layer}" in name and "reverse" in name)
    with use_kernel(kernel):
        assert counted(manual, torch.randn(4, 3, 5), None) == counted(builtin, torch.randn(4, 3, 5), None)


def test_flops_without_a_gradient_and_by_module() -> None:
    for decorate in (torch.no_grad(), torch.inference_mode()):
        found = []
        for rnn in twins(5, 7, 2):
            model = nn.Sequential(rnn)
            with decorate, FlopCounterMode(display=False) as counter:
                model(torch.randn(4, 3, 5))
            counts = counter.get_flop_counts()
            assert sum(counts["Sequential.0"].values()) == counter.get_total_flops()
            found.append(counter.get_total_flops())
        assert found[0] == found[1] > 0


def test_flops_of_an_ensemble() -> None:
    """What `nn.RNN` can't run counts as its members do."""
    _, manual = twins(5, 7)
    x = torch.randn(6, 4, 3, 5)
    weights = {name: torch.stack([w.detach()] * 6) for name, w in manual.named_parameters()}
    with FlopCounterMode(display=False) as one:
        manual(x[0])
    with FlopCounterMode(display=False) as all_members:
        torch.vmap(lambda w, x: torch.func.functional_call(manual, w, (x,)))(weights, x)
    assert all_members.get_total_flops() == 6 * one.get_total_flops()


def test_flops_of_an_exported_program() -> None:
    builtin, manual = twins(5, 7)
    x = torch.randn(4, 3, 5)
    program = torch.export.export(manual, (x,)).module()
    with FlopCounterMode(display=False) as counter:
        program(x)
    assert counter.get_total_flops() == counted(builtin, x, None)[0]


FRESH = """
import sys, torch
from manual_rnn import ManualRNN
ManualRNN(5, 7)(torch.randn(4, 3, 5))
assert "torch.utils.flop_counter" not in sys.modules
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    ManualRNN(5, 7)(torch.randn(4, 3, 5))
assert counter.get_total_flops() == 2 * 4 * 3 * 7 * (5 + 7)
"""


@pytest.mark.slow
def test_the_counter_is_loaded_by_whoever_wants_it() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", FRESH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def events(rnn: Any, x: Any) -> dict[str, Any]:
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
        output: Any = rnn(x)[0]
        output = output.data if isinstance(output, PackedSequence) else output
        if output.requires_grad:
            output.sum().backward()
    return {event.key: event for event in profiler.key_averages()}


@KERNELS
@pytest.mark.parametrize("steps", [4, 12])
def test_a_profiler_counts_a_recorded_backward_pass_once(steps: int, kernel: KernelName) -> None:
    """Its products are seen, so it isn't told of them, too."""
    manual, x = ManualRNN(5, 7), torch.randn(steps, 3, 5)

    def work() -> None:
        torch.autograd.grad(manual(x)[0].sum(), list(manual.parameters()), create_graph=True)

    with use_kernel(kernel):
        with FlopCounterMode(display=False) as counter:
            work()
        with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
            work()
    products = sum(event.flops for event in profiler.key_averages() if "mm" in event.key)
    assert products == counter.get_total_flops()


@KERNELS
@pytest.mark.parametrize("wanted", [False, True], ids=["forward", "training"])
def test_a_call_is_an_event_with_a_name(wanted: bool, kernel: KernelName) -> None:
    builtin, manual = (rnn.requires_grad_(wanted) for rnn in twins(5, 7, 2))
    x = torch.randn(4, 3, 5)
    with use_kernel(kernel):
        found = events(manual, x)
    assert events(builtin, x)["aten::rnn_tanh"].count == 1
    if kernel == "reference":
        assert found["aten::tanh"].count == 2 * 4  # operations of torch, each an event of its own
        return
    if kernel == "aten":
        assert found["aten::rnn_tanh"].count == 1
        return
    names = ("manual_rnn::network", "manual_rnn::network_vjp")
    if kernel in ("default", "native"):
        names = "aten::_cudnn_rnn", "aten::_cudnn_rnn_backward"
    assert found[names[0]].count == 1
    assert (names[1] in found) == wanted


def products(found: dict[str, Any]) -> int:
    """Of matrices; sums are counted too, and `nn.RNN` makes others."""
    return sum(found[name].flops for name in ("aten::mm", "aten::addmm", "aten::bmm") if name in found)


@KERNELS
@EVERY_OPTION
@pytest.mark.parametrize("wanted", [False, True], ids=["forward", "training"])
def test_flops_in_the_profiler(wanted: bool, options: dict[str, Any], kernel: KernelName) -> None:
    """Products that a kernel makes out of its sight are told it."""
    builtin, manual = (rnn.requires_grad_(wanted) for rnn in twins(5, 7, **options))
    dtype = options.get("dtype", torch.float32)
    x = torch.randn(4, 3, 5, dtype=dtype)
    with use_kernel(kernel if kernel in kernels_for(dtype) else "default"):
        assert products(events(manual, x)) == products(events(builtin, x))


@KERNELS
def test_flops_in_the_profiler_of_a_packed_input(kernel: KernelName) -> None:
    builtin, manual = (rnn.requires_grad_(False) for rnn in twins(5, 7, 2, bidirectional=True))
    x = packed(torch.randn(4, 3, 5), [4, 2, 1])
    with use_kernel(kernel):
        assert products(events(manual, x)) == products(events(builtin, x))
        training = products(events(manual.requires_grad_(True), x))
    assert 0.7 < training / products(events(builtin.requires_grad_(True), x)) <= 1


@KERNELS
def test_flops_in_the_profiler_of_wide_weights(kernel: KernelName) -> None:
    """For which the kernel in C leaves the product with the input to torch."""
    builtin, manual = (rnn.requires_grad_(False) for rnn in twins(600, 600))
    x = torch.randn(2, 1, 600)
    with use_kernel(kernel):
        assert products(events(manual, x)) == products(events(builtin, x))


def test_without_a_profiler_there_is_no_event() -> None:
    assert not torch.autograd._profiler_enabled()
    manual = ManualRNN(5, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manual_rnn.ops.profiler.record_network", None)
        manual(torch.randn(4, 3, 5))[0].sum().backward()
