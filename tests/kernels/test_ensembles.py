r"""Ensembles in C: a leading axis G of `network` and `network_vjp`, one network for each member."""

from typing import Any

import pytest
import torch
from engine import (
    NEEDS_C,
    SIZES,
    draw_network,
    every_variant,
    flat,
    nan_in_new_memory,
    on_threads,
    vjp_arguments,
)
from internals import OPS, native
from torch import Tensor

pytestmark = NEEDS_C
OPTIONS: list[dict[str, Any]] = [
    {},
    {"L": 3, "D": 2, "bias": False},
    {"L": 2, "D": 2, "sizes": SIZES},
    {"L": 2, "rows": (30, 20), "I": 33, "H": 65},
    {"L": 1, "D": 2, "rows": (1, 1), "I": 1, "H": 1},
    {"rows": (0, 3)},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(o))
on_each = pytest.mark.parametrize("threads", [1, 2])


def member(arguments: list[Any], g: int) -> list[Any]:
    """What member g alone is called with."""
    of = lambda x: x[g] if isinstance(x, Tensor) and x is not SIZES else x  # noqa: E731
    return [[of(y) for y in x] if isinstance(x, list) else of(x) for x in arguments]


def assert_members_alone(operator: Any, arguments: list[Any], G: int) -> None:
    found = flat(operator(*arguments))
    assert found
    for g in range(G):
        for ours, alone in zip(found, flat(operator(*member(arguments, g))), strict=True):
            assert torch.equal(ours[g], alone), g


@each_option
@on_each
@pytest.mark.parametrize("dtype", native.TYPES, ids=str)
def test_each_member_is_its_own_network_to_the_bit(
    dtype: torch.dtype, threads: int, options: dict[str, Any]
) -> None:
    for G in (1, 2, 5):
        network = draw_network(G=(G,), dtype=dtype, **options)
        network[1] = network[1] if G > 1 else None
        vjp = vjp_arguments(network)
        with on_threads(threads), nan_in_new_memory():
            assert_members_alone(OPS.network, network, G)
            assert_members_alone(OPS.network_vjp, vjp, G)
            some = [[i % 3 == 1 for i in range(len(vjp[0]))], *vjp[1:5], None, *vjp[6:]]
            assert_members_alone(
                OPS.network_vjp,
                [[need and (i != 1 or G > 1) for i, need in enumerate(some[0])], *some[1:]],
                G,
            )


@every_variant
@on_each
def test_by_every_instruction_set(threads: int) -> None:
    network = draw_network(G=(3,), L=2, D=2, rows=(9, 7), H=17)
    vjp = vjp_arguments(network)
    with on_threads(threads):
        assert_members_alone(OPS.network, network, 3)
        assert_members_alone(OPS.network_vjp, vjp, 3)


@on_each
def test_any_strides(threads: int) -> None:
    """As `vmap` hands them over: weights with members in another axis, an input that all share."""
    network = draw_network(G=(3,), L=2, D=2)
    network[0] = network[0][:1].expand(3, -1, -1, -1)
    network[2] = [w.movedim(0, -1).contiguous().movedim(-1, 0) for w in network[2]]
    vjp = vjp_arguments(network)
    vjp[5] = vjp[5][:1].expand(vjp[5].shape)
    with on_threads(threads):
        assert_members_alone(OPS.network, network, 3)
        assert_members_alone(OPS.network_vjp, vjp, 3)


SHARED: list[dict[str, Any]] = [
    {"rows": (5, 1)},
    {"rows": (1, 1), "H": 17},
    {"rows": (0, 1), "L": 2},
    {"L": 3, "D": 2, "bias": False, "rows": (9, 1)},
    {"L": 2, "D": 2, "rows": (140, 1), "I": 33, "H": 65},
    {"rows": (600, 1), "I": 1, "H": 1},
    {"rows": (5, 2)},
]


@on_each
@pytest.mark.parametrize("dtype", native.TYPES, ids=str)
@pytest.mark.parametrize("options", SHARED, ids=lambda o: ",".join(map(str, o.values())))
def test_samples_of_shared_weights(options: dict[str, Any], dtype: torch.dtype, threads: int) -> None:
    """As `vmap` hands over what all members share: of each its own gradients, as exact as those alone."""
    for G in (2, 9, 70) if options["rows"][0] < 200 else (3,):
        network = draw_network(G=(G,), dtype=dtype, **options)
        network[2] = [w[:1].expand(w.shape) for w in network[2]]
        vjp = vjp_arguments(network)
        vjp[5][0] *= 1024  # whose rounding errors are none of the others'
        for need in (vjp[0], [i % 3 != 1 for i in range(len(vjp[0]))], [i == 3 for i in range(len(vjp[0]))]):
            with on_threads(threads), nan_in_new_memory():
                found = OPS.network_vjp(need, *vjp[1:])
            for g in range(G):
                exact = OPS.network_vjp(need, *doubled(member(vjp, g)[1:]))
                alone = OPS.network_vjp(need, *member(vjp, g)[1:])
                for ours, one, expected in zip(found, alone, exact, strict=True):
                    assert error(ours[g], expected) <= 2 * error(one, expected) + 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("own", range(4))
def test_one_matrix_of_their_own_is_enough_to_run_apart(own: int) -> None:
    network = draw_network(G=(3,), L=2, rows=(6, 1), bias=False)
    network[2] = [w if at == own else w[:1].expand(w.shape) for at, w in enumerate(network[2])]
    assert_members_alone(OPS.network_vjp, vjp_arguments(network), 3)


def test_sums_of_many_steps_know_their_rounding_errors() -> None:
    network = draw_network(G=(3,), rows=(5000, 1))
    network[2] = [w[:1].expand(w.shape) for w in network[2]]
    assert_members_alone(OPS.network_vjp, vjp_arguments(network), 3)


def test_threads_change_no_bit_of_a_sample() -> None:
    network = draw_network(G=(37,), L=2, D=2, rows=(9, 1), H=33)
    network[2] = [w[:1].expand(w.shape) for w in network[2]]
    vjp, found = vjp_arguments(network), []
    for threads in (1, 2, 3):
        with on_threads(threads):
            found.append(OPS.network_vjp(*vjp))
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


def doubled(arguments: list[Any]) -> list[Any]:
    of = lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x  # noqa: E731
    return [[of(y) for y in x] if isinstance(x, list) else of(x) for x in arguments]


def error(found: Tensor, exact: Tensor) -> float:
    """Of the largest number."""
    if not exact.numel():
        return 0.0
    return float((found.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("place", range(6))
def test_all_have_as_many_members(place: int) -> None:
    network = draw_network(G=(3,))
    tensors = [network[0], network[1], *network[2]]
    for wrong in (tensors[place][:2], tensors[place][:0], tensors[place][0], torch.cat([tensors[place]] * 2)):
        given = [*tensors[:place], wrong, *tensors[place + 1 :]]
        with pytest.raises((RuntimeError, ValueError), match="expected"):
            OPS.network(given[0], given[1], given[2:], *network[3:])


def test_a_member_that_finds_no_memory_raises() -> None:
    w = torch.zeros(1).expand(2, 2**26, 2**26)
    with pytest.raises(RuntimeError, match=r"no memory for [12] of 2 members"):
        OPS.network(torch.zeros(2, 1, 1, 2), None, [w[..., :2], w], None, "tanh", False, False, False)
