r"""The operators in C under calls that nobody would write, under other threads' hands, and for as long as a day."""

import gc
import os
import random
import resource
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import (
    NEEDS_C,
    OPERATORS,
    calls,
    changed,
    draw_network,
    flat,
    misaligned,
    on_threads,
    places,
    vjp_arguments,
)
from internals import OPS, native
from torch import Tensor

pytestmark = NEEDS_C
ROOT = Path(__file__).parents[2]


def in_a_process_of_its_own(call: str, **environment: str) -> list[int]:
    """The numbers that a function of this file prints there, which a crash would end."""
    code = f"import sys; sys.path[:0] = ['tests', 'tests/kernels']; import test_hostile; print(*test_hostile.{call})"
    command = [sys.executable, "-W", "ignore", "-X", "faulthandler", "-c", code]
    given = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    return list(map(int, done.stdout.split()))


IN_PLACE: list[Callable[[Tensor], Any]] = [
    lambda x: x.untyped_storage().resize_(x.untyped_storage().nbytes() * (x.numel() % 4) // 4),
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
    lambda x: torch._efficientzerotensor((2, *x.shape))[1],
    lambda x: misaligned(torch.ones(x.shape)),
    lambda x: x[..., :-1],
    lambda x: x[1:],
    lambda x: x.new_zeros(1).expand(x.shape),
    lambda x: x.as_strided(x.shape, (0,) * x.dim()),
    lambda x: x.expand(2**20, *x.shape),
    lambda x: x.mT,
    lambda x: x[None],
    torch._lazy_clone,
    torch._neg_view,
]
STRANGE: list[Callable[[], Any]] = [
    lambda: None,
    lambda: torch.randn(1).expand(2**40, 2**20),
    lambda: torch.randn(1).expand(2**45, 3, 5),
    lambda: torch.randn((1,) * 6),
    lambda: torch.randn(1, 1, 1).as_strided((1, 1, 1), (2**60,) * 3),
    lambda: torch.randn(9).as_strided((4, 3, 2), (1, 1, 1)),
    lambda: torch.eye(5).to_sparse(),
    lambda: torch.eye(5).to_sparse_csr(),
    lambda: torch.empty(4, 3, 2, device="meta"),
    lambda: torch.randn(3, dtype=torch.complex64).conj(),
    lambda: torch.tensor([3, 3, 2, 1]),
    lambda: torch.tensor([2**62] * 4),
    lambda: torch.tensor([3, 3, 3, 2, 2, 1, 1, 0])[::2],
    lambda: torch.empty(0, dtype=torch.int64),
    lambda: torch.randn(()),
    lambda: torch.randn(0, 3, 2),
    lambda: torch.randn(4, 3, 0),
    lambda: "relu",
    lambda: "sin",
    lambda: True,
    lambda: [],
    lambda: [torch.randn(5, 5)] * 4,
    lambda: [True] * 6,
    lambda: 2**63,
]


def spoil(call: list[Any], choice: random.Random) -> None:
    """Put something else in a place, or in one of a list's; or change a tensor in place."""
    place = choice.randrange(len(call))
    old = call[place]
    if isinstance(old, list) and old and choice.random() < 0.9:
        inner = list(old)
        spoil(inner, choice)
        call[place] = choice.choice([inner, inner, inner, inner[:-1], old * 2, old[::-1]])
    elif type(old) is Tensor and choice.random() < 0.8:
        with suppress(RuntimeError, IndexError):  # torch's, where it can't be
            if choice.random() < 0.5:
                choice.choice(IN_PLACE)(old)
            else:
                call[place] = choice.choice(INSTEAD)(old)
    else:
        call[place] = choice.choice(STRANGE)()


def a_call(choice: random.Random) -> tuple[Any, list[Any]]:
    """An operator and arguments that fit, of any options."""
    sizes = torch.tensor([3, 3, 2, 1]) if choice.random() < 0.4 else None
    group = choice.choice([(), (), (1,), (3,)])
    rows = (9,) if sizes is not None else (4, 3)
    dtype = choice.choice(native.TYPES)
    if choice.random() < 0.3:
        z, h0, w = (torch.randn(*group, *s).to(dtype) for s in ((*rows, 5), (3, 5), (5, 5)))
        how = [sizes, choice.choice(["tanh", "relu"]), choice.random() < 0.5]
        return (OPS.elman.default, [z, h0, w, *how]) if choice.random() < 0.5 else (
            OPS.linear_recurrence.default, [z, z.clone(), w, *how])  # fmt: skip
    options: dict[str, Any] = {
        "L": choice.randint(1, 3),
        "D": choice.randint(1, 2),
        "bias": choice.random() < 0.6,
    }
    network = draw_network(G=group, sizes=sizes, dtype=dtype, **options)
    network[1] = choice.choice([network[1], None])
    if choice.random() < 0.4:
        return OPS.network.default, network
    if choice.random() < 0.4 and not group:
        return torch.ops.aten._cudnn_rnn.default, cudnn_arguments(network, choice)
    vjp = vjp_arguments(network)
    vjp[0] = [wanted and choice.random() < 0.7 for wanted in vjp[0]]
    return OPS.network_vjp.default, vjp


def cudnn_arguments(network: list[Any], choice: random.Random) -> list[Any]:
    x, hx, weights, sizes, phi, bidirectional, bias, _ = network
    each = 4 if bias else 2
    hx = x.new_empty(0) if hx is None else hx
    counts = [] if sizes is None else sizes.tolist()
    how = [
        phi == "tanh",
        5,
        0,
        len(weights) // each // (1 + bidirectional),
        False,
        0.0,
        choice.random() < 0.5,
    ]
    return [x, weights, each, None, hx, None, *how, bidirectional, counts, None]


def hostile_calls(count: int, seed: int = 0) -> tuple[int, int]:
    """How many calls went through and how many raised; nothing else may happen."""
    choice, through, refused = random.Random(seed), 0, 0
    torch.manual_seed(seed)
    for _ in range(count):
        operator, call = a_call(choice)
        for _ in range(choice.choice([0, 1, 1, 2, 3])):
            spoil(call, choice)
        if choice.random() < 0.05:
            call = call[: choice.randrange(len(call))]
        try:
            with torch.set_grad_enabled(choice.random() < 0.2):
                for x in flat(operator(*call)):
                    if not x.is_meta and x.layout is torch.strided:
                        x.sum()
            through += 1
        except (TypeError, ValueError, IndexError, NotImplementedError, RuntimeError, MemoryError):
            refused += 1
    return through, refused


def test_hostile_arguments_raise_and_never_crash() -> None:
    through, refused = in_a_process_of_its_own("hostile_calls(4000)")
    assert through > 800
    assert refused > 1200


def freed(arguments: list[Any]) -> Callable[[], bool]:
    """Whether all tensors of these arguments, and their storages, are gone."""
    tensors = flat(arguments)
    watched = [weakref.ref(x) for x in tensors] + [weakref.ref(x.untyped_storage()) for x in tensors]
    return lambda: not any(ref() is not None for ref in watched)


@OPERATORS
@pytest.mark.parametrize("packed", [False, True])
def test_a_call_keeps_no_tensor(packed: bool, name: str) -> None:
    """One that succeeded, and one that raised for the sake of any one tensor."""
    for at in range(-1, len(places(calls(packed=packed)[name][1]))):
        operator, arguments = calls(packed=packed)[name]
        shape_of_all = [
            x._use_count() for x in flat(arguments)
        ]  # of the tensor in C++, its Python object counted
        storages = [x.untyped_storage()._use_count() for x in flat(arguments)]  # type: ignore[attr-defined]
        given = (
            arguments
            if at < 0
            else changed(arguments, places(arguments)[at], lambda x: x.flatten()[:1].double())
        )
        if at < 0:
            operator(*given)
        else:
            with pytest.raises((RuntimeError, ValueError)):
                operator(*given)
        del given
        assert [x._use_count() for x in flat(arguments)] == shape_of_all
        assert [x.untyped_storage()._use_count() for x in flat(arguments)] == storages  # type: ignore[attr-defined]


def memory_after(count: int) -> tuple[int]:
    """KiB by which the process grew in so many calls of everything, good and bad, after as many to begin with."""
    torch.set_num_threads(1)
    given = [each for packed in (False, True) for each in calls(packed=packed).values()]
    given += [(operator, changed(a, places(a)[-1], lambda x: x.double())) for operator, a in given]
    given += [(OPS.network.default, draw_network(G=(3,), L=3, D=2, dtype=torch.bfloat16))]

    def run() -> int:
        for _ in range(count):
            for operator, arguments in given:
                with suppress(RuntimeError, ValueError):
                    operator(*arguments)
        gc.collect()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    return (-run() + run(),)


def test_thousands_of_calls_leave_nothing_behind() -> None:
    (grown,) = in_a_process_of_its_own("memory_after(1500)")
    assert grown < 2048, "17 operators a round: a leak of 100 bytes in one of them would be seen"


def results_while_replaced(seconds: float) -> tuple[int]:
    """How many calls gave the same bits while another thread replaced the memory of all that they read."""
    torch.manual_seed(0)
    network = draw_network(rows=(40, 30), I=128, H=128, bias=False)
    sizes = torch.tensor([30] * 40)
    vjp, (x, hx, weights, *_) = vjp_arguments(network), network
    rows = x.flatten(0, 1).clone()
    todo: list[Callable[[], Any]] = [
        lambda: OPS.network(*network)[:2],
        lambda: OPS.network_vjp(*vjp),
        lambda: OPS.elman(x, hx[0], weights[1], None, "tanh", False),
        lambda: OPS.linear_recurrence(x, vjp[4][0], weights[1], None, "tanh", True),
        lambda: OPS.network(rows, hx, weights, sizes, "tanh", False, False, False)[:2],
    ]
    expected, stop, count = [flat(call()) for call in todo], threading.Event(), 0
    deadline = time.monotonic() + seconds

    def replace() -> None:
        while not stop.is_set():
            for victim in (x, hx, rows, sizes, *weights, *vjp[4], vjp[5], vjp[6]):
                victim.data = victim.data.clone()
            time.sleep(0)

    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(replace)
        try:
            while time.monotonic() < deadline or count < 10:
                assert all(map(torch.equal, flat(todo[count % 5]()), expected[count % 5])), count
                count += 1
        finally:
            stop.set()
        replacing.result()
    return (count,)


def test_memory_may_be_replaced_meanwhile() -> None:
    """As by `weight.data = ...` in another thread: a call reads what was there when it began. Freed memory is gone at
    once there."""
    (count,) = in_a_process_of_its_own("results_while_replaced(2)", MALLOC_MMAP_THRESHOLD_="4096")
    assert count >= 10


def test_batch_sizes_may_change_meanwhile() -> None:
    """They are copied before they're judged: a call is refused, or runs by sizes that passed."""
    good, stop = torch.full((50,), 8), threading.Event()
    sizes, (z, h0, w) = good.clone(), (torch.randn(s) / 4 for s in ((400, 16), (8, 16), (16, 16)))
    expected = OPS.elman(z, h0, w, good, "tanh", False)

    def change() -> None:
        while not stop.is_set():
            sizes.fill_(2**40)
            sizes.copy_(good)
            time.sleep(0)

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        deadline, through, refused = time.monotonic() + 1, 0, 0
        while time.monotonic() < deadline:
            try:
                assert torch.equal(OPS.elman(z, h0, w, sizes, "tanh", False), expected)
                through += 1
            except RuntimeError:
                refused += 1
        stop.set()
        changing.result()
    assert through


def test_several_python_threads_at_once() -> None:
    """Errors of one don't reach another."""
    given = [calls(packed=i % 2 > 0)[name] for i in range(6) for name in ("network", "network_vjp", "elman")]
    bad = [draw_network()[:1] + [torch.randn(1, n + 4, 5)] + draw_network()[2:] for n in range(6)]
    alone = [flat(operator(*arguments)) for operator, arguments in given]

    def run(i: int) -> bool:
        with (
            on_threads(1),
            pytest.raises(RuntimeError, match=rf"hx: expected shape .*got \(1, {i % 6 + 4}, 5\)"),
        ):
            OPS.network(*bad[i % 6])
        operator, arguments = given[i % len(given)]
        return all(map(torch.equal, flat(operator(*arguments)), alone[i % len(given)]))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(200)))
