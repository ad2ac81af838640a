r"""`ManualRNN`, the module.

A plain call goes from `fast_path.py` to one operator and back. Any other goes on like this, each step in the
file of its name:

    delegation              a few calls are left to `nn.RNN` itself
    layout.layout_of        whatever form the batch has becomes rows
    validation              state and weights fit the input, in the words of `nn.RNN`
    ops/rnn.py              a step of one's own, or the network

The parameters stand in `parameters.py`, the equations in `ops/recurrences.py`.
"""

import warnings
from functools import partial
from types import MethodType
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.utils.rnn import PackedSequence

from . import onnx, validation
from .compiled_call import breaks_graph, run_in_graph, run_outside_graph
from .convert import check_target, shared_copy
from .delegation import is_left_to_nn_rnn
from .fast_path import try_fast_path
from .kernels.nonlinearities import PHI, PHI_OF_MODE
from .layout import Layout, layout_of
from .ops import CustomStep, Options, autocast, run_rnn
from .override import leak_of, nonlinearity_of, step_of, stepwise
from .own_names import builtin
from .parameters import NN_RNN, RUNNER, RNNBase, weights_of
from .torch_internals import unmapped_randomness


class ManualRNN(RNNBase):
    r"""A multi-layer Elman network, `torch.nn.RNN` written by hand.

    $$h_t = \phi(x_t W_{ih}^T + b_{ih} + h_{t-1} W_{hh}^T + b_{hh})$$

    Constructor, parameters, `state_dict`, inputs, outputs, errors and initial values from the same seed
    are those of `torch.nn.RNN` (its documentation is the source); see the README for what goes beyond.

    Args:
        input_size: `I`, features of the input.
        hidden_size: `H`, features of the state.
        num_layers: `L`; each further layer reads the states of the one before.
        nonlinearity: "tanh", "relu", "sigmoid", "softplus", "hardtanh", "leaky_relu", "identity", or a
            function of a tensor, elementwise or not. A function or module of PyTorch that means one of
            these, `torch.sigmoid` or `nn.Softplus()`, runs as fast as its name; any other in Python, step
            after step. The parameters of an `nn.Module` join the `state_dict`, as `nonlinearity.*`.
        bias: whether there are `b_ih` and `b_hh`.
        batch_first: whether padded input and output are `(B, T, ...)` instead of `(T, B, ...)`.
        dropout: probability of zeroing an output of every layer but the last, in training.
        bidirectional: whether a second set of weights reads backward in time (`D` = 2 instead of 1).
        device: of the parameters. An integer must be given by keyword: the ninth positional argument
            of `nn.RNN` is really a `proj_size`, with which it builds a network that can't run.
        dtype: of the parameters.

    Shapes: `weight_ih_l{k} (H, I)`, for k > 0 `(H, D * H)`; `weight_hh_l{k} (H, H)`; `bias_ih_l{k}` and
    `bias_hh_l{k}` `(H,)`; the same with the suffix `_reverse` for the second direction.

    Raises:
        TypeError, ValueError: for arguments out of range, in the words of `nn.RNN`.

    Example:
        >>> builtin = nn.RNN(3, 4, num_layers=2, bidirectional=True)
        >>> rnn = ManualRNN(3, 4, num_layers=2, bidirectional=True)
        >>> rnn.load_state_dict(builtin.state_dict())
        <All keys matched successfully>
        >>> input = torch.randn(5, 2, 3)  # (T, B, I)
        >>> output, h_n = rnn(input)
        >>> output.shape, h_n.shape  # (T, B, D * H) and (L * D, B, H)
        (torch.Size([5, 2, 8]), torch.Size([4, 2, 4]))
        >>> torch.allclose(output, builtin(input)[0], atol=1e-6)
        True
    """

    @overload
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        r"""Run over a batch of sequences.

        Args:
            input: `(T, B, I)`, with `batch_first` `(B, T, I)`; `(T, I)` unbatched; a `PackedSequence`; or,
                with `batch_first`, a jagged nested tensor `(B, j, I)`.
            hx: the states to begin with, `(L * D, B, H)`, unbatched `(L * D, H)`; zeros if not given.

        Returns:
            `output`, the last layer's states in the layout of the input with `D * H` features, and
            `h_n`, the state in which each layer and direction ended, shaped as `hx`. No steps give an
            empty output and `h_n = hx`.

        Raises:
            ValueError, RuntimeError: for a wrong dtype, rank, size or device, in the words of `nn.RNN`.
        """
        run_plain = try_fast_path
        if is_compiling():
            run_plain = run_outside_graph if breaks_graph(input, hx) else run_in_graph
        found = run_plain(self, input, hx)
        if found is not None:
            return found
        if is_left_to_nn_rnn(self, input, hx):
            nn_rnn: Any = NN_RNN.forward
            return nn_rnn(self, input, hx)
        layout = layout_of(self, input, hx)
        return layout.restore(*_run(self, layout))

    @builtin
    def begin(self, h0: Tensor, weight_hh: Tensor) -> CustomStep:
        r"""The step to take from here to the end of the sequences.

        Override it to prepare what stays the same over all steps of a call, a dropout mask say. It is
        asked once per call, layer and direction. An override may take `h0` alone.

        Args:
            h0: the state to begin with, `(B, H)`; of packed input, the longest sequence first.
            weight_hh: of this layer and direction, `(H, H)`.

        Returns:
            A function like `step`.
        """
        own: Any = step_of(self)
        return own

    @builtin
    def step(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
        r"""The state after one step; override it for a recurrence of your own.

        It needs no derivative written by hand. Python takes the steps, so `torch.compile` unrolls them:
        one graph for each number of steps. `torch.export.export` makes a loop of them where the length of
        padded input stays open (torch 2.13 or newer).

        Args:
            gates: $x_t W_{ih}^T + b_{ih} + b_{hh}$, `(B, H)`; of packed input the sequences still
                alive, the longest first.
            hidden: the state before the step, of the same sequences.
            weight_hh: `(H, H)`.

        Example:
            >>> class LeakyRNN(ManualRNN):
            ...     def step(self, gates, hidden, weight_hh):
            ...         return torch.lerp(hidden, super().step(gates, hidden, weight_hh), 0.2)
            >>> LeakyRNN(3, 4)(torch.randn(5, 2, 3))[0].shape
            torch.Size([5, 2, 4])
        """
        phi: Any = PHI[PHI_OF_MODE[self.mode]].apply if self.mode in PHI_OF_MODE else self.nonlinearity
        return phi(torch.addmm(gates, hidden, weight_hh.t()))

    def __prepare_scriptable__(self) -> nn.RNN:
        """The module that `torch.jit.script` is to compile, with the same Parameters.

        Raises:
            TypeError: for a recurrence of your own, or a subclass, which `nn.RNN` can't run.
        """
        warnings.warn(
            "torch.jit.script takes a ManualRNN as the nn.RNN it equals, and leaves that in the model around "
            "it. To keep the model as it is, script copy.deepcopy(model)",
            stacklevel=2,
        )
        return self.to_builtin()

    @classmethod
    def from_builtin(cls, rnn: nn.RNN) -> "ManualRNN":
        """A new module with the Parameters and hooks of `rnn`, which stays as it is.

        Raises:
            TypeError: for a subclass of `nn.RNN`, one with methods set on the object, or a projected one.

        Example:
            >>> builtin = nn.RNN(3, 4)
            >>> rnn = ManualRNN.from_builtin(builtin)
            >>> rnn.weight_hh_l0 is builtin.weight_hh_l0
            True
        """
        check_target(cls, ManualRNN)
        patched = type(rnn) is nn.RNN  # a ManualRNN, where that stands in the place of nn.RNN
        return shared_copy(rnn, nn.RNN if patched else NN_RNN, cls)

    def to_builtin(self) -> nn.RNN:
        """A new `nn.RNN` with the Parameters and hooks of this module, which stays as it is.

        Raises:
            TypeError: for a recurrence of your own, which `nn.RNN` can't run.

        Example:
            >>> ManualRNN(3, 4).to_builtin()
            RNN(3, 4)
        """
        return shared_copy(self, ManualRNN, NN_RNN)


def _run(rnn: ManualRNN, layout: Layout) -> tuple[Tensor, Tensor]:
    """The last layer's states and `h_n` of a batch that has become rows, once all tensors fit each other."""
    phi, alpha, exporting = nonlinearity_of(rnn), leak_of(rnn), onnx.is_exporting()
    if alpha is not None and (exporting or RUNNER in rnn.__dict__):
        phi = stepwise(rnn)  # what runs then knows no leak
    if exporting:
        onnx.check_exportable(layout.input, phi)
    data, batch_sizes, hx = layout.data, layout.batch_sizes, layout.hx
    if hx is None:
        size = _expected_size(rnn, layout)  # a graph may break here
        hx = data.new_zeros(size)
    rnn.check_forward_args(data, hx, batch_sizes)
    if batch_sizes is not None:
        validation.check_batch_sizes(batch_sizes, len(data))
    validation.check_attributes(rnn, batch_sizes is None)
    weights = weights_of(rnn)
    x, hx, weights = autocast(layout.rows, hx, weights)
    validation.check_tensors(rnn, x, hx, weights)
    dropout = partial(_dropout, rnn.dropout) if rnn.training and rnn.dropout and rnn.num_layers > 1 else None
    alpha = None if alpha is None or not isinstance(phi, str) else validation.check_leak(rnn, alpha).to(x)
    options = Options(phi, batch_sizes, rnn.bidirectional, dropout, alpha)
    run = rnn.__dict__.get(RUNNER) or (onnx.rnn if exporting else run_rnn)
    return run(x, hx, weights, options)


def _expected_size(rnn: ManualRNN, layout: Layout) -> tuple[int, int, int]:
    """Of the states to begin with. How many rows the first step has is data, at which a graph breaks; a batch
    that was sorted says how many sequences there are."""
    asked = rnn.get_expected_hidden_size
    own = type(asked) is not MethodType or asked.__func__ is not RNNBase.get_expected_hidden_size
    if own or layout.order is None or not torch.compiler.is_compiling():
        return rnn.get_expected_hidden_size(layout.data, layout.batch_sizes)
    return rnn.num_layers * (1 + rnn.bidirectional), layout.order.size(0), rnn.hidden_size


def _dropout(p: float, output: Tensor) -> Tensor:
    """Dropout between layers, on memory in the order of time, so that masks are those of `nn.RNN`: also under
    `vmap`, which doesn't reach into its network."""
    with unmapped_randomness(output):
        return torch.dropout(output.contiguous(), p, True)


# It is sizes and weights, as nn.RNN: `torch.load(file, weights_only=True)` takes it once a client has allowed
# the rest of its model.
torch.serialization.add_safe_globals([ManualRNN])
