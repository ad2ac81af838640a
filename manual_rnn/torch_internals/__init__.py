r"""Every private name of torch that this package uses. Torch 2.11, 2.13, 2.14.1 and 2.15.0 have them all.

active.py       what is active around a call: transforms, modes, tracers, a profiler, autocast
compiling.py    what compiles, exports or traces the code around a call
autograd.py     autograd and the transforms of torch.func: nodes, levels, what wraps a tensor
cudnn.py        cuDNN's network among PyTorch's operators
find.py         how a name is looked up

Where a torch lacks one, `MISSING` says so and the reference runs, of PyTorch's own operations: nothing fails
at import, and no number changes. Another kernel, if it was asked for, raises.

The few names that can't stand here are listed, each with its reason, in tests/house/test_house.py.
"""

from .active import *
from .autograd import *
from .compiling import *
from .cudnn import *
from .find import MISSING
