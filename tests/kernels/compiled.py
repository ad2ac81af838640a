r"""What `test_triton.py` runs in a process of its own: the machine code of the kernel for cards, none of
which is here.

Triton compiles for any card, and its wheel has `cuobjdump`, which reads what came out.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import triton
from internals import triton_launch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from manual_rnn.kernels.triton_kernel import recurrence

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
ROOM = {80: 163 * 1024, 90: 227 * 1024}  # shared memory that a block may have
HALF = {80: "fp16", 90: "bf16"}
NUMBERS, INDEX = ("X", "OTHER", "M", "OUT"), ("STARTS", "SIZES")
TENSOR_CORES, LOCAL_MEMORY = r"\bHG?MMA\.", r"\b(LDL|STL)\b"
# Of each recurrence the padded form on one card and the packed one on the other, to save time.
VARIANTS = {80: [(False, True), (True, False)], 90: [(False, False), (True, True)]}  # linear, packed


def compiled(arch: int, kind: str, width: int, dtype: str, linear: bool, packed: bool) -> Any:
    """The kernel as a launch compiles it."""
    constants = {
        "LINEAR": linear,
        "PACKED": packed,
        "BB": triton_launch.TILE,
        "HH": width,
        "PRECISION": kind.replace("half", "ieee"),
    }
    types = {**dict.fromkeys(NUMBERS, f"*{dtype}"), **dict.fromkeys(INDEX, "*i64")}
    names = [p.name for p in recurrence.params]
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    sixteen = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if name in (*types, "H")}
    source = ASTSource(recurrence, signature, constexprs=constants, attrs=sixteen)
    warps = triton_launch.CONFIGURATIONS[kind, width].warps
    options = {"num_warps": warps, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def loop_over_time(cubin: bytes, path: Path) -> list[str]:
    """Its instructions: the longest way back that a jump takes, and what lies between."""
    path.write_bytes(cubin)
    sass = subprocess.run([CUOBJDUMP, "--dump-sass", path], check=True, capture_output=True, text=True).stdout
    code = {int(at, 16): what for at, what in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+([^;]*);", sass)}
    jumps = {at: int(to[1], 16) for at, what in code.items() if (to := re.search(r"BRA.* 0x(\w+)", what))}
    last = max(jumps, key=lambda at: at - jumps[at])
    first = jumps[last]
    return [what for at, what in code.items() if first <= at <= last]


def some(pattern: str, loop: list[str]) -> bool:
    return any(re.search(pattern, what) for what in loop)


@pytest.mark.parametrize("arch", list(ROOM))
@pytest.mark.parametrize(("kind", "width"), list(triton_launch.CONFIGURATIONS))
def test_a_configuration(kind: str, width: int, arch: int, tmp_path: Path) -> None:
    """Within the loop nothing leaves the registers for local memory, tensor cores multiply, and a program
    shares no more memory than the table says."""
    dtype = HALF[arch] if kind == "half" else "fp32"
    table = triton_launch.CONFIGURATIONS[kind, width]
    for linear, packed in VARIANTS[arch]:
        kernel = compiled(arch, kind, width, dtype, linear, packed)
        loop = loop_over_time(kernel.asm["cubin"], tmp_path / "cubin")
        assert some(TENSOR_CORES, loop)
        assert not some(LOCAL_MEMORY, loop)
        assert kernel.metadata.shared <= table.shared <= ROOM[arch]


def test_the_looks_find_something(tmp_path: Path) -> None:
    """Multiplied as they are, float32 numbers use no tensor core and leave the registers."""
    kernel = compiled(90, "half", 128, "fp32", False, False)
    loop = loop_over_time(kernel.asm["cubin"], tmp_path / "cubin")
    assert not some(TENSOR_CORES, loop)
    assert some(LOCAL_MEMORY, loop)
