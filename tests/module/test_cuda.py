r"""The same on a GPU: against `nn.RNN`, or the module itself, on the CPU in float64."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import PHI, assert_as_accurate, assert_same, error, gradients, packed
from internals import OPS, kernels, triton_launch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence

from manual_rnn import KernelName, ManualRNN, explain_kernel, use_kernel

CARD = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")

BOUND = 2e-5  # of float32
LENGTHS = pytest.mark.parametrize("lengths", [None, [7, 4, 4, 1], [1, 7, 4, 2]], ids=str)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """float32 is multiplied as such, but where a test says otherwise."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def compare(dtype: torch.dtype, lengths: list[int] | None, nonlinearity: str = "tanh") -> None:
    """Output, `h_n` and every gradient of a network on the card."""
    builtin = nn.RNN(3, 5, 2, nonlinearity, bidirectional=True).to(dtype)
    manual = ManualRNN.from_builtin(copy.deepcopy(builtin)).to(CARD)
    input, hx = (torch.randn(shape).to(dtype).requires_grad_() for shape in ((7, 4, 3), (4, 4, 5)))
    pack = lambda x: packed(x, lengths) if lengths else x  # noqa: E731
    there = [x.detach().to(CARD).requires_grad_() for x in (input, hx)]
    found = {name: x.cpu() for name, x in gradients(manual, there[0], there[1], pack).items()}
    exact = gradients(copy.deepcopy(builtin).double(), input.double(), hx.double(), pack)
    if dtype is torch.float64:
        assert_same(found, exact)
    else:
        assert_as_accurate(found, gradients(builtin, input, hx, pack), exact, multiple=4)


@PHI
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@LENGTHS
@pytest.mark.parametrize("kernel", ["default", "aten", "triton", "torch", "reference"])
def test_equals_builtin_on_the_cpu(
    kernel: KernelName, lengths: list[int] | None, dtype: torch.dtype, nonlinearity: str
) -> None:
    able = kernels.KERNELS.get(kernel)
    if able and (reason := able.unsupported_reason(torch.empty(1, 1, 5, dtype=dtype, device=CARD))):
        pytest.skip(reason)
    with use_kernel(kernel):
        compare(dtype, lengths, nonlinearity)


@LENGTHS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("lower", [None, torch.float16, torch.bfloat16], ids=str)
def test_bitwise_builtin_on_the_card(
    lower: torch.dtype | None, dtype: torch.dtype, lengths: list[int] | None
) -> None:
    """Under autocast too, which for cuDNN's networks is one of float16."""
    builtin = nn.RNN(3, 5, 2, bidirectional=True, device=CARD, dtype=dtype)
    x, hx = (torch.randn(shape, device=CARD, dtype=dtype) for shape in ((7, 4, 3), (4, 4, 5)))
    pack = lambda x: packed(x, lengths) if lengths else x  # noqa: E731
    with torch.autocast(CARD, lower or torch.float16, enabled=lower is not None):
        expected, found = (
            gradients(rnn, x.requires_grad_(), hx.requires_grad_(), pack)
            for rnn in (builtin, ManualRNN.from_builtin(copy.deepcopy(builtin)))
        )
    assert_same(found, expected, bound=0)


@LENGTHS
def test_a_training_step_needs_no_more_memory_than_the_builtins(lengths: list[int] | None) -> None:
    most = []
    for kind in (nn.RNN, ManualRNN):
        rnn, x = kind(64, 128, 2, device=CARD), torch.randn(7, 4, 64, device=CARD).repeat(100, 1, 1)
        given: Any = packed(x, [100 * length for length in lengths]) if lengths else x
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            output = rnn(given)[0]
            (output.data if isinstance(output, PackedSequence) else output).sum().backward()
            rnn.zero_grad()
        most.append(torch.cuda.max_memory_allocated() - before)
    assert most[1] <= 1.05 * most[0]


@LENGTHS
@pytest.mark.parametrize("reverse", [False, True])
def test_a_layer_of_an_operator(reverse: bool, lengths: list[int] | None) -> None:
    """cuDNN's, unless it is packed and reversed."""
    sizes = packed(torch.empty(7, 4, 1), lengths).batch_sizes if lengths else None
    rows = (7, 4) if sizes is None else (int(sizes.sum()),)
    drawn = [
        torch.randn(shape, dtype=torch.float64) for shape in ((*rows, 3), (4, 5), (5, 3), (5, 5), (5,), (5,))
    ]
    how = sizes, "relu", reverse, "default"
    found = OPS.layer(*(x.to(CARD) for x in drawn), *how)
    assert max(error(a.cpu(), b) for a, b in zip(found, OPS.layer(*drawn, *how), strict=True)) < 1e-12


@pytest.mark.parametrize("lengths", [[7, 4, 4, 1], [1, 7, 4, 2]], ids=str)
def test_packed_through_padded(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "PADS_PACKED", True)
    compare(torch.float64, lengths)


@pytest.mark.parametrize(("kind", "width"), list(triton_launch.CONFIGURATIONS))
def test_each_configuration_of_triton(kind: str, width: int) -> None:
    """Its self-test, at the width itself and below it."""
    device = torch.device(CARD, torch.cuda.current_device())
    if reason := triton_launch._why_not_on(device, triton_launch.CONFIGURATIONS[kind, width]):
        pytest.skip(reason)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=kind == "tf32"):
        for dtype in (torch.float16, torch.bfloat16) if kind == "half" else (torch.float32,):
            for H in (width, width - 3):
                assert triton_launch._self_test(device, dtype, H) is None


@pytest.mark.parametrize("members", [1, 8, 64])
def test_an_ensemble(members: int) -> None:
    rnns, x = [ManualRNN(3, 20) for _ in range(members)], torch.randn(30, 17, 3)
    weights = {name: p.detach() for name, p in stack_module_state(rnns)[0].items()}  # type: ignore[arg-type]

    def outputs(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return vmap(lambda w: functional_call(rnns[0], w, x)[0])(weights)

    exact = outputs({name: p.double() for name, p in weights.items()}, x.double())
    found = outputs({name: p.to(CARD) for name, p in weights.items()}, x.to(CARD))
    assert error(found.cpu(), exact) < BOUND


def test_what_cudnn_refuses() -> None:
    """Gradients in `eval()`, a second backward, second derivatives."""
    manual = ManualRNN(2, 3, dtype=torch.float64, device=CARD).eval()
    input = torch.randn(4, 2, 2, dtype=torch.float64, device=CARD, requires_grad=True)
    value = manual(input)[0].sin().sum()
    first = torch.autograd.grad(value, input, retain_graph=True)[0]
    assert error(torch.autograd.grad(value, input)[0], first) < 1e-12
    assert torch.autograd.gradgradcheck(lambda x: manual(x)[0], (input,))
    assert torch.autograd.gradgradcheck(
        lambda x: manual(x, x[:1].mean(-1, True).expand(1, 2, 3))[0], (input,)
    )


def test_a_second_derivative_under_autocast() -> None:
    """Of weights that PyTorch cast and laid out for cuDNN."""
    rnn, x = ManualRNN(3, 5, 2, bidirectional=True), torch.randn(7, 4, 3)
    grads = []
    for network, input in ((copy.deepcopy(rnn).double(), x.double()), (rnn.to(CARD), x.to(CARD))):
        with torch.autocast(CARD, torch.float16, enabled=input.is_cuda):
            value = network(input.requires_grad_())[0].float().sin().sum()
        first = torch.autograd.grad(value, input, create_graph=True)[0]
        grads.append([g.cpu() for g in torch.autograd.grad(first.sin().sum(), list(network.parameters()))])
    assert max(map(error, grads[1], grads[0])) < 0.02


def test_cudnn_runs() -> None:
    told = explain_kernel(ManualRNN(3, 4, device=CARD), torch.randn(5, 2, 3, device=CARD))
    assert "aten      runs: the fastest that can" in told


@pytest.fixture
def _waiting_allowed_again() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_waiting_allowed_again")
@pytest.mark.parametrize(
    ("kernel", "lengths"), [("aten", None), ("triton", None), ("torch", None), ("torch", [5, 3])], ids=str
)
def test_nothing_waits_for_the_card(kernel: KernelName, lengths: list[int] | None) -> None:
    rnn, x = ManualRNN(3, 4, 2, device=CARD), torch.rand(5, 2, 3, device=CARD)
    given: Any = packed(x, lengths) if lengths else x
    with use_kernel(kernel):
        rnn(given)  # a self-test waits, once
        torch.cuda.set_sync_debug_mode("error")
        output = rnn(given)[0]
    (output.data if isinstance(output, PackedSequence) else output).sum().backward()


def after_backward(model: nn.Module, rnn: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Results of `model` and the gradients that `rnn` holds then, to be compared with `gradients`."""
    rnn.zero_grad()
    output, h_n = model(x)
    torch.manual_seed(1)
    cotangents = [torch.randn(v.shape, dtype=torch.float64).to(v) for v in (output, h_n)]
    torch.autograd.backward([output, h_n], cotangents)
    found = {"output": output.detach(), "h_n": h_n.detach()}
    for name, p in rnn.named_parameters():
        found[name] = getattr(p.grad, "full_tensor", lambda grad=p.grad: grad)()
    return {name: value.cpu().double() for name, value in found.items()}


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("kernel", ["default", "torch"])
def test_compiled(kernel: KernelName, mode: str) -> None:
    rnn, x = ManualRNN(3, 20, 2, device=CARD), torch.randn(9, 17, 3)
    expected = gradients(copy.deepcopy(rnn).cpu().double(), x.double())
    with use_kernel(kernel):
        compiled: Any = torch.compile(rnn, mode=mode, fullgraph=True)
        for _ in range(3):  # the third replays a graph
            found = after_backward(compiled, rnn, x.to(CARD))
    assert_same(found, expected, BOUND)


@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
def test_distributed(kind: str, tmp_path: Path) -> None:
    """A world of one card."""
    from torch.distributed.fsdp import fully_shard

    exact, x = ManualRNN(3, 4, dtype=torch.float64), torch.randn(5, 2, 3, dtype=torch.float64)
    rnn: Any = copy.deepcopy(exact).to(CARD)
    dist.init_process_group("nccl", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(rnn) if kind == "DDP" else fully_shard(rnn)
        assert_same(after_backward(model, rnn, x.to(CARD)), gradients(exact, x))
    finally:
        dist.destroy_process_group()
