r"""What holds when several blocks ask for a kernel: in threads, tasks and generators, in every order."""

import asyncio
import gc
import itertools
import os
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, get_args

import pytest
import torch
from internals import kernels
from torch import nn

from manual_rnn import ManualRNN, use_kernel


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    """Whatever a test does, no request outlives it, and a fresh thread finds none."""
    yield
    gc.collect()
    assert kernels.requested_kernel() == "default"
    with ThreadPoolExecutor(1) as fresh:
        assert fresh.submit(kernels.requested_kernel).result() == "default"


def test_the_names_are_the_kernels() -> None:
    """And an older one of "aten"."""
    assert set(get_args(kernels.KernelName)) == {"default", "vendor", *kernels.KERNELS}
    with use_kernel("vendor"):
        assert kernels.requested_kernel() == "aten"


@pytest.mark.parametrize("order", sorted(set(itertools.permutations("AABBCC"))), ids="".join)
def test_three_threads_that_enter_and_leave_in_any_order(order: tuple[str, ...]) -> None:
    """Each heeds its own block; without one, the newest that is live."""
    names: Any = {"A": "reference", "B": "torch", "C": "native"}
    pools = {thread: ThreadPoolExecutor(1) for thread in names}
    blocks = {thread: use_kernel(name) for thread, name in names.items()}
    live: list[str] = []
    for thread in order:
        if thread in live:
            pools[thread].submit(blocks[thread].__exit__, None, None, None).result()
            live.remove(thread)
        else:
            pools[thread].submit(blocks[thread].__enter__).result()
            live.append(thread)
        for other, pool in pools.items():
            heeded = names[other if other in live else live[-1]] if live else "default"
            assert pool.submit(kernels.requested_kernel).result() == heeded
        assert kernels.requested_kernel() == (names[live[-1]] if live else "default")
    for pool in pools.values():
        pool.shutdown()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_one_thread_leaves_in_any_order(order: tuple[int, ...]) -> None:
    names: Any = ["reference", "torch", "native"]
    blocks = [use_kernel(name) for name in names]
    for block in blocks:
        block.__enter__()
    live = list(names)
    for place in order:
        blocks[place].__exit__(None, None, None)
        live.remove(names[place])
        assert kernels.requested_kernel() == (live[-1] if live else "default")


def test_many_threads_at_once_leave_nothing_behind() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work(number: int) -> None:
        name: Any = ("reference", "torch", "native")[number % 3]
        for _ in range(300):
            with use_kernel(name):
                assert kernels.requested_kernel() == name

    try:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
    finally:
        sys.setswitchinterval(interval)


def test_threads_that_share_one_object() -> None:
    """A block that ends takes back its own request, and not that of another thread."""
    shared, wrong = use_kernel("torch"), []

    def many(_: int) -> None:
        for _ in range(2000):
            with use_kernel("reference"):
                with shared:
                    wrong.append(kernels.requested_kernel() != "torch")
                wrong.append(kernels.requested_kernel() != "reference")

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(many, range(8)))
    finally:
        sys.setswitchinterval(before)
    assert len(wrong) == 8 * 2 * 2000
    assert not any(wrong)


def test_what_runs_is_what_this_thread_asked_for() -> None:
    """Of complex numbers the C kernel can't run: only the thread that asked for it is told so."""
    rnn, input = ManualRNN(3, 4, dtype=torch.complex64), torch.randn(5, 2, 3, dtype=torch.complex64)
    with ThreadPoolExecutor(1) as other, use_kernel("reference"):
        block = use_kernel("native")
        other.submit(block.__enter__).result()
        rnn(input)
        with pytest.raises(RuntimeError, match="kernel 'native' can't run here"):
            other.submit(rnn, input).result()
        other.submit(block.__exit__, None, None, None).result()


def test_a_thread_that_asked_for_nothing_runs_what_was_asked_around_it() -> None:
    with ThreadPoolExecutor(1) as pool:
        with use_kernel("reference"):
            assert pool.submit(kernels.requested_kernel).result() == "reference"
        assert pool.submit(kernels.requested_kernel).result() == "default"


def test_tasks_of_one_thread_heed_their_own_blocks() -> None:
    async def ask(name: Any, waits: int) -> None:
        with use_kernel(name):
            for _ in range(waits):
                await asyncio.sleep(0)
                assert kernels.requested_kernel() == name

    async def outlive() -> str:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return kernels.requested_kernel()

    async def main() -> None:
        await asyncio.gather(ask("reference", 1), ask("torch", 4), ask("native", 2))
        with use_kernel("reference"):
            task = asyncio.create_task(outlive())
        assert await task == "default"

    asyncio.run(main())


def test_an_exception_ends_the_block_and_passes() -> None:
    with use_kernel("torch"):
        with pytest.raises(KeyError), use_kernel("reference"):
            raise KeyError
        assert kernels.requested_kernel() == "torch"


def steps(name: Any) -> Iterator[str]:
    with use_kernel(name):
        yield kernels.requested_kernel()
        yield kernels.requested_kernel()


def test_generators_closed_late_and_out_of_order() -> None:
    first, second = steps("reference"), steps("torch")
    assert (next(first), next(second)) == ("reference", "torch")
    first.close()  # type: ignore[attr-defined]
    assert kernels.requested_kernel() == "torch"
    assert next(second) == "torch"
    with ThreadPoolExecutor(1) as other:  # which never entered the block
        other.submit(second.close).result()  # type: ignore[attr-defined]
    assert kernels.requested_kernel() == "default"
    third = steps("reference")
    next(third)
    del third
    gc.collect()
    assert kernels.requested_kernel() == "default"


def test_one_object_enters_again() -> None:
    """Nested in itself, one time after another, and in two threads at once."""
    request = use_kernel("reference")
    with request:
        with request, use_kernel("torch"):
            with request:
                assert kernels.requested_kernel() == "reference"
            assert kernels.requested_kernel() == "torch"
        assert kernels.requested_kernel() == "reference"
    assert kernels.requested_kernel() == "default"
    with ThreadPoolExecutor(1) as other, use_kernel("torch"):
        request.__enter__()
        other.submit(request.__enter__).result()
        request.__exit__(None, None, None)
        assert kernels.requested_kernel() == "torch"
        assert other.submit(kernels.requested_kernel).result() == "reference"
        other.submit(request.__exit__, None, None, None).result()


def test_an_exit_stack_may_hold_it() -> None:
    with ExitStack() as stack:
        stack.enter_context(use_kernel("reference"))
        assert kernels.requested_kernel() == "reference"


def test_it_decorates_a_function() -> None:
    @use_kernel("reference")
    def count(n: int) -> list[str]:
        """Recurse."""
        return [kernels.requested_kernel(), *(count(n - 1) if n else [])]

    assert (count.__name__, count.__doc__) == ("count", "Recurse.")
    assert count(2) == ["reference"] * 3
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(count, [1] * 8)) == [["reference"] * 2] * 8

    @use_kernel("torch")
    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        fail()


def test_what_it_cannot_decorate_raises() -> None:
    """What runs after the call would run outside of the block, without a word."""

    async def task() -> None: ...

    async def tasks() -> Any:
        yield

    decorated: Any
    for decorated in (steps, task, tasks, ManualRNN, nn.RNN, 3, None):
        with pytest.raises(TypeError, match="use_kernel: expected a function to decorate, got "):
            use_kernel("reference")(decorated)


@pytest.mark.parametrize("name", ["cuda", "cudnn", "", "Native", None, 3, ["torch"], torch.float32])
def test_an_unknown_name_raises_at_the_call(name: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"expected a kernel among default, native, triton, torch, aten, reference, vendor, got ",
    ):
        use_kernel(name)
    gc.collect()


def test_without_a_block_it_warns() -> None:
    with pytest.warns(UserWarning, match=r"use_kernel\('torch'\) was never entered") as seen:
        use_kernel("torch")
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with use_kernel("torch"):
            pass
        use_kernel("torch")(lambda: None)
        gc.collect()


def test_compiled_code_heeds_it() -> None:
    """As a decorator, and from outside, however often and deep. (Of an object made outside of the compiled
    code Dynamo enters no block, whoever's it is.)"""
    torch._dynamo.reset()
    rnn, input = ManualRNN(3, 4), torch.randn(5, 2, 3)
    builtin = nn.RNN(3, 4)
    builtin.load_state_dict(rnn.state_dict())
    decorated = torch.compile(use_kernel("reference")(rnn.forward), fullgraph=True, backend="eager")
    assert torch.equal(decorated(input)[0], builtin(input)[0])
    compiled = torch.compile(rnn, fullgraph=True, backend="eager")
    compiled(input)
    for _ in range(12):  # more than Dynamo would compile again
        with use_kernel("reference"), use_kernel("reference"), use_kernel("reference"):
            assert torch.equal(compiled(input)[0], builtin(input)[0])
    torch._dynamo.reset()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_process_is_rid_of_other_threads() -> None:
    block = use_kernel("torch")
    with ThreadPoolExecutor(1) as other:
        other.submit(block.__enter__).result()
        child = os.fork()
        if child == 0:
            with use_kernel("reference"):
                inside = kernels.requested_kernel()
            os._exit(0 if (inside, kernels.requested_kernel()) == ("reference", "default") else 1)
        assert os.waitpid(child, 0)[1] == 0
        other.submit(block.__exit__, None, None, None).result()
