r"""The two recurrences as one persistent Triton kernel, on CUDA from compute capability 8.0 on.

    elman                h_t = phi(z_t + h_{t-1} w^T)              h before the first step = h0
    linear_recurrence    y_t = phi'(h_t) * (v_t + y_{t-1} a)       y before the first step = 0

In float32, bfloat16 and float16. It multiplies float32 numbers in tf32 where PyTorch allows cuDNN's networks
to, and otherwise as three products in tf32, which is as exact as float32. One launch runs all steps of all
members of an ensemble, padded or packed. Triton is optional, and imported when tensors on CUDA first ask.

Before it first runs for some dtype and width on some device, it computes a few random batches there, which
are compared with the `torch` kernel in float64. Where they differ, or anything raises, it can't run, and says
so in a warning.
"""

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import torch_loop
from .interface import PLAIN_TYPES, non_plain_reason
from .time_order import check_sizes

DEVICE = "cuda"
CAPABILITY = (8, 0)  # of the first cards that multiply tf32 and bfloat16
TILE = 16  # sequences to a program: the fewest rows that a tensor core multiplies
RELU = {"tanh": 0, "relu": 1}
NONLINEARITIES, HAS_LEAK = tuple(RELU), False
BOUNDS = {"tf32": 2**-7, "tf32x3": 2**-17, "bfloat16": 2**-4, "float16": 2**-7}  # of a test's error


class Configuration(NamedTuple):
    """How the kernel is compiled for one precision and width.

    Attributes:
        warps: of a program.
        shared: bytes that it takes of a multiprocessor's shared memory.
    """

    warps: int
    shared: int


# By precision and width, from what `ptxas` says for sm_80 and sm_90: nothing leaves the registers within
# the loop over time. No GPU has timed it yet. A test compiles every row.
CONFIGURATIONS: dict[tuple[str, int], Configuration] = {
    ("tf32", 16): Configuration(4, 2048),
    ("tf32", 32): Configuration(4, 6144),
    ("tf32", 64): Configuration(4, 20480),
    ("tf32", 128): Configuration(8, 73728),
    ("tf32x3", 16): Configuration(4, 3072),
    ("tf32x3", 32): Configuration(4, 12288),
    ("tf32x3", 64): Configuration(4, 40960),
    ("tf32x3", 128): Configuration(8, 147456),
    ("half", 16): Configuration(4, 1536),
    ("half", 32): Configuration(4, 4096),
    ("half", 64): Configuration(4, 10240),
    ("half", 128): Configuration(8, 36864),
    ("half", 256): Configuration(8, 139264),
}
WIDEST = {kind: max(width for each, width in CONFIGURATIONS if each == kind) for kind, _ in CONFIGURATIONS}


def unsupported_reason(*tensors: Tensor | None) -> str | None:
    """The reason why this kernel can't take these tensors, of which the second is a state, or None."""
    given = [x for x in tensors if x is not None]
    for x in given:
        if reason := non_plain_reason(x):
            return reason
        if x.device.type != DEVICE:
            return f"expected tensors on CUDA, got {x.device}"
        if x.is_neg():
            return "expected a tensor without a pending negation"
    dtypes, H = {x.dtype for x in given}, given[:2][-1].size(-1)
    if len(dtypes) > 1:
        return f"expected tensors of one dtype, got {' and '.join(sorted(map(str, dtypes)))}"
    x = given[0]
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"expected float32, bfloat16 or float16, got {x.dtype}"
    kind = _kind(x.dtype)
    configuration = CONFIGURATIONS.get((kind, _width(H)))
    if configuration is None:
        return f"expected H <= {WIDEST[kind]} in {x.dtype}, got {H}"
    if (key := (x.device, x.dtype, kind, H)) in _found:
        return _found[key]
    if reason := _absent() or _why_not_on(x.device, configuration):
        return reason
    return _test(key) if type(x) in PLAIN_TYPES else None


def _kind(dtype: torch.dtype) -> str:
    """The first half of a key of `CONFIGURATIONS`."""
    if dtype is not torch.float32:
        return "half"
    allowed: Any = torch.backends.cudnn.rnn
    return "tf32" if allowed.fp32_precision == "tf32" else "tf32x3"


def _width(H: int) -> int:
    """The power of two, at least 16, up to which `H` columns are filled."""
    return max(16, 1 << (H - 1).bit_length())


def _absent() -> str | None:
    if "__torch_package__" in globals():
        return "a torch.package holds no code for Triton"
    return None if find_spec("triton") else "triton isn't installed: pip install 'manual_rnn[triton]'"


def _why_not_on(device: torch.device, configuration: Configuration) -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device here"
    if torch.version.hip:
        return "expected a card of NVIDIA's, this torch is for ROCm"
    card: Any = torch.cuda.get_device_properties(device)
    if (card.major, card.minor) < CAPABILITY:
        return f"expected compute capability 8.0 or more, {card.name} has {card.major}.{card.minor}"
    if configuration.shared > (room := card.shared_memory_per_block_optin):
        return f"expected {configuration.shared} bytes of shared memory to a block, {card.name} has {room}"
    return None


_found: dict[tuple[Any, ...], str | None] = {}  # by device, dtype, precision and H, what the test said


def _test(key: tuple[Any, ...]) -> str | None:
    """The reason why the self-test fails, or None; kept for the next time."""
    device, dtype, _, H = key
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "its self-test can't run while a CUDA graph is captured; call it once before"
    _found[key] = reason = _self_test(device, dtype, H)
    if reason:
        warnings.warn(f"kernel 'triton' won't run on {device}: {reason}", stacklevel=2)
    return reason


@torch.no_grad()
def _self_test(device: torch.device, dtype: torch.dtype, H: int) -> str | None:
    what = f"its self-test for {dtype}, H = {H},"
    try:
        error = max(_error(device, dtype, H, *how) for how in product((False, True), repeat=3))
    except Exception as problem:  # of a compiler, a driver, a card: whatever it is, another kernel serves
        return f"{what} raised {type(problem).__name__}: {str(problem).partition(chr(10))[0]}"
    bound = BOUNDS[_kind(dtype) if dtype is torch.float32 else str(dtype).removeprefix("torch.")]
    return None if error <= bound else f"{what} was off by {error:.2g}, more than {bound:.2g}"


def _error(
    device: torch.device, dtype: torch.dtype, H: int, packed: bool, relu: bool, reverse: bool
) -> float:
    """How far both recurrences are off those of the `torch` kernel in float64."""
    seeded = torch.Generator("cpu").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=seeded, device="cpu").to(device, dtype)

    sizes = torch.tensor([TILE + 1, TILE + 1, TILE, 3, 1], device="cpu") if packed else None
    rows = (5, TILE + 1) if sizes is None else (int(sizes.sum()),)
    z, h0, w = draw(*rows, H), draw(TILE + 1, H), draw(H, H) / H**0.5
    how = sizes, "relu" if relu else "tanh", reverse
    h = elman(z, h0, w, *how)
    y = linear_recurrence(z, h, w, *how)
    z, h0, w, states = (x.double() for x in (z, h0, w, h))
    exact_h, exact_y = torch_loop.elman(z, h0, w, *how), torch_loop.linear_recurrence(z, states, w, *how)
    off = [(found - exact).abs().max() / exact.abs().max() for found, exact in ((h, exact_h), (y, exact_y))]
    return max(float(each.nan_to_num(torch.inf)) for each in off)


def elman(z: Tensor, h0: Tensor, w: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool) -> Tensor:
    r"""`z (T, B, H)` or packed `(N, H)`, `h0 (B, H)`, `w (H, H)`; a leading `G` on all or none."""
    return _launch(z, h0, w.mT, batch_sizes, phi, reverse, linear=False)


def linear_recurrence(
    v: Tensor, h: Tensor, a: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool
) -> Tensor:
    r"""`v` and `h (T, B, H)` or packed `(N, H)`, `a (H, H)`; a leading `G` on all or none."""
    return _launch(v, h, a, batch_sizes, phi, reverse, linear=True)


def _launch(
    x: Tensor, other: Tensor, m: Tensor, batch_sizes: Tensor | None, phi: str, reverse: bool, linear: bool
) -> Tensor:
    """One kernel for all: `other` is h0 or h, `m` what a state is multiplied with."""
    check_sizes(batch_sizes, x.size(-2))
    out = x.new_empty(x.shape)
    if not out.numel():
        return out
    H, kind = x.size(-1), _kind(x.dtype)
    if batch_sizes is None:
        T, B = x.shape[-3:-1]
        rows, starts, sizes = T * B, out, out  # the last two aren't read
    else:
        T, B, rows = len(batch_sizes), int(batch_sizes[0]), x.size(-2)
        places = torch.stack([batch_sizes.cumsum(0) - batch_sizes, batch_sizes])
        starts, sizes = places.to(x.device, non_blocking=True)
    members, m_g = (m.size(0), m.stride(0)) if m.dim() == 3 else (1, 0)
    with torch.cuda.device_of(x):
        _kernel()[-(-B // TILE) * members,](
            x.contiguous(), other.contiguous(), m, out, starts, sizes, T, B, H, rows, m_g,
            m.stride(-2), m.stride(-1), RELU[phi], int(reverse), LINEAR=linear,
            PACKED=batch_sizes is not None, BB=TILE, HH=_width(H), PRECISION=kind.replace("half", "ieee"),
            num_warps=CONFIGURATIONS[kind, _width(H)].warps, enable_fp_fusion=True,
        )  # fmt: skip
    return out


@cache
def _kernel() -> Any:
    return import_module(".triton_kernel", __package__).recurrence
