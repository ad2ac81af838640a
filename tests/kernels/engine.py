r"""The engine in C as tests call it: its operators, its instruction sets, and what it is given."""

import ctypes
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from internals import OPS, native
from torch import Tensor

__all__ = [
    "NEEDS_C",
    "OPERATORS",
    "SIZES",
    "VARIANTS",
    "Change",
    "calls",
    "changed",
    "draw_network",
    "every_variant",
    "flat",
    "in_a_process_of_its_own",
    "misaligned",
    "nan_in_new_memory",
    "on_threads",
    "places",
    "scattered",
    "vjp_arguments",
    "with_nan_in_new_memory",
    "with_variant",
]

SIZES = torch.tensor([3, 3, 2, 1])
Change = Callable[[Tensor], Tensor]
ROOT = Path(__file__).parents[2]
NEEDS_C = pytest.mark.skipif(native.unavailable is not None, reason=str(native.unavailable))


def _variants() -> dict[str, int]:
    """Instruction sets that there is code for and that this processor has."""
    if native.unavailable is not None:
        return {}
    name_of = native._library.manual_rnn_variant_name
    name_of.restype = ctypes.c_char_p
    names = {index: name_of(index) for index in range(8)}
    return {name.decode(): index for index, name in names.items() if name is not None}


VARIANTS = _variants()


def every_variant(test: Any) -> Any:
    """A test once by each instruction set."""
    return pytest.mark.usefixtures("_variant")(
        pytest.mark.parametrize("_variant", VARIANTS, indirect=True)(test)
    )


@contextmanager
def with_variant(name: str) -> Iterator[None]:
    """The engine by this instruction set."""
    before = native._library.manual_rnn_variant()
    assert native._library.manual_rnn_set_variant(VARIANTS[name]) == VARIANTS[name]
    try:
        yield
    finally:
        native._library.manual_rnn_set_variant(before)


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def misaligned(x: Tensor) -> Tensor:
    """The same numbers, from the second byte of their memory on."""
    buffer = bytearray(x.itemsize * x.numel() + 1)
    return torch.frombuffer(buffer, dtype=x.dtype, offset=1, count=x.numel()).view(x.shape).copy_(x)


def scattered(x: Tensor, choice: random.Random) -> Tensor:
    """`x` with other strides: permuted, or inside a larger tensor full of NaN."""
    order = choice.sample(range(x.dim()), x.dim())
    x = x.permute(order).contiguous().permute([order.index(i) for i in range(x.dim())])
    if choice.random() < 0.5:
        return x
    around = torch.full([2 * size + 1 for size in x.shape], torch.nan, dtype=x.dtype)
    inside = around[tuple(slice(0, 2 * size, 2) for size in x.shape)]
    return inside.copy_(x)


def draw_network(
    *,
    G: tuple[int, ...] = (),
    L: int = 1,
    D: int = 1,
    bias: bool = True,
    sizes: Tensor | None = None,
    rows: tuple[int, ...] = (4, 3),
    I: int = 2,  # noqa: E741
    H: int = 5,
    dtype: torch.dtype = torch.float32,
) -> list[Any]:
    """The arguments of the operator `network`, with its states to be saved."""
    B = rows[-1] if sizes is None else int(sizes[0])
    rows = rows if sizes is None else (int(sizes.sum()),)
    widths = [D * H if layer else I for layer in range(L) for _ in range(D)]
    shapes = [shape for n in widths for shape in ((H, n), (H, H), *([(H,), (H,)] if bias else []))]
    weights = [torch.randn(*G, *shape).to(dtype) / H**0.5 for shape in shapes]
    x, hx = torch.randn(*G, *rows, I).to(dtype), torch.randn(*G, L * D, B, H).to(dtype)
    return [x, hx, weights, sizes, "tanh", D == 2, bias, True]


def vjp_arguments(arguments: list[Any]) -> list[Any]:
    """Those of `network_vjp` for the same network, all gradients wanted, with cotangents at random."""
    x, hx, weights, sizes, phi, bidirectional, bias, _ = arguments
    output, h_n, states = OPS.network(*arguments)
    matrices = [w for at, w in enumerate(weights) if at % (4 if bias else 2) < 2]
    need = [True, hx is not None, *[True] * len(weights)]
    c, c_last = torch.randn(output.shape).to(output), torch.randn(h_n.shape).to(output)
    return [need, x, hx, matrices, states, c, c_last, sizes, phi, bidirectional]


@contextmanager
def nan_in_new_memory() -> Iterator[None]:
    """What is left out of a result is NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def with_nan_in_new_memory(call: Callable[[], Any]) -> list[Tensor]:
    """Tensors that a call makes: a number that it leaves out is NaN."""
    with nan_in_new_memory():
        return flat(call())


def places(arguments: list[Any]) -> list[tuple[int, int | None]]:
    """Where tensors stand, in lists too."""
    found: list[tuple[int, int | None]] = [
        (i, None) for i, x in enumerate(arguments) if isinstance(x, Tensor)
    ]
    lists = [(i, x) for i, x in enumerate(arguments) if isinstance(x, list) and isinstance(x[0], Tensor)]
    return found + [(i, j) for i, x in lists for j in range(len(x))]


def changed(arguments: list[Any], place: tuple[int, int | None], change: Change) -> list[Any]:
    arguments, (i, j) = [list(x) if isinstance(x, list) else x for x in arguments], place
    if j is None:
        arguments[i] = change(arguments[i])
    else:
        arguments[i][j] = change(arguments[i][j])
    return arguments


def flat(found: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(found) if isinstance(x, Tensor)]


def calls(dtype: torch.dtype = torch.float32, packed: bool = False) -> dict[str, tuple[Any, list[Any]]]:
    """Every operator with arguments that fit."""
    rows, sizes = ((9,), SIZES) if packed else ((4, 3), None)
    network = draw_network(L=2, D=2, sizes=sizes, dtype=dtype)
    z, h0, w = (torch.randn(s).to(dtype) for s in ((*rows, 5), (3, 5), (5, 5)))
    return {
        "network": (OPS.network.default, network),
        "network_vjp": (OPS.network_vjp.default, vjp_arguments(network)),
        "elman": (OPS.elman.default, [z, h0, w / 3, sizes, "tanh", False]),
        "linear_recurrence": (OPS.linear_recurrence.default, [z, z.tanh(), w / 3, sizes, "tanh", True]),
    }


OPERATORS = pytest.mark.parametrize("name", ["network", "network_vjp", "elman", "linear_recurrence"])


def in_a_process_of_its_own(file: str, call: str, **environment: str) -> list[int]:
    """What a function of a file of this folder returns there, which a crash would end."""
    name = Path(file).stem
    code = f"import sys; sys.path[:0] = ['tests', 'tests/kernels']; import {name}; print(*{name}.{call})"
    command = [sys.executable, "-W", "ignore", "-X", "faulthandler", "-c", code]
    given = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    return list(map(int, done.stdout.split()))
