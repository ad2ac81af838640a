"""How the native kernel goes about a job: the C function `plan_of`, which depends on its arguments alone."""

import random
from typing import Any

import pytest
import torch

from manual_rnn.kernels import native

REASON = native.why_not(torch.empty(0))
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
REACH = 2**53  # numbers: as in types.h
PADDED = 16  # numbers between rows
DOUBLE = 1  # of the types
TANH, TANH_SLOPE = 0, 2  # of the kinds


def plan(
    T: int,
    B: int,
    H: int,
    *,
    I: int = 0,  # noqa: E741
    G: int = 1,
    threads: int = 1,
    most: int = 8,
    lanes: int = 16,
    packed: bool = False,
    type: int = 0,
    kind: int = TANH,
    lies: bool = False,
) -> dict[str, int]:
    """`T`: steps of time or, if packed, rows of all steps."""
    return native._scan.plan(lanes, most, threads, G, T, B, H, I, packed, type, kind, lies)


def slices(B: int, count: int, packed: bool) -> list[range]:
    """The rows of every slice."""
    found = [native._scan.rows(packed, B, count, i) for i in range(count)]
    return [range(first, first + apart * rows, apart) for first, apart, rows in found]


# For each job: threads, threads that share a slice, slices; and the floats of the packed W's, of the carries,
# of the biases' sum.
TABLE: dict[str, tuple[dict[str, Any], tuple[int, int, int], tuple[int, int, int]]] = {
    "tiny": ({"T": 10, "B": 3, "H": 8, "threads": 2}, (1, 1, 1), (16 * 8, 2 * 3 * 32, 16)),
    "rows for all threads": (
        {"T": 100, "B": 32, "H": 128, "threads": 4},
        (4, 1, 4),
        (128 * 128, 4 * 2 * 8 * 144, 128),
    ),
    "rows that don't divide": (
        {"T": 100, "B": 30, "H": 128, "threads": 4},
        (4, 1, 4),
        (128 * 128, 4 * 2 * 8 * 144, 128),
    ),
    "more rows than a slice may have": (
        {"T": 10, "B": 300, "H": 128, "threads": 2},
        (2, 1, 4),
        (128 * 128, 2 * 2 * 75 * 144, 128),
    ),
    "one row, too narrow to share": (
        {"T": 1000, "B": 1, "H": 255, "threads": 4},
        (1, 1, 1),
        (256 * 255, 2 * 272, 256),
    ),
    "one row, wide enough": (
        {"T": 1000, "B": 1, "H": 256, "threads": 4},
        (4, 4, 1),
        (256 * 256, 4 * 2 * 272, 256),
    ),
    "W worth reading for three rows": (
        {"T": 100, "B": 7, "H": 384, "threads": 4},
        (4, 2, 2),
        (384 * 384, 4 * 2 * 4 * 400, 384),
    ),
    "W worth reading for twelve rows": (
        {"T": 100, "B": 24, "H": 640, "threads": 5},
        (5, 2, 2),
        (640 * 640, 5 * 2 * 12 * 656, 640),
    ),
    "a W for every thread": (
        {"T": 10, "B": 20, "H": 64, "G": 5, "threads": 2},
        (2, 1, 1),
        (2 * 64 * 64, 2 * 2 * 20 * 80, 64),
    ),
    "a layer": (
        {"T": 50, "B": 32, "H": 60, "I": 20, "threads": 2, "lanes": 8},
        (2, 1, 2),
        (64 * 80, 2 * 2 * 16 * (64 + 24 + 16), 64),
    ),
    "after a fork": (
        {"T": 100, "B": 32, "H": 128, "threads": 4, "most": 1},
        (1, 1, 1),
        (128 * 128, 2 * 32 * 144, 128),
    ),
    "more threads than can start": (
        {"T": 100, "B": 32, "H": 128, "threads": 2**62},
        (8, 1, 8),
        (128 * 128, 8 * 2 * 4 * 144, 128),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_known_plans(name: str) -> None:
    job, (threads, sharing, count), (matrices, carries, biases) = TABLE[name]
    found = plan(**job)
    assert (found["threads"], found["sharing"], found["slices"]) == (threads, sharing, count)
    assert found["carries"] == 4 * matrices
    assert found["counters"] == 4 * (matrices + carries)
    assert found["biases"] == 4 * (matrices + carries) + 128 * threads
    assert found["bytes"] == 4 * (matrices + carries + biases) + 128 * threads


@pytest.mark.parametrize(("T", "threads"), [(26, 1), (27, 2)])
def test_a_second_thread_from_half_a_million_multiply_adds(T: int, threads: int) -> None:
    """4 rows more than there are, for packing: (26 + 4) * 128^2 < 500000 < (27 + 4) * 128^2."""
    assert plan(T, 2, 128, threads=2, packed=True)["threads"] == threads


def job_of(choice: random.Random) -> dict[str, Any]:
    return {
        "T": choice.choice([1, 2, 10, 1000]),
        "B": choice.choice([1, 2, 3, 7, 12, 100, 127, 128, 129, 300, 2000]),
        "H": choice.choice([1, 8, 16, 17, 100, 255, 256, 383, 384, 640, 1500]),
        "I": choice.choice([0, 0, 1, 33]),
        "G": choice.choice([1, 1, 2, 5, 20]),
        "threads": choice.randint(1, 12),
        "most": choice.choice([1, 8, 64]),
        "lanes": choice.choice([4, 8, 16]),
        "packed": choice.random() < 0.5,
    }


JOBS = [job_of(random.Random(seed)) for seed in range(300)]


def test_every_row_is_in_one_slice() -> None:
    for job in JOBS:
        found, B = plan(**job), job["B"]
        parts = slices(B, found["slices"], job["packed"])
        assert sorted(row for part in parts for row in part) == list(range(B)), job
        lengths = [len(part) for part in parts]
        assert max(lengths) - min(lengths) <= 1
        assert 1 <= min(lengths) <= max(lengths) <= 128


def test_padded_rows_are_cut_and_packed_rows_dealt_out() -> None:
    assert slices(7, 3, packed=False) == [range(0, 3), range(3, 5), range(5, 7)]
    assert slices(7, 3, packed=True) == [range(0, 9, 3), range(1, 7, 3), range(2, 8, 3)]


def test_threads_are_no_more_than_were_asked_for_and_can_be_had() -> None:
    for job in JOBS:
        found = plan(**job)
        assert 1 <= found["threads"] <= min(job["threads"], job["most"])
        assert 1 <= found["sharing"] <= found["threads"]
        if job["G"] >= found["threads"]:
            assert found["sharing"] == 1  # a thread has matrices of its own
        elif found["sharing"] > 1:
            crews = found["threads"] // found["sharing"]
            assert crews >= found["slices"] or found["slices"] % crews == 0  # no crew runs one slice more
        assert plan(**job | {"most": 1})["threads"] == 1


def test_memory_holds_what_it_must() -> None:
    """Every part is as large as its contents, begins where a vector may, and ends before the next."""
    for job in JOBS:
        found, width = plan(**job), 4 * job["lanes"]
        shared = job["G"] < found["threads"]
        rows = max(map(len, slices(job["B"], found["slices"], job["packed"])))
        assert found["beside"] >= job["H"]
        assert found["ld"] >= found["beside"] + job["I"]
        assert found["matrix"] == found["beside"] * (job["H"] + job["I"])
        assert found["scratch"] >= 2 * rows * found["ld"]
        assert found["carries"] == 4 * found["matrix"] * (1 if shared else found["threads"])
        assert found["counters"] == found["carries"] + 4 * found["scratch"] * found["threads"]
        assert found["biases"] == found["counters"] + 128 * found["threads"]
        assert found["bytes"] == found["biases"] + 4 * found["beside"]
        assert all(4 * found[part] % width == 0 for part in ("beside", "ld", "matrix", "scratch"))
        assert found["counters"] % 8 == 0


def test_absurd_sizes_plan_more_than_any_allocator_grants() -> None:
    choice = random.Random(0)
    for _ in range(2000):
        T, B, H, G = (choice.choice([1, 2, 2**20, 2**31, 2**32 + 1, 2**53, REACH]) for _ in range(4))
        width = choice.choice([0, 1, 2**40, REACH])
        found = plan(T, B, H, I=width, G=G, threads=choice.choice([1, 8]), packed=choice.random() < 0.5)
        assert min(found.values()) > 0
        assert found["carries"] < found["counters"] < found["biases"] < found["bytes"]
        exact = found["beside"] * found["depth"]
        assert found["matrix"] == min(exact, REACH)
        first, apart, rows = native._scan.rows(False, B, found["slices"], found["slices"] - 1)
        assert first + apart * rows == B
        assert rows <= 128


def test_refuses_what_is_no_job() -> None:
    good = (16, 8, 2, 1, 10, 3, 8, 0, 0)
    names = ("lanes", "most", "threads", "G", "steps", "B", "H", "I", "packed")
    native._scan.plan(*good)
    for i, name in enumerate(names):
        for wrong in (-1, 2**63, -(2**70)):
            with pytest.raises(ValueError, match=f"expected {name} from "):
                native._scan.plan(*good[:i], wrong, *good[i + 1 :])
        for untyped in (None, 1.0, "1"):
            with pytest.raises(TypeError, match=f"expected an int for {name}"):
                native._scan.plan(*good[:i], untyped, *good[i + 1 :])
    for count in (0, 8):
        with pytest.raises(TypeError, match="expected 9 arguments"):
            native._scan.plan(*good[:count])
    for wrong_slice in ((0, 0, 1, 0), (0, 3, 0, 0), (0, 3, 4, 0), (0, 3, 2, 2), (2, 3, 2, 0), (0, 3, 2, -1)):
        with pytest.raises(ValueError, match=r"expected .* from "):
            native._scan.rows(*wrong_slice)
    with pytest.raises(TypeError, match="expected 4 arguments"):
        native._scan.rows(0, 3, 2)
