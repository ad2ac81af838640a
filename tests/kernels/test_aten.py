r"""The whole network as one call of PyTorch's own: bitwise `nn.RNN` on a CPU; when it's cuDNN's."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from helpers import assert_same, on_no_card, packed
from internals import aten
from internals import rnn as ops_rnn
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from manual_rnn import ManualRNN, explain_kernel, use_kernel
from manual_rnn.kernels.interface import LayerWeights, NetworkOptions

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
        with use_kernel("aten"):
            output, h_n = rnn(given)
        output = output if isinstance(output, Tensor) else output.data
        (output.sin().sum() + h_n.cos().sum()).backward()
        values = {"output": output, "h_n": h_n, "input": x.grad}
        results.append({**values, **{name: p.grad for name, p in rnn.named_parameters()}})
    expected, found = results
    assert_same(found, expected, bound=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [[], [2, 2, 1]], ids=str)
def test_cudnn_takes_these_arguments(sizes: list[int], bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without numbers, which torch has for CUDA on any machine; they lie nowhere."""
    monkeypatch.setattr(aten, "_block", lambda _: None)
    options = NetworkOptions(torch.tensor(sizes) if sizes else None, "tanh", True, bias, "aten")
    with FakeTensorMode(allow_non_fake_inputs=True):
        rnn = nn.RNN(3, 4, 2, bidirectional=True, bias=bias)
        flat = [torch.empty(p.shape, device="cuda") for p in rnn.parameters()]
        x = torch.empty(*((sum(sizes),) if sizes else (5, 2)), 3, device="cuda")
        hx = torch.empty(4, 2, 4, device="cuda")
        output, h_n = aten.cudnn(x, hx, flat, options, False, True)
    assert output.shape == (*x.shape[:-1], 8)
    assert h_n.shape == hx.shape
    assert output.device.type == h_n.device.type == "cuda"


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float32, torch.float16), (torch.float16, torch.float16), (torch.bfloat16, torch.bfloat16)],
    ids=str,
)
def test_autocast_on_a_card_is_one_of_float16(
    dtype: torch.dtype, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its type; but `nn.RNN` doesn't go to cuDNN with a bfloat16 input."""
    monkeypatch.setattr(aten, "HAS_CUDNN", True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(ops_rnn, "any_autocast", lambda: True)
    with FakeTensorMode():
        input, hx, weight = (
            torch.empty(3, 3, 3, dtype=d, device="cuda") for d in (dtype, *[torch.float32] * 2)
        )
        found, state, weights = ops_rnn.autocast(input, hx, [LayerWeights(weight, weight)])
    assert {found.dtype, state.dtype, weights[0][0].dtype} == {expected}
    assert not aten.autocasts_to_half(torch.empty(3))
    with torch.backends.cudnn.flags(enabled=False):
        assert not aten.autocasts_to_half(input)


def test_explain_kernel_names_it_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aten, "HAS_CUDNN", True)
    monkeypatch.setattr(torch, "cudnn_is_acceptable", lambda _: True)
    monkeypatch.setattr(ops_rnn.dispatch, "can_bypass_dispatcher", lambda *_: True)
    rnn = ManualRNN(3, 4)
    with FakeTensorMode():
        on_no_card(rnn)
        told = explain_kernel(rnn, torch.empty(5, 2, 3, device="cuda"))
        with use_kernel("native"):
            asked = explain_kernel(rnn, torch.empty(5, 2, 3, device="cuda"))
    assert "aten      runs: the fastest that can" in told
    assert "triton    can't run here: torch sees no CUDA device here" in told
    assert "torch     could run too, but aten was chosen" in told
    assert "native    was asked for and would raise: expected floating-point numbers on the CPU" in asked
