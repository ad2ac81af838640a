r"""What an `nn.RNN` owns and answers: constructor, parameters, names, checks. No run, no mathematics."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from . import construction, own_names, validation
from .kernels import aten
from .kernels.interface import LayerWeights, grouped
from .kernels.nonlinearities import NN_RNN_MODES, PHI
from .own_names import builtin
from .torch_internals import MODULE_CALL, fx_tracer
from .weights import (
    ASSIGNED,
    FlatWeights,
    assigned_weights,
    is_expanded,
    own_weights,
    same_objects,
)

PLAIN_CALL = nn.Module.__call__  # which a tracer of torch.fx replaces while it traces

CUSTOM_MODE = "RNN_OWN"
RUNNER = "_manual_rnn_runner"  # what runs the layers of a module that `tracing.py` watches
# PyTorch's own class, also where `torch.nn.RNN` was replaced before this import (`patch.py`). No code here
# asks torch for it by name.
NN_RNN: Any = next(
    cls
    for cls in nn.RNNBase.__subclasses__()
    if (cls.__module__, cls.__qualname__) == ("torch.nn.modules.rnn", "RNN")
)
NN_RNN_CACHES = ("_flat_weights", "_flat_weights_names", "_flat_weight_refs")  # of an `nn.RNN`


class RNNBase(nn.RNNBase):
    r"""The constructor and parameters of `torch.nn.RNN`, and what it tells about them.

    An `nn.RNNBase`, for initialisers and libraries ask for one; not an `nn.RNN`, which Dynamo refuses. Its
    base checks the arguments and makes the parameters. But weights are no cache here, so setting and moving
    them and pickling are again those of an `nn.Module`.
    """

    _manual_rnn_leaky = False  # as a `LeakyRNN` is
    _manual_rnn_assigned = _manual_rnn_runner = None  # of an object, under the names ASSIGNED and RUNNER

    if not TYPE_CHECKING:  # mypy finds attributes set only where there is no such method
        __setattr__ = own_names.set_attribute
    register_buffer = own_names.register_buffer
    register_parameter = own_names.register_parameter
    add_module = own_names.add_module

    if hasattr(nn.Module, "_replicate_for_data_parallel"):
        _replicate_for_data_parallel = nn.Module._replicate_for_data_parallel

    @construction.refuses_projection
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str | Callable[[Tensor], Tensor] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        construction.check_nonlinearity(nonlinearity, PHI)
        p = float(dropout)
        construction.check_dropout(dropout, num_layers)  # the base's warning would point here
        mode = PHI[nonlinearity].mode if isinstance(nonlinearity, str) else CUSTOM_MODE
        known = mode if mode in NN_RNN_MODES else NN_RNN_MODES[0]
        sizes = input_size, hidden_size, num_layers
        vars(self)["nonlinearity"] = nonlinearity  # as in `nn.RNN`, before the parameters are drawn
        super().__init__(known, *sizes, bias, batch_first, 0.0, bidirectional, 0, device, dtype)
        self.mode, self.dropout = mode, p
        self.nonlinearity = nonlinearity  # once more: a module can be registered by now
        _drop_caches(self)

    def reset_parameters(self, recurrent: str | None = None) -> None:
        r"""Draw every parameter from $\mathcal{U}(-1/\sqrt{H}, 1/\sqrt{H})$, a subclass's too; then change
        the recurrent weights. Parameters of a nonlinearity, and an alpha, stay as they are.

        Args:
            recurrent: "identity" for $W_{hh} = 1$ and both biases 0, which with ReLU is the IRNN of Le,
                Jaitly and Hinton (arXiv 1504.00941, 2015); "orthogonal" for $W_{hh}^T W_{hh} = 1$, after
                Saxe, McClelland and Ganguli (arXiv 1312.6120, 2013); None to leave them as drawn.

        Raises:
            ValueError: for any other `recurrent`.
            RuntimeError: if `recurrent` is given and a weight is computed, by a parametrization say.
        """
        construction.check_recurrent(self, recurrent)
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in construction.drawn_parameters(self):
            nn.init.uniform_(weight, -bound, bound)
        if recurrent is not None:
            for _, weight_hh, *biases in self.all_weights:
                construction.RECURRENT[recurrent](weight_hh, *biases)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A call; where torch.fx traces the model around this module, one `call_module` node, as of an
        `nn.RNN`."""
        if is_compiling() or (nn.Module.__call__ is PLAIN_CALL and self._compiled_call_impl is None):
            return MODULE_CALL(self, *args, **kwargs)
        tracer = fx_tracer(args, kwargs)
        if tracer is None:
            return nn.Module.__call__(self, *args, **kwargs)
        return tracer.call_module(self, partial(_leaf, self, tracer), args, kwargs)

    @property
    def all_weights(self) -> list[list[Any]]:
        """Per layer and direction the list of its weights."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @_flat_weights_names.setter
    def _flat_weights_names(self, names: list[str]) -> None:
        """As they are; or without the last layers, which are then taken off. `nn.RNNBase.__init__` assigns
        before there are any."""
        groups = self.__dict__.get("_all_weights")
        if groups is None:
            return
        kept = [group for at, group in enumerate(groups) if at * len(group) < len(names)]
        if list(names) != [name for group in kept for name in group]:
            raise AttributeError(f"expected _flat_weights_names {self._flat_weights_names}, got {names}")
        self._all_weights = kept

    @property
    def _flat_weights(self) -> list[Any]:
        """The weights in order, to which an item may be assigned."""
        weights = assigned_weights(self) or own_weights(self)
        plain = is_compiling() or is_expanded(weights)  # which know only a list itself
        return weights if plain else FlatWeights(self, weights)

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Any]) -> None:
        """As in `nn.RNN`: these run, though `state_dict` has others, until one of the parameters is
        replaced or all are moved. Mostly they are those that are there already."""
        own = own_weights(self)
        same = same_objects(weights, own)
        self._init_flat_weights()
        if not same:
            self.__dict__[ASSIGNED] = list(weights), own

    def _init_flat_weights(self) -> None:
        """Forget what was assigned."""
        self.__dict__.pop(ASSIGNED, None)

    def _update_flat_weights(self) -> None:
        """Do nothing: every call reads all weights."""

    def _weights_have_changed(self) -> bool:
        return False

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "RNNBase":
        self._init_flat_weights()
        return super(nn.RNNBase, self)._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was assigned, which a copy of an `nn.RNN` loses too."""
        state = own_names.without_visible(self.__dict__)
        state.pop(ASSIGNED, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """From a pickle of this class, or of an `nn.RNN` of any age."""
        super().__setstate__(state)
        own_names.make_visible(self)
        _drop_caches(self)
        for name in ("all_weights", "__module__"):  # of an old `nn.RNN`; of earlier versions, for torch.fx
            self.__dict__.pop(name, None)

    def flatten_parameters(self) -> None:
        """On CUDA, lay the weights one after the other in memory, which saves a copy of them at every call;
        elsewhere no kernel wants them so. Never needed."""
        if not is_compiling():
            aten.flatten(own_weights(self))

    check_forward_args = builtin(validation.check_forward_args)
    check_input = builtin(validation.check_input)
    check_hidden_size = nn.RNNBase.check_hidden_size
    permute_hidden = nn.RNNBase.permute_hidden

    @builtin
    def get_expected_hidden_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """`(L * D, B, H)` for this input."""
        axis = 0 if self.batch_first else 1
        B = input.size(axis) if batch_sizes is None else int(batch_sizes[:1].sum())
        return self.num_layers * (2 if self.bidirectional else 1), B, self.hidden_size

    def extra_repr(self) -> str:
        """The sizes, and whatever differs from its default. Dynamo traces it, for `vmap` asks for a name."""
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0, "bidirectional": False}
        shown = [f"{k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k) != v]
        if self.mode not in NN_RNN_MODES and not isinstance(self.nonlinearity, nn.Module):
            shown.append(f"nonlinearity={getattr(self.nonlinearity, '__name__', self.nonlinearity)}")
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *shown])


def _leaf(rnn: RNNBase, tracer: Any, *args: Any, **kwargs: Any) -> Any:
    return tracer.create_proxy("call_module", tracer.path_of_module(rnn), args, kwargs)


def _drop_caches(rnn: RNNBase) -> None:
    """What an `nn.RNN` keeps of its weights."""
    for cache in NN_RNN_CACHES:
        rnn.__dict__.pop(cache, None)


def weights_of(rnn: RNNBase) -> list[LayerWeights]:
    """The weights of every layer and direction, read anew, so that no change goes unseen."""
    flat = assigned_weights(rnn)
    if flat is None:
        validation.check_counts(rnn)
        flat = own_weights(rnn)
        for name, weight in zip(rnn._flat_weights_names, flat, strict=True):
            if not isinstance(weight, Tensor):
                found = getattr(rnn, name)  # which raises where there is none
                raise TypeError(f"{name} must be a Tensor, got {type(found).__name__}")
    expected = rnn.num_layers * (2 if rnn.bidirectional else 1) * (4 if rnn.bias else 2)
    if len(flat) != expected:
        raise RuntimeError(f"Expected {expected} _flat_weights, got {len(flat)}")
    return grouped(flat, rnn.bias)
