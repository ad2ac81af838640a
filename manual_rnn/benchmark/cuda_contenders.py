r"""Who is timed on a GPU, and by which clock. A case and a mode give a call, or the reason for none."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from .. import KernelName, ManualRNN, use_kernel
from .cases import Case
from .contenders import Call, Network, call_of
from .contenders import builtin as one_network

__all__ = ["ATEN", "BUILTIN", "CONTENDERS", "seconds_on_the_card"]

BUILTIN, ATEN = "nn.RNN", "aten"


def seconds_on_the_card(call: Call) -> float:
    """What one call takes by the card's own clock, the waiting for Python included."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def builtin(case: Case, training: bool) -> Call:
    """`torch.nn.RNN`; of an ensemble that of each member in turn."""
    if case.members == 1:
        return one_network(case, training)
    rnns = [case.network(member) for member in range(case.members)]
    weights = [weight for same in zip(*(rnn.parameters() for rnn in rnns), strict=True) for weight in same]
    run = lambda input: (torch.stack([rnn(input)[0] for rnn in rnns]), None)  # noqa: E731
    call = call_of(run, case, training, weights)

    def stacked() -> tuple[Tensor, ...]:
        dx, *others = call()
        each = range(0, len(others), case.members)
        return dx, *(torch.stack(others[at : at + case.members]) for at in each)

    return stacked if training else call


def ensemble(case: Case) -> tuple[Network, list[Tensor]]:
    """All members at once, and their weights."""
    rnns = [ManualRNN.from_builtin(case.network(member)) for member in range(case.members)]
    weights = stack_module_state(rnns)[0]  # type: ignore[arg-type]
    run = lambda input: vmap(lambda own: functional_call(rnns[0], own, (input,))[0])(weights)  # noqa: E731
    return lambda input: (run(input), None), list(weights.values())


def by_kernel(kernel: KernelName, case: Case, training: bool) -> Call:
    """`ManualRNN` with one kernel; an ensemble under `vmap`."""
    if case.members > 1:
        rnn, weights = ensemble(case)
    else:
        rnn = ManualRNN.from_builtin(case.network())
        weights = list(rnn.parameters())
    call = call_of(rnn, case, training, weights)

    def asked() -> Any:
        with use_kernel(kernel):
            return call()

    return asked


def aten(case: Case, training: bool) -> Call | str:
    """cuDNN's network."""
    return "cuDNN has no ensembles" if case.members > 1 else by_kernel("aten", case, training)


CONTENDERS: dict[str, Callable[[Case, bool], Call | str]] = {
    BUILTIN: builtin,
    ATEN: aten,
    "triton": partial(by_kernel, "triton"),
    "torch": partial(by_kernel, "torch"),
}
