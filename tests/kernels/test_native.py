r"""The two recurrences in C against the same equations in float64, by every instruction set."""

import random
import time
from typing import Any

import pytest
import torch
from engine import NEEDS_C, VARIANTS, every_variant, on_threads, scattered
from internals import native
from loop import recurrence
from torch import Tensor

pytestmark = NEEDS_C
EPS = torch.finfo(torch.float32).eps
HALVES = (torch.bfloat16, torch.float16)
Pair = tuple[Tensor, Tensor]

both_phis = pytest.mark.parametrize("phi", ["tanh", "relu"])


def judge(
    z: Tensor,
    h0: Tensor,
    w: Tensor,
    phi: str,
    reverse: bool,
    batch_sizes: Tensor | None,
    h: Tensor,
    dtype: torch.dtype = torch.float64,
) -> Pair:
    """elman and linear by the judge, in this dtype."""
    z, h0, w, h = (x.to(dtype) for x in (z, h0, w, h))
    elman = recurrence("elman", z, h0, w, batch_sizes, phi, reverse)
    return elman, recurrence("linear_recurrence", z, h, w, batch_sizes, phi, reverse)


def run(
    z: Tensor,
    h0: Tensor,
    w: Tensor,
    phi: str,
    reverse: bool,
    batch_sizes: Tensor | None,
    h: Tensor,
) -> Pair:
    """elman and linear by the kernel."""
    how = (batch_sizes, phi, reverse)
    return native.elman(z, h0, w, *how), native.linear_recurrence(z, h, w, *how)


def problem(seed: int) -> Any:
    """A random problem: sizes, strides, phi, direction, packing and weight matrices."""
    choice = random.Random(seed)
    torch.manual_seed(seed)
    T, B = choice.choice([0, 1, 2, 5, 9]), choice.choice([0, 1, 2, 3, 7, 13, 40])
    H = choice.choice([1, 2, 3, 8, 15, 16, 17, 33, 63, 64, 100, 257])
    group = choice.choice([(), (), (), (1,), (2,), (5,)])
    batch_sizes: Tensor | None = None
    rows: tuple[int, ...] = (T, B)
    if T and B and choice.random() < 0.5:
        sizes = sorted((choice.randint(0, B) for _ in range(T - 1)), reverse=True)
        batch_sizes, rows = torch.tensor([B, *sizes]), (B + sum(sizes),)
    w = torch.randn(*group, H, H)
    w /= w.square().sum((-2, -1), keepdim=True).sqrt()  # a contraction: errors don't grow with time
    tensors = (torch.randn(*group, *rows, H), torch.randn(*group, B, H), w)
    z, h0, w = (scattered(x, choice) for x in tensors)
    h = scattered(torch.randn(*group, *rows, H).tanh(), choice)
    return z, h0, w, choice.choice(["tanh", "relu"]), choice.random() < 0.5, batch_sizes, h


@every_variant
def test_any_problem_agrees_with_the_equations() -> None:
    deadline, seed = time.monotonic() + 2, 0
    while seed < 60 or (time.monotonic() < deadline and seed < 2000):
        given = problem(seed)
        with on_threads(seed % 4 + 1):
            found = run(*given)
        for ours, exact in zip(found, judge(*given), strict=True):
            assert ours.shape == exact.shape
            worst = (ours - exact).abs().amax() if exact.numel() else torch.zeros(())
            assert worst <= 8 * EPS * max(1, exact.abs().amax() if exact.numel() else 1), f"{seed=}"
        seed += 1


def test_the_judge_notices() -> None:
    """The comparison above fails for a transposed w, a wrong direction and a dropped h0."""
    z, h0, w, h = torch.randn(4, 3, 5), torch.randn(3, 5), torch.randn(5, 5), torch.randn(4, 3, 5)
    exact = judge(z, h0, w, "tanh", False, None, h)[0]
    right = native.elman(z, h0, w, None, "tanh", False)
    wrong = [
        native.elman(z, h0, w.T, None, "tanh", False),
        native.elman(z, h0, w, None, "tanh", True),
        native.elman(z, 0 * h0, w, None, "tanh", False),
    ]
    assert (right - exact).abs().max() < 1e-5
    assert all((h - exact).abs().max() > 1e-2 for h in wrong)


@every_variant
@both_phis
@pytest.mark.parametrize("H", [3, 63, 128, 512])
def test_error_is_at_most_twice_that_of_torch_in_float32(phi: str, H: int) -> None:
    torch.manual_seed(H)
    bound = H**-0.5  # nn.RNN's own initial weights
    w = torch.empty(H, H).uniform_(-bound, bound)
    z, h0 = torch.randn(20, 16, H), torch.randn(16, H)
    given = (z, h0, w, phi, False, None, torch.randn(20, 16, H).tanh())
    for ours, torchs, exact in zip(run(*given), judge(*given, torch.float32), judge(*given), strict=True):
        assert (ours - exact).square().mean() <= 4 * (torchs - exact).square().mean()
        assert (ours - exact).abs().max() <= 2 * (torchs - exact).abs().max()


@every_variant
def test_tanh_is_within_3_ulp_at_every_magnitude() -> None:
    generator = torch.Generator().manual_seed(0)
    mantissas = torch.randint(0, 2**23, (255, 4096), generator=generator, dtype=torch.int32)
    edges = torch.tensor([0, 1, 2**22, 2**23 - 2, 2**23 - 1], dtype=torch.int32)
    exponents = torch.arange(255, dtype=torch.int32)[:, None] << 23
    sizes = torch.cat([mantissas, edges.expand(255, -1)], 1) | exponents
    x = sizes.view(torch.float32).flatten()[:, None]
    for x_signed in (x, -x):
        tanh = native.elman(x_signed[None], torch.zeros_like(x), torch.zeros(1, 1), None, "tanh", False)[0]
        exact = x_signed.double().tanh()
        ulp = torch.frexp(exact.float())[1].double().sub(24).clamp(min=-149).exp2()
        assert ((tanh - exact).abs() / ulp).max() < 3
        assert tanh.abs().max() == 1


@every_variant
@both_phis
def test_special_values(phi: str) -> None:
    inf, nan, tiny = torch.inf, torch.nan, 1e-45
    z = torch.tensor([nan, inf, -inf, 3e38, -3e38, 0.0, -0.0, tiny, -tiny, 1e-40])[:, None].repeat(1, 17)
    zeros = torch.zeros_like(z)
    ours = native.elman(z[None], zeros, torch.zeros(17, 17), None, phi, False)[0]
    expected = torch.tanh(z + zeros) if phi == "tanh" else torch.relu(z + zeros)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(ours.signbit()[1:], expected.signbit()[1:])  # NaN has no sign to keep


@every_variant
def test_slopes_are_exact_where_relu_is_flat_or_nan() -> None:
    h = torch.tensor([2.0, 1e-45, 0.0, -0.0, torch.nan]).expand(1, 1, 5)
    v = torch.tensor([3.0, 3.0, torch.inf, torch.nan, 3.0]).expand(1, 1, 5)
    y = native.linear_recurrence(v, h, torch.zeros(5, 5), None, "relu", False)
    assert y.flatten().tolist() == [3, 3, 0, 0, 3]  # as threshold_backward: never inf * 0


@both_phis
def test_nan_stays_in_its_row(phi: str) -> None:
    z, h0, w = torch.randn(6, 5, 40), torch.randn(5, 40), torch.randn(40, 40)
    clean = native.elman(z, h0, w, None, phi, False)
    z[2, 3, 7] = torch.nan
    h = native.elman(z, h0, w, None, phi, False)
    assert h[2, 3].isnan().sum() == 1
    assert h[3:, 3].isnan().all()
    h[:, 3] = clean[:, 3]
    assert torch.equal(h, clean)


def test_the_output_is_contiguous_whatever_comes_in() -> None:
    z = torch.randn(5, 7, 40).transpose(0, 1)
    assert native.elman(z, torch.zeros(5, 40), torch.zeros(40, 40), None, "tanh", False).is_contiguous()
    assert native.linear_recurrence(z, z, torch.zeros(40, 40), None, "tanh", False).is_contiguous()


@every_variant
@pytest.mark.parametrize("dtype", native.TYPES, ids=str)
def test_the_peak_counts_what_it_multiplied(dtype: torch.dtype) -> None:
    made = native.peak_fma(1, dtype)
    assert made > 0
    assert native.peak_fma(100 * made, dtype) == 100 * made
    peak = native._library.manual_rnn_peak
    assert [peak(*wrong) for wrong in ((4, 1), (-1, 1), (0, 0), (0, -1))] == [0] * 4


def test_instruction_sets_have_numbers() -> None:
    """From the widest on; no other number is taken."""
    library = native._library
    before = library.manual_rnn_variant()
    assert before == min(VARIANTS.values())
    assert "plain" in VARIANTS
    for wrong in (-1, 99, max(VARIANTS.values()) + 1):
        assert library.manual_rnn_set_variant(wrong) == before


@every_variant
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("columns", [1, 24])
def test_every_half_is_read_and_written(dtype: torch.dtype, columns: int) -> None:
    """One by one, and by vectors with a rest; relu of x and of -x is all of x."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    x = torch.cat([x, x[: -len(x) % columns]]).view(1, -1, columns)
    zeros = torch.zeros(columns, columns, dtype=dtype)
    for z in (x, -x):
        found = native.elman(z, torch.zeros_like(z[0]), zeros, None, "relu", False)
        same = (found == z.relu()) | (found.isnan() & z.isnan())
        assert same.all()


@every_variant
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("columns", [1, 24])
def test_floats_are_rounded_to_halves_as_in_torch(dtype: torch.dtype, columns: int) -> None:
    """z + h_0 is a float of more bits than a half has; ties among them, and what overflows or vanishes."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2**15, (2, 960, columns), generator=generator, dtype=torch.int32)
    z, h0 = bits.to(torch.int16).view(dtype)  # none is negative
    near = torch.randint(-11, 2, (960, columns), generator=generator)
    tie = torch.where(torch.rand(960, columns, generator=generator) < 0.5, z.float() * 2.0**near, h0.float())
    h0 = tie.to(dtype).nan_to_num()
    h0 = torch.where(h0 < torch.finfo(dtype).max, h0, 0)
    eye = torch.eye(columns, dtype=dtype)
    found = torch.cat(  # few rows at a time, of which products keep denormal numbers
        [
            native.elman(z[None, i : i + 6], h0[i : i + 6], eye, None, "relu", False)[0]
            for i in range(0, 960, 6)
        ]
    )
    expected = (z.float() + h0.float()).to(dtype)
    assert ((found == expected) | (found.isnan() & expected.isnan())).all()
