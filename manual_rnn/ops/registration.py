r"""The operators `torch.ops.manual_rnn.*`, and the rule that the dispatcher finds for each dispatch key.

    network              network_vjp            elman            linear_recurrence
    copies               of what compiled code saves, below all transforms (`saved_tensors.py`)

    Autograd    an autograd node                                     `autograd_rules.py`
    vmap        an axis of the batch, or of an ensemble              `vmap_rules.py`
    fake        the shapes of the results, for tracing               `fake_rules.py`
    CPU         C, which `kernels/native.py` loads
    otherwise   the kernel that `kernels.choose` finds, in Python

Each has an overload `kernel`, whose argument behind those of the other names the kernel that was asked for;
and an overload `compiled` without the rule of the first line, which compiled code calls, since its
derivatives are part of its graph: a call takes 8 us for 17 (Zen 4).
The first two may have a last argument, `alpha`, of a leak; PyTorch leaves it out where it is None.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from ..kernels.native import SCHEMAS
from ..torch_internals import compiles_graph, run_vmap_rule, under_legacy_vmap
from . import autograd_rules, dispatch, fake_rules, network, network_vjp, vmap_rules
from .dispatch import NAMESPACE
from .recurrences import Elman, LinearRecurrence
from .saved_tensors import copies, fake_copies

DEFAULT = "default"
COPIES = f"{NAMESPACE}::copies"


class Rules(NamedTuple):
    """What an operator does for each dispatch key; `autograd` and `vmap` are given the operator first."""

    compute: Callable[..., Any]
    autograd: Callable[..., Any]
    fake: Callable[..., Any]
    vmap: Callable[..., Any]


RULES: dict[str, Rules] = {
    "elman": Rules(
        Elman.compute, partial(autograd_rules.recurrence, Elman), fake_rules.recurrence, vmap_rules.recurrence
    ),
    "linear_recurrence": Rules(
        LinearRecurrence.compute,
        partial(autograd_rules.recurrence, LinearRecurrence),
        fake_rules.recurrence,
        vmap_rules.recurrence,
    ),
    "network": Rules(network.compute, autograd_rules.network, fake_rules.network, vmap_rules.network),
    "network_vjp": Rules(
        network_vjp.compute_vjp, autograd_rules.network_vjp, fake_rules.network_vjp, vmap_rules.network_vjp
    ),
}


def define() -> None:
    """Define every operator with its rules, once in a process, however often this package is imported; an
    import that broke off is taken up where it ended."""
    done: set[Any] = vars(getattr(torch.ops, NAMESPACE)).setdefault("registered", set())
    for name, rules in RULES.items():
        arguments, result, optional = SCHEMAS[name]
        for overload, more in (("", ""), (".kernel", ", str kernel"), (".compiled", "")):
            qualified = f"{NAMESPACE}::{name}{overload}"
            schema = f"({arguments}{more}{optional}) -> {result}"
            compute = rules.compute if more else partial(_default, rules.compute, len(arguments.split(", ")))
            operator = partial(_call, name, overload[1:] or DEFAULT)
            above = _above_the_backend(rules, operator)
            if overload == ".compiled":
                del above["Autograd"]
            steps: dict[str, Callable[[], Any]] = {
                "schema": partial(_define_schema, qualified, schema),
                "fake": partial(torch.library.register_fake, qualified, rules.fake),
            }
            for key, rule in {"CompositeExplicitAutograd": compute, **above}.items():
                steps[key] = partial(torch.library.impl, qualified, key, rule)
            _take(steps, qualified, done)
    steps = {
        "schema": partial(_define_schema, COPIES, "(Tensor[] tensors) -> Tensor[]"),
        "fake": partial(torch.library.register_fake, COPIES, fake_copies),
    }
    for key, rule in {
        "CompositeExplicitAutograd": copies,
        "Autograd": fake_copies,
        "FuncTorchBatched": fake_copies,
    }.items():
        steps[key] = partial(torch.library.impl, COPIES, key, rule)
    _take(steps, COPIES, done)


def _take(steps: dict[str, Callable[[], Any]], qualified: str, done: set[Any]) -> None:
    """Each step of an operator's registration that isn't done yet."""
    for step, register in steps.items():
        if (qualified, step) not in done:
            register()
            done.add((qualified, step))


def _above_the_backend(rules: Rules, operator: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The rules for keys that come before those of a device; `Batched` is that of the older vmap."""
    return {
        "Autograd": partial(rules.autograd, operator),
        "FuncTorchBatched": partial(run_vmap_rule, operator, partial(rules.vmap, operator)),
        "Batched": partial(under_legacy_vmap, operator),
    }


def _call(name: str, overload: str, *args: Any) -> Any:
    """The operator as the rules call it: in a graph that is compiled, the overload without a derivative."""
    if overload == DEFAULT and compiles_graph():
        overload = "compiled"
    return getattr(dispatch.packet_of(name), overload)(*args)


def _default(compute: Callable[..., Any], count: int, *args: Any) -> Any:
    """With the kernel behind the arguments that every call has."""
    return compute(*args[:count], DEFAULT, *args[count:])


def _define_schema(qualified: str, schema: str) -> None:
    """Where the library of C was loaded, it has defined all overloads but `kernel`."""
    if not _is_defined(qualified):
        torch.library.define(qualified, schema)


def _is_defined(qualified: str) -> bool:
    name, _, overload = qualified.partition("::")[2].partition(".")
    packet = getattr(getattr(torch.ops, NAMESPACE), name, None)
    return packet is not None and (overload or DEFAULT) in packet.overloads()


define()
NETWORK = dispatch.packet_of("network").default
