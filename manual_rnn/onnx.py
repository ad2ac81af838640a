r"""One layer as one node of ONNX, which has an Elman network among its operators.

    RNN(X, W, R, B, -, initial_h) -> Y, Y_h        H_t = f(X_t W^T + Wb + H_{t-1} R^T + Rb)

X `(T, B, I)`, W `(D, H, I)`, R `(D, H, H)`, B `(D, 2H)` with Wb before Rb, initial_h `(D, B, H)`; Y
`(T, D, B, H)`, Y_h `(D, B, H)`. Source: https://onnx.ai/onnx/operators/onnx__RNN.html, version 14.

The node names its own computation, so `use_kernel` has no say here. Its attribute `layout` would take
`(B, T, I)`, but ONNX Runtime knows no layout but this one; a batch_first module transposes instead.

Nothing here loads onnx: `torch.onnx` keeps the node for the exporter, `torch.onnx.export(dynamo=True)`.
The older exporter, and one that is handed an `ExportedProgram`, find an op unknown to them and say so; but
one that `export_standalone` made has a `Scan` for each layer and direction, with the length as open.

ONNX Runtime 1.32 has no RNN node in float64. In float32 it calls its nonlinearity through a function pointer,
number by number and on one thread, where a `Scan` has it whole. `.github/docs/deployment.md` has the figures.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .kernels.interface import LayerWeights
from .kernels.nonlinearities import PHI
from .ops import Options, run_layers


def is_exporting() -> bool:
    """Whether `torch.onnx.export` is tracing."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


# Traced by Dynamo, `torch.onnx.is_in_onnx_export` is always False, and the exporter, whose second attempt
# is a Dynamo trace, would unroll a recurrence refused in its first. So Dynamo is to call it, not to trace it.
is_exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_exportable(input: Any, phi: Any) -> None:
    """The ONNX node knows most nonlinearities, and sequences of one length."""
    known = [name for name, row in PHI.items() if row.onnx is not None]
    if phi not in known:
        got = repr(phi) if isinstance(phi, str) else "a recurrence of your own"
        names = " or ".join(map(repr, known))
        raise RuntimeError(
            f"ONNX export: expected the nonlinearity {names}, got {got}, for which ONNX has no node"
        )
    if isinstance(input, PackedSequence) or input.is_nested:
        kind = "packed" if isinstance(input, PackedSequence) else "nested"
        raise RuntimeError(f"ONNX export: expected a padded or an unbatched input, got a {kind} one")


def rnn(x: Tensor, hx: Tensor, weights: Sequence[LayerWeights], options: Options) -> tuple[Tensor, Tensor]:
    r"""`ops.run_rnn` with a node for each layer, for a padded `x (T, B, I)` and `hx (L * D, B, H)`."""
    run = partial(_run_layer, options.nonlinearity)
    return run_layers(run, x, hx, weights, 1 + options.bidirectional, options.dropout)


def _run_layer(phi: Any, input: Tensor, hx: Tensor, weights: Sequence[LayerWeights]) -> tuple[Tensor, Tensor]:
    T, (D, B, H) = input.size(0), hx.shape
    name, *told = PHI[phi].onnx or ()
    constants = zip(("activation_alpha", "activation_beta"), told, strict=False)
    y, h_n = torch.onnx.ops.symbolic_multi_out(
        "RNN",
        (input, *_stacked(weights), None, hx),
        {
            "activations": [name] * D,
            **{key: [value] * D for key, value in constants},
            "direction": "bidirectional" if D == 2 else "forward",
            "hidden_size": H,
        },
        dtypes=(input.dtype, input.dtype),
        shapes=((T, D, B, H), (D, B, H)),
        version=14,
    )
    return y.transpose(1, 2).flatten(2), h_n


def _stacked(weights: Sequence[LayerWeights]) -> tuple[Tensor, Tensor, Tensor | None]:
    """W, R and B of all directions."""
    W, R, *biases = zip(*weights, strict=True)
    B = None if biases[0][0] is None else torch.cat((torch.stack(biases[0]), torch.stack(biases[1])), dim=1)
    return torch.stack(W), torch.stack(R), B
