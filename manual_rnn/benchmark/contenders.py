r"""Who is timed. Each gets a case and a mode and returns a call to time, or None where it can't take part.

In training a call returns the gradients of `<output, cotangent>` by the input and by every parameter;
otherwise it returns the output, rows `(N, D * H)` for a packed batch.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import KernelName, ManualRNN, use_kernel
from ..kernels import native
from .cases import Case

__all__ = ["CONTENDERS", "Call", "Network", "absent", "agree", "builtin", "call_of", "training_step"]

Call = Callable[[], Any]
Network = Callable[[Any], tuple[Any, Any]]  # of input, or of a packed one: output, and what a caller leaves
ROUND_OFF = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}  # of a sum
KERNEL_NAMES: list[KernelName] = [name for name in get_args(KernelName) if name != "vendor"]  # an alias


def builtin(case: Case, training: bool) -> Call:
    """`torch.nn.RNN`."""
    rnn = case.network()
    return call_of(rnn, case, training, list(rnn.parameters()))


def manual(kernel: KernelName, case: Case, training: bool) -> Call | None:
    """`ManualRNN` with one kernel."""
    rnn = ManualRNN.from_builtin(case.network())
    call = call_of(rnn, case, training, list(rnn.parameters()))

    if kernel == "default":
        return call

    def run() -> Any:
        with use_kernel(kernel):
            return call()

    try:
        run()
    except RuntimeError:
        return None
    return run


def call_of(rnn: Network, case: Case, training: bool, weights: Sequence[Tensor]) -> Call:
    """A call in one of the modes."""
    return training_step(rnn, case, weights) if training else _inference(rnn, case)


def _inference(rnn: Network, case: Case) -> Call:
    input = case.pack(case.input().detach())

    def forward() -> Tensor:
        with torch.no_grad():
            return _rows(rnn(input)[0])

    return forward


def training_step(rnn: Network, case: Case, weights: Sequence[Tensor]) -> Call:
    """Forward and backward, to the input and to the weights; of an ensemble by one cotangent for all."""
    input, cotangent = case.input(), _rows(case.pack(case.cotangent()))

    def step() -> tuple[Tensor, ...]:
        output = _rows(rnn(case.pack(input))[0])
        return torch.autograd.grad(output, [input, *weights], cotangent.expand_as(output))

    return step


def _rows(output: Tensor | PackedSequence) -> Tensor:
    return output.data if isinstance(output, PackedSequence) else output


def jax_scan(case: Case, training: bool) -> Call | None:
    """A jitted `lax.scan` over one padded layer."""
    if absent(["JAX"]) or case.layers > 1 or case.dtype is not torch.float32:
        return None
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


def onnx_runtime(case: Case, training: bool) -> Call | None:
    """The ONNX `RNN` node of one padded layer, forward only."""
    padded = case.layers == 1 and not case.shortest and case.dtype is torch.float32
    if training or not padded or absent(["ONNX Runtime"]):
        return None
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


def opacus(case: Case, training: bool) -> Call | None:
    """Opacus' handwritten `DPRNN`, padded."""
    if absent(["Opacus"]) or case.shortest or case.dtype is not torch.float32:
        return None
    from opacus.layers import DPRNN

    rnn = DPRNN(case.I, case.H, case.layers, bidirectional=case.bidirectional)
    rnn.load_state_dict(case.network().state_dict())
    if not training:
        return _inference(rnn, case)
    weights = list(rnn.parameters())  # of each cell: W_ih, b_ih, W_hh, b_hh
    cells = [weights[i : i + 4] for i in range(0, len(weights), 4)]
    return training_step(rnn, case, [cell[i] for cell in cells for i in (0, 2, 1, 3)])


def limit(case: Case, training: bool) -> Call | None:
    """The multiply-adds of the case, in training three times as many, of registers alone, spread evenly over
    the threads: the peak of the processor."""
    if native.unavailable is not None:
        return None
    count = case.flops() / 2 * (3 if training else 1) / torch.get_num_threads()
    return lambda: native.peak_fma(count, case.dtype)


def agree(case: Case, found: Any, expected: Any) -> bool:
    """Whether outputs, or all gradients, match to the round-off of their dtype, of the largest entry."""
    if isinstance(expected, tuple):
        return all(_close(_tensor(left), right) for left, right in zip(found, expected, strict=True))
    found = _tensor(found)
    if found.shape != expected.shape:  # padded rows of a contender that can't pack
        found = _rows(case.pack(found))
    return _close(found, expected)


def _tensor(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else torch.from_dlpack(found)


def _close(left: Tensor, right: Tensor) -> bool:
    bound = ROUND_OFF[right.dtype] * max(1.0, right.abs().max().item())
    return left.shape == right.shape and (left - right).abs().max().item() <= bound


PACKAGES = {"JAX": ["jax"], "ONNX Runtime": ["onnxruntime", "onnx"], "Opacus": ["opacus"]}


def absent(names: list[str]) -> dict[str, list[str]]:
    """Of the named contenders those that can't take part, with the packages that aren't installed."""
    missing = {name: [p for p in PACKAGES.get(name, []) if find_spec(p) is None] for name in names}
    return {name: packages for name, packages in missing.items() if packages}


CONTENDERS: dict[str, Callable[[Case, bool], Call | None]] = {
    "nn.RNN": builtin,
    **{name: partial(manual, name) for name in KERNEL_NAMES},
    "JAX": jax_scan,
    "ONNX Runtime": onnx_runtime,
    "Opacus": opacus,
    "limit": limit,
}
