r"""From rows to a kernel, closed under differentiation.

rnn.py               a step of one's own, or the network; dropout between layers
plain_network.py     a plain call's network, as one operator of PyTorch's
network.py           any other, as one operation;  network_vjp.py: its gradients, which have derivatives
composed.py          the same, composed of the two recurrences
recurrences.py       the two recurrences: formula, vjp, jvp;  leaky_recurrence.py: that with a leak
registration.py      the operators; autograd_rules.py, vmap_rules.py, fake_rules.py: what each does there
dispatch.py          the one question: may the dispatcher be bypassed?
saved_tensors.py     what a node saves
custom_step.py       a step of one's own
cudnn.py             cuDNN's network on CUDA;  higher_order.py: derivatives that it hasn't
decomposition.py     the operators in operations of torch's own
flop_formulas.py     what each operator multiplies
"""

from . import higher_order, layer, registration
from .composed import input_projection
from .custom_step import CUSTOM_STEP, CustomStep
from .decomposition import decompositions
from .dispatch import tell_counters
from .network import as_batch_first
from .plain_network import PlainOptions, is_recorded, plain_kernel, run_plain_network
from .registration import NETWORK
from .rnn import Options, autocast, choose_network_kernel, run_directions, run_layers, run_rnn
