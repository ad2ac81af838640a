r"""A text: read whole, and how well the frequencies of its characters foretell it."""

from pathlib import Path

import torch
from torch import Tensor


def read_text(path: Path) -> str:
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a text file, got {path}: no such file")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise ValueError(f"expected a text in UTF-8, got {path}: {problem.reason}") from None


def perplexities(train: Tensor, val: Tensor, V: int) -> tuple[float, float]:
    """Of ``val``, by the frequencies in ``train`` of characters, and of pairs of them; smoothed."""
    single = torch.bincount(train, minlength=V) + 1.0
    pairs = torch.bincount(train[:-1] * V + train[1:], minlength=V * V).view(V, V) + single / single.sum()
    by_single = (single / single.sum()).log()[val[1:]]
    by_pair = (pairs / pairs.sum(1, keepdim=True)).log()[val[:-1], val[1:]]
    return (-by_single.mean()).exp().item(), (-by_pair.mean()).exp().item()
