r"""What a tensor may be when it reaches the operators in C: the right numbers come back, or an exception."""

from typing import Any

import pytest
import torch
from engine import NEEDS_C, OPERATORS, SIZES, Change, calls, changed, draw_network, flat, misaligned, places
from internals import OPS, address, is_shared
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

pytestmark = NEEDS_C


class Sub(Tensor):
    """A subclass, but for its type a tensor like others."""


def at_an_offset(x: Tensor) -> Tensor:
    return torch.cat([torch.full((3,), torch.nan, dtype=x.dtype), x.flatten()])[3:].view(x.shape)


def zeros(x: Tensor) -> Tensor:
    return torch._efficientzerotensor((2, *x.shape), dtype=x.dtype)[1]


def real_part(x: Tensor) -> Tensor:
    return torch.complex(x, x).conj().real if x.dtype is torch.float32 else x


def negated(x: Tensor) -> Tensor:
    return (
        torch.complex(x, -x).conj().imag if x.dtype in (torch.float32, torch.float64) else torch._neg_view(-x)
    )


TAKEN: dict[str, Change] = {
    "transposed": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    "every other number": lambda x: torch.stack([x, x * torch.nan], -1)[..., 0],
    "at an offset": at_an_offset,
    "expanded": lambda x: x[..., :1].expand(x.shape),
    "a negative bit": negated,
    "the real part of a conjugate": real_part,
    "zeros without memory": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    "zeros without memory, at an offset": zeros,
    "misaligned": misaligned,
    "copied on write": torch._lazy_clone,
    "a Parameter": torch.nn.Parameter,
    "a subclass": lambda x: x.as_subclass(Sub),
}  # fmt: skip


def exact(x: Tensor) -> Tensor:
    """Its numbers in ordinary memory."""
    return torch.zeros(x.shape, dtype=x.dtype).copy_(x.detach().as_subclass(Tensor))


@OPERATORS
@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_takes_it_as_its_numbers(kind: str, name: str, dtype: torch.dtype) -> None:
    for packed in (False, True):
        operator, arguments = calls(dtype, packed)[name]
        for place in places(arguments):
            given = changed(arguments, place, lambda x: TAKEN[kind](x) if x.is_floating_point() else x)
            with torch.no_grad():
                found = flat(operator(*given))
                expected = flat(operator(*changed(given, place, exact)))
            assert all(map(torch.equal, found, expected)), (packed, place)


def resized(x: Tensor) -> Tensor:
    x = x.clone()
    x.untyped_storage().resize_(x.nbytes - 1)
    return x


def freed(x: Tensor) -> Tensor:
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


REFUSED: dict[str, tuple[Change, str]] = {
    "whole numbers": (lambda x: x.int(), "expected"),
    "of another dtype": (lambda x: x.double(), "dtype|int64|batch_sizes"),
    "complex": (lambda x: x.to(torch.complex64), "expected|imaginary"),
    "of 8 bits": (lambda x: x.to(torch.float8_e4m3fn), "expected|not implemented"),
    "sparse": (lambda x: x.to_sparse(), "expected|sparse|Sparse"),
    "meta": (lambda x: x.to("meta"), "expected|on meta"),
    "one axis more": (lambda x: x[None], "expected"),
    "many axes more": (lambda x: x[(None,) * 7], "expected|too many dimensions"),
    "one number": (lambda x: x.flatten()[0], "expected"),
    "shorter": (lambda x: x[..., :-1], "expected|add up"),
    "longer": (lambda x: torch.cat([x, x], -1), "expected|add up"),
    "fewer rows": (lambda x: x[:-1], "expected|add up"),
    "empty": (lambda x: x[:0], "expected"),
    "a storage that was shrunk": (resized, "out of bounds for storage of size"),
    "a storage that was freed": (freed, "out of bounds for storage of size 0"),
    "of a huge size": (lambda x: x.flatten()[:1].expand(2**50), "expected|memory|add up|storage"),
    "huge in all sizes": (lambda x: x.flatten()[:1].expand((2**20,) * x.dim()), "expected|memory|add up"),
}  # fmt: skip


@OPERATORS
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("packed", [False, True])
def test_says_what_does_not_fit(packed: bool, kind: str, name: str) -> None:
    """One tensor after the other."""
    operator, arguments = calls(packed=packed)[name]
    change, words = REFUSED[kind]
    for place in places(arguments):
        first = place == places(arguments)[0]
        if first and (kind == "meta" or (not packed and kind in ("fewer rows", "empty"))):
            continue  # results without numbers; and fewer steps
        with pytest.raises((RuntimeError, ValueError, TypeError, NotImplementedError), match=words):
            operator(*changed(arguments, place, change))


def test_counts_that_do_not_fit() -> None:
    network, vjp = (calls()[name][1] for name in ("network", "network_vjp"))
    none: list[Any] = []
    for weights in (none, network[2][:-1], network[2][:3]):
        with pytest.raises((RuntimeError, ValueError), match="expected 8 weights for each layer"):
            OPS.network(network[0], network[1], weights, *network[3:])
    for at, wrong in ((0, []), (0, vjp[0][:-1]), (3, vjp[3][:-2]), (3, []), (4, vjp[4][:1]), (4, vjp[4] * 2)):
        with pytest.raises((RuntimeError, ValueError), match="expected"):
            OPS.network_vjp(*vjp[:at], wrong, *vjp[at + 1 :])


@OPERATORS
def test_an_unknown_nonlinearity(name: str) -> None:
    operator, arguments = calls()[name]
    for word in ("gelu", "", "tan" * 1000):
        with pytest.raises(RuntimeError, match=f"expected the name of a nonlinearity, got '{word[:32]}'"):
            operator(*[word if isinstance(x, str) else x for x in arguments])


SIZES_THAT_DO_NOT_FIT: list[list[int]] = [
    [3, 2, 3, 1], [3, 3, 3, -1, 1], [3, 3, 2], [2**62] * 4, [3, *[2**62] * 4], [-3, 3, 3, 3, 3],
    [-(2**63)] * 5, [3, 3, 3, 1], [],
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES_THAT_DO_NOT_FIT, ids=str)
@OPERATORS
def test_batch_sizes_that_do_not_fit(name: str, sizes: list[int]) -> None:
    operator, arguments = calls(packed=True)[name]
    wrong = torch.tensor(sizes, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"batch_sizes|expected shape"):
        operator(*[wrong if x is SIZES else x for x in arguments])


@OPERATORS
def test_memory_that_is_shared_until_written_stays_shared(name: str) -> None:
    operator, arguments = calls()[name]
    for place in places(arguments):
        kept: list[Tensor] = []

        def share(x: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(torch._lazy_clone(x))
            return kept[0]

        given = changed(arguments, place, share)
        before = address(kept[0])
        operator(*given)
        assert is_shared(kept[0])
        assert address(kept[0]) == before


def test_a_storage_may_end_with_its_last_number() -> None:
    x = torch.zeros(100)[:24].view(4, 3, 2)
    x.untyped_storage().resize_(24 * 4)
    arguments = draw_network()
    assert OPS.network(x, *arguments[1:])[0].shape == (4, 3, 5)
    x.untyped_storage().resize_(24 * 4 - 1)
    with pytest.raises(RuntimeError, match="out of bounds"):
        OPS.network(x, *arguments[1:])


@OPERATORS
def test_tensors_without_numbers_are_no_business_of_c(name: str) -> None:
    operator, arguments = calls()[name]
    expected = flat(operator(*arguments))
    with FakeTensorMode() as mode:
        of = lambda x: mode.from_tensor(x) if isinstance(x, Tensor) else x  # noqa: E731
        given = torch.utils._pytree.tree_map(of, arguments)
        found = flat(operator(*given))
    assert [x.shape for x in found] == [x.shape for x in expected]
