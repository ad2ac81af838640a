r"""Threads of the engine in C: no count of them changes a bit; fewer than asked for, too many, a fork."""

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cases import Case, Run
from engine import NEEDS_C, ROOT, draw_network, flat, in_a_process_of_its_own, on_threads, vjp_arguments
from internals import OPS, native
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

pytestmark = NEEDS_C


@pytest.mark.parametrize("B", [1, 2, 7, 300])
@pytest.mark.parametrize("H", [40, 260])
def test_threads_and_neighbours_do_not_change_a_bit(B: int, H: int) -> None:
    z, h0, w = torch.randn(9, B, H), torch.randn(B, H), torch.randn(H, H) / H
    with on_threads(1):
        alone = native.elman(z, h0, w, None, "tanh", False)
        last = native.elman(z[:, -1:], h0[-1:], w, None, "tanh", False)
    assert torch.equal(alone[:, -1:], last)
    for threads in (2, 3, 5):
        with on_threads(threads):
            assert torch.equal(native.elman(z, h0, w, None, "tanh", False), alone)


# T, B, I, H: on both sides of a vector, of a run of products (128) and of a block of time; and few rows, for
# which weights are read in place.
SHARED = [
    (9, 60, 33, 1), (9, 60, 33, 17), (9, 60, 33, 64), (9, 60, 33, 128), (9, 60, 33, 129), (9, 60, 9, 160),
    (9, 60, 33, 257), (2, 2, 33, 257), (2, 2, 1, 160), (3, 1, 40, 257),
]  # fmt: skip


def every_thread_count(case: Case) -> Iterator[Run]:
    """A case's results on one thread to eight."""
    for threads in range(1, 9):
        with on_threads(threads):
            yield case.by_c()


@pytest.mark.parametrize("dtype", native.TYPES)
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("leaky", [False, True])
def test_threads_do_not_change_a_bit(dtype: torch.dtype, D: int, leaky: bool) -> None:
    """Forward and backward, also where two directions side by side add up the gradient of what they read."""
    for seed, size in enumerate(SHARED):
        fixed = dict(zip("TBIH", size, strict=True)) | {"L": 1 + seed % 2, "packed": seed % 3 == 2}
        one, *others = every_thread_count(Case(seed, dtype, **fixed, D=D, wanted=1.0, c=True, leaky=leaky))
        for threads, run in enumerate(others, 2):
            differ = [name for name in one if not torch.equal(run[name], one[name])]
            assert not differ, (size, threads, differ)


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
        with on_threads(2):
            expected = torch.stack([parallel_run(i) for i in range(4)])
        loader = DataLoader(Runs(), batch_size=4, num_workers=1, multiprocessing_context="fork", timeout=60)
        assert torch.equal(next(iter(loader)), expected)

    def test_in_a_bare_child_with_many_threads(self) -> None:
        with on_threads(2):
            expected = parallel_run()
        with multiprocessing.get_context("fork").Pool(1) as pool:
            child = pool.apply_async(parallel_sum).get(timeout=60)
        assert child == expected.sum(dtype=torch.float64).item()


def parallel_sum() -> float:
    return parallel_run().sum(dtype=torch.float64).item()


def test_more_threads_than_can_start_are_not_asked_for() -> None:
    """Of a network, and of one for each of many members. torch itself would ask for them."""
    expected, network = parallel_run(), draw_network(G=(2000,))
    with on_threads(100_000):
        found, members = parallel_run(), OPS.network(*network)[0]
    assert torch.equal(found, expected)
    assert torch.equal(members, OPS.network(*network)[0])


def results_on(threads: int, G: int) -> list[Tensor]:
    """Of recurrences with G matrices, of a network of two directions and of an ensemble, gradients too."""
    torch.manual_seed(G)
    z, h0, w = torch.randn(G, 20, 16, 70), torch.randn(G, 16, 70), torch.randn(G, 70, 70) / 70
    networks = [draw_network(rows=(20, 16), D=2, I=70, H=70), draw_network(G=(G,), L=2, rows=(9, 5), H=40)]
    with on_threads(1):
        vjps = [vjp_arguments(network) for network in networks]
    with on_threads(threads):
        found = [
            OPS.elman(z, h0, w, None, "tanh", False),
            OPS.linear_recurrence(z, z.tanh(), w, None, "tanh", True),
        ]
        for network, vjp in zip(networks, vjps, strict=True):
            found += flat([OPS.network(*network), OPS.network_vjp(*vjp)])
    return found


def fewer_threads_than_asked_for() -> tuple[()]:
    """What `OMP_THREAD_LIMIT` makes of eight threads gives the bits of one."""
    for G in range(1, 9):
        assert all(map(torch.equal, results_on(8, G), results_on(1, G))), G
    return ()


@pytest.mark.parametrize("limit", [2, 3, 7])
def test_fewer_threads_than_asked_for(limit: int) -> None:
    """OpenMP gives what it has: each team and each matrix has memory all the same."""
    in_a_process_of_its_own(__file__, "fewer_threads_than_asked_for()", OMP_THREAD_LIMIT=str(limit))


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
