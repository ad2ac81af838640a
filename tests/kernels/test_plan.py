r"""How the engine goes about a job: the C function `plan_of`, which depends on its arguments alone."""

import ctypes
import random
from typing import Any

import pytest
from planner import COMPILER, DOUBLE, Job, Plan, library, plan, slices

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler here")
MAX_EXTENT = 2**53  # numbers: as in types.h
PADDED = 16  # numbers between rows
SLOPE = 16  # of the kinds, from here on
KINDS = (0, 1, SLOPE, SLOPE + 1)


def test_structs_are_those_of_c() -> None:
    """Fields that C has and this file hasn't would move all behind them."""
    assert library().size_of_job() == ctypes.sizeof(Job)
    assert library().size_of_plan() == ctypes.sizeof(Plan)


PARTS = (
    "inputs",
    "carries",
    "z",
    "x_packed",
    "dz_transposed",
    "panels",
    "bias_or_dw",
    "parts",
    "residues",
    "counters",
    "bytes",
)  # where they begin


def sizes(found: dict[str, int]) -> dict[str, int]:
    """The bytes of every part of the memory, by the name of the one that follows."""
    begins = [0, *(found[part] for part in PARTS)]
    return {part: end - begin for part, begin, end in zip(PARTS, begins, begins[1:], strict=False)}


# For each job: threads, threads that share a slice, slices; and the numbers of the W and of the carries.
TABLE: dict[str, tuple[dict[str, Any], tuple[int, int, int], tuple[int, int]]] = {
    "tiny": ({"T": 10, "B": 3, "H": 8, "threads": 2}, (1, 1, 1), (16 * 8, 2 * 3 * 32)),
    "rows for all threads": (
        {"T": 100, "B": 32, "H": 128, "threads": 4},
        (4, 1, 4),
        (128 * 128, 2 * 32 * 144),
    ),
    "rows that don't divide": (
        {"T": 100, "B": 30, "H": 128, "threads": 4},
        (4, 1, 4),
        (128 * 128, 2 * 30 * 144),
    ),
    "more rows than a slice may have": (
        {"T": 10, "B": 300, "H": 128, "threads": 2},
        (2, 1, 4),
        (128 * 128, 2 * 300 * 144),
    ),
    "one row, too narrow to share": (
        {"T": 1000, "B": 1, "H": 255, "threads": 4},
        (1, 1, 1),
        (256 * 255, 2 * 272),
    ),
    "one row, wide enough": ({"T": 1000, "B": 1, "H": 256, "threads": 4}, (4, 4, 1), (256 * 256, 2 * 272)),
    "W worth reading for three rows": (
        {"T": 100, "B": 7, "H": 384, "threads": 4},
        (4, 2, 2),
        (384 * 384, 2 * 7 * 400),
    ),
    "W worth reading for twelve rows": (
        {"T": 100, "B": 24, "H": 640, "threads": 5},
        (5, 2, 2),
        (640 * 640, 2 * 24 * 656),
    ),
    "a W for every thread": (
        {"T": 10, "B": 20, "H": 64, "G": 5, "threads": 2},
        (2, 1, 1),
        (64 * 64, 2 * 20 * 80),
    ),
    "one step of a stream, W read where it lies": (
        {"T": 1, "B": 1, "H": 64, "I": 32, "contiguous_weights": True, "threads": 2},
        (1, 1, 1),
        (1 * 64, 2 * 80),
    ),
    "after a fork": (
        {"T": 100, "B": 32, "H": 128, "threads": 4, "most": 1},
        (1, 1, 1),
        (128 * 128, 2 * 32 * 144),
    ),
    "more threads than can start": (
        {"T": 100, "B": 32, "H": 128, "threads": 2**62},
        (8, 1, 8),
        (128 * 128, 2 * 32 * 144),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_known_plans(name: str) -> None:
    job, (threads, sharing, count), (matrix, carries) = TABLE[name]
    found = plan(**job)
    assert (found["threads"], found["sharing"], found["slices"]) == (threads, sharing, count)
    assert sizes(found)["inputs"] == 4 * matrix
    assert sizes(found)["z"] == 4 * carries
    assert sizes(found)["bytes"] == 128 * (threads + 1)
    if not job.get("I"):
        of_a_layer = [part for part in PARTS if part not in ("inputs", "z", "bytes")]
        assert not any(sizes(found)[part] for part in of_a_layer)


def test_a_known_plan_of_a_layer() -> None:
    """50 steps of 32 rows come in blocks of 1024 rows, and may pass that by a step."""
    job: dict[str, Any] = {"T": 50, "B": 32, "H": 60, "I": 20, "threads": 2, "lanes": 8}
    found, rows, ld, wide = plan(**job), 1024 + 32, 64 + 16, 24 + 16
    assert (found["threads"], found["slices"], found["rows"]) == (2, 2, 1024)
    forward = {
        "inputs": 64 * 60,
        "carries": 64 * 20,
        "z": 2 * 32 * ld,
        "x_packed": rows * ld,
        "dz_transposed": rows * wide,
    }
    assert sizes(found) == {part: 4 * forward.get(part, 0) for part in PARTS} | {
        "parts": 4 * ld,
        "bytes": 3 * 128,
    }
    back = sizes(plan(**job, kind=SLOPE))
    assert back["carries"] == 4 * 24 * 60
    assert back["panels"] == 4 * 64 * (rows + 16)
    assert back["bias_or_dw"] == 4 * rows * (24 + 64)
    halves = sizes(plan(**job, kind=SLOPE, type=2))
    assert halves["parts"] == back["parts"] + 4 * 60 * (ld + wide)
    assert (back["residues"], back["counters"]) == (0, 4 * ld)
    long = sizes(plan(**job | {"T": 129}, kind=SLOPE))  # more rows than are summed plainly
    assert (long["residues"], long["counters"]) == (4 * 60 * (ld + wide), 4 * ld + 4 * 60 * (ld + wide))
    doubles = sizes(plan(**job, type=DOUBLE))
    assert doubles["x_packed"] == 8 * rows * ld


@pytest.mark.parametrize("H", [1, 16, 17, 130])
def test_bfloats_lie_behind_the_numbers_of_a_row(H: int) -> None:
    """So that rows begin at a vector, and none reaches into the next."""
    plain, found = plan(5, 3, H), plan(5, 3, H, pairs=True)
    assert plain["bf16_offset"] == 0
    assert found["bf16_offset"] == plain["ld"] - 16
    assert found["ld"] % 16 == 0
    assert found["ld"] >= found["bf16_offset"] + found["vecs"] * 8 + 16


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
        "type": choice.randrange(4),
        "kind": choice.choice(KINDS),
        "contiguous_weights": choice.random() < 0.5,
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
        found, H, lanes = plan(**job), job["H"], job["lanes"]
        width, I, layer = 8 if job["type"] == DOUBLE else 4, job["I"], job["I"] > 0  # noqa: E741
        steps = job["T"] if job["packed"] else job["T"] * job["B"]
        rows, columns = min(steps, found["rows"] + job["B"]), -(-I // lanes) * lanes
        back, part = job["kind"] >= SLOPE, sizes(found)
        assert found["vecs"] * lanes >= H
        assert found["ld"] >= found["vecs"] * lanes + PADDED
        assert part["inputs"] >= width * H * (1 if found["unpacked_weights"] else found["vecs"] * lanes)
        assert part["z"] >= width * 2 * job["B"] * found["ld"]
        assert part["bytes"] >= 128 * (found["threads"] + 1)
        if layer:
            u = (I, H) if not back else (H, columns)
            assert part["carries"] >= width * (0 if found["unpacked_weights"] else u[0] * u[1])
            assert part["x_packed"] >= width * rows * found["ld"]
            assert part["dz_transposed"] >= width * rows * (columns + PADDED)
            assert part["parts"] >= width * found["ld"]
        if layer and back:
            assert part["panels"] >= width * found["vecs"] * lanes * rows
            assert part["bias_or_dw"] >= width * rows * (columns + found["vecs"] * lanes)
        assert all(found[name] % 64 == 0 for name in PARTS)
        assert all(found[name] * width % 64 == 0 for name in ("ld", "x_ld", "dzt_ld")) or lanes < 16


def test_no_more_rows_of_dz_are_kept_than_are_read() -> None:
    """Where only the gradient of the first states is wanted, those of one step."""
    job: dict[str, Any] = {"T": 50, "B": 32, "H": 60, "I": 20, "lanes": 8, "kind": SLOPE}
    found = plan(**job, weights=False)
    assert found["rows"] > 50 * 32
    assert sizes(found)["x_packed"] == 4 * 32 * found["ld"]
    assert plan(**job)["rows"] == 1024


@pytest.mark.parametrize(("T", "steps"), [(1, 1), (20, 20), (400, 128)])
def test_samples_have_blocks_and_sums_of_their_own(T: int, steps: int) -> None:
    job: dict[str, Any] = {"T": T, "B": 9, "H": 60, "I": 20, "lanes": 8, "kind": SLOPE}
    found, one = plan(**job, samples=9), plan(**job)
    assert found["rows"] == 9 * steps
    for part in ("parts", "counters"):  # sums of rows of dz, and their rounding errors
        assert sizes(found)[part] == 9 * sizes(one)[part] == 4 * 9 * found["ld"]


def test_weights_are_read_where_they_lie_for_a_few_rows_only() -> None:
    for H, rows in ((64, 4), (640, 20), (2000, 62), (4000, 64)):
        for B in (1, rows):
            assert plan(1, B, H, contiguous_weights=True)["unpacked_weights"]
        assert not plan(1, rows + 1, H, contiguous_weights=True)["unpacked_weights"]
        assert not plan(1, 1, H)["unpacked_weights"]


def test_a_block_of_time_is_worth_its_sums_and_fits_in_a_cache() -> None:
    for H, rows in ((1, 1024), (128, 1024), (256, 512), (1024, 128), (5000, 128)):
        assert plan(1000, 32, H, I=5)["rows"] == rows
        assert plan(1000, 32, H)["rows"] == MAX_EXTENT


def test_absurd_sizes_plan_more_than_any_allocator_grants() -> None:
    choice = random.Random(0)
    for _ in range(2000):
        T, B, H, G = (choice.choice([1, 2, 2**20, 2**31, 2**32 + 1, 2**52, MAX_EXTENT]) for _ in range(4))
        I, kind, type = choice.choice([0, 1, 2**40, MAX_EXTENT]), choice.choice(KINDS), choice.randrange(4)  # noqa: E741
        packed, contiguous, pairs = (choice.random() < 0.5 for _ in range(3))
        how: dict[str, Any] = {
            "packed": packed,
            "kind": kind,
            "type": type,
            "contiguous_weights": contiguous,
            "pairs": pairs,
        }
        found = plan(T, B, H, I=I, G=G, threads=choice.choice([1, 8]), **how)
        assert (
            min(
                found[name]
                for name in found
                if name not in ("unpacked_weights", "inputs", "bf16_offset", "parts")
            )
            > 0
        )
        begins = [0, *(found[part] for part in PARTS)]
        assert begins == sorted(begins)
        assert (
            found["matrix"]
            == min(H * (1 if found["unpacked_weights"] and kind < SLOPE else found["vecs"] * 16), MAX_EXTENT)
            or contiguous
        )
        assert found["carry"] == min(2 * B * found["ld"], MAX_EXTENT)
        last = library().slice_of(Job(B=B), Plan(slices=found["slices"]), found["slices"] - 1)
        assert last.row + last.apart * last.rows == B
        assert last.rows <= 128
