r"""The whole network as one call of PyTorch's own: bitwise `nn.RNN` on a CPU, and the node around cuDNN with
ATen in its place, since no test may need a GPU."""

import operator
from copy import deepcopy
from typing import Any

import pytest
import torch
from helpers import assert_same, on_no_card, packed, twins
from internals import Network, network, vendor
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from manual_rnn import ManualRNN, explain_kernel, use_kernel

OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"num_layers": 3, "dropout": 0.3, "nonlinearity": "relu"},
    {"bias": False, "bidirectional": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["padded", "packed"])
def test_bitwise_nn_rnn_on_a_cpu(form: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    builtin = nn.RNN(4, 6, dtype=dtype, **options)
    results = []
    for rnn in (builtin, ManualRNN.from_builtin(deepcopy(builtin))):
        torch.manual_seed(1)
        x = torch.randn(3, 3, 4, dtype=dtype, requires_grad=True)
        given = x if form == "padded" else packed(x, [3, 2, 1], options.get("batch_first", False))
        with use_kernel("vendor"):
            output, h_n = rnn(given)
        output = output if isinstance(output, Tensor) else output.data
        (output.sin().sum() + h_n.cos().sum()).backward()
        values = {"output": output, "h_n": h_n, "input": x.grad}
        results.append({**values, **{name: p.grad for name, p in rnn.named_parameters()}})
    expected, found = results
    assert_same(found, expected, bound=0)


@pytest.fixture
def aten_for_cudnn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """cuDNN's two functions computed by ATen; the calls are listed."""
    calls: list[str] = []

    def forward(x: Any, hx: Any, flat: Any, bias: bool, sizes: Any, phi: str, two: bool, train: bool) -> Any:
        calls.append("forward")
        run = vendor.RUN[phi]
        how = (list(flat), bias, hx.size(0) // (1 + two), 0.0, False, two)
        rows = torch.tensor(sizes)
        output, h_n = run(x, rows, hx, *how) if sizes else run(x, hx, *how, False)
        return output, h_n, x.new_zeros(1), x.new_zeros(1)

    def backward(
        x: Any,
        hx: Any,
        flat: Any,
        bias: bool,
        sizes: Any,
        phi: str,
        two: bool,
        output: Any,
        c: Any,
        c_last: Any,
        *_: Any,
    ) -> Any:
        calls.append("backward")
        leaves = [t.detach().requires_grad_() for t in (x, hx, *flat)]
        with torch.enable_grad():
            found = forward(leaves[0], leaves[1], leaves[2:], bias, sizes, phi, two, True)
        pairs = [(o, g) for o, g in zip(found, (c, c_last), strict=False) if g is not None]
        grads = torch.autograd.grad([o for o, _ in pairs], leaves, [g for _, g in pairs])
        return grads[0], grads[1], list(grads[2:])

    monkeypatch.setattr(vendor, "cudnn_forward", forward)
    monkeypatch.setattr(vendor, "cudnn_backward", backward)
    return calls


def node(rnn: Any, x: Tensor, hx: Tensor, sizes: Tensor | None = None) -> Any:
    return Network.apply((rnn.bias, sizes, rnn.nonlinearity, rnn.bidirectional), x, hx, *rnn.parameters())


@pytest.mark.parametrize(
    "options", [OPTIONS[0], {"num_layers": 2, "bidirectional": True}, OPTIONS[3]], ids=str
)
@pytest.mark.parametrize("form", ["padded", "packed"])
def test_the_node_has_every_derivative(form: str, options: dict[str, Any], aten_for_cudnn: list[str]) -> None:
    builtin, manual = twins(3, 4, dtype=torch.float64, **options)
    sizes = None if form == "padded" else torch.tensor([3, 2, 1])
    x = torch.randn((3, 3, 3) if sizes is None else (6, 3), dtype=torch.float64, requires_grad=True)
    hx = torch.randn(len(builtin.all_weights), 3, 4, dtype=torch.float64, requires_grad=True)
    leaves = [x, hx, *manual.parameters()]
    given = x if sizes is None else nn.utils.rnn.PackedSequence(x, sizes)
    expected, h_n = builtin(given, hx)
    expected = expected if isinstance(expected, Tensor) else expected.data
    wanted = torch.autograd.grad(expected.sin().sum() + h_n.cos().sum(), [x, hx, *builtin.parameters()])
    output, last = node(manual, x, hx, sizes)
    value = output.sin().sum() + last.cos().sum()
    for _ in range(2):  # the second goes by the layers
        found = torch.autograd.grad(value, leaves, retain_graph=True)
        assert_same(dict(enumerate(found)), dict(enumerate(wanted)), 1e-12)  # type: ignore[arg-type]
    assert aten_for_cudnn.count("backward") == 1
    assert gradgradcheck(lambda x, hx: node(manual, x, hx, sizes), (x, hx))


def test_the_node_gives_what_is_needed(aten_for_cudnn: list[str]) -> None:
    rnn = ManualRNN(3, 4, dtype=torch.float64)
    rnn.weight_hh_l0.requires_grad_(False)
    output, _ = node(
        rnn, torch.randn(3, 2, 3, dtype=torch.float64), torch.zeros(1, 2, 4, dtype=torch.float64)
    )
    output.sum().backward()
    assert rnn.weight_hh_l0.grad is None
    assert rnn.weight_ih_l0.grad is not None


class Backward(TorchDispatchMode):
    """cuDNN's derivative, which torch can't fake: keeps its arguments, by their names in the operator's
    schema, and answers in their shapes."""

    given: dict[str, Any]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten._cudnn_rnn_backward.default:
            return func(*args, **(kwargs or {}))
        self.given = dict(zip([a.name for a in func._schema.arguments], args, strict=True))
        like = torch.empty_like
        return like(self.given["input"]), like(self.given["hx"]), None, list(map(like, self.given["weight"]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [[], [2, 2, 1]], ids=str)
def test_cudnn_takes_the_arguments_in_this_order(sizes: list[int], bias: bool) -> None:
    """On tensors without numbers, which torch has for CUDA on any machine."""
    with FakeTensorMode():
        rnn = nn.RNN(3, 4, 2, bidirectional=True, bias=bias)
        flat = [torch.empty(p.shape, device="cuda") for p in rnn.parameters()]
        x = torch.empty(*((sum(sizes),) if sizes else (5, 2)), 3, device="cuda")
        hx, how = torch.empty(4, 2, 4, device="cuda"), (bias, sizes, "tanh", True)
        output, h_n, reserve, buffer = vendor.cudnn_forward(x, hx, flat, *how, True)
        with Backward() as backward:
            need = True, False, True
            found = vendor.cudnn_backward(x, hx, flat, *how, output, output, h_n, reserve, buffer, need)
    assert output.shape == (*x.shape[:-1], 8)
    assert h_n.shape == hx.shape
    assert buffer.numel() == sum(p.numel() for p in nn.RNN(3, 4, 2, bidirectional=True).parameters())
    assert [t.shape for t in found[2]] == [w.shape for w in flat]
    tensors = {
        "input": x, "weight_buf": buffer, "hx": hx, "cx": None, "output": output, "grad_output": output,
        "grad_hy": h_n, "grad_cy": None, "dropout_state": None, "reserve": reserve,
    }  # fmt: skip
    assert all(backward.given.pop(name) is x for name, x in tensors.items())
    assert all(map(operator.is_, flat, backward.given.pop("weight")))
    assert backward.given == {
        "weight_stride0": 4 if bias else 2, "mode": 1, "hidden_size": 4, "proj_size": 0, "num_layers": 2,
        "batch_first": False, "dropout": 0.0, "train": True, "bidirectional": True, "batch_sizes": sizes,
        "output_mask": [True, False, False, True],
    }  # fmt: skip


def test_explain_kernel_names_it_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda _: True)
    monkeypatch.setattr(network, "_numbers", lambda _: True)
    rnn = ManualRNN(3, 4)
    with FakeTensorMode():
        on_no_card(rnn)
        told = explain_kernel(rnn, torch.empty(5, 2, 3, device="cuda"))
        with use_kernel("native"):
            asked = explain_kernel(rnn, torch.empty(5, 2, 3, device="cuda"))
    assert "vendor    runs: the fastest that can" in told
    assert "triton    can't run here: torch sees no CUDA device here" in told
    assert "torch     could run too, but vendor was chosen" in told
    assert "native    was asked for and would raise: expected floating-point numbers on the CPU" in asked
