r"""From rows to a kernel, closed under differentiation.

rnn.py               a step of one's own, or the network; dropout between layers
network.py           the network as one operation: forward, backward
composed.py          the same, composed of the two recurrences
recurrences.py       the two recurrences: formula, vjp, jvp
registration.py      the four operators; autograd_rules.py, vmap_rules.py, fake_rules.py: what each does there
dispatch.py          the one question: may the dispatcher be bypassed?
saved_tensors.py     what a node saves
custom_step.py       a step of one's own
cudnn.py             cuDNN's network on CUDA;  higher_order.py: derivatives that it hasn't
decomposition.py     the operators in operations of torch's own
flop_formulas.py     what each operator multiplies
"""

from . import aten_node, layer, registration
from .composed import input_projection
from .cudnn import run_cudnn
from .custom_step import CUSTOM_STEP, CustomStep
from .decomposition import decompositions
from .dispatch import is_eager, tell_counters
from .flop_formulas import register as register_flop_formulas
from .higher_order import batching_rule
from .network import as_separate_output
from .profiler import record_call
from .registration import NETWORK
from .rnn import Nonlinearity, Options, choose_network_kernel, run_layers, run_rnn
from .saved_tensors import node_inputs

__all__ = [
    "CUSTOM_STEP",
    "NETWORK",
    "CustomStep",
    "Nonlinearity",
    "Options",
    "as_separate_output",
    "aten_node",
    "batching_rule",
    "choose_network_kernel",
    "decompositions",
    "input_projection",
    "is_eager",
    "layer",
    "node_inputs",
    "record_call",
    "register_flop_formulas",
    "registration",
    "run_cudnn",
    "run_layers",
    "run_rnn",
    "tell_counters",
]
