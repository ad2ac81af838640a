r"""The same draws under transforms of torch.func. The judge is `nn.RNN` in float64, sample by sample since it
has no batching rule; of packed input, which it can't do there, the loop of `loop.py`.

`MANUAL_RNN_DRAWS=10000 pytest tests/module/test_fuzz_transforms.py` makes as many draws.
"""

import random
from typing import Any

import pytest
import test_fuzz
import torch
from internals import KernelName
from loop import Loop
from test_fuzz import DRAWS, Draw, outcome
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves, tree_map

from manual_rnn import ManualRNN, use_kernel

SAMPLES = 3
EDITS: dict[str, Any] = {
    "none": lambda o: o,
    "mul_": lambda o: o.mul_(2),
    "relu_": torch.relu_,
    "slice": lambda o: (o[0].zero_(), o)[1],
}


class TransformDraw(Draw):
    """One situation under one transform."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        pick = random.Random(-1 - seed).choice
        self.transform = pick(list(TRANSFORMS))
        self.edit = pick(list(EDITS))
        self.kernel: KernelName = pick(["default", "default", "native", "torch", "reference"])

    def run(self, rnn: Any, dtype: torch.dtype) -> list[Tensor | None]:
        x, hx = self.tensors(dtype)
        self.packed = None
        if self.form in ("packed", "unsorted"):
            self.packed = pack_padded_sequence(x, self.lengths(), enforce_sorted=self.form == "packed")
            x = self.packed.data
        weights = {name: p.detach() for name, p in rnn.named_parameters()}
        found = TRANSFORMS[self.transform](self.function(rnn), (weights, x, hx), self.tangents)
        return [leaf.detach() for leaf in tree_leaves(found)]

    def function(self, rnn: Any) -> Any:
        """`(weights, x, hx) -> (output, h_n)`, with `output` edited in place."""

        def call(weights: dict[str, Tensor], x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
            given: Any = x
            if self.packed is not None:
                given = self.packed._replace(data=x)
            output, h_n = functional_call(rnn, weights, (given, *([hx] if self.given else [])))
            output = output.data if isinstance(output, PackedSequence) else output
            return EDITS[self.edit](output), h_n

        call.batched = isinstance(rnn, ManualRNN)  # type: ignore[attr-defined]
        return call

    def tangents(self, tree: Any, samples: int | None = None) -> Any:
        """Random numbers like these, the same in every precision; of `samples` on a new first axis."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        lead = () if samples is None else (samples,)
        draw = lambda x: torch.randn(*lead, *x.shape, generator=generator, dtype=torch.float64).to(x.dtype)  # noqa: E731
        return tree_map(draw, tree)


def over_samples(call: Any, function: Any, *trees: Any) -> Any:
    """`vmap`, or a loop for a network that has none."""
    if call.batched:
        return vmap(function)(*trees)
    each = [function(*tree_map(lambda x, i=i: x[i], trees)) for i in range(SAMPLES)]
    return tree_map(lambda *leaves: torch.stack(leaves), *each)


def loss(call: Any, primals: Any, tangents: Any) -> Any:
    cotangents = tangents(call(*primals))  # drawn here, for nothing random happens under vmap

    def scalar(*primals: Any) -> Tensor:
        pairs = zip(call(*primals), cotangents, strict=True)
        return torch.stack([(result * c).sum() for result, c in pairs]).sum()

    return scalar


def grad_of_all(call: Any, primals: Any, tangents: Any) -> Any:
    return grad(loss(call, primals, tangents), argnums=(0, 1, 2))(*primals)


def vjp_of_all(call: Any, primals: Any, tangents: Any) -> Any:
    results, pull, *_ = vjp(call, *primals)
    return results, pull(tangents(results))


def jvp_of_all(call: Any, primals: Any, tangents: Any) -> Any:
    return jvp(call, primals, tangents(primals))


def jvp_of_input(call: Any, primals: Any, tangents: Any) -> Any:
    weights, x, hx = primals
    return jvp(lambda x: call(weights, x, hx), (x,), (tangents(x),))


def dual_numbers(call: Any, primals: Any, tangents: Any) -> Any:
    weights, x, hx = primals
    with forward_ad.dual_level():
        results = call(weights, forward_ad.make_dual(x, tangents(x)), hx)
        return [forward_ad.unpack_dual(r).tangent for r in results]


def vmap_of_inputs(call: Any, primals: Any, tangents: Any) -> Any:
    weights, x, hx = primals
    return over_samples(call, lambda x: call(weights, x, hx), tangents(x, SAMPLES))


def vmap_of_all(call: Any, primals: Any, tangents: Any) -> Any:
    near = tree_map(lambda x, dx: x + dx / 10, primals, tangents(primals, SAMPLES))
    return over_samples(call, call, *near)


def per_sample(call: Any, primals: Any, tangents: Any) -> Any:
    weights, x, hx = primals
    one = grad(loss(call, primals, tangents))
    return over_samples(call, lambda x: one(weights, x, hx), tangents(x, SAMPLES))


def product_with_hessian(call: Any, primals: Any, tangents: Any) -> Any:
    """Forward over reverse."""
    return jvp(grad(loss(call, primals, tangents), argnums=(0, 1, 2)), primals, tangents(primals))[1]


def called(call: Any, primals: Any, tangents: Any) -> Any:
    return call(*primals)


TRANSFORMS: dict[str, Any] = {
    "functional_call": called,
    "grad": grad_of_all,
    "vjp": vjp_of_all,
    "jvp": jvp_of_all,
    "jvp of the input": jvp_of_input,
    "dual numbers": dual_numbers,
    "vmap of inputs": vmap_of_inputs,
    "vmap of all": vmap_of_all,
    "gradient of each sample": per_sample,
    "product with the hessian": product_with_hessian,
}


def drawn(seed: int) -> tuple[TransformDraw, nn.RNN]:
    draw = TransformDraw(seed)
    torch.manual_seed(seed)
    kind = Loop if draw.form in ("packed", "unsorted") else nn.RNN
    return draw, kind(draw.I, draw.H, **draw.options)


def judged(seed: int) -> str | None:
    """What is wrong with this draw, or None."""
    draw, judge = drawn(seed)
    manual = ManualRNN(draw.I, draw.H, **draw.options)
    manual.load_state_dict(judge.state_dict())
    expected = outcome(draw, judge.double(), torch.float64)
    with use_kernel(draw.kernel):
        found = outcome(draw, manual, torch.float32)
    return test_fuzz.difference(found, expected)


def test_most_draws_compare_numbers() -> None:
    draws = [(draw, outcome(draw, rnn.double(), torch.float64)) for draw, rnn in map(drawn, range(DRAWS))]
    silent = test_fuzz.without_numbers(draws, ("form", "transform", "edit", "kernel"))
    assert not (found := test_fuzz.too_silent(silent)), found


@pytest.mark.parametrize("part", range(10))
def test_whatever_is_drawn(part: int) -> None:
    wrong = {seed: said for seed in range(part, DRAWS, 10) if (said := judged(seed)) is not None}
    assert not wrong, {seed: (said, vars(TransformDraw(seed))) for seed, said in list(wrong.items())[:3]}


def test_the_judge_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    right = vjp_of_all
    wrong = lambda call, *how: [x * (1.01 if call.batched else 1) for x in tree_leaves(right(call, *how))]  # noqa: E731
    for name in TRANSFORMS:
        monkeypatch.setitem(TRANSFORMS, name, wrong)
    assert any(judged(seed) for seed in range(5))
