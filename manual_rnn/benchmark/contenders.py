r"""Who is timed. Each gets a case and a mode and returns a call to time, or the reason why it takes no part.

In training a call returns the gradients of `<output, cotangent>` by the input and by every parameter, those
of an ensemble stacked; otherwise it returns the output, rows `(N, D * H)` for a packed batch.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, get_args

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence

from .. import KernelName, ManualRNN, use_kernel
from ..kernels import native
from .cases import Case

Call = Callable[[], Any]
Network = Callable[[Any], tuple[Any, Any]]  # of input, or of a packed one: output, and what a caller leaves
KERNEL_NAMES: list[KernelName] = [name for name in get_args(KernelName) if name != "vendor"]  # an alias
BUILTIN = "nn.RNN"


def builtin(case: Case, training: bool) -> Call:
    """`torch.nn.RNN`; of an ensemble that of each member in turn."""
    rnns = [case.network(member) for member in range(case.members)]
    weights = [weight for same in zip(*(rnn.parameters() for rnn in rnns), strict=True) for weight in same]
    if case.members == 1:
        return call_of(rnns[0], case, training, weights)
    call = call_of(
        lambda input: (torch.stack([rnn(input)[0] for rnn in rnns]), None), case, training, weights
    )

    def stacked() -> tuple[Tensor, ...]:
        dx, *others = call()
        each = range(0, len(others), case.members)
        return dx, *(torch.stack(others[at : at + case.members]) for at in each)

    return stacked if training else call


def manual(kernel: KernelName, case: Case, training: bool) -> Call:
    """`ManualRNN` with one kernel; an ensemble under `vmap`."""
    rnn, weights = _ensemble(case) if case.members > 1 else _one(case)
    call = call_of(rnn, case, training, weights)

    def asked() -> Any:
        with use_kernel(kernel):
            return call()

    return call if kernel == "default" else asked


def _one(case: Case) -> tuple[Network, list[Tensor]]:
    rnn = ManualRNN.from_builtin(case.network())
    return rnn, list(rnn.parameters())


def _ensemble(case: Case) -> tuple[Network, list[Tensor]]:
    """All members at once, and their weights."""
    rnns = [ManualRNN.from_builtin(case.network(member)) for member in range(case.members)]
    weights = stack_module_state(rnns)[0]  # type: ignore[arg-type]
    run = lambda input: vmap(lambda own: functional_call(rnns[0], own, (input,))[0])(weights)  # noqa: E731
    return lambda input: (run(input), None), list(weights.values())


def call_of(rnn: Network, case: Case, training: bool, weights: Sequence[Tensor]) -> Call:
    """A call in one of the modes."""
    return training_step(rnn, case, weights) if training else _inference(rnn, case)


def _inference(rnn: Network, case: Case) -> Call:
    input = case.pack(case.input().detach())

    def forward() -> Tensor:
        with torch.no_grad():
            return rows_of(rnn(input)[0])

    return forward


def training_step(rnn: Network, case: Case, weights: Sequence[Tensor]) -> Call:
    """Forward and backward, to the input and to the weights; of an ensemble by one cotangent for all."""
    input, cotangent = case.input(), rows_of(case.pack(case.cotangent()))

    def step() -> tuple[Tensor, ...]:
        output = rows_of(rnn(case.pack(input))[0])
        return torch.autograd.grad(output, [input, *weights], cotangent.expand_as(output))

    return step


def rows_of(output: Tensor | PackedSequence) -> Tensor:
    """The rows of a packed batch, and any other as it is."""
    return output.data if isinstance(output, PackedSequence) else output


def jax_scan(case: Case, training: bool) -> Call | str:
    """A jitted `lax.scan` over one padded layer."""
    if case.layers > 1 or case.dtype is not torch.float32:
        return "it runs one layer in float32"
    if find_spec("jax") is None:
        return "it isn't installed"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import jax.numpy as jnp

    def run(input: Any, weights: Any) -> Any:
        w_ih, w_hh, b_ih, b_hh = weights

        def step(h: Any, z: Any) -> Any:
            h = jnp.tanh(z + h @ w_hh.T)
            return h, h

        start = jnp.zeros((case.B, case.H), jnp.float32)
        return jax.lax.scan(step, start, input @ w_ih.T + b_ih + b_hh)[1]

    input = jnp.asarray(case.input().detach().numpy())
    weights = [jnp.asarray(w.detach().numpy()) for w in case.network().parameters()]
    cotangent = jnp.asarray(case.cotangent().numpy())
    loss = lambda input, weights: (run(input, weights) * cotangent).sum()  # noqa: E731
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1)) if training else run)

    def call() -> Any:
        found = jax.block_until_ready(compiled(input, weights))
        return (found[0], *found[1]) if training else found

    return call


def onnx_runtime(case: Case, training: bool) -> Call | str:
    """The ONNX `RNN` node of one padded layer, forward only."""
    if training or case.layers > 1 or case.shortest or case.dtype is not torch.float32:
        return "it runs one padded layer in float32, forward"
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        return "it or onnx isn't installed"
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    w_ih, w_hh, b_ih, b_hh = (w.detach() for w in case.network().parameters())
    constants = {"W": w_ih[None], "R": w_hh[None], "B": torch.cat([b_ih, b_hh])[None]}
    graph = helper.make_graph(
        [helper.make_node("RNN", ["X", "W", "R", "B"], ["Y"], hidden_size=case.H)],
        "rnn",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [case.T, case.B, case.I])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [case.T, 1, case.B, case.H])],
        [numpy_helper.from_array(value.numpy(), name) for name, value in constants.items()],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    opset = [helper.make_opsetid("", 14)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    input = case.input().detach().numpy()
    return lambda: session.run(None, {"X": input})[0][:, 0]


def opacus(case: Case, training: bool) -> Call | str:
    """Opacus' handwritten `DPRNN`, padded."""
    if case.shortest or case.dtype is not torch.float32:
        return "it runs padded sequences in float32"
    if find_spec("opacus") is None:
        return "it isn't installed"
    from opacus.layers import DPRNN

    rnn = DPRNN(case.I, case.H, case.layers, bidirectional=case.bidirectional)
    rnn.load_state_dict(case.network().state_dict())
    if not training:
        return _inference(rnn, case)
    weights = list(rnn.parameters())  # of each cell: W_ih, b_ih, W_hh, b_hh
    cells = [weights[i : i + 4] for i in range(0, len(weights), 4)]
    return training_step(rnn, case, [cell[i] for cell in cells for i in (0, 2, 1, 3)])


def limit(case: Case, training: bool) -> Call | str:
    """The multiply-adds of the case, in training three times as many, of registers alone, spread evenly over
    the threads: the peak of the processor. It returns no numbers."""
    if native.unavailable is not None:
        return native.unavailable
    count = case.flops() / 2 * (3 if training else 1) / torch.get_num_threads()

    def call() -> None:
        native.peak_fma(count, case.dtype)

    return call


CONTENDERS: dict[str, Callable[[Case, bool], Call | str]] = {
    BUILTIN: builtin,
    **{name: partial(manual, name) for name in KERNEL_NAMES},
    "JAX": jax_scan,
    "ONNX Runtime": onnx_runtime,
    "Opacus": opacus,
    "limit": limit,
}
