r"""`ManualRNN` equals `nn.RNN`: output, `h_n` and every gradient, with random cotangents on both.

float64 to 1e-12. In float32 and below, against a float64 run: at most twice as far off as `nn.RNN` is,
or 8 units in the last place, in half precision 4.
"""

from collections.abc import Iterator
from copy import deepcopy
from itertools import combinations, product
from random import Random
from typing import Any, NamedTuple

import pytest
import torch
from helpers import assert_as_accurate, assert_same, gradients, kernels_for, packed, twins
from internals import KernelName
from torch import Tensor, nn

from manual_rnn import ManualRNN, use_kernel


class Case(NamedTuple):
    """One row of the matrix."""

    num_layers: int
    bidirectional: bool
    nonlinearity: str
    bias: bool
    layout: str
    batch_first: bool
    dropout: float
    training: bool
    hx: str
    memory: str
    frozen: str
    sizes: tuple[int, int, int, int]

    def __str__(self) -> str:
        flags = [name for name in ("bidirectional", "bias", "batch_first", "training") if getattr(self, name)]
        words = [self.nonlinearity, self.layout, f"L{self.num_layers}", *flags, f"dropout{self.dropout}"]
        sizes = "".join(f"{letter}{n}" for letter, n in zip("TBIH", self.sizes, strict=True))
        return "-".join([*words, f"hx_{self.hx}", self.memory, f"frozen_{self.frozen}", sizes])


CROSSED: dict[str, tuple] = {
    "num_layers": (1, 2, 3),
    "bidirectional": (False, True),
    "nonlinearity": ("tanh", "relu"),
    "bias": (True, False),
    "layout": ("padded", "unbatched", "sorted", "unsorted"),
}
DRAWN: dict[str, tuple] = {
    "batch_first": (False, True),
    "dropout": (0.0, 0.4, 1.0),
    "training": (True, False),
    "hx": ("none", "contiguous", "strided", "without_grad"),
    "memory": ("contiguous", "strided", "transposed", "without_grad"),
    "frozen": ("none", "weight_hh", "weight_ih", "bias", "all"),
    "sizes": (
        (5, 3, 4, 6),
        (1, 3, 4, 6),
        (4, 1, 3, 5),
        (3, 0, 4, 6),
        (6, 2, 1, 1),
        (3, 2, 7, 63),
        (9, 17, 16, 32),
    ),
}
AXES = CROSSED | DRAWN


SEED = 237  # the first with which every pair of choices meets


def drawn_case(number: int, crossed: tuple) -> Case:
    draw = Random(f"{SEED} {number}")
    return Case(*crossed, *(draw.choice(values) for values in DRAWN.values()))


CASES = [drawn_case(n, crossed) for n, crossed in enumerate(product(*CROSSED.values()))]


def runs(*dtypes: torch.dtype, cases: list[Case] = CASES) -> Any:
    rows = [(case, dtype, kernel) for dtype in dtypes for case in cases for kernel in kernels_for(dtype)]
    names = [f"{str(dtype).removeprefix('torch.')}-{kernel}-{case}" for case, dtype, kernel in rows]
    return pytest.mark.parametrize(("case", "dtype", "kernel"), rows, ids=names)


def arranged(x: Tensor, memory: str) -> Tensor:
    """`x` as it may lie in memory, in need of a gradient or not."""
    if memory == "strided":
        x = x.repeat_interleave(2, dim=-1)[..., ::2]
    if memory == "transposed":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    return x.requires_grad_(memory != "without_grad")


def modules(case: Case, dtype: torch.dtype) -> tuple[nn.RNN, ManualRNN]:
    _, _, I, H = case.sizes  # noqa: E741
    dropout = case.dropout if case.num_layers > 1 else 0.0
    names = ("num_layers", "nonlinearity", "bias", "batch_first", "bidirectional")
    both = twins(I, H, dropout=dropout, dtype=dtype, **{name: getattr(case, name) for name in names})
    for rnn in both:
        rnn.train(case.training)
        for name, parameter in rnn.named_parameters():
            parameter.requires_grad_(not (case.frozen == "all" or name.startswith(case.frozen)))
    return both


def arguments(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """Input, `hx` and how to pack the input, drawn at random."""
    T, B, I, H = case.sizes  # noqa: E741
    LD = case.num_layers * (2 if case.bidirectional else 1)
    is_packed = case.layout in ("sorted", "unsorted")
    B = max(B, 1) if is_packed else B  # an empty batch can't be packed
    shape, state = ([B, T, I] if case.batch_first else [T, B, I]), [LD, B, H]
    if case.layout == "unbatched":
        shape, state = [T, I], [LD, H]
    found: dict[str, Any] = {"input": arranged(torch.randn(shape, dtype=dtype), case.memory)}
    if case.hx != "none":
        found["hx"] = arranged(torch.randn(state, dtype=dtype), case.hx)
    if is_packed:
        lengths = [T, *torch.randint(1, T + 1, (B - 1,)).sort(descending=True).values.tolist()]
        lengths = lengths if case.layout == "sorted" else [*lengths[1:], T]
        found["pack"] = lambda input: packed(input, lengths, case.batch_first)
    return found


def doubled(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same numbers in float64."""
    return {
        name: value.detach().double().requires_grad_(value.requires_grad)
        if isinstance(value, Tensor)
        else value
        for name, value in arguments.items()
    }


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan() -> Iterator[None]:
    """So that a row no kernel has written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def test_every_pair_of_choices_meets() -> None:
    """So that no two features can be wrong together only, unseen."""
    for a, b in combinations(AXES, 2):
        met = {(getattr(case, a), getattr(case, b)) for case in CASES}
        assert met == set(product(AXES[a], AXES[b])), f"{a} and {b}"


@runs(torch.float64)
def test_in_float64_to_1e_12(case: Case, dtype: torch.dtype, kernel: KernelName) -> None:
    builtin, manual = modules(case, dtype)
    given = arguments(case, dtype)
    with use_kernel(kernel):
        found = gradients(manual, **given)
    assert_same(found, gradients(builtin, **given), bound=1e-12)


@runs(torch.float32)
def test_as_accurate_as_builtin(case: Case, dtype: torch.dtype, kernel: KernelName) -> None:
    assert_as_accurate_as_builtin(*modules(case, dtype), kernel, arguments(case, dtype))


@runs(torch.bfloat16, torch.float16, cases=CASES[::3])
def test_as_accurate_as_builtin_in_half_precision(case: Case, dtype: torch.dtype, kernel: KernelName) -> None:
    builtin, manual = modules(case, dtype)
    given = arguments(case, dtype)
    if case.nonlinearity == "relu":
        keep_off_the_kink(builtin, manual, given)
    assert_as_accurate_as_builtin(builtin, manual, kernel, given)


def assert_as_accurate_as_builtin(
    builtin: nn.RNN, manual: ManualRNN, kernel: KernelName, given: dict[str, Any]
) -> None:
    with use_kernel(kernel):
        found = gradients(manual, **given)
    exact = gradients(deepcopy(builtin).double(), **doubled(given))
    assert_as_accurate(found, gradients(builtin, **given), exact)


def keep_off_the_kink(builtin: nn.RNN, manual: ManualRNN, given: dict[str, Any]) -> None:
    """Make the gates of every other unit positive and the rest negative, whatever the rounding.

    Half precision rounds many a gate across 0, where the slope of ReLU jumps; which ones is chance.
    """
    with torch.no_grad():
        for rnn in (builtin, manual):
            for weight in rnn.parameters():
                weight.abs_().mul_(0.5)[1::2].neg_()
        for name in given.keys() & {"input", "hx"}:
            given[name].abs_()
