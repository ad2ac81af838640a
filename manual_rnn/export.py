r"""A model as a program that runs where this package isn't installed.

Exported by `torch.export.export` alone, a program holds one operator of this package for each layer and
direction, which is fast, and unknown to a process that hasn't imported it and to what reads programs without
Python: ExecuTorch, OpenVINO, AOTInductor's packages, the ONNX exporter.
"""

from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from .ops import decompositions
from .validation import check_kind


def export_standalone(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    strict: bool = False,
) -> ExportedProgram:
    r"""`torch.export.export(model, ...)` without operators of this package.

    Args:
        model: of which `ManualRNN` is a part.
        args: example inputs, as of `torch.export.export`, like all that follows.
        kwargs: further ones, by name.
        dynamic_shapes: which sizes stay open. Where the length is one of them each layer and direction is a
            `scan`; else it is as many operations as there are steps.
        strict: whether Dynamo traces the model.

    Returns:
        The program, in ATen operations; its numbers are those of the model to round-off, and so are
        gradients by a plain backward. Second derivatives, forward mode and transforms of torch.func take
        a fixed length: torch's `scan` (2.13 to 2.15) gets the first wrong and raises a KeyError or
        NotImplementedError for the others.

    Raises:
        TypeError: if `model` is no module.
        RuntimeError: where a length is open and torch is older than 2.13; else as `torch.export.export`.

    Example:
        >>> from manual_rnn import ManualRNN
        >>> rnn, input = ManualRNN(3, 4), torch.randn(5, 2, 3)
        >>> program = export_standalone(rnn, (input,))
        >>> torch.allclose(program.module()(input)[0], rnn(input)[0], atol=1e-6)
        True
        >>> "manual_rnn" in str(program.graph)
        False
    """
    check_kind("model", model, nn.Module)
    program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=strict)
    return program.run_decompositions(decompositions())
