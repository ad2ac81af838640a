r"""The operators in C under calls that nobody would write: they raise, or run, and never crash."""

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from engine import NEEDS_C, draw_network, flat, in_a_process_of_its_own, misaligned, vjp_arguments
from internals import OPS, native
from torch import Tensor

pytestmark = NEEDS_C

IN_PLACE: list[Callable[[Tensor], Any]] = [
    lambda x: x.untyped_storage().resize_(x.untyped_storage().nbytes() * (x.numel() % 4) // 4),
    lambda x: x.resize_(2, 2),
    lambda x: x.unsqueeze_(0),
    lambda x: x.set_(torch.empty(1).to(x.dtype)),  # type: ignore[call-overload]
    lambda x: x.t_() if x.dim() == 2 else x,
]
INSTEAD: list[Callable[[Tensor], Any]] = [  # none of them reads the numbers, which may be gone
    lambda x: torch.ones(x.shape, dtype=torch.float64),
    lambda x: torch.ones(x.shape, dtype=torch.float16),
    lambda x: torch.ones(x.shape[::-1]).permute(*range(x.dim())[::-1]),
    lambda x: torch.ones(x.shape).requires_grad_(),
    lambda x: torch._efficientzerotensor((2, *x.shape))[1],
    lambda x: misaligned(torch.ones(x.shape)),
    lambda x: x[..., :-1],
    lambda x: x[1:],
    lambda x: x.new_zeros(1).expand(x.shape),
    lambda x: x.as_strided(x.shape, (0,) * x.dim()),
    lambda x: x.expand(2**20, *x.shape),
    lambda x: x[:1].expand(2**45, *x.shape[1:]),
    lambda x: x.mT,
    lambda x: x[None],
    torch._lazy_clone,
    torch._neg_view,
]
STRANGE: list[Callable[[], Any]] = [
    lambda: None,
    lambda: torch.randn(1).expand(1, 2**40, 2**20),  # 1: torch takes rows for a list, one by one
    lambda: torch.randn(1).expand(3, 2**45, 5),
    lambda: torch.randn((1,) * 6),
    lambda: torch.randn(1, 1, 1).as_strided((1, 1, 1), (2**60,) * 3),
    lambda: torch.randn(9).as_strided((4, 3, 2), (1, 1, 1)),
    lambda: torch.eye(5).to_sparse(),
    lambda: torch.eye(5).to_sparse_csr(),
    lambda: torch.empty(4, 3, 2, device="meta"),
    lambda: torch.randn(3, dtype=torch.complex64).conj(),
    lambda: torch.tensor([3, 3, 2, 1]),
    lambda: torch.tensor([2**62] * 4),
    lambda: torch.tensor([3, 3, 3, 2, 2, 1, 1, 0])[::2],
    lambda: torch.empty(0, dtype=torch.int64),
    lambda: torch.randn(()),
    lambda: torch.randn(0, 3, 2),
    lambda: torch.randn(4, 3, 0),
    lambda: "relu",
    lambda: "sin",
    lambda: True,
    lambda: [],
    lambda: [torch.randn(5, 5)] * 4,
    lambda: [True] * 6,
    lambda: 2**63,
]


def spoil(call: list[Any], choice: random.Random, whole: set[int]) -> None:
    """Put something else in a place, or in one of a list's; or change a tensor, if it is whole: torch itself
    reads memory that is gone, to negate it or to print it."""
    place = choice.randrange(len(call))
    old = call[place]
    if isinstance(old, list) and old and choice.random() < 0.9:
        inner = list(old)
        spoil(inner, choice, whole)
        call[place] = choice.choice([inner, inner, inner, inner[:-1], old * 2, old[::-1]])
    elif id(old) in whole and choice.random() < 0.8:
        whole.remove(id(old))
        with suppress(RuntimeError, IndexError, ValueError):  # torch's, where it can't be
            if choice.random() < 0.5:
                choice.choice(IN_PLACE)(old)
            else:
                call[place] = choice.choice(INSTEAD)(old)
    else:
        call[place] = choice.choice(STRANGE)()


def a_call(choice: random.Random) -> tuple[Any, list[Any]]:
    """An operator and arguments that fit, of any options."""
    sizes = torch.tensor([3, 3, 2, 1]) if choice.random() < 0.4 else None
    group = choice.choice([(), (), (1,), (3,)])
    rows = (9,) if sizes is not None else (4, 3)
    dtype = choice.choice(native.TYPES)
    if choice.random() < 0.3:
        z, h0, w = (torch.randn(*group, *s).to(dtype) for s in ((*rows, 5), (3, 5), (5, 5)))
        how = [sizes, choice.choice(["tanh", "relu"]), choice.random() < 0.5]
        return (OPS.elman.default, [z, h0, w, *how]) if choice.random() < 0.5 else (
            OPS.linear_recurrence.default, [z, z.clone(), w, *how])  # fmt: skip
    options: dict[str, Any] = {
        "L": choice.randint(1, 3),
        "D": choice.randint(1, 2),
        "bias": choice.random() < 0.6,
    }
    network = draw_network(G=group, sizes=sizes, dtype=dtype, **options)
    network[1] = choice.choice([network[1], None])
    if choice.random() < 0.4:
        return OPS.network.default, network
    if choice.random() < 0.4 and not group:
        return torch.ops.aten._cudnn_rnn.default, cudnn_arguments(network, choice)
    vjp = vjp_arguments(network)
    vjp[0] = [wanted and choice.random() < 0.7 for wanted in vjp[0]]
    return OPS.network_vjp.default, vjp


def cudnn_arguments(network: list[Any], choice: random.Random) -> list[Any]:
    x, hx, weights, sizes, phi, bidirectional, bias, _ = network
    each = 4 if bias else 2
    hx = x.new_empty(0) if hx is None else hx
    counts = [] if sizes is None else sizes.tolist()
    how = [
        phi == "tanh",
        5,
        0,
        len(weights) // each // (1 + bidirectional),
        False,
        0.0,
        choice.random() < 0.5,
    ]
    return [x, weights, each, None, hx, None, *how, bidirectional, counts, None]


def hostile_calls(count: int, seed: int = 0) -> tuple[int, int]:
    """How many calls went through and how many raised; nothing else may happen."""
    choice, through, refused = random.Random(seed), 0, 0
    torch.manual_seed(seed)
    for _ in range(count):
        operator, call = a_call(choice)
        kept, whole = flat(call), set(map(id, flat(call)))
        for _ in range(choice.choice([0, 1, 1, 2, 3])):
            spoil(call, choice, whole)
        if choice.random() < 0.05:
            call = call[: choice.randrange(len(call))]
        try:
            with torch.set_grad_enabled(choice.random() < 0.2):
                for x in flat(operator(*call)):
                    if not x.is_meta and x.layout is torch.strided and x.numel() < 10**6:
                        x.sum()
            through += 1
        except (TypeError, ValueError, IndexError, NotImplementedError, RuntimeError, MemoryError):
            refused += 1
        del kept
    return through, refused


def test_hostile_arguments_raise_and_never_crash() -> None:
    through, refused = in_a_process_of_its_own(__file__, "hostile_calls(4000)")
    assert through > 800
    assert refused > 1200
