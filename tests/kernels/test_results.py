r"""What the operators in C give back: of no rows, of more than there is memory for; tensors like others."""

from functools import partial

import pytest
import torch
from engine import NEEDS_C, OPERATORS, SIZES, calls, draw_network, flat, vjp_arguments, with_nan_in_new_memory
from internals import OPS, native
from torch import Tensor

pytestmark = NEEDS_C


@pytest.mark.parametrize("rows", [(0, 3), (4, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("given", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("dtype", native.TYPES, ids=str)
def test_without_steps_or_rows(rows: tuple[int, ...], given: bool, dtype: torch.dtype) -> None:
    arguments = draw_network(L=2, D=2, rows=rows, dtype=dtype)
    arguments[1] = arguments[1] if given else None
    output, h_n, *states = with_nan_in_new_memory(lambda: OPS.network(*arguments))
    assert {x.shape for x in (output, *states)} == {(*rows, 10)}
    assert torch.equal(h_n, arguments[1] if given else torch.zeros_like(h_n))
    vjp = vjp_arguments(arguments)
    dx, *rest = with_nan_in_new_memory(lambda: OPS.network_vjp(*vjp))
    assert dx.shape == arguments[0].shape
    assert torch.equal(rest.pop(0), vjp[6]) if given else True
    assert len(rest) == len(arguments[2])
    assert not any(g.any() for g in rest)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("dtype", native.TYPES, ids=str)
def test_without_inputs(dtype: torch.dtype, D: int, packed: bool) -> None:
    """As with one that is zero."""
    sizes = SIZES if packed else None
    one = draw_network(L=2, D=D, I=1, sizes=sizes, dtype=dtype)
    one[0].zero_()
    none = [one[0][..., :0], one[1], [w[:, :0] if w.size(-1) == 1 else w for w in one[2]], *one[3:]]
    found, expected = (with_nan_in_new_memory(partial(OPS.network, *a)) for a in (none, one))
    assert all(map(torch.equal, found, expected))
    seeded = [(torch.manual_seed(0), vjp_arguments(a))[1] for a in (none, one)]
    found, expected = (with_nan_in_new_memory(partial(OPS.network_vjp, *a)) for a in seeded)
    for ours, right in zip(found, expected, strict=True):
        assert torch.equal(ours, right[..., :0] if right.size(-1) == 1 else right)


def test_a_failed_allocation_raises() -> None:
    H = 2**26
    w, b = torch.zeros(1).expand(H, H), torch.zeros(1).expand(H)  # packed, w would be 2^54 bytes
    with pytest.raises(RuntimeError, match="memory"):
        OPS.network(
            torch.zeros(1, 1, 2), None, [b[:, None].expand(H, 2), w, b, b], None, "tanh", False, True, False
        )
    with pytest.raises(RuntimeError, match="memory"):
        OPS.elman(torch.zeros(1).expand(1, 1, H), torch.zeros(1).expand(1, H), w, None, "tanh", False)
    n, states = (
        2**53,
        torch.zeros(1, dtype=torch.float64).expand(2**53, 1, 256),
    )  # 2^64 bytes: none, by overflow
    w = torch.zeros(256, 256, dtype=torch.float64)
    call = (
        [False, False, *[True] * 4],
        states[..., :2].expand(n, 1, 2),
        None,
        [w[:, :2], w, w, w],
        [states] * 2,
    )
    with pytest.raises(RuntimeError, match="no memory"):
        OPS.network_vjp(*call, states, None, None, "tanh", False)


@OPERATORS
def test_what_comes_back_is_a_tensor_like_any_other(name: str) -> None:
    operator, arguments = calls()[name]
    for x in flat(operator(*arguments)):
        assert type(x) is Tensor
        assert x.is_leaf
        assert not x.requires_grad
        assert x.is_contiguous()
        assert x.untyped_storage().nbytes() == x.nbytes
        assert x._version == 0
        y = x.clone()
        x.add_(1).sub_(1).resize_(20, 20)
        assert torch.allclose(x.flatten()[: y.numel()], y.flatten(), rtol=0, atol=1e-6)
        assert torch.equal(torch.from_numpy(y.numpy()), y)
        x.untyped_storage().resize_(0)
    with torch.inference_mode():
        assert all(x.is_inference() for x in flat(operator(*arguments)))
