r"""The same numbers on a GPU: against `nn.RNN` on the CPU in float64, cuDNN aside."""

from typing import Any

import pytest
import torch
from helpers import assert_same, gradients, packed
from torch import nn

from manual_rnn import ManualRNN, explain_kernel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")

SIZES: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("lengths", [None, [7, 4, 4, 1], [1, 7, 4, 2]])
def test_equals_builtin_on_the_cpu(nonlinearity, lengths):
    input = torch.randn(7, 4, 3, dtype=torch.float64, requires_grad=True)
    pack = (lambda x: packed(x, lengths)) if lengths else (lambda x: x)
    builtin = nn.RNN(3, 5, **SIZES, nonlinearity=nonlinearity)
    manual = ManualRNN(3, 5, **SIZES, nonlinearity=nonlinearity, device="cuda")
    manual.load_state_dict(builtin.state_dict())
    expected = gradients(builtin, input, pack=pack)
    cuda_input = input.detach().cuda().requires_grad_()
    output, h_n = manual(pack(cuda_input))
    output = output.data if lengths else output
    torch.manual_seed(1)
    cotangents = [torch.randn(x.shape, dtype=x.dtype).cuda() for x in (output, h_n)]
    leaves = {"input": cuda_input, **dict(manual.named_parameters())}
    grads = torch.autograd.grad([output, h_n], list(leaves.values()), cotangents)
    found = {"output": output, "h_n": h_n, **dict(zip(leaves, grads, strict=True))}
    assert_same({name: value.detach().cpu() for name, value in found.items()}, expected)


def test_second_derivatives_which_cudnn_has_not():
    manual = ManualRNN(2, 3, dtype=torch.float64, device="cuda")
    input = torch.randn(4, 2, 2, dtype=torch.float64, device="cuda", requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: manual(x)[0], (input,))


def test_cudnn_runs():
    told = explain_kernel(ManualRNN(3, 4, device="cuda"), torch.randn(5, 2, 3, device="cuda"))
    assert "vendor    runs: the fastest that can" in told
