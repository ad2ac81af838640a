r"""Which kernel a call would run, and why not the others."""

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import kernels
from .layer import OWN_RECURRENCE
from .layout import plan
from .module import ManualRNN, _autocast

__all__ = ["explain_kernel"]


def explain_kernel(rnn: ManualRNN, input: Tensor | PackedSequence) -> str:
    r"""Say, a line for each kernel, which one `rnn(input)` would run here and now, and why not the others.

    Nothing runs. Under `use_kernel` it tells what was asked for, and whether that would raise.
    """
    sample = plan(input, None, rnn.batch_first).data.detach()
    sample, *_ = _autocast(sample, sample, [])
    reasons = kernels.reasons(sample)
    if rnn._builtin_phi() is None:
        reasons = dict.fromkeys(reasons, OWN_RECURRENCE)
    reasons[kernels.REFERENCE] = None
    asked = kernels.asked()
    able = [name for name, reason in reasons.items() if reason is None]
    chosen = able[0] if asked == kernels.DEFAULT else asked
    return "\n".join(f"{name:9} {_verdict(name, reason, chosen, asked)}" for name, reason in reasons.items())


def _verdict(name: str, reason: str | None, chosen: str, asked: str) -> str:
    if name != chosen:
        return f"can't run here: {reason}" if reason else f"could run too, but {chosen} was chosen"
    if reason:
        return f"was asked for and would raise: {reason}"
    return "runs: the fastest that can" if asked == kernels.DEFAULT else "runs: it was asked for"
