r"""One layer as one node of ONNX, which has an Elman network among its operators.

    RNN(X, W, R, B, -, initial_h) -> Y, Y_h        H_t = f(X_t W^T + Wb + H_{t-1} R^T + Rb)

X `(T, B, I)`, W `(D, H, I)`, R `(D, H, H)`, B `(D, 2H)` with Wb before Rb, initial_h `(D, B, H)`; Y
`(T, D, B, H)`, Y_h `(D, B, H)`. Source: https://onnx.ai/onnx/operators/onnx__RNN.html, version 14.

The node names its own computation, so `use_kernel` has no say here. Its attribute `layout` would take
`(B, T, I)`, but ONNX Runtime knows no layout but this one; a batch_first module transposes instead.

Nothing here loads onnx: `torch.onnx` keeps the node for the exporter, `torch.onnx.export(dynamo=True)`.
The older exporter, and one that is handed an `ExportedProgram`, find an op unknown to them and say so.
ONNX Runtime 1.32 has no such node in float64.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .layer import Weights

__all__ = ["check_exportable", "is_exporting", "rnn_node"]

ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu"}


def is_exporting() -> bool:
    """Whether `torch.onnx.export` is tracing."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


# Traced by Dynamo, `torch.onnx.is_in_onnx_export` is always False, and the exporter, whose second attempt
# is a Dynamo trace, would unroll a recurrence refused in its first. So Dynamo is to call it, not to trace it.
is_exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_exportable(input: Any, phi: str | None) -> None:
    """The ONNX node knows tanh and relu, and sequences of one length."""
    if phi not in ACTIVATIONS:
        raise RuntimeError(
            "ONNX export: expected the nonlinearity 'tanh' or 'relu', got a recurrence of your own, "
            "for which ONNX has no node"
        )
    if isinstance(input, PackedSequence) or input.is_nested:
        kind = "packed" if isinstance(input, PackedSequence) else "nested"
        raise RuntimeError(f"ONNX export: expected a padded or an unbatched input, got a {kind} one")


def rnn_node(input: Tensor, h0: Tensor, weights: list[Weights], phi: str) -> tuple[Tensor, Tensor]:
    r"""Every direction of one layer, over `input (T, B, I)` from `h0 (D, B, H)`.

    Returns:
        The states `(T, B, D * H)`, and the last of each direction, `(D, B, H)`.
    """
    T, (D, B, H) = input.size(0), h0.shape
    y, h_n = torch.onnx.ops.symbolic_multi_out(
        "RNN",
        (input, *_stacked(weights), None, h0),
        {
            "activations": [ACTIVATIONS[phi]] * D,
            "direction": "bidirectional" if D == 2 else "forward",
            "hidden_size": H,
        },
        dtypes=(input.dtype, input.dtype),
        shapes=((T, D, B, H), (D, B, H)),
        version=14,
    )
    return y.transpose(1, 2).flatten(2), h_n


def _stacked(weights: list[Weights]) -> tuple[Tensor, Tensor, Tensor | None]:
    """W, R and B of all directions."""
    biases = [
        torch.cat((w.bias_ih, w.bias_hh)) for w in weights if w.bias_ih is not None and w.bias_hh is not None
    ]
    W, R = (torch.stack(matrices) for matrices in zip(*((w.ih, w.hh) for w in weights), strict=True))
    return W, R, torch.stack(biases) if biases else None
