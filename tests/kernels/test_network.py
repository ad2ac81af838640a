r"""A whole network and its gradients in C, against `nn.RNN` in float64."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import HALVES, Case, check, check_all, known
from engine import NEEDS_C, draw_network, every_variant, on_threads, vjp_arguments
from internals import OPS, native
from loop import PHI

pytestmark = NEEDS_C


@pytest.fixture(params=[1, 2])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    with on_threads(request.param):
        yield


@every_variant
@pytest.mark.usefixtures("_threads")
def test_float64_agrees_to_1e_12() -> None:
    for seed in range(16):
        check(known(seed, torch.float64), 0, 4000)  # 1e-12


@every_variant
@pytest.mark.usefixtures("_threads")
def test_float32_is_as_accurate_as_nn_rnn() -> None:
    check_all(range(16), 2, torch.float32, 16)


@every_variant
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.usefixtures("_threads")
def test_halves_are_more_accurate_than_nn_rnn(dtype: torch.dtype) -> None:
    """Sums are floats, and states alone are rounded."""
    check_all(range(8), 1, dtype, 32)


@every_variant
@pytest.mark.parametrize("leaky", [True, False])
@pytest.mark.parametrize("phi", PHI)
def test_every_nonlinearity_with_a_leak_and_without(phi: str, leaky: bool) -> None:
    """On both sides of the columns from which threads share rows, too."""
    how = {"phi": phi, "leaky": leaky}
    for seed in range(4):
        check(known(seed, torch.float64, *how.items()), 0, 4000)
    check_all(range(6), 3, torch.float32, 32, **how)  # states that are all positive sum up less exactly
    check_all(range(6), 1.5, torch.bfloat16, 32, **how)
    with on_threads(2):
        sizes = {"T": 12, "B": 3, "H": 270, "I": 5, "L": 1, "wanted": 1.0, "c": True}
        check(known(1, torch.float64, *{**sizes, **how}.items()), 0, 4000)


# T, B, H, I: of odd sizes; over several blocks of time, which have 1024 rows, and 512 of H = 256; of more
# rows than a slice may have; read where they lie.
SIZES = [
    (3, 1, 63, 2), (20, 5, 130, 3), (15, 150, 63, 5), (1100, 1, 3, 1), (15, 150, 1, 17),
    (1, 1, 130, 64), (1, 4, 130, 130), (2, 2, 64, 128), (30, 20, 256, 16), (1, 150, 17, 1),
]  # fmt: skip


@every_variant
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("leaky", [False, True])
def test_any_size(size: tuple[int, ...], leaky: bool) -> None:
    sizes: dict[str, Any] = dict(zip("TBHI", size, strict=True)) | {"wanted": 1.0, "c": True, "leaky": leaky}
    rows = size[0] * size[1]
    for packed, D in ((False, 2), (True, 1)):
        how = {**sizes, "packed": packed, "D": D, "L": 1}
        for dtype in (torch.float32, torch.bfloat16):
            check(known(0, dtype, *how.items()), 2, 16 + rows**0.5)
    how = {**sizes, "D": 2, "L": 1 + (rows < 1000), "plain": False}
    check(known(9, torch.float64, *how.items()), 0, 4000)


@pytest.mark.parametrize("size", [(2, 100, 1400, 3), (1, 100, 7, 1400)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_larger_than_the_cache(size: tuple[int, ...], dtype: torch.dtype) -> None:
    sizes = dict(zip("TBHI", size, strict=True)) | {"wanted": 1.0, "c": True, "packed": False, "L": 1}
    check(known(0, dtype, *sizes.items()), 2, 4000 if dtype is torch.float64 else 30)


def test_results_in_large_pages() -> None:
    sizes = {"T": 500, "B": 140, "H": 128, "I": 1, "D": 1, "L": 1, "wanted": 1.0, "c": True, "packed": False}
    check(known(0, torch.float32, *sizes.items()), 2, 280)


def test_blocks_of_time_are_met() -> None:
    """The sizes above pass the rows of a block, by several blocks."""
    rows = [T * B / min(1024, max(128, 2**17 // H)) for T, B, H, _ in SIZES]
    assert sum(share > 1 for share in rows) >= 4
    assert sum(share < 1 for share in rows) >= 3


@pytest.mark.parametrize("dtype", native.TYPES)
def test_every_subset_of_gradients(dtype: torch.dtype) -> None:
    """Frozen weights, an input or hx without gradient; what isn't wanted changes nothing else."""
    how: dict[str, Any] = {"T": 4, "B": 3, "H": 5, "I": 2, "L": 2, "D": 1, "hx": True, "packed": False}
    whole = Case(1, dtype, **how, need=(True,) * 10)
    expected = whole.by_c()
    for bits in range(1, 2**10, 29):
        case = Case(1, dtype, **how, need=tuple(bool(bits >> i & 1) for i in range(10)))
        found = case.by_c()
        assert len(found) == 2 + sum(case.need)
        for name, x in found.items():
            assert torch.equal(x, expected[name]), (bits, name)


@pytest.mark.parametrize("dtype", native.TYPES, ids=str)
@pytest.mark.parametrize("D", [1, 2])
def test_expanded_cotangents(dtype: torch.dtype, D: int) -> None:
    """As `sum().backward()` and `mean` make them."""
    vjp = vjp_arguments(draw_network(L=2, D=D, dtype=dtype))
    ones = torch.ones((), dtype=dtype).expand(vjp[5].shape)
    one, other = (OPS.network_vjp(*vjp[:5], c, None, *vjp[7:]) for c in (ones, ones.contiguous()))
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("save", [True, False])
def test_states_are_those_of_every_layer(save: bool) -> None:
    arguments = draw_network(L=3, D=2)
    output, h_n, states = OPS.network(*arguments[:-1], save)
    assert len(states) == (3 if save else 0)
    x = arguments[0]
    for at, ours in enumerate(states):
        x, last, _ = OPS.network(
            x, arguments[1][2 * at : 2 * at + 2], arguments[2][8 * at : 8 * at + 8], *arguments[3:-1], False
        )
        assert torch.equal(x, ours)
        assert torch.equal(last, h_n[2 * at : 2 * at + 2])
    assert torch.equal(x, output) or not save
