r"""`torch.nn.RNN` written by hand: a drop-in that transforms, compiles, exports and runs faster."""

from .explain import explain_kernel
from .functional import bidirectional_rnn_forward, rnn_forward
from .kernels import KernelName, use_kernel
from .module import ManualRNN
from .swap import swap_rnn

__all__ = [
    "KernelName",
    "ManualRNN",
    "bidirectional_rnn_forward",
    "explain_kernel",
    "rnn_forward",
    "swap_rnn",
    "use_kernel",
]
