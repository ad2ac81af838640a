"""How the native kernel reads torch's tensors in C: which it takes, what it returns, what can't crash it."""

import copy
import os
import pickle
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from internals import ATTRIBUTES, Walk, native
from test_native import misaligned, problem, scattered
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._vmap_internals import _vmap as legacy_vmap
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from manual_rnn.ops import sight

pytestmark = pytest.mark.skipif(not native._exchanges, reason="no compiler, or another torch")
ROOT = Path(__file__).parents[2]


class Sub(Tensor):
    """A subclass, but for its type a tensor like others."""


def inside(transform: Callable[..., Any], *, dead: bool) -> Callable[[], Any]:
    """A maker of what a transform wraps a tensor in, and of what is left of it afterwards."""

    def make() -> Any:
        seen: list[Any] = []

        def look(x: Tensor) -> Tensor:
            seen.append(x if dead else native.numbers(x))
            return x.sum()

        transform(look)(torch.randn(3, 2))
        return seen[0]

    return make


def tangent(f: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda x: torch.func.jvp(f, (x,), (x,))


def without_memory() -> Tensor:
    x = torch.randn(3)
    x.untyped_storage().resize_(0)
    return x


def fake() -> Tensor:
    with FakeTensorMode():
        return torch.empty(3)


def dual() -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.make_dual(torch.randn(3), torch.randn(3))


def made_in_inference_mode() -> Tensor:
    with torch.inference_mode():
        return torch.randn(3)


TAKEN: dict[str, Callable[[], Any]] = {
    "a tensor": lambda: torch.randn(2, 3),
    "no dimensions": lambda: torch.randn(()),
    "a Parameter": lambda: Parameter(torch.randn(3)),
    "a Buffer": lambda: torch.nn.Buffer(torch.randn(3)),
    "wants a gradient": lambda: torch.randn(3, requires_grad=True),
    "has a history": lambda: torch.randn(3, requires_grad=True) * 2,
    "transposed": lambda: torch.randn(2, 3).T,
    "expanded": lambda: torch.randn(1).expand(3, 3),
    "copied on write": lambda: torch._lazy_clone(torch.randn(3)),
    "of inference mode": made_in_inference_mode,
    "once dual": dual,
    "None": lambda: None,
}
REFUSED: dict[str, Callable[[], Any]] = {
    "pending negation": lambda: torch.complex(torch.randn(3), torch.randn(3)).conj().imag,
    "contiguous with a pending negation": lambda: torch._neg_view(torch.randn(3)),
    "zeros without memory": lambda: torch._efficientzerotensor(3),
    "zeros without memory, from the second row on": lambda: torch._efficientzerotensor((2, 3))[1],
    "freed memory": without_memory,
    "misaligned": lambda: misaligned(3),
    "empty": lambda: torch.empty(0, 3),
    "empty and functional": lambda: torch._to_functional_tensor(torch.empty(0)),
    "functional": lambda: torch._to_functional_tensor(torch.randn(3)),
    "fake": fake,
    "meta": lambda: torch.empty(3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "in rows": lambda: torch.eye(3).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.randn(2)], layout=torch.jagged),
    "subclass": lambda: torch.randn(3).as_subclass(Sub),
    "uninitialized": torch.nn.UninitializedParameter,
    "conjugated": lambda: torch.randn(3, dtype=torch.complex64).conj(),
    "of vmap": inside(torch.func.vmap, dead=False),
    "once of vmap": inside(torch.func.vmap, dead=True),
    "of grad": inside(torch.func.grad, dead=False),
    "once of grad": inside(torch.func.grad, dead=True),
    "of jvp": inside(tangent, dead=False),
    "once of jvp": inside(tangent, dead=True),
    "of functionalize": inside(torch.func.functionalize, dead=False),
    "once of functionalize": inside(torch.func.functionalize, dead=True),
    "of legacy vmap": inside(legacy_vmap, dead=False),
    "once of legacy vmap": inside(legacy_vmap, dead=True),
    "a number": lambda: 3,
    "a string": lambda: "x",
    "a type": lambda: Tensor,
}
for dtype in native.TYPES:
    TAKEN[str(dtype)] = partial(torch.ones, 3, dtype=dtype)
for dtype in (torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn):
    REFUSED[str(dtype)] = partial(torch.ones, 3, dtype=dtype)


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From then on tensors go to C as addresses."""
    return lambda: monkeypatch.setattr(native, "_exchanges", False)


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, on its first tangent
def test_takes_numbers(kind: str, addresses: Callable[[], None]) -> None:
    x = TAKEN[kind]()
    assert native.numbers(x) is True
    addresses()
    assert native.numbers(x) is False
    assert sight.plain(x)  # as the keys of the tensor say
    assert native.unsupported_reason(x) is None


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_refuses_all_else(kind: str) -> None:
    x = REFUSED[kind]()
    if x is not False:  # or was judged inside
        assert native.numbers(x) is False
        assert native.numbers(torch.randn(3), None, x) is False


def test_a_refusal_takes_no_millisecond() -> None:
    """As torch does to raise."""
    refused = [REFUSED[kind]() for kind in ("meta", "sparse", "functional", "once of vmap", "torch.int64")]
    refused.append(REFUSED["once of legacy vmap"]())
    for x in refused:
        begin = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        assert not any(native.numbers(x) for _ in range(1000))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - begin < 0.1


def test_takes_numbers_of_one_type_together() -> None:
    for one in native.TYPES:
        x = torch.ones(3, dtype=one)
        assert native.numbers(x, None, x)
        for other in native.TYPES:
            assert native.numbers(x, torch.ones(3, dtype=other)) is (one is other)


def problems(count: int, layers: bool = True) -> list[list[tuple[Any, ...]]]:
    """For each seed what the kernel is given: as elman, as linear_recurrence and, for some, as a layer."""
    found = []
    for seed in range(count):
        z, h0, w, phi, reverse, sizes, h = problem(seed)
        how = sizes, phi, reverse
        found.append([(native.elman, z, h0, w, *how), (native.linear_recurrence, z, h, w, *how)])
        if layers and w.dim() == 2 and 0 not in z.shape:
            choice, width, H = random.Random(seed), seed % 37 + 1, len(w)
            x, w_ih = (scattered(torch.randn(*size, width), choice) for size in (z.shape[:-1], (H,)))
            biases = (None, None) if seed % 3 == 0 else scattered(torch.randn(2, H), choice)
            found[-1].append((native.layer, x, h0, w_ih, w, *biases, *how))
    return found


def results(given: list[tuple[Any, ...]]) -> list[Tensor]:
    found: list[Tensor] = []
    for f, *args in given:
        y = f(*args)
        if isinstance(y, tuple):
            *_, sizes, _, reverse = args
            assert torch.equal(y[1], Walk(0, reverse, sizes).last(y[0], len(args[1])))
            assert y[0].untyped_storage().data_ptr() != y[1].untyped_storage().data_ptr()
        found += [] if y is None else [y] if isinstance(y, Tensor) else y
    return found


def test_the_same_bits_as_by_addresses(addresses: Callable[[], None]) -> None:
    torch.use_deterministic_algorithms(True)  # what is left out is NaN
    try:
        given = problems(150, layers=False)
        here = [results(one) for one in given]
        addresses()
        there = [results(one) for one in given]
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(here, there, strict=True):
        assert [x.shape for x in one] == [x.shape for x in other]
        assert [x.stride() for x in one] == [x.stride() for x in other]
        assert all(map(torch.equal, one, other))


def test_a_subclass_goes_by_its_address() -> None:
    z, h0, w = torch.randn(4, 3, 5), torch.randn(3, 5), torch.randn(5, 5)
    expected = native.elman(z, h0, w, None, "tanh", False)
    for place in range(3):
        given = [x.as_subclass(Sub) if i == place else x for i, x in enumerate((z, h0, w))]
        found = native.elman(*given, None, "tanh", False)  # type: ignore[call-arg, arg-type]
        assert torch.equal(found, expected)


def network(*, rows: tuple[int, ...] = (4, 3), sizes: Tensor | None = None, keep: bool = True) -> list[Any]:
    """What `native.network` is given, for 2 inputs and 5 states in two layers."""
    weights = tuple(torch.randn(s) for s in ((5, 2), (5, 5), (5, 5), (5, 5)))
    B = rows[1] if sizes is None else int(sizes[0])
    return [torch.randn(*rows, 2), torch.randn(2, B, 5), weights, sizes, "tanh", *(False,) * 2, 5, 2, keep]


def made() -> tuple[Tensor, Tensor]:
    output, h_n, states = native.network(*network())
    assert states is None
    return output, h_n


@pytest.mark.parametrize("place", range(6))
def test_a_network_is_of_exact_tensors(place: int) -> None:
    x, hx, weights, *how = network()
    assert native.network(x, hx, weights, *how) is not NotImplemented
    given: list[Any] = [x, hx, *weights]
    for wrong in (
        Sub,
        Tensor.double,
        Tensor.int,
        Tensor.to_sparse,
        lambda x: x.to("meta"),
        lambda x: x[:0],
        len,
    ):
        spoiled: list[Any] = [wrong(t) if i == place else t for i, t in enumerate(given)]
        found = native.network(spoiled[0], spoiled[1], tuple(spoiled[2:]), *how)
        assert found is NotImplemented


@pytest.mark.parametrize("rows", [(0, 3), (4, 0), (4, 3, 1), (4,), ()], ids=str)
def test_an_input_without_numbers_or_of_another_rank_is_left_to_others(rows: tuple[int, ...]) -> None:
    _, hx, *rest = network()
    assert native.network(torch.randn(*rows, 2), hx, *rest) is NotImplemented
    assert native.network(torch.randn(()), None, *rest) is NotImplemented


@pytest.mark.parametrize("which", [0, 1])
class TestWhatComesBack:
    """It is a tensor like any that torch makes."""

    def test_is_new(self, which: int) -> None:
        x = made()[which]
        assert type(x) is Tensor
        assert x.is_contiguous()
        assert x.is_leaf
        assert not x.requires_grad
        assert x._version == 0
        assert x.data_ptr() % 64 == 0
        assert x.untyped_storage().nbytes() == 4 * x.numel()
        assert sys.getrefcount(x) == sys.getrefcount(torch.empty(3))

    def test_can_be_written_grown_and_freed(self, which: int) -> None:
        x = made()[which]
        x.add_(1).resize_(20, 20)
        assert x._version == 2
        x.untyped_storage().resize_(0)
        x.data = torch.ones(2)
        assert x.tolist() == [1, 1]

    def test_can_be_copied_pickled_and_shared(self, which: int) -> None:
        x = made()[which]
        assert torch.equal(copy.deepcopy(x), x)
        assert torch.equal(pickle.loads(pickle.dumps(x)), x)
        y = x.clone()
        assert x.share_memory_().is_shared()
        assert torch.equal(x, y)
        assert torch.equal(torch.from_numpy(x.numpy()), y)

    def test_is_copied_when_written(self, which: int) -> None:
        x = made()[which]
        kept, lazy = x.clone(), torch._lazy_clone(x)
        x.zero_()
        assert torch.equal(lazy, kept)
        lazy.add_(1)
        assert not x.any()

    def test_takes_part_in_autograd(self, which: int) -> None:
        x = made()[which].requires_grad_()
        x.square().sum().backward()
        assert torch.equal(x.grad, 2 * x)  # type: ignore[arg-type]

    def test_belongs_to_inference_mode_inside(self, which: int) -> None:
        with torch.inference_mode():
            assert made()[which].is_inference()
        assert not made()[which].is_inference()


def test_in_threads() -> None:
    given = problems(40)
    alone = [results(one) for one in given]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(results, given))
    for one, other in zip(alone, together, strict=True):
        assert all(map(torch.equal, one, other))


def test_leaves_nothing_behind() -> None:
    """Neither memory nor references, of calls that succeed and of calls that fail."""
    x, h0, w_ih, w, b = (torch.randn(s) for s in ((4, 3, 2), (3, 5), (5, 2), (5, 5), (5,)))
    packed, sizes, how = torch.randn(9, 2), torch.tensor([3, 3, 2, 1]), (native._variant, 0, 1, False)
    weights, hx, leaf = (w_ih, w, b, b), h0[None], x.clone().requires_grad_()
    states, c, need = (torch.randn(4, 3, 5),), torch.randn(4, 3, 5), (True,) * 6
    watched: list[Any] = [
        x,
        h0,
        w_ih,
        w,
        b,
        packed,
        sizes,
        None,
        True,
        False,
        NotImplemented,
        Tensor,
        Parameter,
    ]
    watched += [weights, hx, leaf, states, states[0], c, need]

    def calls(count: int) -> list[int]:
        for _ in range(count):
            for each, given in ((None, leaf), (sizes, packed), (sizes, x), (None, None)):
                call = (native._variant, 0, 1, 0, 0, 5, 2, 1)
                native._scan.network(*call, True, each, given, hx, weights)
                native._scan.network_vjp(*call, need, each, given, hx, weights, states, c, None)
            native._scan.recurrence(*how, None, torch.empty(4, 3, 5), h0, w)
            native._scan.recurrence(*how, 1, x, h0, w)
            native.numbers(x, h0, w_ih, w, b, sizes)
            with pytest.raises(ValueError, match="does not fit"):
                native._scan.recurrence(*how, None, x, h0, w)
        return [sys.getrefcount(thing) for thing in watched]

    references, memory = calls(500), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    again = calls(5_000)
    assert all(b - a < 100 for a, b in zip(references, again, strict=True))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 4096  # KiB


class Meddler(TorchFunctionMode):
    """Has something else made in place of new memory."""

    def __init__(self, instead: Callable[[Any], Any]) -> None:
        super().__init__()
        self.instead = instead

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return self.instead(result) if getattr(func, "__name__", "") == "new_empty" else result


MADE_INSTEAD: list[Callable[[Any], Any]] = [
    lambda y: None,
    lambda y: y[:-1],
    lambda y: y.double(),
    lambda y: y.to("meta"),
    lambda y: y.as_subclass(Sub),
    lambda y: (y.untyped_storage().resize_(0), y)[1],
]


@pytest.mark.parametrize("instead", MADE_INSTEAD)
def test_what_a_mode_makes_is_judged(instead: Callable[[Any], Any]) -> None:
    z, h0, w = torch.randn(4, 3, 5), torch.randn(3, 5), torch.randn(5, 5)
    with Meddler(instead), pytest.raises((TypeError, ValueError)):
        native.elman(z, h0, w, None, "tanh", False)


@pytest.mark.parametrize("instead", [*MADE_INSTEAD, lambda y: y.mT.contiguous().mT if y.dim() > 1 else y[1:]])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_what_a_mode_makes_of_a_network_is_judged(instead: Callable[[Any], Any], dims: int) -> None:
    """Of every rank alone: a bias's gradient, a weight's, states."""
    x, hx, weights, sizes, *how = network()
    weights = tuple(torch.randn(s) for s in ((5, 2), (5, 5), (5,), (5,)))
    how[2] = True
    state = (torch.randn(4, 3, 5),)
    back = (True,) * 6, x, hx[:1], weights, state, state[0], None, sizes, *how[:-1]
    assert native.network_vjp(*back) is not NotImplemented
    with Meddler(lambda y: instead(y) if y.dim() == dims else y):
        assert native.network_vjp(*back) is NotImplemented
        if dims == 3:
            assert native.network(x, hx[:1], weights, sizes, *how) is NotImplemented


def shrink(victim: Tensor, y: Tensor) -> Tensor:
    """`y`, once another tensor has become a smaller one."""
    victim.data = torch.empty(1)
    return y


def test_what_a_mode_changes_meanwhile_is_judged() -> None:
    x, hx, weights, *how = network()
    for victim in (x, hx, *weights):
        kept = victim.data
        with Meddler(partial(shrink, victim)):
            assert native.network(x, hx, weights, *how) is NotImplemented
        victim.data = kept
    z, h0, w = torch.randn(4, 3, 5), torch.randn(3, 5), torch.randn(5, 5)
    for victim in (z, h0, w):
        kept = victim.data
        with Meddler(partial(shrink, victim)), pytest.raises(ValueError, match=r"fit|expected"):
            native.elman(z, h0, w, None, "tanh", False)
        victim.data = kept


def hostile_calls(count: int) -> tuple[int, int, int]:
    """How many calls went through, were refused, and found no memory; nothing else may happen."""
    choice, through, refused, out_of_memory = random.Random(0), 0, 0, 0
    torch.manual_seed(0)
    strange = [make() for make in (*TAKEN.values(), *REFUSED.values())]
    strange += [
        torch.randn(1).expand(2**40, 2**20),
        torch.randn(1).expand(2**45, 3, 5),
        torch.randn(1, 1, 1, 1, 1),
    ]
    strange += [
        torch.randn(1, 1, 1).as_strided((1, 1, 1), (2**60,) * 3),
        torch.randn(9).as_strided((4, 3, 2), (1, 1, 1)),
    ]
    strange += [
        torch.randn(s) for s in ((4, 3, 2), (3, 5), (5, 2), (5, 5), (9, 2), (0, 3, 2), (4, 0, 2), (4, 3, 0))
    ]
    strange += [
        torch.tensor(s) for s in ([3, 3, 2, 1], [2**62] * 4, [-1, 3], [3, 3, 3], [9], [[3, 3, 2, 1]], [3.0])
    ]
    strange += [
        torch.tensor([3, 3, 3, 2, 2, 1, 1, 0])[::2],
        torch.empty(0, dtype=torch.int64),
        2**63,
        -1,
        1.5,
        object(),
    ]
    for _ in range(count):
        f, call = choice.choice([a_recurrence, a_network, a_vjp, a_call])(choice)
        for _ in range(choice.choice([0, 1, 1, 2, 3])):
            spoil(call, choice, strange)
        if choice.random() < 0.05:
            call = call[: choice.randrange(len(call))]
        try:
            found = f(*call)
            through += found is not NotImplemented
            refused += found is NotImplemented
        except (TypeError, ValueError):
            refused += 1
        except (RuntimeError, MemoryError):  # torch's, for want of memory
            out_of_memory += 1
        assert native.numbers(*call) in (False, True)
    return through, refused, out_of_memory


def spoil(call: list[Any], choice: random.Random, strange: list[Any]) -> None:
    """Put something else in a place, or in one of a tuple's; or change a tensor in place."""
    place = choice.randrange(len(call))
    old = call[place]
    if isinstance(old, tuple) and old and choice.random() < 0.9:
        inner = list(old)
        spoil(inner, choice, strange)
        call[place] = choice.choice([tuple(inner), tuple(inner), tuple(inner), tuple(inner[:-1]), old * 2])
    elif type(old) is Tensor and choice.random() < 0.4 and not any(old is x for x in strange):
        with suppress(RuntimeError, IndexError):  # torch's, where it can't be
            choice.choice(IN_PLACE)(old)
    elif type(old) is Tensor and choice.random() < 0.5 and not any(old is x for x in strange):
        with suppress(RuntimeError, IndexError):
            call[place] = choice.choice(INSTEAD)(old)
    else:
        call[place] = choice.choice(strange)


IN_PLACE: list[Callable[[Tensor], Any]] = [
    lambda x: x.untyped_storage().resize_(choose_size(x)),
    lambda x: x.resize_(2, 2),
    lambda x: x.unsqueeze_(0),
    lambda x: x.set_(torch.empty(1).to(x.dtype)),  # type: ignore[call-overload]
    lambda x: x.t_() if x.dim() == 2 else x,
]
INSTEAD: list[Callable[[Tensor], Any]] = [  # none of them reads the numbers, which may be gone
    lambda x: torch.ones(x.shape, dtype=torch.float64),
    lambda x: torch.ones(x.shape, dtype=torch.float16),
    lambda x: torch.ones(x.shape[::-1]).permute(*range(x.dim())[::-1]),
    lambda x: torch.ones(x.shape).requires_grad_(),
    lambda x: x[..., :-1],
    lambda x: x[1:],
    lambda x: x.new_zeros(1).expand(x.shape),
    lambda x: x.as_strided(x.shape, (0,) * x.dim()),
    lambda x: x.expand(2**20, *x.shape),
    lambda x: x.mT,
    torch._lazy_clone,
    torch._neg_view,
]


def choose_size(x: Tensor) -> int:
    """A storage that is too small by little or by much."""
    return (x.untyped_storage().nbytes() * (x.numel() % 4)) // 4


def a_recurrence(choice: random.Random) -> tuple[Callable[..., Any], list[Any]]:
    packed, kind = choice.random() < 0.5, choice.randrange(4)
    rows = (9,) if packed else (4, 3)
    h = torch.randn(3, 5) if kind < 2 else torch.randn(*rows, 5)
    sizes = torch.tensor([3, 3, 2, 1]) if packed else None
    how = [variant(choice), kind, choice.randint(1, 3), choice.random() < 0.5]
    return native._scan.recurrence, [*how, sizes, torch.randn(*rows, 5), h, torch.randn(5, 5)]


def variant(choice: random.Random) -> int:
    return choice.choice(list(native._scan.variants.values()))


def of_network(choice: random.Random) -> tuple[list[Any], list[Any], int, int]:
    """The numbers and the tensors of a valid call, and its layers and directions."""
    packed, D, L = choice.random() < 0.4, choice.choice([1, 2]), choice.choice([1, 2, 3])
    dtype, bias, rows = choice.choice(native.TYPES), choice.random() < 0.6, (9,) if packed else (4, 3)
    weights = [
        torch.randn(shape, dtype=dtype)
        for layer in range(L)
        for _ in range(D)
        for shape in ((5, D * 5 if layer else 2), (5, 5), *([(5,), (5,)] if bias else []))
    ]
    how = [variant(choice), choice.randrange(2), choice.randint(1, 3), D == 2, False, 5, 2, bias]
    x, hx = torch.randn(*rows, 2, dtype=dtype), torch.randn(L * D, 3, 5, dtype=dtype)
    hx = None if choice.random() < 0.3 else hx  # type: ignore[assignment]
    return how, [torch.tensor([3, 3, 2, 1]) if packed else None, x, hx, tuple(weights)], L, D


def a_network(choice: random.Random) -> tuple[Callable[..., Any], list[Any]]:
    how, tensors, _, _ = of_network(choice)
    if choice.random() < 0.5:
        tensors[1].requires_grad_()
    return native._scan.network, [*how, choice.random() < 0.5, *tensors]


def a_vjp(choice: random.Random) -> tuple[Callable[..., Any], list[Any]]:
    how, tensors, L, D = of_network(choice)
    need = tuple(choice.random() < 0.7 for _ in range(2 + len(tensors[3])))
    rows, dtype = (9,) if tensors[0] is not None else (4, 3), tensors[1].dtype
    states = tuple(torch.randn(*rows, D * 5, dtype=dtype) for _ in range(L))
    c = torch.randn(*tensors[1].shape[:-1], D * 5, dtype=dtype)
    last = [torch.randn(L * D, 3, 5, dtype=dtype), None][choice.random() < 0.3]
    dropped = tuple(None if choice.random() < 0.05 else w for w in tensors[3])
    return native._scan.network_vjp, [*how, need, *tensors[:3], dropped, states, c, last]


def a_call(choice: random.Random) -> tuple[Callable[..., Any], list[Any]]:
    """Of a module, of whose attributes and parameters one may be strange."""
    how, tensors, L, D = of_network(choice)
    sizes, x, hx, weights = tensors
    names = [str(i) for i in range(len(weights))]
    own: list[Any] = ["RNN_TANH", how[-1], choice.random() < 0.3, D == 2, True, 0.0, 0, 5, 2, L]
    each = len(weights) // (L * D)
    own += [
        dict(zip(names, weights, strict=True)),
        [names[at : at + each] for at in range(0, len(names), each)],
    ]
    if choice.random() < 0.5:
        spoil(own, choice, [None, "x", 2**70, -1, 1.5, [], {}, [[]], object()])
    if choice.random() < 0.2 and isinstance(own[10], dict):
        own[10][choice.choice(names)] = choice.choice([None, 1, torch.zeros(5), weights])
    attributes = dict(zip(ATTRIBUTES, own, strict=True))
    keep = choice.random() < 0.5
    return native._scan.call, [how[0], how[2], keep, attributes, sizes, x, hx]


def test_hostile_arguments_raise_and_never_crash() -> None:
    """In a process of its own, which a crash would end."""
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/kernels']; "
        "import test_exchange; print(*test_exchange.hostile_calls(6000))"
    )
    command = [sys.executable, "-W", "ignore", "-X", "faulthandler", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    through, refused, out_of_memory = map(int, done.stdout.split())
    assert through > 1000
    assert refused > 2000
    assert out_of_memory < 300


def test_zeros_without_memory_are_refused_at_an_offset() -> None:
    z, h0, w = torch.randn(4, 3, 5), torch.randn(3, 5), torch.randn(5, 5)
    for place in range(3):
        given = [
            torch._efficientzerotensor((2, *x.shape))[1] if i == place else x
            for i, x in enumerate((z, h0, w))
        ]
        with pytest.raises(ValueError, match="to lie within its storage"):
            native.elman(*given, None, "tanh", False)  # type: ignore[call-arg, arg-type]
    sizes = torch._efficientzerotensor((2, 4), dtype=torch.int64)[1]
    with pytest.raises(ValueError, match="batch_sizes to lie within"):
        native.elman(z[0], h0, w, sizes, "tanh", False)


def results_while_replaced(seconds: float) -> int:
    """How many calls gave the same bits while another thread replaced the memory of all that they read."""
    torch.manual_seed(0)
    x, c, hx, w = (
        torch.randn(40, 30, 128),
        torch.randn(40, 30, 128),
        torch.randn(1, 30, 128),
        torch.randn(128, 128) / 128,
    )
    weights, how = (w, w.clone()), (None, "tanh", False, False, 128, 128)
    state, need = native.network(x, hx, weights, *how, False)[0], (True,) * 4
    calls: list[Callable[[], Any]] = [
        lambda: native.network(x, hx, weights, *how, False)[:2],
        lambda: native.network_vjp(need, x, hx, weights, (state,), c, hx, *how),
        lambda: (native.elman(x, hx[0], w, None, "tanh", False),),
        lambda: (native.linear_recurrence(c, state, w, None, "tanh", True),),
    ]
    expected, stop, count, deadline = (
        [call() for call in calls],
        threading.Event(),
        0,
        time.monotonic() + seconds,
    )

    def replace() -> None:
        while not stop.is_set():
            for victim in (x, c, hx, state, *weights):
                victim.data = victim.data.clone()
            time.sleep(0)

    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(replace)
        try:
            while time.monotonic() < deadline:
                native._exchanges = count % 3 > 0 or count % 4 < 2  # the recurrences at times by addresses
                found, right = calls[count % 4](), expected[count % 4]
                assert all(map(torch.equal, found, right)), count
                count += 1
        finally:
            stop.set()
        replacing.result()
    return count


def test_memory_may_be_replaced_meanwhile() -> None:
    """As by `weight.data = ...` in another thread: a call reads what was there when it began. In a process of
    its own, which a crash would end, and where freed memory is gone at once."""
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/kernels']; "
        "import test_exchange; print(test_exchange.results_while_replaced(2))"
    )
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "4096"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8, "each call at least twice"


FUNCTIONS = (len,) * 8


@pytest.mark.parametrize(
    "wrong",
    [(), (None,) * 12, (object(), Tensor, Parameter, *FUNCTIONS, native.TYPES)],
    ids=["none", "Nones", "object"],
)
def test_another_torch_is_refused(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        native._scan.exchange(*wrong)
    capsule: Any = Tensor.__dlpack_c_exchange_api__  # type: ignore[attr-defined]
    for types in ((Tensor, 1, *FUNCTIONS), (Tensor, Parameter, *FUNCTIONS[1:], None)):
        with pytest.raises(TypeError, match="expected two types and 8 functions"):
            native._scan.exchange(capsule, *types, native.TYPES)
    for dtypes in (None, native.TYPES[:3], list(native.TYPES)):
        with pytest.raises(TypeError, match="expected a tuple of 4 dtypes"):
            native._scan.exchange(capsule, Tensor, Parameter, *FUNCTIONS, dtypes)
    assert native.numbers(torch.randn(3))


@pytest.fixture
def _without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Tensor):
        __dlpack_c_exchange_api__ = None

    monkeypatch.setattr(native, "Tensor", Other)


@pytest.mark.usefixtures("_without_exchange")
def test_a_torch_without_exchange_is_noticed() -> None:
    assert native._exchange() is False
