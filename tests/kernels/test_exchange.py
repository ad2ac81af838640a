"""How the native kernel reads torch's tensors in C: which it takes, what it returns, what can't crash it."""

import copy
import pickle
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from internals import Walk, native
from test_native import misaligned, problem, scattered
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._vmap_internals import _vmap as legacy_vmap
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from manual_rnn.recurrence import dispatch

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
for dtype in (
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.complex64,
):
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
    assert dispatch.plain(x)  # as the keys of the tensor say
    assert native.why_not(x) is None


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_refuses_all_else(kind: str) -> None:
    x = REFUSED[kind]()
    if x is not False:  # or was judged inside
        assert native.numbers(x) is False
        assert native.numbers(torch.randn(3), None, x) is False


def test_a_refusal_takes_no_millisecond() -> None:
    """As torch does to raise."""
    refused = [REFUSED[kind]() for kind in ("meta", "sparse", "functional", "once of vmap", "torch.float64")]
    refused.append(REFUSED["once of legacy vmap"]())
    for x in refused:
        begin = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        assert not any(native.numbers(x) for _ in range(1000))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - begin < 0.1


def problems(count: int) -> list[list[tuple[Any, ...]]]:
    """For each seed what the kernel is given: as elman, as linear_recurrence and, for some, as a layer."""
    found = []
    for seed in range(count):
        z, h0, w, phi, reverse, sizes, h = problem(seed)
        how = sizes, phi, reverse
        found.append([(native.elman, z, h0, w, *how), (native.linear_recurrence, z, h, w, *how)])
        if w.dim() == 2 and 0 not in z.shape:
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
        given = problems(150)
        here = [results(one) for one in given]
        addresses()
        there = [results(one) for one in given]
    finally:
        torch.use_deterministic_algorithms(False)
    assert sum(len(found) == 4 for found in here) > 30
    for one, other in zip(here, there, strict=True):
        assert [x.shape for x in one] == [x.shape for x in other]
        assert [x.stride() for x in one] == [x.stride() for x in other]
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("place", range(4))
def test_a_subclass_goes_by_its_address(place: int) -> None:
    given: list[Any] = [torch.randn(s) for s in ((4, 3, 2), (3, 5), (5, 2), (5, 5))]
    given += [None, None, None, "tanh", False]
    expected = native.layer(*given)
    given[place] = given[place].as_subclass(Sub)
    found = native.layer(*given)
    assert expected is not None
    assert found is not None
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def made(T: int = 4) -> tuple[Tensor, Tensor]:
    x, h0, w_ih, w = (torch.randn(s) for s in ((T, 3, 2), (3, 5), (5, 2), (5, 5)))
    found = native.layer(x, h0, w_ih, w, None, None, None, "tanh", False)
    assert found is not None
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_batch_of_none_has_no_last_states(
    packed: bool, reverse: bool, addresses: Callable[[], None]
) -> None:
    x, sizes = (torch.empty(0, 2), torch.empty(0).long()) if packed else (torch.empty(4, 0, 2), None)
    given: list[Any] = [
        x,
        torch.empty(0, 5),
        torch.randn(5, 2),
        torch.randn(5, 5),
        None,
        None,
        sizes,
        "tanh",
        reverse,
    ]
    found = native.layer(*given)
    assert found is not None
    assert [y.shape for y in found] == [(*x.shape[:-1], 5), (0, 5)]
    if not packed:
        addresses()
        expected = native.layer(*given)
        assert expected is not None
        assert [y.shape for y in found] == [y.shape for y in expected]


def test_a_layer_without_steps_has_no_last_states() -> None:
    x, h0, w_ih, w = (torch.randn(s) for s in ((0, 3, 2), (3, 5), (5, 2), (5, 5)))
    with pytest.raises(ValueError, match="expected at least one step"):
        native.layer(x, h0, w_ih, w, None, None, None, "tanh", False)


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
    watched = [x, h0, w_ih, w, b, packed, sizes, None, True, False, NotImplemented, Tensor, Parameter]

    def calls(count: int) -> list[int]:
        for _ in range(count):
            native._scan.layer(*how, None, x, h0, w_ih, w, b, b)
            native._scan.layer(*how, sizes, packed, h0, w_ih, w, None, None)
            native._scan.recurrence(*how, None, torch.empty(4, 3, 5), h0, w)
            native._scan.recurrence(*how, 1, x, h0, w)
            native.numbers(x, h0, w_ih, w, b, sizes)
            for wrong in ((None, x, h0, w_ih, w, b, None), (sizes, x, h0, w_ih, w, b, b)):
                with pytest.raises((TypeError, ValueError)):
                    native._scan.layer(*how, *wrong)
        return [sys.getrefcount(thing) for thing in watched]

    references, memory = calls(500), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    again = calls(20_000)
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


@pytest.mark.parametrize(
    "instead",
    [
        lambda y: None,
        lambda y: y[:-1],
        lambda y: y.double(),
        lambda y: y.to("meta"),
        lambda y: y.as_subclass(Sub),
        lambda y: y.mT.contiguous().mT,
        lambda y: (y.untyped_storage().resize_(0), y)[1],
    ],
)
def test_what_a_mode_makes_is_judged(instead: Callable[[Any], Any]) -> None:
    with Meddler(instead), pytest.raises((TypeError, ValueError)):
        made()


def test_what_a_mode_changes_meanwhile_is_judged() -> None:
    x, h0, w_ih, w = (torch.randn(s) for s in ((4, 3, 2), (3, 5), (5, 2), (5, 5)))
    for victim in (x, h0, w_ih, w):
        kept = victim.data

        def shrink(y: Tensor, victim: Tensor = victim) -> Tensor:
            victim.data = torch.empty(1)
            return y

        with Meddler(shrink), pytest.raises(ValueError, match=r"fit|expected"):
            native.layer(x, h0, w_ih, w, None, None, None, "tanh", False)
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
        packed, layer = choice.random() < 0.5, choice.random() < 0.5
        call: list[Any] = [
            native._variant,
            choice.randrange(2 if layer else 4),
            choice.randint(1, 3),
            choice.random() < 0.5,
        ]
        call.append(torch.tensor([3, 3, 2, 1]) if packed else None)
        rows = (9,) if packed else (4, 3)
        call += [torch.randn(*rows, 2 if layer else 5)]
        call.append(torch.randn(3, 5) if call[1] < 2 else torch.randn(*rows, 5))
        call += (
            [torch.randn(5, 2), torch.randn(5, 5), torch.randn(5), torch.randn(5)]
            if layer
            else [torch.randn(5, 5)]
        )
        for _ in range(choice.choice([0, 1, 1, 2, 3])):
            call[choice.randrange(len(call))] = choice.choice(strange)
        if choice.random() < 0.05:
            call = call[: choice.randrange(len(call))]
        try:
            found = (native._scan.layer if layer else native._scan.recurrence)(*call)
            through += found is not NotImplemented
            refused += found is NotImplemented
        except (TypeError, ValueError):
            refused += 1
        except (RuntimeError, MemoryError):  # torch's, for want of memory
            out_of_memory += 1
        assert native.numbers(*call) in (False, True)
    return through, refused, out_of_memory


def test_hostile_arguments_raise_and_never_crash() -> None:
    """In a process of its own, which a crash would end."""
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/kernels']; "
        "import test_exchange; print(*test_exchange.hostile_calls(3000))"
    )
    command = [sys.executable, "-W", "ignore", "-X", "faulthandler", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    through, refused, out_of_memory = map(int, done.stdout.split())
    assert through > 500
    assert refused > 1000
    assert out_of_memory < 200


@pytest.mark.parametrize(
    "wrong", [(), (None,) * 6, (object(), Tensor, Parameter, len, len, len)], ids=["none", "Nones", "object"]
)
def test_another_torch_is_refused(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        native._scan.exchange(*wrong)
    capsule: Any = Tensor.__dlpack_c_exchange_api__  # type: ignore[attr-defined]
    for types in ((Tensor, 1, len, len, len), (Tensor, Parameter, len, len, None)):
        with pytest.raises(TypeError, match="expected two types and three functions"):
            native._scan.exchange(capsule, *types)
    assert native.numbers(torch.randn(3))


@pytest.fixture
def _without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Tensor):
        __dlpack_c_exchange_api__ = None

    monkeypatch.setattr(native, "Tensor", Other)


@pytest.mark.usefixtures("_without_exchange")
def test_a_torch_without_exchange_is_noticed() -> None:
    assert native._exchange() is False
