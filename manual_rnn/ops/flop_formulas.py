r"""What each operator multiplies, for `torch.utils.flop_counter`, which counts 2 for a product and its sum.

    elman                2 N H H            each of the N rows of a batch times W_hh
    linear_recurrence    2 (N - B) H H      the same, but for the B rows at which it starts, from zero
    layer                2 N I H + 2 N H H

That is what it finds in `nn.RNN`, product by product. Importing the counter may load triton, for a fifth of a
second, so nothing here does: a counter at work is handed the formulas when the first operator comes its way.
"""

from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["FORMULAS", "tell"]


def rows_of(x: Any) -> int:
    """`N`, with the members of an ensemble."""
    return x.numel() // x.size(-1)


def elman(z: Any, h0: Any, w: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return 2 * z.numel() * w.size(-1)


def linear_recurrence(
    v: Any, h: Any, a: Any, batch_sizes: Any, *_: Any, out_val: Any = None, **__: Any
) -> int:
    if not v.size(a.dim() - 2):
        return 0
    first = v.size(-2) if batch_sizes is None else int(batch_sizes[0])
    started = first * a.numel() // a.size(-1)  # B rows of H for each member
    return 2 * (v.numel() - started) * a.size(-1)


def layer(x: Any, h0: Any, w_ih: Any, w_hh: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return 2 * rows_of(x) * (w_ih.numel() + w_hh.numel())


FORMULAS = {"elman": elman, "linear_recurrence": linear_recurrence, "layer": layer}


def tell(modes: Iterable[Any]) -> None:
    """Hand the formulas to the counters among these modes, and to those to come."""
    module = getattr(torch.utils, "flop_counter", None)  # an attribute once it is imported
    if module is None:
        return
    known = {getattr(torch.ops.manual_rnn, name): formula for name, formula in FORMULAS.items()}
    for packet in known.keys() - module.flop_registry.keys():
        module.register_flop_formula(packet, get_raw=True)(known[packet])
    for mode in modes:
        counter = getattr(mode, "counter", None)
        if isinstance(counter, module.FlopCounterMode):
            counter.flop_registry = known | counter.flop_registry
