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

from collections.abc import Callable, Iterator
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
    for qualified, step, register in _registrations():
        if (qualified, step) not in done:
            register()
            done.add((qualified, step))


def _registrations() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Of each overload the schema, the fake, and the rule for each dispatch key; `Batched` is that of the
    older vmap."""
    for name, rules in RULES.items():
        arguments, result, optional = SCHEMAS[name]
        for overload, more in (("", ""), (".kernel", ", str kernel"), (".compiled", "")):
            compute = rules.compute if more else partial(_default, rules.compute, len(arguments.split(", ")))
            operator = partial(_call, name, overload[1:] or DEFAULT)
            by_key: dict[str, Callable[..., Any]] = {
                "CompositeExplicitAutograd": compute,
                "Autograd": partial(rules.autograd, operator),
                "FuncTorchBatched": partial(run_vmap_rule, operator, partial(rules.vmap, operator)),
                "Batched": partial(under_legacy_vmap, operator),
            }
            if overload == ".compiled":
                del by_key["Autograd"]
            schema = f"({arguments}{more}{optional}) -> {result}"
            yield from _of_overload(f"{NAMESPACE}::{name}{overload}", schema, rules.fake, by_key)
    by_key = {"CompositeExplicitAutograd": copies, "Autograd": fake_copies, "FuncTorchBatched": fake_copies}
    yield from _of_overload(f"{NAMESPACE}::copies", "(Tensor[] tensors) -> Tensor[]", fake_copies, by_key)


def _of_overload(
    qualified: str, schema: str, fake: Callable[..., Any], by_key: dict[str, Callable[..., Any]]
) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    yield qualified, "schema", partial(_define_schema, qualified, schema)
    yield qualified, "fake", partial(torch.library.register_fake, qualified, fake)
    for key, rule in by_key.items():
        yield qualified, key, partial(torch.library.impl, qualified, key, rule)


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
