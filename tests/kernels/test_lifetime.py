r"""What the operators in C hold: tensors during a call, nothing after it, whatever other threads do."""

import gc
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
    in_a_process_of_its_own,
    on_threads,
    places,
    vjp_arguments,
)  # fmt: skip
from internals import OPS
from torch.multiprocessing.reductions import StorageWeakRef

pytestmark = NEEDS_C


def uses(x: Any) -> int:
    """How many references C++ has to a tensor."""
    return x._use_count()


@OPERATORS
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_a_call_keeps_no_tensor(fails: bool, packed: bool, name: str) -> None:
    """One that succeeded, or raised for the sake of any one tensor: nobody counts one more of those that it
    read, and their memory is free once they are gone."""
    for place in places(calls(packed=packed)[name][1]) if fails else [None]:
        operator, arguments = calls(packed=packed)[name]
        given = arguments if place is None else changed(arguments, place, lambda x: x.flatten()[:1].double())
        before = [uses(x) for x in flat(given)]
        if fails:
            with pytest.raises((RuntimeError, ValueError)):
                operator(*given)
        else:
            operator(*given)
        assert [uses(x) for x in flat(given)] == before, place
        memory = [StorageWeakRef(x.untyped_storage()) for x in flat(given) if x.dtype != torch.int64]
        del arguments, given
        gc.collect()
        assert all(each.expired() for each in memory), place


@pytest.mark.parametrize("packed", [False, True])
def test_a_call_that_is_refused_before_its_lists_are_read_keeps_no_tensor(packed: bool) -> None:
    operator, (need, *given) = calls(packed=packed)["network_vjp"]
    before = [uses(x) for x in flat(given)]
    with pytest.raises((RuntimeError, ValueError), match="flag"):
        operator(need[:-1], *given)
    assert [uses(x) for x in flat(given)] == before


def memory_after(count: int) -> tuple[int]:
    """KiB by which the process grew in so many rounds of calls, good and bad, after as many to begin with."""
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
    (grown,) = in_a_process_of_its_own(__file__, "memory_after(1500)")
    assert grown < 512, "a leak of the string that each of 17 calls is given would be seen"


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
    expected, count = [flat(call()) for call in todo], 0
    deadline = time.monotonic() + seconds

    def replace() -> None:
        time.sleep(2e-4)
        for victim in (x, hx, rows, sizes, *weights, *vjp[4], vjp[5], vjp[6]):
            victim.data = victim.data.clone()

    with ThreadPoolExecutor(1) as pool:
        while time.monotonic() < deadline or count < 10:
            replacing = pool.submit(replace)
            assert all(map(torch.equal, flat(todo[count % 5]()), expected[count % 5])), count
            replacing.result()
            count += 1
    return (count,)


def test_memory_may_be_replaced_meanwhile() -> None:
    """As by `weight.data = ...` in another thread: a call reads what was there when it began. In its first
    microseconds it takes hold of that without the lock of Python, and torch itself is not safe. Freed memory
    is gone at once there."""
    (count,) = in_a_process_of_its_own(__file__, "results_while_replaced(2)", MALLOC_MMAP_THRESHOLD_="4096")
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
    bad = [[*draw_network()[:1], torch.randn(1, n + 4, 5), *draw_network()[2:]] for n in range(6)]
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
