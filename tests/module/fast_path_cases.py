r"""Calls of a network of a kind, `nn.RNN` or ours: those for which ours has a fast path, and others."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from helpers import packed
from situations import Beneath, Loud, Through
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence

__all__ = ["FAST", "HX", "OTHER", "OWN_WAY", "Build", "Sub", "X", "backward", "builder", "flat", "outcome"]

Build = Callable[..., Any]
X, HX = torch.randn(5, 3, 4), torch.randn(1, 3, 6)


def builder(kind: type[nn.Module]) -> Build:
    def build(**options: Any) -> Any:
        torch.manual_seed(0)
        return kind(4, 6, **options)

    return build


def call(*inputs: Any, under: Callable[[], AbstractContextManager] = nullcontext, **options: Any) -> Any:
    """A case: build with these options and call with these inputs, in a block."""

    def case(build: Build) -> Any:
        rnn = build(**options)
        with under():
            return rnn(*inputs)

    return case


def changed(change: Callable[[Any], Any], *inputs: Any, **options: Any) -> Any:
    """A case: change the network before the call."""

    def case(build: Build) -> Any:
        rnn = build(**options)
        rnn = change(rnn) or rnn
        return rnn(*(inputs or (X,)))

    return case


def setting(**values: Any) -> Callable[[Any], None]:
    def change(rnn: Any) -> None:
        for name, value in values.items():
            setattr(rnn, name, value)

    return change


def flat(found: Any) -> list[Tensor]:
    output, h_n = found
    return [output.data if isinstance(output, PackedSequence) else output, h_n]


def outcome(case: Callable[[Build], Any], kind: Any) -> Any:
    """Results, or the type of what is raised and its words."""
    try:
        return flat(case(builder(kind)))
    except Exception as error:
        return type(error), str(error)


def backward(rnn: Any, *inputs: Any) -> list[Tensor]:
    output, h_n = flat(rnn(*inputs))
    return list(torch.autograd.grad(output.square().sum() + h_n.sum(), list(rnn.parameters())))


class Sub(Tensor):
    """Changes nothing."""


def misaligned(x: Tensor) -> Tensor:
    buffer = bytearray(4 * x.numel() + 1)
    return torch.frombuffer(buffer, dtype=torch.float32, offset=1).view(x.shape).copy_(x)


def transform(build: Build) -> Any:
    return torch.func.vmap(build(), in_dims=1, out_dims=(1, 1), randomness="different")(X.unsqueeze(2))


def jvp(build: Build) -> Any:
    rnn = build()
    with forward_ad.dual_level():
        output, h_n = rnn(forward_ad.make_dual(X, X))
        return forward_ad.unpack_dual(output).tangent, h_n


def saved(build: Build) -> Any:
    """Hooks that see what is kept, which differs from kind to kind; the gradients don't."""
    rnn, x = build(num_layers=2), X.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        output, h_n = rnn(x)
    return torch.autograd.grad(output.sum() + h_n.sum(), [x, rnn.weight_hh_l0])


def traced(build: Build) -> Any:
    rnn = build()
    return torch.jit.trace(rnn, (X,), check_trace=False)(X)


def compiled(build: Build) -> Any:
    return torch.compile(build(), backend="eager")(X)


def swapped(build: Build) -> Any:
    rnn = build()
    return functional_call(rnn, {"weight_hh_l0": 2 * rnn.weight_hh_l0.detach()}, (X,))


def frozen(rnn: Any) -> None:
    rnn.weight_hh_l0.requires_grad_(False)


def hooked(rnn: Any) -> None:
    rnn.register_forward_hook(lambda _, __, result: (result[0] + 1, result[1]))


def negated(x: Tensor) -> Tensor:
    return torch.complex(x, -x).conj().imag


CPU = lambda: torch.device("cpu")  # noqa: E731
FAST: dict[str, Callable[[Build], Any]] = {
    "padded": call(X),
    "with hx": call(X, HX),
    "batch_first": call(X, torch.randn(1, 5, 6), batch_first=True),
    "relu, no bias, two layers, both directions": call(
        X, nonlinearity="relu", bias=False, num_layers=2, bidirectional=True
    ),
    "unbatched": call(X[:, 0]),
    "unbatched, with hx": call(X[:, 0], HX[:, 0]),
    "unbatched, batch_first": call(X[:, 0], batch_first=True, num_layers=2, bidirectional=True),
    "packed": call(packed(X, [5, 4, 2])),
    "packed, unsorted": call(packed(X, [2, 5, 4]), HX),
    "packed, more rows of hx than sequences": call(packed(X, [2, 5, 4]), torch.randn(1, 4, 6)),
    "double": call(X.double(), dtype=torch.float64),
    "transposed": call(X.transpose(0, 1).contiguous().transpose(0, 1)),
    "expanded": call(torch.randn(1, 1, 4).expand(5, 3, 4)),
    "in evaluation": changed(lambda rnn: rnn.eval(), num_layers=2, dropout=0.5),
    "dropout of one layer": changed(setting(dropout=0.5)),
    "no gradient": call(X, under=torch.no_grad),
    "inference": call(X, under=torch.inference_mode),
    "a default device": call(X, under=CPU),
    "frozen": changed(lambda rnn: rnn.requires_grad_(False)),
    "a frozen weight": changed(frozen),
    "frozen, but not the input": changed(lambda rnn: rnn.requires_grad_(False), X.clone().requires_grad_()),
    "hooked": changed(hooked),
    "an input with a history": call(X.clone().requires_grad_() * 2),
    "a view of a weight": changed(lambda rnn: setattr(rnn.weight_hh_l0, "data", torch.randn(6, 6).T / 4)),
    "of one sequence": call(X[:, :1]),
    "of one step": call(X[:1], HX),
    "dropout at work": changed(lambda rnn: torch.manual_seed(1) and None, num_layers=2, dropout=0.5),
    "unbatched, no steps": call(X[:0, 0]),
    "no steps": call(X[:0]),
    "no sequences": call(X[:, :0]),
    "a function mode": call(X, under=Through),
    "a dispatch mode": call(X, under=Beneath),
    "a subclass": call(X.as_subclass(Sub)),
    "a subclass, with a state": call(X.as_subclass(Sub), HX),
    "an unbatched subclass": call(X[:, 0].as_subclass(Sub)),
    "pending negation": call(negated(X)),
    "pending negation of hx": call(X, negated(HX)),
    "misaligned": call(misaligned(X)),
    "misaligned hx": call(X, misaligned(HX)),
}
TRANSFORMED: dict[str, Callable[[Build], Any]] = {"vmap": transform, "forward mode": jvp}  # by our operator
OTHER: dict[str, Callable[[Build], Any]] = {
    "unbatched, with a batch of states": call(X[:, 0], HX),
    "unbatched, a subclass for hx": call(X[:, 0], HX[:, 0].as_subclass(Sub)),
    "unbatched, of a wrong size": call(X[:, 0, :3]),
    "a packed subclass": call(packed(X.as_subclass(Sub), [5, 4, 1])),
    "a subclass that handles operations": call(X.as_subclass(Loud)),
    "a subclass for hx": call(X, HX.as_subclass(Sub)),
    "autocast": call(X, under=lambda: torch.autocast("cpu", torch.bfloat16)),
    "autocast of another device": call(X, under=lambda: torch.autocast("cpu", torch.float16)),
    "parametrized": changed(
        lambda rnn: parametrizations.weight_norm(rnn, "weight_hh_l0")  # type: ignore[arg-type]
    ),
    "of a wrong type": call(X.double()),
    "of whole numbers": call(X.long()),
    "hx of a wrong type": call(X, HX.double()),
    "a weight of a wrong type": changed(
        lambda rnn: setattr(rnn, "weight_hh_l0", nn.Parameter(torch.ones(6, 6).double()))
    ),
    "of a wrong size": call(torch.randn(5, 3, 3)),
    "of a wrong rank": call(X[None]),
    "hx of a wrong size": call(X, torch.randn(1, 2, 6)),
    "hx of a wrong rank": call(X, HX[0]),
    "packed, too few rows of hx": call(packed(X, [2, 5, 4]), torch.randn(1, 2, 6)),
    "no tensor": call("x"),
    "no tensor for hx": call(X, "h"),
    "another input_size": changed(setting(input_size=5)),
    "input_size 0": changed(setting(input_size=0)),
    "input_size -1": changed(setting(input_size=-1)),
    "another hidden_size": changed(setting(hidden_size=5)),
    "hidden_size 0": changed(setting(hidden_size=0)),
    "hidden_size -1": changed(setting(hidden_size=-1)),
    "a huge hidden_size": changed(setting(hidden_size=2**60)),
    "another num_layers": changed(setting(num_layers=2)),
    "another bidirectional": changed(setting(bidirectional=True)),
    "another bias": changed(setting(bias=False)),
    "num_layers a fraction": changed(setting(num_layers=1.0)),
    "hidden_size a fraction": changed(setting(hidden_size=6.0)),
    "batch_first a number": changed(setting(batch_first=1)),
    "dropout a word": changed(setting(dropout="x"), num_layers=2),
    "another mode": changed(setting(mode="LSTM")),
    "a weight replaced": changed(lambda rnn: setattr(rnn, "weight_hh_l0", nn.Parameter(torch.ones(6, 5)))),
    "a storage that was shrunk": changed(
        lambda rnn: rnn.weight_hh_l0.data.untyped_storage().resize_(8) and None
    ),
}
OWN_WAY: dict[str, Callable[[Build], Any]] = {  # and the way isn't told
    "traced": traced,
    "compiled": compiled,
    "weights of a functional call": swapped,
    "hooks on what is kept": saved,
}
