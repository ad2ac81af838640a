r"""From a layer's input to a kernel, closed under differentiation.

layer.py         one layer, in each of its directions: a step of your own, or the rule
per_sample.py    the same with torch's ExpandedWeights
network.py       a whole network as one job
    whole.py         in one call to C
    cudnn.py         on CUDA, by cuDNN
        higher_order.py  derivatives that this hasn't
layer_rule.py    the layer: its formula, and beside it the code of its value and of its derivatives
    recurrences.py         the same of the two recurrences
    keeping.py       what a node keeps for its backward pass
registration.py     each rule as an operator of torch
    decomposition.py    the same in operations of torch's own
dispatch.py      operator, autograd node or kernel?
sight.py         who looks on, and what they see
"""

from .cudnn import VENDOR, run_on_cuda
from .decomposition import decompositions
from .layer import OWN_RECURRENCE, OwnStep, Phi, RunLayer, Weights, run_layer, run_layers
from .layer_rule import project
from .network import NATIVE, chosen, run_network
from .per_sample import is_expanded, run_layer_per_sample
from .sight import looked_at, plain, untraced
from .whole import run_module, run_whole

__all__ = [
    "NATIVE",
    "OWN_RECURRENCE",
    "VENDOR",
    "OwnStep",
    "Phi",
    "RunLayer",
    "Weights",
    "chosen",
    "decompositions",
    "is_expanded",
    "looked_at",
    "plain",
    "project",
    "run_layer",
    "run_layer_per_sample",
    "run_layers",
    "run_module",
    "run_network",
    "run_on_cuda",
    "run_whole",
    "untraced",
]
