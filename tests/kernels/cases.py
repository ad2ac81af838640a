r"""Networks of any options at random, by the operators in C and by `nn.RNN`, in float64 too; of a leak and of
a nonlinearity that `nn.RNN` hasn't, by the judge's loop."""

import math
import random
from functools import cache, cached_property
from typing import Any

import torch
from engine import nan_in_new_memory, scattered
from internals import OPS
from loop import Loop
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

__all__ = ["HALVES", "Case", "Run", "check", "check_all", "known"]

HALVES = (torch.bfloat16, torch.float16)
Run = dict[str, Tensor]


class Case:
    """An `nn.RNN` in float64, what it is called with, and the cotangents of its results.

    Numbers are those of `dtype`, so that runs in either type begin alike.
    """

    def __init__(self, seed: int, dtype: torch.dtype, **fixed: Any) -> None:
        choice = random.Random(seed)
        torch.manual_seed(seed)
        draw = lambda name, *of: fixed[name] if name in fixed else choice.choice(of)  # noqa: E731
        self.T, self.B = draw("T", 1, 2, 5, 30), draw("B", 1, 2, 5, 13)
        self.H, self.I = draw("H", 1, 3, 8, 17, 33), draw("I", 1, 2, 7, 40)
        self.L, self.D = draw("L", 1, 1, 2, 3), draw("D", 1, 2)
        self.phi, self.bias = draw("phi", "tanh", "relu"), draw("bias", True, False)
        self.lengths = None
        if draw("packed", True, False):
            more = sorted((choice.randint(1, self.T) for _ in range(self.B - 1)), reverse=True)
            self.lengths = torch.tensor([self.T, *more])
        self.batch_first = self.lengths is None and draw("batch_first", True, False)
        self.dtype, self.plain = dtype, draw("plain", True, False)
        self.choice = choice
        how: dict[str, Any] = {"bias": self.bias, "batch_first": self.batch_first, "nonlinearity": self.phi}
        kind = nn.RNN if self.phi in ("tanh", "relu") and not fixed.get("leaky") else Loop
        self.rnn: Any = kind(self.I, self.H, self.L, bidirectional=self.D == 2, **how).to(dtype).double()
        self.alpha = torch.rand(self.H).to(dtype).double() if fixed.get("leaky") else None
        rows = (self.B, self.T) if self.batch_first else (self.T, self.B)
        self.x = self.number(*rows, self.I)
        self.hx = self.number(self.L * self.D, self.B, self.H) if draw("hx", True, False) else None
        self.c = self.number(*rows, self.D * self.H) if draw("c", True, True, False) else None
        last = draw("c_last", True, True, False) or self.c is None
        self.c_last = self.number(self.L * self.D, self.B, self.H) if last else None
        self.need = fixed.get("need") or tuple(
            choice.random() < draw("wanted", 1.0, 0.5) for _ in range(2 + len(self.weights))
        )
        self.need = self.need[0], self.need[1] and self.hx is not None, *self.need[2:]

    @cached_property
    def exact(self) -> Run:
        return self.by_torch(torch.float64)

    @cached_property
    def own(self) -> Run:
        return self.exact if self.dtype is torch.float64 else self.by_torch(self.dtype)

    @property
    def weights(self) -> list[Tensor]:
        return list(self.rnn.parameters())

    def number(self, *shape: int) -> Tensor:
        return torch.randn(shape).to(self.dtype).double()

    def strided(self, x: Tensor) -> Tensor:
        """In this type, contiguous or not."""
        x = x.detach().to(self.dtype)
        return x if self.plain else scattered(x, self.choice)

    def pack(self, x: Tensor) -> Any:
        return x if self.lengths is None else pack_padded_sequence(x, self.lengths)

    def by_torch(self, dtype: torch.dtype) -> Run:
        """Results and gradients of nn.RNN in one type."""
        rnn = self.rnn.to(dtype)
        rnn.leak = None if self.alpha is None else self.alpha.to(dtype)
        x, hx = (None if t is None else t.to(dtype).requires_grad_() for t in (self.x, self.hx))
        assert x is not None
        output, h_n = rnn(self.pack(x), hx)
        output = output if self.lengths is None else output.data
        c = None if self.c is None else self.pack(self.c.to(dtype))
        c = c if c is None or self.lengths is None else c.data
        pairs = [(output, c), (h_n, None if self.c_last is None else self.c_last.to(dtype))]
        pairs = [(y, g) for y, g in pairs if g is not None]
        leaves = {"x": x, "hx": hx, **dict(rnn.named_parameters())}
        wanted: dict[str, Any] = {
            name: t for (name, t), need in zip(leaves.items(), self.need, strict=True) if need
        }
        run = {"output": output.detach(), "h_n": h_n.detach()}
        if wanted:
            ys, gs = zip(*pairs, strict=True)
            zeros = torch.autograd.grad(ys, list(wanted.values()), gs, allow_unused=True)
            run |= {
                name: torch.zeros_like(wanted[name]) if g is None else g
                for name, g in zip(wanted, zeros, strict=True)
            }
        self.rnn.double()
        if self.lengths is not None and "x" in run:
            run["x"] = self.pack(run["x"]).data
        return run

    def by_c(self) -> Run:
        names = [name for name, _ in self.rnn.named_parameters()]
        weights = [self.strided(w) for w in self.weights]
        hx = None if self.hx is None else self.strided(self.hx)
        sizes = None if self.lengths is None else self.pack(self.x).batch_sizes
        in_time = lambda x: x.transpose(0, 1) if self.batch_first else x  # noqa: E731
        x = in_time(self.strided(self.x if sizes is None else self.pack(self.x).data))
        how = sizes, self.phi, self.D == 2
        leak = [] if self.alpha is None else [self.strided(self.alpha)]
        with nan_in_new_memory():
            output, h_n, states = OPS.network(x, hx, weights, *how, self.bias, True, *leak)
        run = {"output": in_time(output), "h_n": h_n}
        c = self.c if self.c is None or sizes is None else self.pack(self.c).data
        c = None if c is None else in_time(self.strided(c))
        c_last = None if self.c_last is None else self.strided(self.c_last)
        matrices = [w for w in weights if w.dim() == 2]
        with nan_in_new_memory():
            found = OPS.network_vjp(self.need, x, hx, matrices, states, c, c_last, *how, *leak)
        wanted = [name for name, need in zip(["x", "hx", *names], self.need, strict=True) if need]
        run |= dict(zip(wanted, found, strict=True))
        if "x" in run:
            run["x"] = in_time(run["x"])
        return run


def off(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).abs().max() / exact.abs().max().clamp(min=1.0)).item()


def check(case: Case, multiple: float, ulps: float) -> list[tuple[float, float]]:
    """As near to float64 as nn.RNN in the same type, within a multiple, or within some units of that type.

    Returns the errors, ours and its own.
    """
    exact, own, found = case.exact, case.own, case.by_c()
    assert found.keys() == exact.keys()
    for name, right in exact.items():
        assert found[name].shape == right.shape, name
        assert found[name].dtype == case.dtype
        bound = max(multiple * off(own[name], right), ulps * torch.finfo(case.dtype).eps)
        assert off(found[name], right) <= bound, (name, off(found[name], right), bound)
    return [(off(found[name], right), off(own[name], right)) for name, right in exact.items()]


@cache  # what nn.RNN says is the same for every variant and number of threads
def known(seed: int, dtype: torch.dtype, *fixed: tuple[str, Any]) -> Case:
    return Case(seed, dtype, **dict(fixed))


def check_all(seeds: range, multiple: float, dtype: torch.dtype, ulps: float, **fixed: Any) -> None:
    """Each error within a multiple of nn.RNN's own or some units, more for a sum of many rows; all of them
    together hardly larger, in halves smaller: by the geometric mean, since one may be small by chance."""
    cases, unit = [known(seed, dtype, *fixed.items()) for seed in seeds], torch.finfo(dtype).eps
    errors = [pair for each in cases for pair in check(each, 2 * multiple, ulps + (each.T * each.B) ** 0.5)]
    ratios = [math.log((ours + unit) / (own + unit)) for ours, own in errors]
    assert math.exp(sum(ratios) / len(ratios)) <= (0.95 if dtype in HALVES else 1.25)
