r"""The engine's plan.c, compiled alone and called by `ctypes`: no door of the product leads to it."""

import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

__all__ = ["COMPILER", "DOUBLE", "Job", "Plan", "library", "plan", "slices"]

CSRC = Path(__file__).parents[2] / "manual_rnn" / "kernels" / "csrc"
COMPILER = shutil.which("cc")
DOUBLE = 1  # of the types


def structure(name: str, *fields: tuple[str, str]) -> Any:
    """A struct of longs, and of views where the first of a pair is "View"."""
    kinds: dict[str, Any] = {"long": ctypes.c_long, "View": View}
    members = [(field, kinds[kind]) for kind, names in fields for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": members})


class View(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("type", "group", "step", "row", "column")),
    )


# As in types.h.
Job = structure(
    "Job",
    ("long", "kind reverse packed type threads contiguous_weights G T B H I steps sizes"),
    ("View", "z h y w start end copy added alpha rates x u bias0 bias1 h0 dx du dw db0 db1"),
    ("long", "samples block_owner"),
)
Plan = structure(
    "Plan",
    (
        "long",
        "threads sharing slices vecs ld unpacked_weights rows matrix input_matrix carry bf16_offset x_ld",
    ),
    ("long", "dzt_ld carries inputs z x_packed dz_transposed panels bias_or_dw counters parts residues"),
    ("long", "bytes"),
)
Slice = structure("Slice", ("long", "row apart rows place v0 v1"))
SIZES_OF_STRUCTS = """
#include <plan.h>
long size_of_job(void) { return sizeof(Job); }
long size_of_plan(void) { return sizeof(Plan); }
"""


@cache
def library() -> Any:
    """plan.c as a library of its own."""
    with TemporaryDirectory() as folder:
        path, probe = Path(folder, "plan.so"), Path(folder, "probe.c")
        probe.write_text(SIZES_OF_STRUCTS)
        sources = [str(CSRC / "plan.c"), str(probe)]
        command = [str(COMPILER), "-O1", "-shared", "-fPIC", "-I", str(CSRC), *sources, "-o", str(path)]
        subprocess.run(command, check=True, timeout=100)
        found = ctypes.CDLL(str(path))
    found.plan_of.restype, found.slice_of.restype = Plan, Slice
    found.plan_of.argtypes = ctypes.POINTER(Job), *[ctypes.c_long] * 2, ctypes.c_int, ctypes.c_long
    found.slice_of.argtypes = ctypes.POINTER(Job), ctypes.POINTER(Plan), ctypes.c_long
    return found


def plan(
    T: int,
    B: int,
    H: int,
    *,
    threads: int = 1,
    most: int = 8,
    lanes: int = 16,
    pairs: bool = False,
    weights: bool = True,
    **options: int,
) -> dict[str, int]:
    """`T`: steps of time or, if packed, rows of all steps; `weights`: whether their gradients are wanted."""
    job = Job(**{"G": 1, **options}, T=T, steps=T, B=B, H=H, threads=threads)
    job.du.data = int(weights)  # an address that a plan doesn't read
    width = 8 if job.type == DOUBLE else 4
    found = library().plan_of(job, lanes, width, pairs, most)
    return {name: getattr(found, name) for name, _ in Plan._fields_}


def slices(B: int, count: int, packed: bool) -> list[range]:
    """The rows of every slice."""
    job, how = Job(B=B, packed=packed), Plan(slices=count)
    found = [library().slice_of(job, how, i) for i in range(count)]
    return [range(s.row, s.row + s.apart * s.rows, s.apart) for s in found]
