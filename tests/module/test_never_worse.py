r"""Situations of real programs, a table for each kind: whatever `nn.RNN` gives, on every kernel.

A situation is a function of a network of 4 inputs and 6 states, which returns tensors or plain values. One
in which `nn.RNN` raises would compare nothing, and fails.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from helpers import KERNELS, kernels_for
from internals import KernelName
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, vjp
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext
from torch.utils._pytree import tree_leaves

from manual_rnn import ManualRNN, use_kernel

Situation = Callable[[Any], Any]
DTYPES = [torch.float32, torch.float64]
PAIRS = [(kernel, dtype) for dtype in DTYPES for kernel in [*kernels_for(dtype), "default"]]
EVERY_KERNEL_AND_DTYPE = pytest.mark.parametrize(("kernel", "dtype"), PAIRS, ids=str)
OPEN = pytest.mark.parametrize(  # the vendor's is one sealed call, which no transform enters
    ("kernel", "dtype"), [pair for pair in PAIRS if pair[0] != "aten"], ids=str
)
OPTIONS: list[dict[str, Any]] = [{}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True}]
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS, ids=str)


def input_of(rnn: Any, T: int = 5) -> Tensor:
    return torch.randn(T, 3, 4, dtype=rnn.weight_hh_l0.dtype)


def packed_of(rnn: Any) -> PackedSequence:
    return pack_padded_sequence(input_of(rnn), torch.tensor([3, 5, 2]), enforce_sorted=False)


def gradients(rnn: Any) -> list[Tensor | None]:
    return [p.grad for p in rnn.parameters()]


def outcome(situation: Situation, rnn: Any) -> Any:
    torch.manual_seed(1)
    try:
        return situation(rnn)
    except Exception as error:
        return type(error)


def assert_as_nn_rnn(
    situation: Situation,
    kernel: KernelName,
    dtype: torch.dtype,
    kind: type[ManualRNN] = ManualRNN,
    **options: Any,
) -> None:
    torch.manual_seed(0)
    builtin = nn.RNN(4, 6, dtype=dtype, **options)
    manual = kind.from_builtin(deepcopy(builtin))
    expected = outcome(situation, builtin)
    assert not isinstance(expected, type), f"nn.RNN raises {expected}: nothing to compare"
    with use_kernel(kernel):
        found = outcome(situation, manual)
    bound = 1e-11 if dtype == torch.float64 else 1e-5
    for left, right in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        if isinstance(right, Tensor):
            torch.testing.assert_close(left, right, rtol=bound, atol=bound, equal_nan=True)
        else:
            assert left == right, f"{left} is not {right}"


def run(table: dict[str, Situation], every: Any = None) -> Any:
    """A test of every situation in a table, for every kernel and precision."""

    @(every or EVERY_KERNEL_AND_DTYPE)
    @pytest.mark.parametrize("name", table)
    def test(name: str, dtype: torch.dtype, kernel: KernelName) -> None:
        assert_as_nn_rnn(table[name], kernel, dtype)

    return test


def pulled_back(rnn: Any) -> Any:
    out, pull, *_ = vjp(lambda x: rnn(x)[0], input_of(rnn))
    return pull(torch.ones_like(out))


def escaped_input(rnn: Any) -> Any:
    kept: dict[str, Tensor] = {}
    grad(lambda x: rnn(kept.setdefault("input", x * 1))[0].sum())(input_of(rnn))
    return rnn(kept["input"])[0]


def escaped_output(rnn: Any) -> Any:
    kept: dict[str, Tensor] = {}
    grad(lambda x: kept.setdefault("output", rnn(x)[0]).sum())(input_of(rnn))
    return kept["output"] * 2


test_a_wrapper_that_outlives_its_transform = run(
    {"vjp": pulled_back, "input": escaped_input, "output": escaped_output}, OPEN
)


def own_memory(grads: Any) -> bool:
    return len({g.data_ptr() for g in grads}) == len(list(grads))


def trained(rnn: Any) -> bool:
    rnn(input_of(rnn))[0].sum().backward()
    return own_memory([g for g in gradients(rnn) if g is not None])


def clipped_twice(rnn: Any) -> Any:
    rnn(input_of(rnn))[0].sum().backward()
    for p in rnn.parameters():
        p.grad.mul_(0.5)
    rnn(input_of(rnn))[0].sum().backward()
    return gradients(rnn)


test_no_two_results_share_memory = run(
    {
        "backward": trained,
        "gradients halved in place": clipped_twice,
        "create_graph": lambda rnn: own_memory(
            torch.autograd.grad(rnn(input_of(rnn))[0].sum(), list(rnn.parameters()), create_graph=True)
        ),
        "output and h_n": lambda rnn: own_memory([x.detach() for x in rnn(input_of(rnn, 1))]),
    }
)


test_no_two_results_of_a_transform_share_memory = run(
    {
        "func.grad": lambda rnn: own_memory(
            grad(lambda w: functional_call(rnn, w, (input_of(rnn),))[0].sum())(
                dict(rnn.named_parameters())
            ).values()
        ),
    },
    OPEN,
)


class Log(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


def logged(rnn: Any) -> bool:
    with Log() as log:
        rnn(input_of(rnn))
    words = "rnn_tanh", "manual_rnn", "tanh", "_cudnn_rnn"
    return any(word in call for call in log.calls for word in words)


def traced(**how: Any) -> Situation:
    def situation(rnn: Any) -> Any:
        x = input_of(rnn)
        graph = make_fx(lambda x: rnn(x)[0], **how)(x)
        return graph(x), graph(x + 1)

    return situation


def traced_with_weights(**how: Any) -> Situation:
    """Weights are arguments too: a tensor from outside can't meet one without numbers."""

    def situation(rnn: Any) -> Any:
        x, weights = input_of(rnn), {name: p.detach() for name, p in rnn.named_parameters()}
        graph = make_fx(lambda w, x: functional_call(rnn, w, (x,))[0], **how)(weights, x)
        return graph(weights, x), graph({name: 2 * w for name, w in weights.items()}, x + 1)

    return situation


test_somebody_looks_on = run(
    {
        "TorchFunctionMode": logged,
        "make_fx": traced(),
        "make_fx before dispatch": traced(pre_dispatch=True),
        "make_fx, fake": traced_with_weights(tracing_mode="fake"),
        "make_fx, symbolic": traced_with_weights(tracing_mode="symbolic"),
    },
    OPEN,
)


def swapped(name: str, wanted: bool = True) -> Situation:
    """`.data` replaced between forward and backward, as `vector_to_parameters`, SAM and EMA do."""

    def situation(rnn: Any) -> Any:
        x = input_of(rnn).requires_grad_(wanted)
        loss = rnn(x)[0].square().sum()
        victim = x if name == "input" else getattr(rnn, name)
        victim.data = torch.zeros_like(victim)
        loss.backward()
        return x.grad, gradients(rnn)

    return situation


def swapped_activation(rnn: Any) -> Any:
    x = input_of(rnn).requires_grad_()
    between = x * 2
    loss = rnn(between)[0].square().sum()
    between.data = torch.zeros_like(between)
    loss.backward()
    return x.grad, gradients(rnn)


test_data_swapped_before_backward = run(
    {
        "input": swapped("input"),
        "input without gradient": swapped("input", wanted=False),
        "an activation": swapped_activation,
        "weight_ih": swapped("weight_ih_l0"),
        "weight_hh": swapped("weight_hh_l0"),
        "bias_ih": swapped("bias_ih_l0"),
    }
)


def frozen_with_state_written(rnn: Any) -> Any:
    rnn.requires_grad_(False)
    x, hx = input_of(rnn).requires_grad_(), torch.zeros(1, 3, 6, dtype=rnn.weight_hh_l0.dtype)
    out = rnn(x, hx)[0].sum()
    hx.add_(1)
    out.backward()
    return x.grad


def frozen_with_input_written(rnn: Any) -> Any:
    rnn.weight_ih_l0.requires_grad_(False)
    x = input_of(rnn)
    out = rnn(x)[0].sum()
    x.add_(1)
    out.backward()
    return gradients(rnn)


def plain_input_then_weights_written(rnn: Any) -> Any:
    """Nothing reads the gradient of the input, so nothing needs the weights that it would come through."""
    out = rnn(input_of(rnn))[0].sum()
    with torch.no_grad():
        rnn.weight_ih_l0.add_(1)
    out.backward()
    return gradients(rnn)


def inference_input(rnn: Any) -> Any:
    rnn.weight_ih_l0.requires_grad_(False)
    with torch.inference_mode():
        x = input_of(rnn)
    rnn(x)[0].sum().backward()
    return gradients(rnn)


def one_step_then_weights_stepped(rnn: Any) -> Any:
    out = rnn(input_of(rnn, 1))[0].sum()
    with torch.no_grad():
        rnn.weight_hh_l0.add_(1)
    out.backward()
    return gradients(rnn)


def packed_through_hooks(rnn: Any) -> Any:
    """Hooks that change the dtype meet floating numbers only."""
    with saved_tensors_hooks(lambda x: x.to(torch.bfloat16), lambda x: x.to(rnn.weight_hh_l0.dtype)):
        out, _ = rnn(packed_of(rnn))
    out.data.sum().backward()
    return [g.isfinite().all().item() for g in gradients(rnn) if g is not None]


test_no_more_is_kept_than_backward_needs = run(
    {
        "a frozen network's hx": frozen_with_state_written,
        "the input of a frozen weight": frozen_with_input_written,
        "weights of an input without gradient": plain_input_then_weights_written,
        "an inference tensor": inference_input,
        "T = 1": one_step_then_weights_stepped,
        "packed, through hooks": packed_through_hooks,
    }
)


EDITS: dict[str, Callable[[Tensor], Any]] = {
    "add_": lambda o: o.add_(1),
    "relu_": torch.relu_,
    "a slice": lambda o: o[0].zero_(),
    "an item": lambda o: o.__setitem__((slice(None), 0), 0.0),
    "detached": lambda o: o.detach().mul_(0),
    ".data": lambda o: o.data.mul_(0),
    "numpy": lambda o: o.detach().numpy().fill(0),
    "dropout_": lambda o: torch.dropout_(o, 0.5, True),
    "detach_": lambda o: o.detach_(),
}


@KERNELS
@EVERY_OPTION
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("form", ["padded", "packed"])
def test_output_edited_in_place(form: str, edit: str, options: dict[str, Any], kernel: KernelName) -> None:
    def situation(rnn: Any) -> Any:
        output, h_n = rnn(input_of(rnn) if form == "padded" else packed_of(rnn))
        output = output if isinstance(output, Tensor) else output.data
        EDITS[edit](output)
        (output.square().sum() + h_n.sum()).backward()
        return output, h_n, gradients(rnn)

    assert_as_nn_rnn(
        situation,
        kernel,
        torch.float32,
        **(options if form == "padded" else {**options, "batch_first": False}),
    )


def retained(rnn: Any, given: Any) -> Any:
    output, h_n = rnn(given)
    output = output if isinstance(output, Tensor) else output.data
    output.retain_grad()
    h_n.sum().backward()
    return output.grad is None, gradients(rnn)


def hooked(rnn: Any, given: Any) -> Any:
    output, h_n = rnn(given)
    output = output if isinstance(output, Tensor) else output.data
    output.register_hook(torch.zeros_like)
    (h_n.sum() + output.sum()).backward()
    return gradients(rnn)


def unused(rnn: Any, given: Any) -> Any:
    output, h_n = rnn(given)
    output = output if isinstance(output, Tensor) else output.data
    return torch.autograd.grad(h_n.sum(), output, allow_unused=True)[0] is None


@KERNELS
@EVERY_OPTION
@pytest.mark.parametrize("look", [retained, hooked, unused], ids=lambda look: look.__name__)
@pytest.mark.parametrize("form", [input_of, packed_of], ids=lambda form: form.__name__)
def test_h_n_is_a_result_of_its_own(
    form: Any, look: Any, options: dict[str, Any], kernel: KernelName
) -> None:
    options = {k: v for k, v in options.items() if k != "batch_first" or form is input_of}
    assert_as_nn_rnn(lambda rnn: look(rnn, form(rnn)), kernel, torch.float32, **options)


@KERNELS
@EVERY_OPTION
def test_packed_under_another_default_device(options: dict[str, Any], kernel: KernelName) -> None:
    def situation(rnn: Any) -> Any:
        packed, hx = packed_of(rnn), torch.randn(len(rnn.all_weights), 3, 6)
        with torch.device("meta"):
            output, h_n = rnn(packed, hx)
            (output.data.sin().sum() + h_n.sum()).backward()
        return output.data, h_n, gradients(rnn)

    assert_as_nn_rnn(situation, kernel, torch.float32, **(options | {"batch_first": False}))


def stepwise(rnn: Any, frozen: str = "") -> None:
    rnn.requires_grad_(True).get_parameter("weight_ih_l0").requires_grad_(not frozen)
    rnn(torch.randn(1, 3, 4))[0].sum().backward()


DEFAULT_DEVICE: dict[str, Callable[[Any], Any]] = {
    "a step": stepwise,
    "a step of frozen weights": partial(stepwise, frozen="weight_ih_l0"),
    "many steps": lambda rnn: rnn(torch.randn(20, 3, 4)),
    "many of frozen weights": lambda rnn: rnn.requires_grad_(False)(torch.ones(20, 3, 4, requires_grad=True)),
    "packed": lambda rnn: rnn(packed_of(rnn)),
    "packed, one step": lambda rnn: rnn(PackedSequence(torch.randn(3, 4), torch.tensor([3]))),
}


@EVERY_OPTION
@pytest.mark.parametrize("name", DEFAULT_DEVICE)
def test_a_default_device_is_called_as_rarely(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch.set_default_device`, whose handler in Python is called for whatever is read of a tensor."""
    calls, original = 0, DeviceContext.__torch_function__

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(DeviceContext, "__torch_function__", counted)
    counts = []
    for kind in (nn.RNN, ManualRNN):
        rnn, calls = kind(4, 6, **options), 0
        with torch.device("cpu"):
            DEFAULT_DEVICE[name](rnn)
        counts.append(calls)
    assert counts[1] <= counts[0]


@pytest.mark.parametrize("form", ["padded", "packed"])
def test_results_belong_to_a_subclass_under_a_default_device(form: str) -> None:
    class Named(Tensor):
        pass

    def situation(rnn: Any) -> Any:
        x = input_of(rnn).as_subclass(Named)
        with torch.device("cpu"):
            output, h_n = rnn(
                x if form == "padded" else PackedSequence(x[:, 0], torch.ones(5, dtype=torch.int64))
            )
        output = output if isinstance(output, Tensor) else output.data
        return type(output), type(h_n), output.as_subclass(Tensor)

    assert_as_nn_rnn(situation, "default", torch.float32)


def misaligned(x: Tensor) -> Tensor:
    buffer = bytearray(x.numel() * x.element_size() + 1)
    odd = torch.frombuffer(buffer, dtype=x.dtype, offset=1, count=x.numel()).view(x.shape)
    return odd.copy_(x)


ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "not aligned": misaligned,
    "negated": lambda x: torch.complex(x, -x).conj().imag,
    "strided": lambda x: torch.stack([x, x], dim=-1)[..., 1],
    "transposed": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    "offset": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "sparse": lambda x: x.to_sparse_csr() if x.dim() == 2 else x,
    "zero without memory": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    "subclass": lambda x: x.as_subclass(Plain),
}


class Plain(Tensor):
    """A subclass that changes nothing."""


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["input", "hx", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_odd_tensors_by_default(dtype: torch.dtype, name: str, odd: str) -> None:
    """Each tensor of a call in turn; the default never raises a kernel's reason."""

    def situation(rnn: Any) -> Any:
        tensors = {"input": input_of(rnn), "hx": torch.randn(1, 3, 6, dtype=dtype)}
        tensors |= {k: p.detach() for k, p in rnn.named_parameters()}
        tensors[name] = ODD[odd](tensors[name])
        x, hx = tensors.pop("input"), tensors.pop("hx")
        with torch.no_grad():
            output, h_n = functional_call(rnn, tensors, (x, hx))
        return output.as_subclass(Tensor), h_n.as_subclass(Tensor)

    if isinstance(outcome(situation, nn.RNN(4, 6, dtype=dtype)), type):
        found = outcome(situation, ManualRNN(4, 6, dtype=dtype))  # nn.RNN can't: ours may
        assert not isinstance(found, type) or odd == "sparse"
    else:
        assert_as_nn_rnn(situation, "default", dtype)


@pytest.mark.parametrize("name", ["check_input", "check_forward_args", "check_hidden_size", "permute_hidden"])
def test_overrides_take_effect_as_often(name: str) -> None:
    def situation(rnn: Any) -> int:
        calls: list[int] = []
        original = getattr(rnn, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return original(*args, **kwargs)

        setattr(rnn, name, counted)
        for arguments in (
            (input_of(rnn),),
            (input_of(rnn), torch.zeros(1, 3, 6)),
            (packed_of(rnn), torch.zeros(1, 3, 6)),
            (input_of(rnn)[:, 0],),
        ):
            rnn(*arguments)
        return len(calls)

    assert_as_nn_rnn(situation, "default", torch.float32)


def test_an_overridden_check_can_refuse() -> None:
    class Strict(ManualRNN):
        def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
            raise ValueError("not today")

    with pytest.raises(ValueError, match="not today"):
        Strict(4, 6)(torch.randn(5, 3, 4))


class Wrong(ManualRNN):
    """An output that is off by a hundredth."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, h_n = super().forward(*args, **kwargs)
        return output * 1.01, h_n


def unlike(rnn: Any) -> bool:
    return isinstance(rnn, ManualRNN)


def raising_in_one(rnn: Any) -> bool:
    if unlike(rnn):
        raise ValueError
    return False


def without_one_gradient(rnn: Any) -> Any:
    grads = gradients(trained(rnn) and rnn)
    return [None, *grads[1:]] if unlike(rnn) else grads


@pytest.mark.parametrize(
    ("kind", "situation", "words"),
    [
        (Wrong, pulled_back, "not close"),
        (ManualRNN, unlike, "True is not False"),
        (ManualRNN, raising_in_one, "ValueError.* is not False"),
        (ManualRNN, without_one_gradient, "None|not close|is not"),
        (ManualRNN, lambda rnn: rnn.nothing, "nothing to compare"),
    ],
)
def test_the_table_can_fail(kind: type[ManualRNN], situation: Situation, words: str) -> None:
    """Another number, another value, a gradient that isn't there, and what raises in one or in both."""
    with pytest.raises(AssertionError, match=words):
        assert_as_nn_rnn(situation, "default", torch.float32, kind)
    assert_as_nn_rnn(pulled_back, "default", torch.float32)
