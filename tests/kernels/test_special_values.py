r"""Numbers at the edges of their types through a network in C: NaN, infinities, denormals, tanh in ulp."""

import random

import numpy as np
import pytest
import torch
from cases import HALVES, Case
from engine import NEEDS_C, every_variant
from internals import OPS, native
from torch import Tensor, nn

pytestmark = NEEDS_C


@every_variant
@pytest.mark.parametrize("dtype", native.TYPES)
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_special_values_go_where_they_go_in_nn_rnn(dtype: torch.dtype, special: float) -> None:
    for seed in range(6):
        case = Case(seed, dtype, T=4, B=3, H=17, I=3, L=1 + seed % 2, plain=True, wanted=1.0)
        choice = random.Random(seed)
        victims = [t for t in (case.x, case.hx, case.c, case.c_last, *case.weights) if t is not None]
        victim = choice.choice(victims).data.view(-1)
        victim[choice.randrange(len(victim))] = special
        exact, found = case.by_torch(torch.float64), case.by_c()
        for name, right in exact.items():
            assert torch.equal(found[name].isnan(), right.isnan()), (seed, name)
            assert torch.equal(found[name].isinf(), right.isinf()), (seed, name)
            finite = right.isfinite()
            close = torch.allclose(found[name].double()[finite], right[finite], rtol=1e-4, atol=1e-4)
            assert close or dtype in HALVES, (seed, name)


@pytest.mark.parametrize(("B", "H"), [(1, 17), (17, 17), (1, 65), (30, 64)])
def test_denormal_bfloats_are_kept_where_nn_rnn_keeps_them(B: int, H: int) -> None:
    """Processors that multiply bfloats take them for zeros, which PyTorch accepts in larger products."""
    rnn = nn.RNN(H, H, nonlinearity="relu", bias=False).bfloat16()
    x = torch.full((1, B, H), torch.finfo(torch.bfloat16).smallest_normal / 4, dtype=torch.bfloat16)
    eye, zeros = torch.eye(H, dtype=torch.bfloat16), torch.zeros(H, H, dtype=torch.bfloat16)
    for weights, inputs in (((eye, zeros), (x, 0 * x)), ((zeros, eye), (0 * x, x))):
        with torch.no_grad():
            for own, weight in zip(rnn.parameters(), weights, strict=True):
                own.copy_(weight)
            kept = torch.equal(rnn(*inputs)[0], x)
        found = OPS.network(*inputs, list(weights), None, "relu", False, False, False)[0]
        assert torch.equal(found, x) or (not kept and not found.any())


@every_variant
@pytest.mark.parametrize("dtype", native.TYPES)
def test_denormals_are_kept(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    x = (
        torch.tensor([tiny / 4, -tiny / 8, tiny, 3 * tiny / 4], dtype=dtype)
        .expand(17, 4)
        .T[:, None]
        .contiguous()
    )
    eye, zeros = torch.eye(17, dtype=dtype), torch.zeros(17, 17, dtype=dtype)
    for phi in ("tanh", "relu"):
        output, _, states = OPS.network(x, None, [eye, zeros], None, phi, False, False, True)
        assert torch.equal(output, x if phi == "tanh" else x.relu())
        need = True, False, False, False
        (dx,) = OPS.network_vjp(need, x, None, [eye, zeros], states, x, None, None, phi, False)
        assert torch.equal(dx, x if phi == "tanh" else x * (x > 0))


def through(x: Tensor) -> Tensor:
    """tanh of every number, as C reckons it."""
    one, zero = torch.ones(1, 1, dtype=x.dtype), torch.zeros(1, 1, dtype=x.dtype)
    return OPS.network(x.view(1, -1, 1), None, [one, zero], None, "tanh", False, False, False)[0].flatten()


@every_variant
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 4), (torch.float32, 3)])
def test_tanh_in_ulp(dtype: torch.dtype, bound: float) -> None:
    """Against longdouble, which has 11 bits more than float64."""
    torch.manual_seed(0)
    exponents = torch.arange(-1070 if dtype is torch.float64 else -148, 10)
    x = (1 + torch.rand(len(exponents), 100, dtype=torch.float64)) * 2.0 ** exponents[:, None]
    x = torch.cat([x.flatten(), torch.linspace(0, 25, 100_000, dtype=torch.float64)]).to(dtype)
    x = torch.cat([x, -x])
    found = through(x).double().numpy()
    exact = np.tanh(x.double().numpy().astype(np.longdouble))
    info = torch.finfo(dtype)
    ulp = np.exp2(np.floor(np.log2(np.maximum(np.abs(exact), info.tiny)))) * info.eps
    assert (np.abs(found.astype(np.longdouble) - exact) / ulp).max() <= bound
    assert np.abs(found).max() == 1
    assert np.array_equal(np.signbit(found[found != 0]), np.signbit(x.numpy()[found != 0]))
