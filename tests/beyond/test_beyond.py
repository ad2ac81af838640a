r"""What `ManualRNN` does and `nn.RNN` doesn't, one row each: the table of the README.

A row is a name, an `exercise(kind)` that builds a network of that class and returns tensors, and what
`nn.RNN` does with it today on a CPU: an exception with some of its words, `WRONG` for other numbers, or
None where it works too. Every row runs `ManualRNN` and the judge, whose numbers must agree, and `nn.RNN`,
whose failure is expected, so that the day it changes is noticed.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from helpers import assert_same
from loop import Loop, build
from standin import Calls
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported, UserError, UserErrorType
from torch.autograd import forward_ad
from torch.export import Dim, export
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import pack_padded_sequence
from torch.onnx.errors import OnnxExporterError

from manual_rnn import ManualRNN

__all__ = ["ROWS", "WRONG", "Row"]

pytestmark = [  # of the exporters: one about nn.RNN, one about its own code
    pytest.mark.filterwarnings("ignore:The tensor attributes self:UserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`:FutureWarning"),
]

WRONG = "wrong numbers"
NETWORK = {"num_layers": 2, "bidirectional": True, "nonlinearity": "tanh"}


class Row(NamedTuple):
    """`builtin`: what `nn.RNN` does; `bound`: the largest error, as in `assert_same`."""

    name: str
    exercise: Callable[[type[nn.Module]], Any]
    builtin: Exception | str | None
    bound: float = 1e-12


def batch(*shape: int) -> Tensor:
    """Numbers without pattern; drawn from a generator they would trouble `vmap`."""
    return torch.arange(1.0, math.prod(shape) + 1, dtype=torch.float64).square().cos().view(shape)


def frozen(kind: type[nn.Module], **more: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    rnn = build(kind, NETWORK, **more)
    return rnn, {name: p.detach() for name, p in rnn.named_parameters()}


def of_input(kind: type[nn.Module], **more: Any) -> Callable[[Tensor], Tensor]:
    rnn, weights = frozen(kind, **more)
    return lambda x: functional_call(rnn, weights, (x,))[0].sin()


def loss_of(kind: type[nn.Module], **more: Any) -> tuple[Callable, dict[str, Tensor]]:
    rnn, weights = frozen(kind, **more)
    return (lambda w, x: functional_call(rnn, w, (x,))[0].sin().sum()), weights


def per_sample(kind: type[nn.Module]) -> dict[str, Tensor]:
    loss, weights = loss_of(kind)
    return vmap(grad(loss), (None, 0))(weights, batch(4, 3, 2))


def with_dropout(kind: type[nn.Module]) -> dict[str, Tensor]:
    loss, weights = loss_of(kind, dropout=0.5)
    torch.manual_seed(2)
    return vmap(grad(loss), (None, 0), randomness="different")(weights, batch(4, 3, 2))


def ensemble(kind: type[nn.Module], *extra: int) -> Tensor:
    rnns = [build(kind, NETWORK) for _ in range(3)]
    for number, rnn in enumerate(rnns):
        rnn.requires_grad_(False)
        rnn.weight_hh_l0.mul_(number + 1)
    weights, _ = stack_module_state(rnns)
    return vmap(lambda w: functional_call(rnns[0], w, (batch(3, 2),))[0])(weights)


def nested_vmaps(kind: type[nn.Module]) -> Tensor:
    return vmap(vmap(of_input(kind)))(batch(3, 2, 4, 2))


def states_alone(kind: type[nn.Module]) -> Tensor:
    rnn, weights = frozen(kind)
    return vmap(lambda h: functional_call(rnn, weights, (batch(3, 2), h))[0])(batch(5, 4, 3))


def dual_numbers(kind: type[nn.Module]) -> Tensor:
    x = batch(3, 2, 2)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(of_input(kind)(forward_ad.make_dual(x, x))).tangent
    assert tangent is not None, "the tangent got lost"
    return tangent


def second_derivative(kind: type[nn.Module]) -> tuple[Tensor, ...]:
    rnn = build(kind, NETWORK)
    first = torch.autograd.grad(rnn(batch(3, 2, 2))[0].sin().sum(), rnn.parameters(), create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in first), list(rnn.parameters()))


def batched_cotangents(kind: type[nn.Module]) -> Tensor:
    x = batch(3, 2, 2).requires_grad_()
    output, _ = build(kind, NETWORK)(x)
    return torch.autograd.grad(output, x, batch(4, 3, 2, 6), is_grads_batched=True)[0]


def gradient_penalty(kind: type[nn.Module]) -> dict[str, Tensor]:
    loss, weights = loss_of(kind)
    slope = grad(loss, argnums=1)
    return grad(lambda w: vmap(lambda x: slope(w, x).square().sum())(batch(4, 3, 2)).sum())(weights)


def compiled_training(kind: type[nn.Module]) -> Any:
    rnn = build(kind, NETWORK)

    def step(x: Tensor) -> Tensor:
        output, h_n = rnn(x)
        return output.sin().sum() + h_n.cos().sum()

    loss = compiled(kind, step, batch(3, 2, 2))
    return loss, torch.autograd.grad(loss, list(rnn.parameters()))


def compiled_packed(kind: type[nn.Module]) -> Tensor:
    rnn = build(kind, NETWORK)
    packed = pack_padded_sequence(batch(3, 2, 2), torch.tensor([3, 1]))
    return compiled(kind, rnn, packed)[0].data


def exported(kind: type[nn.Module], length: Any) -> Any:
    """Exported at one length and batch, run at others; the judge runs as it is."""
    rnn: Any = build(kind, NETWORK)
    if kind is not Loop:
        rnn = export(rnn, (batch(3, 2, 2),), dynamic_shapes=({0: length, 1: length},)).module()
    return rnn(batch(5, 4, 2))


def exported_mask(kind: type[nn.Module]) -> Any:
    """A length that the data decide."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = build(kind, NETWORK)

        def forward(self, x: Tensor, mask: Tensor) -> Any:
            return self.rnn(x[mask])

    model, x, mask = Masked(), batch(5, 2, 2), torch.tensor([True, False, True, True, False])
    return (model if kind is Loop else export(model, (x, ~mask)).module())(x, mask)


def onnx_runtime(kind: type[nn.Module]) -> Any:
    """As above, through ONNX, in float32: ONNX Runtime has no node in float64."""
    rnn, x = build(kind, NETWORK, dtype=torch.float32).eval(), batch(5, 4, 2).float()
    if kind is Loop:
        return rnn(x)
    shapes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
    program: Any = torch.onnx.export(rnn, (x[:3, :2],), dynamic_shapes=shapes, dynamo=True, verbose=False)
    assert sum(node.op_type == "RNN" for node in program.model_proto.graph.node) == rnn.num_layers
    return program(x)


def jagged(kind: type[nn.Module]) -> list[Tensor]:
    rnn = build(kind, NETWORK, batch_first=True)
    rows = [batch(3, 2), batch(0, 2), batch(2, 2)]
    output, h_n = rnn(torch.nested.as_nested_tensor(rows, layout=torch.jagged), batch(4, 3, 3))
    return [*(output.unbind() if isinstance(output, Tensor) else output), h_n]


def no_steps(kind: type[nn.Module]) -> Any:
    return build(kind, NETWORK)(batch(0, 2, 2), batch(4, 2, 3))


def along(f: Callable) -> Callable:
    """The derivative of `f` along its argument."""
    return lambda x: jvp(f, (x,), (x,))[1]


def compiled(kind: type[nn.Module], f: Callable, *args: Any) -> Any:
    """One graph for everything, transforms included; the judge runs as it is."""
    torch._dynamo.reset()
    return (f if kind is Loop else torch.compile(f, fullgraph=True, backend="aot_eager"))(*args)


def compiled_jvp(kind: type[nn.Module]) -> Tensor:
    return compiled(kind, along(of_input(kind)), batch(3, 2, 2))


def compiled_per_sample(kind: type[nn.Module]) -> dict[str, Tensor]:
    loss, weights = loss_of(kind)
    return compiled(kind, vmap(grad(loss), (None, 0)), weights, batch(4, 3, 2))


def compiled_hessian(kind: type[nn.Module]) -> Tensor:
    f = of_input(kind)
    return compiled(kind, hessian(lambda x: f(x).sum()), batch(2, 1, 2))


def hessian_of_input(kind: type[nn.Module]) -> Tensor:
    f = of_input(kind)
    return hessian(lambda x: f(x).sum())(batch(3, 2, 2))


NO_RULE = RuntimeError("Batching rule not implemented for aten::rnn_tanh.input")
NO_FALLBACK = RuntimeError("doesn't match the broadcast shape")
NO_GRAPH = Unsupported("Attempted to wrap RNN, GRU, or LSTM")
ONE_LENGTH = UserError(UserErrorType.CONSTRAINT_VIOLATION, "specialized it to be a constant (3)")
FROZEN = AssertionError("size()[0] == 3")
FROM_DATA = RuntimeError("Could not guard on data-dependent expression")
NO_NODE = OnnxExporterError("inferred a static shape of 3")

ROWS = [
    Row("reverse mode", lambda kind: grad(lambda x: of_input(kind)(x).sum())(batch(3, 2, 2)), None),
    Row("second derivatives in reverse mode", second_derivative, None),
    Row("batched cotangents (is_grads_batched)", batched_cotangents, None),
    Row("torch.func.jvp", lambda kind: along(of_input(kind))(batch(3, 2, 2)), None),
    Row("dual numbers", dual_numbers, None),
    Row("jvp of jvp", lambda kind: along(along(of_input(kind)))(batch(3, 2, 2)), None),
    Row("jacrev", lambda kind: jacrev(of_input(kind))(batch(3, 2, 2)), None),
    Row("jacfwd", lambda kind: jacfwd(of_input(kind))(batch(3, 2, 2)), None),
    Row("hessian", hessian_of_input, None),
    Row("vmap over an extra batch axis", lambda kind: vmap(of_input(kind))(batch(4, 3, 2, 2)), NO_RULE),
    Row("vmap in chunks", lambda kind: vmap(of_input(kind), chunk_size=2)(batch(3, 3, 2, 2)), NO_RULE),
    Row("vmap over hx alone", states_alone, NO_RULE),
    Row("nested vmaps", nested_vmaps, NO_RULE),
    Row("per-sample gradients", per_sample, NO_FALLBACK),
    Row("per-sample gradients with dropout", with_dropout, NO_FALLBACK),
    Row("ensemble by stack_module_state", ensemble, NO_RULE),
    Row("gradient of vmapped gradients", gradient_penalty, NO_FALLBACK),
    Row("compiled training step, one graph", compiled_training, NO_GRAPH),
    Row("compiled with a packed input", compiled_packed, NO_GRAPH),
    Row("compiled jvp", compiled_jvp, NO_GRAPH),
    Row("compiled per-sample gradients", compiled_per_sample, NO_GRAPH),
    Row("compiled hessian", compiled_hessian, NO_GRAPH),
    Row("export with an open length", lambda kind: exported(kind, Dim.DYNAMIC), ONE_LENGTH),
    Row("export, run at a length never traced", lambda kind: exported(kind, Dim.AUTO), FROZEN),
    Row("export, of a length from data", exported_mask, FROM_DATA),
    Row("RNN nodes in ONNX, with an open length", onnx_runtime, NO_NODE, 1e-6),
    Row("nested (jagged) tensors", jagged, ValueError("Transpose is not supported on the batch dimension")),
    Row("sequences without steps", no_steps, RuntimeError("Expected sequence length to be larger than 0")),
]


def tensors(result: Any) -> dict[str, Tensor]:
    leaves = torch.utils._pytree.tree_leaves(result)
    return {str(number): leaf.detach() for number, leaf in enumerate(leaves)}


SLOW = [row.name for row in ROWS if row.name.startswith(("compiled", "RNN nodes in ONNX"))]
EACH_ROW = pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[pytest.mark.slow] if row.name in SLOW else [], id=row.name) for row in ROWS],
)


@EACH_ROW
def test_manual_rnn_does_it(row):
    found, expected = (tensors(row.exercise(kind)) for kind in (ManualRNN, Loop))
    assert any(value.abs().max() > 1e-6 for value in expected.values() if value.numel())
    assert_same(found, expected, row.bound)


@EACH_ROW
def test_beside_cudnn(row: Row, calls: Calls) -> None:
    """With cuDNN at work where it would be on CUDA."""
    found, expected = (tensors(row.exercise(kind)) for kind in (ManualRNN, Loop))
    assert_same(found, expected, row.bound)


@pytest.mark.pins_torch
@EACH_ROW
def test_nn_rnn_still_does_what_the_table_says(row):
    if isinstance(row.builtin, Exception):
        with pytest.raises(type(row.builtin), match=re.escape(str(row.builtin))):
            row.exercise(nn.RNN)
        return
    found, expected = (tensors(row.exercise(kind)) for kind in (nn.RNN, Loop))
    if row.builtin is None:
        assert_same(found, expected, row.bound)
    else:
        with pytest.raises(AssertionError):
            assert_same(found, expected, row.bound)
