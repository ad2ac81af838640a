r"""A whole network and its gradients in C, straight from kernels/native.py, against `nn.RNN` in float64."""

import random
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from typing import Any

import numpy as np
import pytest
import torch
from internals import address, is_shared, native
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

pytestmark = pytest.mark.skipif(not native._exchanges, reason="no compiler, or another torch")
VARIANTS = dict(native._scan.variants) if native._scan else {}
HALVES = (torch.bfloat16, torch.float16)
Run = dict[str, Tensor]

every_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(params=[1, 2])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def use_variant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda name: monkeypatch.setattr(native, "_variant", VARIANTS[name])


class Case:
    """An `nn.RNN` in float64, what it is called with, and the cotangents of its results.

    Numbers are those of `dtype`, so that runs in either type begin alike.
    """

    def __init__(self, seed: int, dtype: torch.dtype, **fixed: Any) -> None:
        choice = random.Random(seed)
        torch.manual_seed(seed)
        draw = lambda name, *of: fixed[name] if name in fixed else choice.choice(of)  # noqa: E731
        self.T, self.B = draw("T", 1, 2, 5, 30), draw("B", 1, 2, 5, 13)
        self.H, self.I = draw("H", 1, 3, 8, 17, 33), draw("I", 1, 2, 7, 40)
        self.L, self.D = draw("L", 1, 1, 2, 3), draw("D", 1, 2)
        self.phi, self.bias = draw("phi", "tanh", "relu"), draw("bias", True, False)
        self.lengths = None
        if draw("packed", True, False):
            more = sorted((choice.randint(1, self.T) for _ in range(self.B - 1)), reverse=True)
            self.lengths = torch.tensor([self.T, *more])
        self.batch_first = self.lengths is None and draw("batch_first", True, False)
        self.dtype, self.plain = dtype, draw("plain", True, False)
        self.choice = choice
        how: dict[str, Any] = {"bias": self.bias, "batch_first": self.batch_first, "nonlinearity": self.phi}
        self.rnn = nn.RNN(self.I, self.H, self.L, bidirectional=self.D == 2, **how).to(dtype).double()
        rows = (self.B, self.T) if self.batch_first else (self.T, self.B)
        self.x = self.number(*rows, self.I)
        self.hx = self.number(self.L * self.D, self.B, self.H) if draw("hx", True, False) else None
        self.c = self.number(*rows, self.D * self.H) if draw("c", True, True, False) else None
        last = draw("c_last", True, True, False) or self.c is None
        self.c_last = self.number(self.L * self.D, self.B, self.H) if last else None
        self.need = fixed.get("need") or tuple(
            choice.random() < draw("wanted", 1.0, 0.5) for _ in range(2 + len(self.weights))
        )
        self.need = self.need[0], self.need[1] and self.hx is not None, *self.need[2:]

    @cached_property
    def exact(self) -> Run:
        return self.by_torch(torch.float64)

    @cached_property
    def own(self) -> Run:
        return self.exact if self.dtype is torch.float64 else self.by_torch(self.dtype)

    @property
    def weights(self) -> list[Tensor]:
        return list(self.rnn.parameters())

    def number(self, *shape: int) -> Tensor:
        return torch.randn(shape).to(self.dtype).double()

    def strided(self, x: Tensor) -> Tensor:
        """In this type, contiguous or not."""
        x = x.detach().to(self.dtype)
        if self.plain:
            return x
        order = self.choice.sample(range(x.dim()), x.dim())
        x = x.permute(order).contiguous().permute([order.index(i) for i in range(x.dim())])
        around = torch.full([2 * size + 1 for size in x.shape], torch.nan, dtype=self.dtype)
        inside = around[tuple(slice(0, 2 * size, 2) for size in x.shape)]
        return inside.copy_(x) if self.choice.random() < 0.5 else x

    def pack(self, x: Tensor) -> Any:
        return x if self.lengths is None else pack_padded_sequence(x, self.lengths)

    def by_torch(self, dtype: torch.dtype) -> Run:
        """Results and gradients of nn.RNN in one type."""
        rnn = self.rnn.to(dtype)
        x, hx = (None if t is None else t.to(dtype).requires_grad_() for t in (self.x, self.hx))
        assert x is not None
        output, h_n = rnn(self.pack(x), hx)
        output = output if self.lengths is None else output.data
        c = None if self.c is None else self.pack(self.c.to(dtype))
        c = c if c is None or self.lengths is None else c.data
        pairs = [(output, c), (h_n, None if self.c_last is None else self.c_last.to(dtype))]
        pairs = [(y, g) for y, g in pairs if g is not None]
        leaves = {"x": x, "hx": hx, **dict(rnn.named_parameters())}
        wanted: dict[str, Any] = {
            name: t for (name, t), need in zip(leaves.items(), self.need, strict=True) if need
        }
        run = {"output": output.detach(), "h_n": h_n.detach()}
        if wanted:
            ys, gs = zip(*pairs, strict=True)
            zeros = torch.autograd.grad(ys, list(wanted.values()), gs, allow_unused=True)
            run |= {
                name: torch.zeros_like(wanted[name]) if g is None else g
                for name, g in zip(wanted, zeros, strict=True)
            }
        self.rnn.double()
        if self.lengths is not None and "x" in run:
            run["x"] = self.pack(run["x"]).data
        return run

    def by_c(self) -> Run:
        names = [name for name, _ in self.rnn.named_parameters()]
        weights = tuple(self.strided(w) for w in self.weights)
        hx = None if self.hx is None else self.strided(self.hx)
        sizes = None if self.lengths is None else self.pack(self.x).batch_sizes
        in_time = lambda x: x.transpose(0, 1) if self.batch_first else x  # noqa: E731
        x = in_time(self.strided(self.x if sizes is None else self.pack(self.x).data))
        how = sizes, self.phi, self.D == 2, self.bias, self.H, self.I
        output, h_n, before = native.network(x.requires_grad_(), hx, weights, *how, True)
        run, states = {"output": output, "h_n": h_n}, (*before, output)
        run["output"] = in_time(output)
        if not any(self.need):
            return run
        c = self.c if self.c is None or sizes is None else self.pack(self.c).data
        c = None if c is None else in_time(self.strided(c))
        c_last = None if self.c_last is None else self.strided(self.c_last)
        found = native.network_vjp(self.need, x.detach(), hx, weights, states, c, c_last, *how)
        assert found is not NotImplemented
        assert tuple(g is not None for g in found) == self.need
        run |= {name: g for name, g in zip(["x", "hx", *names], found, strict=True) if g is not None}
        if "x" in run:
            run["x"] = in_time(run["x"])
        return run


def off(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).abs().max() / exact.abs().max().clamp(min=1.0)).item()


def check(case: Case, multiple: float, ulps: float) -> list[tuple[float, float]]:
    """As near to float64 as nn.RNN in the same type, within a multiple, or within some units of that type.

    Returns the errors, ours and its own.
    """
    exact, own, found = case.exact, case.own, case.by_c()
    assert found.keys() == exact.keys()
    for name, right in exact.items():
        assert found[name].shape == right.shape, name
        assert found[name].dtype == case.dtype
        bound = max(multiple * off(own[name], right), ulps * torch.finfo(case.dtype).eps)
        assert off(found[name], right) <= bound, (name, off(found[name], right), bound)
    return [(off(found[name], right), off(own[name], right)) for name, right in exact.items()]


@cache  # what nn.RNN says is the same for every variant and number of threads
def known(seed: int, dtype: torch.dtype, *fixed: tuple[str, Any]) -> Case:
    return Case(seed, dtype, **dict(fixed))


def check_all(seeds: range, multiple: float, dtype: torch.dtype, ulps: float) -> None:
    """Every case within a few units, and all together within a multiple of nn.RNN's own errors."""
    errors = [pair for seed in seeds for pair in check(known(seed, dtype), 2 * multiple, ulps)]
    ours, own = (sum(error**2 for error in each) ** 0.5 for each in zip(*errors, strict=True))
    assert ours <= multiple * own


@every_variant
@pytest.mark.usefixtures("_threads")
def test_float64_agrees_to_1e_12(variant: str, use_variant: Callable[[str], None]) -> None:
    use_variant(variant)
    for seed in range(16):
        check(known(seed, torch.float64), 0, 4000)  # 1e-12


@every_variant
@pytest.mark.usefixtures("_threads")
def test_float32_is_as_accurate_as_nn_rnn(variant: str, use_variant: Callable[[str], None]) -> None:
    use_variant(variant)
    check_all(range(16), 2, torch.float32, 16)


@every_variant
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.usefixtures("_threads")
def test_halves_are_more_accurate_than_nn_rnn(
    variant: str, dtype: torch.dtype, use_variant: Callable[[str], None]
) -> None:
    """Sums are floats, and states alone are rounded."""
    use_variant(variant)
    check_all(range(8), 1, dtype, 32)


# T, B, H, I: of odd sizes; over several blocks of time, which have 1024 rows, and 512 of H = 256; of more
# rows than a slice may have; read where they lie.
SIZES = [
    (3, 1, 63, 2), (20, 5, 130, 3), (15, 150, 63, 5), (1100, 1, 3, 1), (15, 150, 1, 17),
    (1, 1, 130, 64), (1, 4, 130, 130), (2, 2, 64, 128), (30, 20, 256, 16), (1, 150, 17, 1),
]  # fmt: skip


@every_variant
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size(variant: str, size: tuple[int, ...], use_variant: Callable[[str], None]) -> None:
    use_variant(variant)
    sizes: dict[str, Any] = dict(zip("TBHI", size, strict=True)) | {"wanted": 1.0, "c": True}
    rows = size[0] * size[1]
    for packed, D in ((False, 2), (True, 1)):
        how = {**sizes, "packed": packed, "D": D, "L": 1}
        for dtype in (torch.float32, torch.bfloat16):
            check(known(0, dtype, *how.items()), 2, 16 + rows**0.5)
    how = {**sizes, "D": 2, "L": 1 + (rows < 1000), "plain": False}
    check(known(9, torch.float64, *how.items()), 0, 4000)


def test_blocks_of_time_are_met() -> None:
    """The sizes above pass the rows of a block, by several blocks, in a plan of a layer and in no other."""
    rows = [
        T * B / native._scan.plan(16, 8, 1, 1, T, B, H, I, 0, 0, 0, 0, 0)["rows"]
        for T, B, H, I in SIZES  # noqa: E741
    ]
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


@pytest.mark.parametrize("dtype", native.TYPES)
@pytest.mark.parametrize("D", [1, 2])
def test_expanded_cotangents(dtype: torch.dtype, D: int) -> None:
    """As `sum().backward()` and `mean` make them."""
    rnn = nn.RNN(3, 5, 2, bidirectional=D == 2).to(dtype)
    weights, x = tuple(w.detach() for w in rnn.parameters()), torch.randn(6, 4, 3, dtype=dtype)
    how = None, "tanh", D == 2, True, 5, 3
    output, _, before = native.network(x.requires_grad_(), None, weights, *how, True)
    one = torch.ones((), dtype=dtype).expand(output.shape)
    need = True, False, *(True,) * len(weights)
    run = [
        native.network_vjp(need, x.detach(), None, weights, (*before, output), c, None, *how)
        for c in (one, one.contiguous())
    ]
    assert all(torch.equal(a, b) for a, b in zip(*run, strict=True) if a is not None)


# T, B, I, H: on both sides of a vector, of a run of products (128) and of a block of time; and few rows, for
# which weights are read in place.
SHARED = [
    (9, 60, 33, 1), (9, 60, 33, 17), (9, 60, 33, 64), (9, 60, 33, 128), (9, 60, 33, 129), (9, 60, 9, 160),
    (9, 60, 33, 257), (2, 2, 33, 257), (2, 2, 1, 160), (3, 1, 40, 257),
]  # fmt: skip


def every_thread_count(case: Case) -> Iterator[Run]:
    """A case's results on one thread to eight."""
    before = torch.get_num_threads()
    try:
        for threads in range(1, 9):
            torch.set_num_threads(threads)
            yield case.by_c()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", native.TYPES)
@pytest.mark.parametrize("D", [1, 2])
def test_threads_do_not_change_a_bit(dtype: torch.dtype, D: int) -> None:
    """Forward and backward, also where two directions side by side add up the gradient of what they read."""
    for seed, size in enumerate(SHARED):
        fixed = dict(zip("TBIH", size, strict=True)) | {"L": 1 + seed % 2, "packed": seed % 3 == 2}
        one, *others = every_thread_count(Case(seed, dtype, **fixed, D=D, wanted=1.0, c=True))
        for threads, run in enumerate(others, 2):
            differ = [name for name in one if not torch.equal(run[name], one[name])]
            assert not differ, (size, threads, differ)


@every_variant
@pytest.mark.parametrize("dtype", native.TYPES)
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_special_values_go_where_they_go_in_nn_rnn(
    variant: str, dtype: torch.dtype, special: float, use_variant: Callable[[str], None]
) -> None:
    use_variant(variant)
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
        how: Any = (None, "relu", False, False, H, H, False)
        found = native.network(*inputs, weights, *how)[0]
        assert torch.equal(found, x) or (not kept and not found.any())


@every_variant
@pytest.mark.parametrize("dtype", native.TYPES)
def test_denormals_are_kept(variant: str, dtype: torch.dtype, use_variant: Callable[[str], None]) -> None:
    use_variant(variant)
    tiny = torch.finfo(dtype).smallest_normal
    x = (
        torch.tensor([tiny / 4, -tiny / 8, tiny, 3 * tiny / 4], dtype=dtype)
        .expand(17, 4)
        .T[:, None]
        .contiguous()
    )
    eye, zeros = torch.eye(17, dtype=dtype), torch.zeros(17, 17, dtype=dtype)
    for phi in ("tanh", "relu"):
        how = None, phi, False, False, 17, 17
        output, _, before = native.network(x.requires_grad_(), None, (eye, zeros), *how, True)
        expected = x.detach() if phi == "tanh" else x.detach().relu()
        assert torch.equal(output, expected)
        need = True, False, False, False
        dx, *_ = native.network_vjp(
            need, x.detach(), None, (eye, zeros), (*before, output), x.detach(), None, *how
        )
        assert torch.equal(dx, x.detach() if phi == "tanh" else x.detach() * (x > 0))


def test_states_are_read_without_a_copy() -> None:
    """Memory that is shared until it's written to stays shared."""
    rnn, x = nn.RNN(3, 5, 2), torch.randn(6, 4, 3)
    weights, how = tuple(w.detach() for w in rnn.parameters()), (None, "tanh", False, True, 5, 3)
    output, _, before = native.network(x.requires_grad_(), None, weights, *how, True)
    states = tuple(torch._lazy_clone(h) for h in (*before, output))
    addresses = [address(h) for h in states]
    assert addresses == [address(h) for h in (*before, output)]
    c = torch.ones_like(output)
    native.network_vjp((True, False, *(True,) * 8), x.detach(), None, weights, states, c, None, *how)
    assert addresses == [address(h) for h in states]
    assert all(map(is_shared, states))


def through(x: Tensor) -> Tensor:
    """tanh of every number, as C reckons it."""
    one, zero = torch.ones(1, 1, dtype=x.dtype), torch.zeros(1, 1, dtype=x.dtype)
    how = None, "tanh", False, False, 1, 1, False
    return native.network(x.view(1, -1, 1), None, (one, zero), *how)[0].flatten()


@every_variant
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 4), (torch.float32, 3)])
def test_tanh_in_ulp(
    variant: str, dtype: torch.dtype, bound: float, use_variant: Callable[[str], None]
) -> None:
    """Against longdouble, which has 11 bits more than float64."""
    use_variant(variant)
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


@every_variant
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("columns", [1, 24])
def test_every_half_is_read_and_written(
    variant: str, dtype: torch.dtype, columns: int, use_variant: Callable[[str], None]
) -> None:
    """One by one, and by vectors with a rest; relu of x and of -x is all of x."""
    use_variant(variant)
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
def test_floats_are_rounded_to_halves_as_in_torch(
    variant: str, dtype: torch.dtype, columns: int, use_variant: Callable[[str], None]
) -> None:
    """z + h_0 is a float of more bits than a half has; ties among them, and what overflows or vanishes."""
    use_variant(variant)
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
