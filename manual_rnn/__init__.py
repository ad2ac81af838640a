r"""`torch.nn.RNN` written by hand: a drop-in that transforms, compiles, exports and runs faster."""

from .functional import bidirectional_rnn_forward, rnn_forward
from .kernels import use_kernel
from .module import ManualRNN

__all__ = ["ManualRNN", "bidirectional_rnn_forward", "rnn_forward", "use_kernel"]
