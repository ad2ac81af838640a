r"""What is timed: sizes `(T, B, I, H)`, layers, directions, packing, dtype, device."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence


@dataclass(frozen=True)
class Case:
    """One network on one batch; `shortest` makes it a packed batch of `B` lengths from there to `T`.

    Of `members` networks each has weights of its own. Numbers are rounded to `rounded` before they are of
    `dtype`, so that a case in float64 may have those of another.
    """

    T: int
    B: int
    I: int  # noqa: E741
    H: int
    layers: int = 1
    bidirectional: bool = False
    shortest: int | None = None
    dtype: torch.dtype = torch.float32
    members: int = 1
    device: str = "cpu"
    rounded: torch.dtype | None = None

    def __str__(self) -> str:
        kind = ", 2 layers, bidirectional" if self.bidirectional else ""
        kind += ", packed" if self.shortest else ""
        kind += f", {self.members} members" if self.members > 1 else ""
        return f"({self.T}, {self.B}, {self.I}, {self.H}){kind}"

    def exact(self) -> "Case":
        """The same numbers in float64."""
        return replace(self, dtype=torch.float64, rounded=self.dtype)

    def _placed(self, x: Any) -> Any:
        return x.to(self.rounded or self.dtype).to(self.device, self.dtype)

    @property
    def lengths(self) -> Tensor:
        """How long each sequence is, longest first."""
        return torch.linspace(self.T, self.shortest or self.T, self.B).long()

    def network(self, member: int = 0) -> nn.RNN:
        """The `nn.RNN` whose weights everyone gets."""
        torch.manual_seed(member)
        return self._placed(nn.RNN(self.I, self.H, self.layers, bidirectional=self.bidirectional))

    def input(self) -> Tensor:
        """Random steps, `(T, B, I)`, that want a gradient, as what a layer below hands on."""
        torch.manual_seed(1)
        return self._placed(torch.randn(self.T, self.B, self.I)).requires_grad_().clone()

    def pack(self, input: Tensor) -> Tensor | PackedSequence:
        """The input as the network reads it."""
        return pack_padded_sequence(input, self.lengths) if self.shortest else input

    def cotangent(self) -> Tensor:
        """What the output is multiplied with in training, padded, zero past the end of a sequence."""
        torch.manual_seed(2)
        alive = torch.arange(self.T).unsqueeze(1) < self.lengths
        cotangent = torch.randn(self.T, self.B, self.H * (1 + self.bidirectional)) * alive.unsqueeze(2)
        return self._placed(cotangent)

    def flops(self) -> float:
        """Two per multiplication of all projections and recurrences, forward."""
        directions, rows = 1 + self.bidirectional, int(self.lengths.sum())
        widths = [self.I] + [self.H * directions] * (self.layers - 1)
        return 2.0 * rows * directions * sum((width + self.H) * self.H for width in widths)


ALL_CASES = [
    Case(3, 2, 2, 3),
    Case(1, 1, 32, 64),
    Case(50, 1, 32, 64),
    Case(50, 32, 32, 64),
    Case(1000, 8, 32, 32),
    Case(784, 32, 1, 128),
    Case(500, 16, 64, 128),
    Case(100, 32, 128, 128),
    Case(100, 64, 256, 256),
    Case(35, 20, 650, 650),
    Case(100, 64, 512, 512),
    Case(100, 32, 128, 128, layers=2, bidirectional=True),
    Case(200, 32, 128, 128, shortest=10),
]
QUICK_CASES = [ALL_CASES[0], ALL_CASES[3], ALL_CASES[-1]]
# Streaming and online learning with a state of any width, where a call's fixed costs decide.
GRID_CASES = [Case(T, B, 64, H) for H in (64, 256, 1024, 4096) for T in (1, 2, 4, 8) for B in (1, 4, 16)]
CUDA_CASES = [
    *ALL_CASES,
    *(Case(T, B, H, H, shortest=T // 10) for T, B, H in ((200, 32, 64), (1000, 64, 128), (200, 32, 256))),
    *(Case(T, 16, 32, H, members=G) for T, H in ((100, 32), (100, 128)) for G in (8, 64)),
    *(Case(100, B, H, H) for H in (32, 64, 128, 256, 384, 512, 1024) for B in (1, 16, 64, 256)),
]
MEMORY_CASE = Case(5000, 32, 128, 128)
