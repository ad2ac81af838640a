r"""Every public function tells what it expected and what came, before anything runs.

The calls of a `ManualRNN` are apart: they raise as `nn.RNN` does (tests/module/test_checks.py).
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import manual_rnn
from manual_rnn import ManualRNN, inspect, pictures

RNN, X = ManualRNN(3, 4, batch_first=True), torch.randn(2, 5, 3)
SEEN = inspect.trace(RNN, X)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = RNN


TAGGER = Tagger()
STATES = SEEN.passes[0].states
WEIGHTS = [weight.detach() for weight in RNN.parameters()]
H0 = torch.zeros(2, 4)
forward: Any = manual_rnn.rnn_forward
both: Any = manual_rnn.bidirectional_rnn_forward

# Each a function of one argument, and what is right for it; the key begins with the function's name.
CALLS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "explain_kernel: rnn": (lambda bad: manual_rnn.explain_kernel(bad, X), RNN),
    "explain_kernel: input": (partial(manual_rnn.explain_kernel, RNN), X),
    "swap_rnn: model": (manual_rnn.swap_rnn, nn.Sequential(nn.RNN(3, 4))),
    "swap_rnn: to": (lambda bad: manual_rnn.swap_rnn(nn.RNN(3, 4), bad), ManualRNN),
    "patch_rnn: to": (lambda bad: manual_rnn.patch_rnn(bad).undo(), ManualRNN),
    "export_standalone: model": (lambda bad: manual_rnn.export_standalone(bad, (X,)), None),
    "use_kernel: name": (lambda bad: manual_rnn.use_kernel(bad).__enter__(), None),
    "use_kernel: function": (lambda bad: manual_rnn.use_kernel("torch")(bad), None),
    "rnn_forward: input": (lambda bad: forward(bad, *WEIGHTS, H0), X),
    "rnn_forward: weight_ih": (lambda bad: forward(X, bad, *WEIGHTS[1:], H0), WEIGHTS[0]),
    "rnn_forward: weight_hh": (lambda bad: forward(X, WEIGHTS[0], bad, *WEIGHTS[2:], H0), WEIGHTS[1]),
    "rnn_forward: h_prev": (lambda bad: forward(X, *WEIGHTS, bad), H0),
    "bidirectional_rnn_forward: input": (lambda bad: both(bad, *WEIGHTS, H0, *WEIGHTS, H0), X),
    "bidirectional_rnn_forward: h_prev_reverse": (lambda bad: both(X, *WEIGHTS, H0, *WEIGHTS, bad), H0),
    "ManualRNN: nonlinearity": (lambda bad: ManualRNN(3, 4, nonlinearity=bad), torch.tanh),
    "ManualRNN: input_size": (lambda bad: ManualRNN(bad, 4), 3),
    "LeakyRNN: alpha": (lambda bad: manual_rnn.LeakyRNN(3, 4, alpha=bad), 0.2),
    "ManualRNN.from_builtin": (ManualRNN.from_builtin, nn.RNN(3, 4)),
    "ManualRNN.reset_parameters": (ManualRNN(3, 4).reset_parameters, "identity"),
    "trace: rnn": (lambda bad: inspect.trace(bad, X), RNN),
    "trace: input": (partial(inspect.trace, RNN), X),
    "Pass.walk": (SEEN.passes[0].walk, 1),
    "gradient_norms: loss": (lambda bad: inspect.gradient_norms(bad, STATES), SEEN.output.sum()),
    "gradient_norms: states": (partial(inspect.gradient_norms, SEEN.output.sum()), STATES),
    "gradient_norms: a state": (lambda bad: inspect.gradient_norms(SEEN.h_n.sum(), [bad]), STATES[0]),
    "saturation: preactivation": (inspect.saturation, X),
    "saturation: phi": (partial(inspect.saturation, X), torch.relu),
    "saturation: floor": (lambda bad: inspect.saturation(X, floor=bad), 0.2),
    "spectral_radius": (inspect.spectral_radius, WEIGHTS[1]),
    "eigenvalues": (inspect.eigenvalues, WEIGHTS[1]),
    "step_jacobians: run": (inspect.step_jacobians, SEEN.passes[0]),
    "step_jacobians: sequence": (partial(inspect.step_jacobians, SEEN.passes[0]), 1),
    "lyapunov_exponents: jacobians": (inspect.lyapunov_exponents, torch.randn(5, 4, 4)),
    "lyapunov_exponents: warm_up": (partial(inspect.lyapunov_exponents, torch.randn(5, 4, 4)), 2),
    "write_pictures: rnn": (lambda bad: pictures.write_pictures(bad, X, "."), None),
    "write_pictures: folder": (partial(pictures.write_pictures, RNN, X), None),
    "write_pictures: format": (lambda bad: pictures.write_pictures(RNN, X, ".", None, bad), None),
    "state_picture: passes": (pictures.state_picture, SEEN.passes),
    "state_picture: sequence": (partial(pictures.state_picture, SEEN.passes), 1),
    "gradient_picture": (pictures.gradient_picture, SEEN.passes),
    "eigenvalue_picture": (pictures.eigenvalue_picture, SEEN.passes),
}
WRONG: list[Any] = [{}, object(), nn.LSTM, nn.LSTM(3, 4), SEEN, 2 + 1j, -7]
# What is fine after all, or raises in the words of nn.RNN; and a module is a function.
RIGHT = [("saturation: floor", -7), ("ManualRNN: input_size", -7), ("swap_rnn: model", WRONG[3])]
RIGHT.append(("export_standalone: model", WRONG[3]))


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: re.sub(r"\W+", " ", repr(wrong))[:20])
@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_argument_raises_and_is_named(name: str, wrong: Any) -> None:
    call, _ = CALLS[name]
    takes_functions = "phi" in name or "nonlinearity" in name or "function" in name
    if (name, wrong) in RIGHT or (takes_functions and isinstance(wrong, nn.Module)):
        return
    with pytest.raises((TypeError, ValueError)) as raised:
        call(wrong)
    said = str(raised.value)
    assert re.search(r"expected|should be|must be|Unknown nonlinearity", said), said
    names = (type(wrong).__name__, getattr(wrong, "__name__", "?"), repr(wrong), str(wrong))
    assert any(each in said for each in names), said


@pytest.mark.parametrize("name", [name for name, (_, right) in CALLS.items() if right is not None])
def test_what_is_right_passes(name: str) -> None:
    call, right = CALLS[name]
    call(right)


def test_every_public_name_is_in_the_table() -> None:
    """But for a type, and what is given rather than called."""
    named = {name.split(":")[0].split(".")[0] for name in CALLS}
    public = {name for module in (manual_rnn, inspect, pictures) for name in module.__all__}
    assert public - named == {"KernelName", "Trace", "decompositions"} | {"Pass"} - named


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: manual_rnn.explain_kernel(nn.RNN(3, 4), X), "rnn: expected a ManualRNN, got RNN"),  # type: ignore[arg-type]
        (lambda: manual_rnn.explain_kernel(TAGGER, X), "expected a ManualRNN, got Tagger, whose .rnn is one"),  # type: ignore[arg-type]
        (lambda: inspect.trace(TAGGER, X), "rnn: expected a ManualRNN, got Tagger, whose .rnn is one"),  # type: ignore[arg-type]
        (lambda: inspect.trace(nn.ModuleList([TAGGER, ManualRNN(3, 4)]), X), "whose .0.rnn and .1 are such"),  # type: ignore[arg-type]
        (lambda: inspect.trace(torch.compile(RNN), X), "OptimizedModule, whose ._orig_mod is one"),  # type: ignore[arg-type]
        (lambda: inspect.trace(nn.Sequential(nn.RNN(3, 4)), X), "whose .0 swap_rnn turns into one"),  # type: ignore[arg-type]
        (lambda: inspect.trace(nn.Linear(3, 4), X), "rnn: expected a ManualRNN, got Linear"),  # type: ignore[arg-type]
        (lambda: inspect.spectral_radius(RNN), "weight_hh: expected a Tensor, got ManualRNN"),  # type: ignore[arg-type]
        (lambda: manual_rnn.swap_rnn("x"), "model: expected a Module, got str"),  # type: ignore[type-var]
        (lambda: manual_rnn.swap_rnn(nn.RNN), "model: expected a Module, got the class RNN"),  # type: ignore[type-var]
        (lambda: inspect.step_jacobians(SEEN.passes[0], -1), "sequence: expected 0 to 1, got -1"),
        (lambda: inspect.spectral_radius(X), "weight_hh: expected shape (..., H, H), got (2, 5, 3)"),
    ],
)
def test_in_these_words(call: Callable[[], Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        call()


@pytest.mark.parametrize("kind", [nn.GELU, nn.Tanh, nn.PReLU, int, torch.autograd.Function])
def test_a_class_is_no_nonlinearity(kind: Any) -> None:
    """As nn.RNN, which knows none but two names, it says so when it is built."""
    with pytest.raises(ValueError, match="Unknown nonlinearity"):
        nn.RNN(3, 4, nonlinearity=kind)
    with pytest.raises(ValueError, match=rf"an instance of a module, got the class {kind.__name__}; write "):
        ManualRNN(3, 4, nonlinearity=kind)
    with pytest.raises(ValueError, match="Unknown nonlinearity"):
        ManualRNN(3, 4, nonlinearity="gelu")
