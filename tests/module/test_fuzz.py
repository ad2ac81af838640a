r"""Draws from all of it at once: forms, layers, directions, frozen parts, which results get a cotangent,
edits of results and of gradients, data swapped, hooks, modes, devices by default and kernels. The judge is
`nn.RNN` in float64.

`MANUAL_RNN_DRAWS=10000 pytest tests/module/test_fuzz.py` makes as many draws.
"""

import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from internals import KernelName
from situations import AROUND, CALLS, EDITS
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from manual_rnn import ManualRNN, use_kernel

DRAWS = int(os.environ.get("MANUAL_RNN_DRAWS", "300"))


class Draw:
    """One situation, the same for both networks."""

    def __init__(self, seed: int) -> None:
        choice = random.Random(seed)
        pick = choice.choice
        self.seed = seed
        self.form = pick(["padded", "padded", "unbatched", "packed", "unsorted"])
        self.T, self.B, self.I, self.H = pick([1, 2, 3, 7]), pick([1, 2, 5]), pick([1, 3]), pick([1, 4, 33])
        self.options: dict[str, Any] = {
            "num_layers": pick([1, 1, 2]),
            "bidirectional": pick([False, True]),
            "nonlinearity": pick(["tanh", "relu"]),
            "bias": pick([True, True, False]),
            "batch_first": pick([False, True]) and self.form == "padded",
        }
        self.given, self.wanted = pick([True, False]), pick([True, False])
        self.frozen = [choice.random() < 0.25 for _ in range(32)]
        self.cotangents = pick(["output", "h_n", "both"])
        self.edit, self.edit_h = pick(list(EDITS)), pick(["none", "none", "mul_"])
        self.hook = pick(["none", "zero", "double"])
        self.swap = pick(["none", "none", "weight_hh_l0", "weight_ih_l0", "input"])
        self.halve = pick([False, True])
        self.around = pick(["nothing", *AROUND])
        self.kernel: KernelName = pick(["default", "default", "native", "torch", "aten", "reference"])
        self.call = pick([*["as it is"] * len(CALLS), *CALLS])

    def lengths(self) -> list[int]:
        lengths = [1 + (self.seed + 3 * b) % self.T for b in range(self.B)]
        lengths[0] = self.T
        return lengths if self.form == "unsorted" else sorted(lengths, reverse=True)

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        torch.manual_seed(self.seed)
        shape = (self.B, self.T, self.I) if self.options["batch_first"] else (self.T, self.B, self.I)
        x = torch.randn(shape, dtype=torch.float64)
        D = self.options["num_layers"] * (1 + self.options["bidirectional"])
        hx = torch.randn(D, self.B, self.H, dtype=torch.float64)
        if self.form == "unbatched":
            x, hx = x[:, 0], hx[:, 0]
        return x.to(dtype), hx.to(dtype)

    def run(self, rnn: Any, dtype: torch.dtype) -> list[Tensor | None]:
        """Results and gradients."""
        for p, frozen in zip(rnn.parameters(), self.frozen, strict=False):
            p.requires_grad_(not frozen)
        parameters = dict(rnn.named_parameters())
        x, hx = self.tensors(dtype)
        x.requires_grad_(self.wanted)
        given: Any = x
        if self.form in ("packed", "unsorted"):
            given = pack_padded_sequence(x, self.lengths(), enforce_sorted=self.form == "packed")
        call = CALLS[self.call](rnn)
        with AROUND[self.around]():
            output, h_n = call(given, hx if self.given else None)
        output = output if isinstance(output, Tensor) else output.data
        values: list[Tensor | None] = [output.detach().clone(), h_n.detach().clone()]
        if self.hook != "none" and output.requires_grad:
            output.register_hook(torch.zeros_like if self.hook == "zero" else lambda g: 2 * g)
        EDITS[self.edit](output)
        EDITS[self.edit_h](h_n)
        torch.manual_seed(self.seed + 1)
        terms = []
        for name, result in (("output", output), ("h_n", h_n)):
            c = torch.randn(result.shape, dtype=torch.float64).to(result.dtype)
            if self.cotangents in (name, "both"):
                terms.append((result * c).sum())
        victim = x if self.swap == "input" else parameters.get(self.swap)
        if victim is not None:
            victim.data = torch.zeros_like(victim)
        loss = torch.stack(terms).sum()
        if loss.requires_grad:
            loss.backward()
        grads = [x.grad, *(p.grad for p in parameters.values())]
        if self.halve:
            for g in grads:
                if g is not None:
                    g.mul_(0.5)
        return [*values, *grads]


def outcome(draw: Draw, rnn: Any, dtype: torch.dtype) -> Any:
    try:
        return draw.run(rnn, dtype)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def drawn(seed: int) -> tuple[Draw, nn.RNN]:
    draw = Draw(seed)
    torch.manual_seed(seed)
    return draw, nn.RNN(draw.I, draw.H, **draw.options)


def judged(seed: int) -> str | None:
    """What is wrong with this draw, or None."""
    draw, builtin = drawn(seed)
    manual = ManualRNN.from_builtin(deepcopy(builtin))
    expected = outcome(draw, builtin.double(), torch.float64)
    with use_kernel(draw.kernel):
        found = outcome(draw, manual, torch.float32)
    return difference(found, expected)


def difference(found: Any, expected: Any) -> str | None:
    """Of two outcomes, what is wrong with the first."""
    if isinstance(expected, str) and "CheckpointError" in expected:
        return None  # of `nn.RNN` some can't be recomputed
    if isinstance(expected, str) or isinstance(found, str):
        return None if found == expected else f"{found!r:.90} is not {expected!r:.90}"
    for place, (left, right) in enumerate(zip(found, expected, strict=True)):
        if (left is None) != (right is None):
            return f"result {place}: {left!r:.90} is not {right!r:.90}"
        if right is not None and left.shape != right.shape:
            return f"result {place} has shape {left.shape}, not {right.shape}"
        if right is not None:
            off = (left.double() - right).abs().max().item() / max(1.0, right.abs().max().item())
            if not off < 2e-5:
                return f"result {place} is off by {off:.1e}"
    return None


SITUATIONS = ("form", "call", "around", "edit", "edit_h", "hook", "swap", "kernel", "cotangents")


def without_numbers(
    draws: Iterable[tuple[Draw, Any]], situations: Sequence[str] = SITUATIONS
) -> dict[str, float]:
    """Of all draws and of those in each situation, which part `nn.RNN` gives no numbers for."""
    asked: Counter[str] = Counter()
    silent: Counter[str] = Counter()
    for draw, expected in draws:
        places = ["all", *(f"{name}: {getattr(draw, name)}" for name in situations)]
        asked.update(places)
        silent.update(places if isinstance(expected, str) else [])
    return {place: silent[place] / count for place, count in asked.items()}


def too_silent(parts: dict[str, float]) -> dict[str, float]:
    return {place: part for place, part in parts.items() if part > (0.1 if place == "all" else 0.5)}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_most_draws_compare_numbers() -> None:
    """Where both networks raise nothing is compared but words."""
    draws = [(draw, outcome(draw, rnn.double(), torch.float64)) for draw, rnn in map(drawn, range(DRAWS))]
    assert not (found := too_silent(without_numbers(draws))), found


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("part", range(10))
def test_whatever_is_drawn(part: int) -> None:
    wrong = {seed: said for seed in range(part, DRAWS, 10) if (said := judged(seed)) is not None}
    assert not wrong, {seed: (said, vars(Draw(seed))) for seed, said in list(wrong.items())[:3]}


def compilable(seed: int) -> Draw:
    """A draw without what the limits exclude from compiled code: weights replaced, hooks where a result has
    no gradient or is no view, as that of `nn.RNN` is. Dynamo can't trace `PackedSequence._replace`."""
    draw = Draw(seed)
    draw.swap = "none"
    if draw.edit == "detach_":
        draw.edit = "mul_"
    if draw.cotangents == "h_n" or draw.form == "unbatched":
        draw.hook = "none"
    if draw.call == "cast after" and draw.form in ("packed", "unsorted"):
        draw.call = "as it is"
    return draw


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of graphs that break, and of hooks
@pytest.mark.parametrize("part", range(4))
def test_whatever_is_drawn_compiled(part: int) -> None:
    wrong = {}
    for seed in range(part, DRAWS // 4, 4):
        draw, builtin = compilable(seed), drawn(seed)[1]
        manual = ManualRNN.from_builtin(deepcopy(builtin))
        torch._dynamo.reset()
        manual.compile(backend="aot_eager")
        expected = outcome(draw, builtin.double(), torch.float64)
        with use_kernel(draw.kernel):
            said = difference(outcome(draw, manual, torch.float32), expected)
        if said is not None:
            wrong[seed] = said, vars(draw)
    assert not wrong, list(wrong.items())[:3]


def test_the_judge_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Draw.run
    monkeypatch.setattr(
        Draw, "run", lambda self, rnn, dtype: [v if v is None else v * 1.01 for v in right(self, rnn, dtype)]
        if isinstance(rnn, ManualRNN) else right(self, rnn, dtype)
    )  # fmt: skip
    assert any(judged(seed) for seed in range(5))


def test_the_judge_compares_words() -> None:
    assert difference("ValueError: no", "ValueError: no") is None
    for found in ("TypeError: no", "ValueError: yes", [torch.zeros(1)]):
        assert difference(found, "ValueError: no") is not None
    assert difference("ValueError: no", [torch.zeros(1)]) is not None


def test_silent_draws_are_counted() -> None:
    """A tenth of all, or half of those in one situation."""
    draws = [Draw(seed) for seed in range(300)]
    some = [(draw, "ValueError: no" if draw.seed < 33 else []) for draw in draws]
    assert too_silent(without_numbers(some)) == {"all": 0.11}
    one = [(draw, "ValueError: no" if draw.call == "doubled gradients" else []) for draw in draws]
    assert too_silent(without_numbers(one)) == {"call: doubled gradients": 1.0}
