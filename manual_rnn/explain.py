r"""Which kernel a call would run, and why not the others."""

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import kernels, validation
from .delegation import is_left_to_nn_rnn
from .fast_path import kernel_of_plain_call
from .layout import layout_of
from .module import ManualRNN
from .ops import CUSTOM_STEP, autocast, choose_network_kernel
from .override import leak_of, nonlinearity_of
from .parameters import weights_of


def explain_kernel(rnn: ManualRNN, input: Tensor | PackedSequence, hx: Tensor | None = None) -> str:
    r"""Say, a line for each kernel, which one `rnn(input, hx)` would run now, and why not the others.

    Nothing runs, but for the self-test of `triton`, once, on CUDA. Under `use_kernel` it tells what was asked
    for, and whether that would raise. Where the layers differ, since the weights of one are of a kind of
    their own, each has its lines.

    Raises:
        TypeError: for another module, an `nn.RNN` say, which has no kernels to choose from.
        TypeError, ValueError, RuntimeError: for input that `rnn` doesn't take.

    Example:
        >>> rnn = ManualRNN(3, 4, nonlinearity=torch.sin)
        >>> print(explain_kernel(rnn, torch.randn(5, 2, 3)).splitlines()[-1])
        reference runs: the fastest that can
    """
    validation.check_rnn(rnn, ManualRNN)
    validation.check_kind("input", input, Tensor, PackedSequence)
    layout = layout_of(rnn, input, hx)
    given, hx = hx, layout.hx
    if hx is None:
        hx = layout.data.new_zeros(rnn.get_expected_hidden_size(layout.data, layout.batch_sizes))
    x, hx, weights = autocast(layout.rows, hx, weights_of(rnn))
    whole, phi, alpha = None, nonlinearity_of(rnn), leak_of(rnn)
    if kernels.requested_kernel() == kernels.DEFAULT and isinstance(phi, str):
        plain = kernel_of_plain_call(rnn, input, given)
        left = plain == kernels.ATEN or (plain is None and is_left_to_nn_rnn(rnn, input, hx))
        whole = kernels.ATEN if left else choose_network_kernel(phi, x, hx, weights, alpha)
    verdicts = [_verdicts(rnn, whole, (x, hx, *group)) for group in weights]
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return "\n".join(
        f"{names[0].removeprefix('weight_ih_')}:\n{each}"
        for names, each in zip(rnn._all_weights, verdicts, strict=True)
    )


def _verdicts(rnn: ManualRNN, whole: str | None, tensors: tuple[Tensor | None, ...]) -> str:
    phi = nonlinearity_of(rnn)
    named = phi if isinstance(phi, str) else None
    reasons = kernels.reasons(*tensors, phi=named, leaky=leak_of(rnn) is not None)
    if not isinstance(phi, str):
        reasons = dict.fromkeys(reasons, CUSTOM_STEP) | {kernels.REFERENCE: None}
    asked = kernels.requested_kernel()
    if whole in reasons:  # a network may run where an operator of ours means nothing
        reasons |= {whole: None}
    able = [name for name, reason in reasons.items() if reason is None]
    chosen = able[0] if whole in (None, kernels.DEFAULT) else whole
    runs = chosen if asked == kernels.DEFAULT else asked
    return "\n".join(f"{name:9} {_verdict(name, reason, runs, asked)}" for name, reason in reasons.items())


def _verdict(name: str, reason: str | None, chosen: str, asked: str) -> str:
    if name != chosen:
        return f"can't run here: {reason}" if reason else f"could run too, but {chosen} was chosen"
    if reason:
        return f"was asked for and would raise: {reason}"
    return "runs: the fastest that can" if asked == kernels.DEFAULT else "runs: it was asked for"
