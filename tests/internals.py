r"""What tests know of the package's inside, named in one place: whoever moves it, changes it here.

kernels            the choice of kernel: `FASTEST_FIRST`, `REFERENCE`, `asked`, `why_not` of each
native             the kernel in C
elman, linear      the two recurrences, as functions with derivatives to any order
OPS                the same two as operators of torch
FUSED              where every call that isn't a recurrence of one's own passes through, to be patched
"""

from typing import Any

import torch

import manual_rnn.fused
from manual_rnn import kernels
from manual_rnn.kernels import native
from manual_rnn.recurrence import elman, linear

__all__ = ["FUSED", "OPS", "elman", "kernels", "linear", "native"]

OPS: Any = torch.ops.manual_rnn
FUSED: tuple[Any, str] = (manual_rnn.fused, "states")
