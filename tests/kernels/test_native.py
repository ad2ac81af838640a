"""The native kernel against the same equations in float64, straight from kernels/native.py."""

import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from internals import Walk, native
from loop import recurrence
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

REASON = native.unsupported_reason(torch.empty(0))
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
ROOT = Path(__file__).parents[2]
VARIANTS = dict(native._scan.variants) if native._scan else {}
EPS = torch.finfo(torch.float32).eps
UseVariant = Callable[[str], None]
Pair = tuple[Tensor, Tensor]

every_variant = pytest.mark.parametrize("variant", VARIANTS)
both_phis = pytest.mark.parametrize("phi", ["tanh", "relu"])


@pytest.fixture
def use_variant(monkeypatch: pytest.MonkeyPatch) -> UseVariant:
    return lambda name: monkeypatch.setattr(native, "_variant", VARIANTS[name])


@pytest.fixture(params=["tensors", "addresses"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into C."""
    monkeypatch.setattr(native, "_exchanges", native._exchanges and request.param == "tensors")


both_ways = pytest.mark.usefixtures("_both_ways")


@pytest.fixture
def _by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_exchanges", False)


@pytest.fixture(autouse=True)
def _keep_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


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


def scattered(x: Tensor, choice: random.Random) -> Tensor:
    """`x` with other strides: permuted, or inside a larger tensor full of NaN."""
    order = choice.sample(range(x.dim()), x.dim())
    x = x.permute(order).contiguous().permute([order.index(i) for i in range(x.dim())])
    if choice.random() < 0.5:
        return x
    around = torch.full([2 * size + 1 for size in x.shape], torch.nan)
    inside = around[tuple(slice(0, 2 * size, 2) for size in x.shape)]
    return inside.copy_(x)


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
def test_any_problem_agrees_with_the_equations(variant: str, use_variant: UseVariant) -> None:
    use_variant(variant)
    deadline, seed = time.monotonic() + 2, 0
    while seed < 60 or (time.monotonic() < deadline and seed < 2000):
        torch.set_num_threads(seed % 4 + 1)
        given = problem(seed)
        for ours, exact in zip(run(*given), judge(*given), strict=True):
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
def test_error_is_at_most_twice_that_of_torch_in_float32(
    variant: str, phi: str, H: int, use_variant: UseVariant
) -> None:
    use_variant(variant)
    torch.manual_seed(H)
    bound = H**-0.5  # nn.RNN's own initial weights
    w = torch.empty(H, H).uniform_(-bound, bound)
    z, h0 = torch.randn(20, 16, H), torch.randn(16, H)
    given = (z, h0, w, phi, False, None, torch.randn(20, 16, H).tanh())
    for ours, torchs, exact in zip(run(*given), judge(*given, torch.float32), judge(*given), strict=True):
        assert (ours - exact).square().mean() <= 4 * (torchs - exact).square().mean()
        assert (ours - exact).abs().max() <= 2 * (torchs - exact).abs().max()


@every_variant
def test_tanh_is_within_3_ulp_at_every_magnitude(variant: str, use_variant: UseVariant) -> None:
    use_variant(variant)
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
def test_special_values(variant: str, phi: str, use_variant: UseVariant) -> None:
    use_variant(variant)
    inf, nan, tiny = torch.inf, torch.nan, 1e-45
    z = torch.tensor([nan, inf, -inf, 3e38, -3e38, 0.0, -0.0, tiny, -tiny, 1e-40])[:, None].repeat(1, 17)
    zeros = torch.zeros_like(z)
    ours = native.elman(z[None], zeros, torch.zeros(17, 17), None, phi, False)[0]
    expected = torch.tanh(z + zeros) if phi == "tanh" else torch.relu(z + zeros)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(ours.signbit()[1:], expected.signbit()[1:])  # NaN has no sign to keep


@every_variant
def test_slopes_are_exact_where_relu_is_flat_or_nan(variant: str, use_variant: UseVariant) -> None:
    use_variant(variant)
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


@both_ways
def test_the_output_is_contiguous_whatever_comes_in() -> None:
    z = torch.randn(5, 7, 40).transpose(0, 1)
    assert native.elman(z, torch.zeros(5, 40), torch.zeros(40, 40), None, "tanh", False).is_contiguous()
    assert native.linear_recurrence(z, z, torch.zeros(40, 40), None, "tanh", False).is_contiguous()


@pytest.mark.parametrize("B", [1, 2, 7, 300])
@pytest.mark.parametrize("H", [40, 260])
def test_threads_and_neighbours_do_not_change_a_bit(B: int, H: int) -> None:
    z, h0, w = torch.randn(9, B, H), torch.randn(B, H), torch.randn(H, H) / H
    torch.set_num_threads(1)
    alone = native.elman(z, h0, w, None, "tanh", False)
    last = native.elman(z[:, -1:], h0[-1:], w, None, "tanh", False)
    assert torch.equal(alone[:, -1:], last)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert torch.equal(native.elman(z, h0, w, None, "tanh", False), alone)


def test_several_python_threads_at_once() -> None:
    problems = [problem(seed) for seed in range(40)]
    alone = [run(*given) for given in problems]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda given: run(*given), problems))
    for a, b in zip(alone, together, strict=True):
        assert all(map(torch.equal, a, b))


def parallel_run(seed: int = 0) -> Tensor:
    """Large enough for every thread to take part."""
    generator = torch.Generator().manual_seed(seed)
    z, w = (torch.randn(*shape, generator=generator) for shape in [(20, 16, 64), (64, 64)])
    return native.elman(z, torch.zeros(16, 64), w / 8, None, "tanh", False)


class Runs(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return parallel_run(index)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
class TestAfterFork:
    def test_in_a_data_loader_worker(self) -> None:
        torch.set_num_threads(2)
        expected = torch.stack([parallel_run(i) for i in range(4)])
        loader = DataLoader(Runs(), batch_size=4, num_workers=1, multiprocessing_context="fork", timeout=60)
        assert torch.equal(next(iter(loader)), expected)

    def test_in_a_bare_child_with_many_threads(self) -> None:
        torch.set_num_threads(2)
        expected = parallel_run()
        with multiprocessing.get_context("fork").Pool(1) as pool:
            child = pool.apply_async(parallel_sum).get(timeout=60)
        assert child == expected.sum(dtype=torch.float64).item()


def parallel_sum() -> float:
    return parallel_run().sum(dtype=torch.float64).item()


@every_variant
def test_a_layer_is_its_projection_and_its_recurrence(variant: str, use_variant: UseVariant) -> None:
    use_variant(variant)
    for seed in range(60):
        z, h0, w, phi, reverse, sizes, h = problem(seed)
        if w.dim() == 3 or 0 in z.shape:
            continue
        choice, width, H = random.Random(seed), seed % 37 + 1, len(w)
        x, w_ih = (scattered(torch.randn(*size, width), choice) for size in (z.shape[:-1], (H,)))
        b_ih, b_hh = (None, None) if seed % 3 == 0 else scattered(torch.randn(2, H), choice)
        found = native.layer(x, h0, w_ih, w, b_ih, b_hh, sizes, phi, reverse)
        assert found is not None
        z = x.double() @ w_ih.double().T
        z = z if b_ih is None or b_hh is None else z + b_ih.double() + b_hh.double()
        expected, _ = judge(z, h0, w, phi, reverse, sizes, h)
        torch.testing.assert_close(found[0].double(), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(found[1], Walk(0, reverse, sizes).last(found[0], len(h0)))


@both_ways
def test_says_of_every_tensor_whether_it_can_take_it() -> None:
    tensors = [torch.randn(s) for s in ((4, 3, 2), (3, 5), (5, 2), (5, 5), (5,), (5,))]
    assert native.unsupported_reason(*tensors) is None
    for place, x in enumerate(tensors):
        loose = misaligned(x.numel()).view(x.shape)
        for wrong in (
            x.double(),
            x.int(),
            x.to("meta"),
            torch.complex(x, x).conj().imag,
            x.to_sparse(),
            loose,
        ):
            assert native.unsupported_reason(*tensors[:place], wrong, *tensors[place + 1 :]) is not None


def test_a_layer_leaves_to_others_what_does_not_fit() -> None:
    """Their checks have the words."""
    x, h0, w_ih, w, b = (torch.randn(s) for s in ((4, 3, 2), (3, 5), (5, 2), (5, 5), (5,)))
    assert native.layer(x, h0, w_ih, w, b, b, None, "tanh", False) is not None
    for weights in (
        (w_ih[:4], w, b, b), (w_ih, w, b, b[:1]), (w_ih[:, :1], w, b, b), (w_ih, w, w, b),
        (w_ih, w, b, misaligned(5)), (w_ih, w.double(), b, b), (w_ih, w, b, b.to("meta")),
    ):  # fmt: skip
        assert native.layer(x, h0, *weights, None, "tanh", False) is None
    for sizes in ([3, 4, 5], [3, 3, 3, 2], [3, 3, 3, 3, 1, -1], [2] * 6, []):
        how = torch.tensor(sizes).long(), "tanh", False
        assert native.layer(x.flatten(0, 1), h0, w_ih, w, b, b, *how) is None


@pytest.mark.usefixtures("_by_address")
def test_there_is_no_layer_by_addresses() -> None:
    x, h0, w_ih, w = (torch.randn(s) for s in ((4, 3, 2), (3, 5), (5, 2), (5, 5)))
    assert native.layer(x, h0, w_ih, w, None, None, None, "tanh", False) is None


@both_ways
def test_refuses_what_c_cannot_take() -> None:
    z, h0, w = torch.randn(4, 3, 5), torch.randn(3, 5), torch.randn(5, 5)

    def refuse(
        error: Any,
        match: str,
        *,
        z: Tensor = z,
        h0: Tensor = h0,
        w: Tensor = w,
        batch_sizes: Tensor | None = None,
    ) -> None:
        with pytest.raises(error, match=match):
            native.elman(z, h0, w, batch_sizes, "tanh", False)

    refuse(ValueError, "w has shape", w=w[:4])
    refuse(ValueError, "h0 has shape", h0=h0[:2])
    refuse(ValueError, r"expected an input of \(T, B, H\)", h0=h0[0])
    refuse(ValueError, r"expected an input of \(T, B, H\)", z=z[0])
    refuse(ValueError, r"expected an input of \(T, B, H\)", w=w[None])
    refuse((TypeError, ValueError), "aligned", w=misaligned(25).view(5, 5))
    with pytest.raises(ValueError, match="h has shape"):
        native.linear_recurrence(z, z[:3], w, None, "tanh", False)
    with pytest.raises(KeyError):
        native.elman(z, h0, w, None, "gelu", False)
    for sizes in ([3, 4, 5], [3, 3, 3, 2], [3, 3, 3, 3, 1, -1], [2, 2, 2, 2, 2, 2], []):
        refuse(ValueError, "expected batch_sizes", z=z.flatten(0, 1), batch_sizes=torch.tensor(sizes).long())
    refuse(
        TypeError, "expected batch_sizes int64", z=z.flatten(0, 1), batch_sizes=torch.tensor([3, 3, 3, 3.0])
    )
    refuse(ValueError, "contiguous", z=z.flatten(0, 1), batch_sizes=torch.full((4, 2), 3)[:, 0])


def misaligned(floats: int) -> Tensor:
    return torch.frombuffer(bytearray(4 * floats + 1), dtype=torch.float32, offset=1, count=floats)


@both_ways
def test_a_failed_allocation_raises() -> None:
    H = 2**24
    z, w = torch.zeros(1).expand(1, 1, H), torch.zeros(1).expand(H, H)  # packed, w would be 2^50 bytes
    with pytest.raises(MemoryError):
        native.elman(z, z[0], w, None, "tanh", False)


def test_more_threads_than_can_start_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = parallel_run()
    for threads in (100_000, 2**31 - 1, 2**62):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(parallel_run(), expected)


# Straight to C, with arguments that native.py never passes. An address can lie undetected, and so can sizes
# or strides that leave a tensor's memory but stay within MAX_EXTENT = 2^53: none of these do.
MEMORY = torch.randn(4096, generator=torch.Generator().manual_seed(0)) if REASON is None else torch.empty(0)
OUTPUT = torch.zeros(4096)
INTEGERS = [-1, -(2**31), 2**55, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), -(10**30)]
UNTYPED = [None, 1.5, float("nan"), "1", b"1", [1], {}, object(), range(2), MEMORY, 1j]
SIZES = {
    "good": [3, 3, 2, 1],
    "overflowing": [2**62] * 4 + [3],
    "overflowing from the second on": [3, *[2**62] * 4],
    "growing": [3, 2, 3, 1],
    "negative": [3, 3, 3, -1, 1],
    "negative first": [-3, 3, 3, 3, 3],
    "most negative": [-(2**63)] * 5,
    "zeros": [0, 0, 0, 0],
    "too many": [3, 3, 3, 3],
    "too few": [3, 3, 2],
}
SIZE_TENSORS = {name: torch.tensor(sizes) for name, sizes in SIZES.items()}


def arguments(choice: random.Random, packed: bool, sizes: str = "good") -> list[Any]:
    """A valid call of `_scan.scan` from MEMORY to OUTPUT, for 4 steps of at most 3 rows."""
    H, kind, type = choice.randint(1, 4), choice.randrange(4), choice.randrange(4)
    group = choice.choice([(), (), (2,)])
    rows = (9,) if packed else (4, 3)

    def tensor(*shape: int) -> list[Any]:
        strides = tuple(choice.randint(0, 50) for _ in shape)
        return [MEMORY.data_ptr() + 8 * choice.randint(0, 499), strides, shape]

    z, start, w = tensor(*group, *rows, H), tensor(*group, 3, H), tensor(*group, H, H)
    other = start if kind < 2 else tensor(*group, *rows, H)
    y = OUTPUT.new_empty((*group, *rows, H)).stride()
    length = SIZE_TENSORS[sizes]
    how = [choice.choice(list(VARIANTS.values())), kind, choice.randint(1, 5), choice.random() < 0.5]
    where = [length.data_ptr(), len(length)] if packed else [0, 0]
    return [*how, type, packed, *where, *z, *other, *w, OUTPUT.data_ptr(), y]


def spoil(call: list[Any], choice: random.Random) -> None:
    """Make one argument, or a number in one, wrong or merely different."""
    i = choice.randrange(len(call))
    old = call[i]
    if isinstance(old, tuple) and old and choice.random() < 0.7:
        new = list(old)
        j = choice.randrange(len(new))
        small = choice.randint(0, 5)
        new[j] = choice.choice([small, small, choice.choice(INTEGERS), choice.choice(UNTYPED)])
        call[i] = tuple(choice.choice([new, new, new, new[:-1], [*new, 1], new[::-1]]))
    elif choice.random() < 0.1:
        call[i:] = choice.choice([[], call[i:-1], [*call[i:], None]])
    else:
        mine = [old - 2**63, old + 1] if isinstance(old, int) and old > 2**20 else []
        call[i] = choice.choice(
            [*mine, 0, choice.choice(INTEGERS[:1] + INTEGERS[5:]), choice.choice(UNTYPED), ()]
        )


def hostile_calls(count: int) -> tuple[int, int]:
    """How many calls went through and how many raised TypeError or ValueError; nothing else may happen."""
    choice, through, refused = random.Random(0), 0, 0
    before = MEMORY.clone()
    for _ in range(count):
        packed = choice.random() < 0.5
        call = arguments(choice, packed, choice.choice(["good", "good", *SIZES]))
        for _ in range(choice.choice([0, 1, 1, 2, 3])):
            if call:
                spoil(call, choice)
        try:
            native._scan.scan(*call)
            through += 1
        except (TypeError, ValueError):
            refused += 1
    assert torch.equal(MEMORY, before)
    assert not OUTPUT[2048:].any()
    return through, refused


def test_hostile_arguments_raise_and_never_crash() -> None:
    """In a process of its own, which a crash would end."""
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/kernels']; "
        "import test_native; print(*test_native.hostile_calls(2000))"
    )
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    through, refused = map(int, done.stdout.split())
    assert through > 200
    assert refused > 1000


@pytest.mark.parametrize("sizes", SIZES)
def test_batch_sizes_are_judged_in_c(sizes: str) -> None:
    for seed in range(20):
        call = arguments(random.Random(seed), True, sizes)
        if sizes == "good":
            native._scan.scan(*call)
            continue
        with pytest.raises(ValueError, match="expected batch_sizes that "):
            native._scan.scan(*call)


def call_with(*changes: tuple[int, Any]) -> None:
    """A valid call, z (4, 3, 2), h0 (3, 2), w (2, 2), but for some arguments."""
    at = MEMORY.data_ptr()
    call: list[Any] = [max(VARIANTS.values()), 0, 1, False, 0, False, 0, 0]
    call += [
        at,
        (6, 2, 1),
        (4, 3, 2),
        at,
        (2, 1),
        (3, 2),
        at,
        (2, 1),
        (2, 2),
        OUTPUT.data_ptr(),
        (6, 2, 1),
    ]
    for i, value in changes:
        call[i] = value
    native._scan.scan(*call)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ([(0, len(VARIANTS))], ValueError, "expected variant from 0 to"),
        ([(1, 4)], ValueError, "expected kind from 0 to 3"),
        ([(2, 0)], ValueError, "expected threads from 1 to"),
        ([(2, 2**64)], ValueError, "expected threads from 1 to"),
        ([(3, 2)], ValueError, "expected reverse from 0 to 1"),
        ([(4, 4)], ValueError, "expected type from 0 to 3"),
        ([(4, None)], TypeError, "expected an int for type"),
        ([(5, None)], TypeError, "expected an int for packed"),
        ([(8, 0)], ValueError, "the input has no memory"),
        ([(8, -4)], ValueError, "expected the input from 0 to"),
        ([(8, 2**63)], ValueError, "expected the input from 0 to"),
        ([(8, 1.5)], TypeError, "expected an int for the input"),
        ([(9, [6, 2, 1])], TypeError, "expected a tuple of ints for the input"),
        ([(9, (6, 2))], ValueError, "the input has 2 strides for 3 sizes"),
        ([(9, (2**62, 2, 1))], ValueError, "the input spans more memory than there can be"),
        ([(9, (2**53, 2**53, 2**53))], ValueError, "the input spans more memory than there can be"),
        ([(9, (-6, 2, 1))], ValueError, "expected the input from 0 to"),
        ([(10, (4, 3, "2"))], TypeError, "expected an int for the input"),
        ([(10, (2**62, 2**62, 2))], ValueError, "expected the input from 0 to"),
        ([(10, (1, 1, 4, 3, 2))], ValueError, "the input has too many dimensions"),
        ([(11, 0)], ValueError, "h0 has no memory"),
        ([(13, (3, 2, 1)), (12, (1, 1, 1))], ValueError, "h0 has shape"),
        ([(14, 2)], ValueError, "expected w aligned to 4 bytes"),
        ([(4, 1), (14, MEMORY.data_ptr() + 4)], ValueError, "expected w aligned to 8 bytes"),
        ([(4, 2), (14, MEMORY.data_ptr() + 1)], ValueError, "expected w aligned to 2 bytes"),
        ([(4, 3), (14, MEMORY.data_ptr() + 1)], ValueError, "expected w aligned to 2 bytes"),
        ([(16, (2, 3))], ValueError, "w has shape"),
        ([(17, 0)], ValueError, "the output has no memory"),
        ([(18, (6, 2))], ValueError, "the output has 2 strides for 3 sizes"),
        ([(5, 1), (6, 0), (7, 4)], ValueError, "batch_sizes has no memory"),
        ([(5, 1), (6, MEMORY.data_ptr() + 4), (7, 4)], ValueError, "expected batch_sizes aligned to 8 bytes"),
        ([(5, 1), (7, -1)], ValueError, "expected batch_sizes from 0 to"),
        ([(5, 1), (7, 2**62)], ValueError, "expected batch_sizes from 0 to"),
    ],
)
def test_c_says_what_is_wrong(changes: list[tuple[int, Any]], error: Any, match: str) -> None:
    call_with()
    with pytest.raises(error, match=match):
        call_with(*changes)


def test_a_network_in_c_says_what_is_wrong() -> None:
    """Of numbers, which no user gives; tensors that don't fit are NotImplemented, for the caller to name."""
    weights = tuple(torch.randn(s) for s in ((5, 2), (5, 5), (5,), (5,)))
    good = [native._variant, 0, 1, 0, 0, 5, 2, 1, True, None, torch.randn(4, 3, 2), None, weights]
    names = ["variant", "kind", "threads", "bidirectional", "reverse", "hidden_size", "input_size", "bias"]
    assert len(native._scan.network(*good)) == 3
    back: list[Any] = [*good[:8], (True,) * 6, *good[9:], (torch.randn(4, 3, 5),), None, None]
    assert len(native._scan.network_vjp(*back)) == 6
    for call, function in ((good, native._scan.network), (back, native._scan.network_vjp)):
        for i, name in enumerate(names):
            for wrong in (-1, 2**63):
                with pytest.raises(ValueError, match=f"expected {name} from "):
                    function(*call[:i], wrong, *call[i + 1 :])
            with pytest.raises(TypeError, match=f"expected an int for {name}"):
                function(*call[:i], None, *call[i + 1 :])
        for wrong_weights in ((), weights[:3], list(weights), None):
            with pytest.raises(ValueError, match="expected a tuple of weights"):
                function(*call[:12], wrong_weights, *call[13:])
        with pytest.raises(TypeError, match=r"expected \d+ arguments"):
            function(*call[:-1])
    for i, wrong_tuple in ((8, None), (8, (True,) * 5), (13, ()), (13, None), (13, back[13] * 2)):
        with pytest.raises(ValueError, match="expected tuples of 1 states and 6 flags"):
            native._scan.network_vjp(*back[:i], wrong_tuple, *back[i + 1 :])


@both_ways
def test_a_stride_that_is_never_taken_may_be_anything() -> None:
    z, h0, w = torch.randn(1, 1, 1), torch.randn(1, 1), torch.randn(1, 1)
    expected = native.elman(z, h0, w, None, "tanh", True)
    z, h0, w = (x.as_strided(x.shape, [2**60] * x.dim()) for x in (z, h0, w))
    assert torch.equal(native.elman(z, h0, w, None, "tanh", True), expected)


@both_ways
def test_batch_sizes_may_change_meanwhile() -> None:
    """They are copied before they're judged: a call is refused, or runs by sizes that passed."""
    good = torch.full((50,), 8)
    sizes, stop = good.clone(), threading.Event()
    z, h0, w = torch.randn(400, 16), torch.randn(8, 16), torch.randn(16, 16) / 4
    expected = native.elman(z, h0, w, good, "tanh", False)

    def change() -> None:
        while not stop.is_set():
            sizes.fill_(2**40)
            sizes.copy_(good)
            time.sleep(0)

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        deadline, through = time.monotonic() + 1, 0
        while time.monotonic() < deadline:
            with suppress(ValueError):
                assert torch.equal(native.elman(z, h0, w, sizes, "tanh", False), expected)
                through += 1
        stop.set()
        changing.result()
    assert through


def results_on(threads: int, G: int) -> list[Tensor]:
    """Of recurrences with G matrices, and of a network of two directions, its gradients too."""
    torch.set_num_threads(threads)
    torch.manual_seed(G)
    z, h0, w = torch.randn(G, 20, 16, 70), torch.randn(G, 16, 70), torch.randn(G, 70, 70) / 70
    found = [native.elman(z, h0, w, None, "tanh", False)]
    found.append(native.linear_recurrence(z, z.tanh(), w, None, "tanh", True))
    if native._exchanges:
        widths = 2 * (70, 70) + 2 * (140, 70)
        x, weights = z[0].requires_grad_(), tuple(torch.randn(70, n) / 70 for n in widths)
        how = None, "tanh", True, False, 70, 70
        output, h_n, before = native.network(x, None, weights, *how, True)
        need, states = (True, False, *(True,) * 8), (*before, output)
        vjp = native.network_vjp(need, x.detach(), None, weights, states, output, h_n, *how)
        found += [output, h_n, *(g for g in vjp if g is not None)]
    return found


def fewer_threads_than_asked_for() -> None:
    """What `OMP_THREAD_LIMIT` makes of eight threads gives the bits of one."""
    for G in range(1, 9):
        assert all(map(torch.equal, results_on(8, G), results_on(1, G))), G


@pytest.mark.parametrize("limit", [2, 3, 7])
def test_fewer_threads_than_asked_for(limit: int) -> None:
    """OpenMP gives what it has: each team and each matrix has memory all the same."""
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/kernels']; "
        "import test_native; test_native.fewer_threads_than_asked_for()"
    )
    environment = {**os.environ, "OMP_THREAD_LIMIT": str(limit)}
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_build_knows_every_file() -> None:
    """A source that isn't built fails to link; a header that isn't named leaves a stale build."""
    folder = Path(native.__file__).parent / "csrc"
    told, files = (ROOT / "pyproject.toml").read_text(), list(folder.glob("*.[ch]"))
    assert len(files) > 20
    assert all(f'"manual_rnn/kernels/csrc/{path.name}"' in told for path in files)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_uses_the_openmp_that_torch_loaded() -> None:
    code = """
import re, torch
before = set(re.findall(r"\\S*(?:gomp|iomp|omp5)\\S*", open("/proc/self/maps").read()))
from manual_rnn.kernels import native
z = torch.randn(20, 16, 64)
native.elman(z, z[0], z[0].new_zeros(64, 64), None, "tanh", False)
after = set(re.findall(r"\\S*(?:gomp|iomp|omp5)\\S*", open("/proc/self/maps").read()))
assert before == after and before, (before, after)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
