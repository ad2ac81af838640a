r"""`torch.nn.RNN` written by hand: a drop-in that transforms, compiles, exports and runs faster.

Public are the names in `__all__` here, in `manual_rnn.inspect` and in `manual_rnn.pictures`. All other files
are the inside, whose names may change with any version.
"""

from .explain import explain_kernel
from .export import decompositions, export_standalone
from .functional import bidirectional_rnn_forward, rnn_forward
from .kernels import KernelName, use_kernel
from .leaky import LeakyRNN
from .module import ManualRNN
from .patch import patch_rnn
from .swap import swap_rnn

__all__ = [
    "KernelName",
    "LeakyRNN",
    "ManualRNN",
    "bidirectional_rnn_forward",
    "decompositions",
    "explain_kernel",
    "export_standalone",
    "patch_rnn",
    "rnn_forward",
    "swap_rnn",
    "use_kernel",
]

__version__ = "0.1.0"
