r"""The two recurrences themselves, against autograd through the judge's loop."""

import threading
from itertools import product
from typing import Any

import pytest
import torch
from helpers import assert_same, packed
from internals import OPS, elman, linear_recurrence
from loop import PHI, recurrence
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import jvp, vmap

SIZES = torch.tensor([3, 2, 2, 1])
FORMS = {
    "padded": (False, None),
    "packed": (True, None),
    "ensemble": (False, 2),
    "packed ensemble": (True, 2),
}
CASES = list(product(FORMS, (False, True), PHI))
FUNCTIONS = {"elman": elman, "linear_recurrence": linear_recurrence}


def draw(name: str, form: str, phi: str, H: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    packed, G = FORMS[form]
    group = () if G is None else (G,)
    rows = (*group, 8, H) if packed else (*group, 4, 3, H)
    shapes = rows, (*group, 3, H) if name == "elman" else rows, (*group, H, H)
    x, y, w = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    y = PHI[phi](y) if name == "linear_recurrence" and phi != "relu" else y
    return x, y, w


def both(name: str, form: str, reverse: bool, phi: str):
    packed = FORMS[form][0]
    ours = lambda x, y, w: FUNCTIONS[name](x, y, w, SIZES if packed else None, phi, reverse, "default")  # noqa: E731
    return ours, lambda x, y, w: recurrence(name, x, y, w, SIZES if packed else None, phi, reverse)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("form", "reverse", "phi"), CASES)
def test_values_and_derivatives_to_the_second(name, form, reverse, phi):
    results = []
    for function in both(name, form, reverse, phi):
        torch.manual_seed(4)
        args = [x.requires_grad_() for x in draw(name, form, phi)]
        out = function(*args)
        first = torch.autograd.grad(
            out, args, torch.randn_like(out), create_graph=True, materialize_grads=True
        )
        second = torch.autograd.grad(
            torch.stack([g.sin().sum() for g in first]).sum(), args, materialize_grads=True, retain_graph=True
        )
        tangents = tuple(torch.randn_like(x) for x in args)
        values = [out, *first, *second, jvp(function, tuple(args), tangents)[1]]
        results.append({str(number): value.detach() for number, value in enumerate(values)})
    found, expected = results
    assert_same(found, expected)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(name, form, reverse):
    args = [x.requires_grad_() for x in draw(name, form, "tanh")]
    function = both(name, form, reverse, "tanh")[0]
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, args, fast_mode=True, **modes)
    assert gradgradcheck(function, args, fast_mode=True, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("layout", ["transposed", "expanded", "strided"])
def test_strides_change_nothing(name, layout):
    x, y, w = draw(name, "padded", "tanh")
    change = {
        "transposed": lambda x: x.mT.contiguous().mT,
        "expanded": lambda x: x[..., :1, :].expand(x.shape),
        "strided": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    }[layout]
    args = [change(x) for x in (x, y, w)]
    results = []
    for function in both(name, "padded", True, "tanh"):
        leaves = [x.detach().requires_grad_() for x in args]
        out = function(*leaves)
        slopes = torch.autograd.grad(out.sin().sum(), leaves)
        results.append({"out": out.detach(), **{str(n): g for n, g in enumerate(slopes)}})
    found, expected = results
    assert_same(found, expected)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
def test_the_op_alone_keeps_tangents(name, grad_mode):
    """`torch.ops.manual_rnn.*`, what a compiled graph calls: a tangent is never dropped."""
    args = draw(name, "padded", "tanh")
    tangents = tuple(torch.randn_like(x) for x in args)
    op = getattr(OPS, name)
    run = lambda *args: op(*args, None, "tanh", False, "default")  # noqa: E731
    expected = jvp(both(name, "padded", False, "tanh")[1], args, tangents)[1]
    with grad_mode():
        assert_same({"jvp": jvp(run, args, tangents)[1]}, {"jvp": expected})
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x, t) for x, t in zip(args, tangents, strict=True)]
            assert_same({"dual": forward_ad.unpack_dual(run(*duals)).tangent}, {"dual": expected})


BAD = {
    "h0 broadcast": ("elman", (4, 3, 2), (1, 2), (2, 2), None),
    "h0 without a batch": ("elman", (4, 3, 2), (2,), (2, 2), None),
    "h0 too wide": ("elman", (4, 3, 2), (3, 1), (2, 2), None),
    "w not square": ("elman", (4, 3, 2), (3, 2), (2, 3), None),
    "w a row": ("elman", (4, 3, 2), (3, 2), (1, 2), None),
    "z without steps": ("elman", (3, 2), (3, 2), (2, 2), None),
    "z one axis too many": ("elman", (1, 4, 3, 2), (3, 2), (2, 2), None),
    "w a vector": ("elman", (4, 3, 2), (3, 2), (2,), None),
    "packed h0 too short": ("elman", (8, 2), (2, 2), (2, 2), SIZES),
    "packed z padded": ("elman", (4, 3, 2), (3, 2), (2, 2), SIZES),
    "ensembles of two sizes": ("elman", (2, 4, 3, 2), (2, 3, 2), (1, 2, 2), None),
    "h of another shape": ("linear_recurrence", (4, 3, 2), (4, 1, 2), (2, 2), None),
    "h of fewer steps": ("linear_recurrence", (4, 3, 2), (3, 3, 2), (2, 2), None),
    "a of another size": ("linear_recurrence", (4, 3, 2), (4, 3, 2), (3, 3), None),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("through_op", [False, True])
def test_nothing_broadcasts(case, through_op):
    name, *shapes, sizes = BAD[case]
    function: Any = getattr(OPS, name) if through_op else FUNCTIONS[name]
    with pytest.raises(ValueError, match=f"{name}: expected .*, got "):
        function(*map(torch.zeros, shapes), sizes, "tanh", False, "default")


def test_batch_sizes_of_other_rows_raise():
    with pytest.raises((RuntimeError, ValueError)):
        elman(torch.zeros(9, 2), torch.zeros(3, 2), torch.zeros(2, 2), SIZES, "tanh", False, "default")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_packed_batch_without_steps_under_a_profiler(name):
    x, w, sizes = torch.ones(0, 2), torch.ones(2, 2), torch.tensor([], dtype=torch.int64)
    with torch.profiler.profile(acc_events=True):
        out = FUNCTIONS[name](x, x, w, sizes, "tanh", False, "default")
    assert out.shape == (0, 2)


def test_relu_has_no_slope_at_zero_and_one_at_nan():
    z = torch.tensor([[[0.0, -1.0, 2.0, float("nan")]]], requires_grad=True)
    h = elman(z, torch.zeros(1, 4), torch.zeros(4, 4), None, "relu", False, "torch")
    h.backward(torch.ones_like(h))
    assert z.grad is not None
    assert z.grad.tolist() == [[[0, 0, 1, 1]]]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_modes_without_gradients(mode):
    args = [x.requires_grad_() for x in draw("elman", "packed", "tanh")]
    ours, judge = both("elman", "packed", False, "tanh")
    with mode():
        out = ours(*args)
    assert not out.requires_grad
    assert out.is_inference() == (mode is torch.inference_mode)
    assert_same({"out": out.clone()}, {"out": judge(*args).detach()})


def test_threads():
    """Forward and backward in several threads at once."""
    ours, judge = both("elman", "padded", False, "tanh")
    args = [draw("elman", "padded", "tanh") for _ in range(8)]
    found: dict[int, Tensor] = {}

    def work(number: int) -> None:
        for _ in range(10):
            leaves = [x.clone().requires_grad_() for x in args[number]]
            found[number] = torch.autograd.grad(ours(*leaves).sin().sum(), leaves)[2]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, own in enumerate(args):
        leaves = [x.clone().requires_grad_() for x in own]
        expected = torch.autograd.grad(judge(*leaves).sin().sum(), leaves)[2]
        assert_same({"dw": found[number]}, {"dw": expected})


def samples() -> list[tuple[Any, ...]]:
    """Padded and packed, one weight matrix and three, both directions and nonlinearities."""
    sizes = packed(torch.randn(4, 3, 1), [4, 2, 1]).batch_sizes

    def tensor(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    return [
        ((tensor(4, 3, 2), tensor(3, 2), tensor(2, 2)), None, "tanh", False),
        ((tensor(4, 3, 2), tensor(3, 2), tensor(2, 2)), None, "relu", True),
        ((tensor(7, 2), tensor(3, 2), tensor(2, 2)), sizes, "tanh", True),
        ((tensor(3, 4, 3, 2), tensor(3, 3, 2), tensor(3, 2, 2)), None, "tanh", True),
    ]


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # of opcheck, 2.14 on
@pytest.mark.parametrize("name", ["elman", "linear_recurrence"])
@pytest.mark.parametrize("number", range(4))
def test_opcheck(name: str, number: int) -> None:
    (x, h0, w), sizes, phi, reverse = samples()[number]
    second = h0 if name == "elman" else torch.tanh(x.detach()).requires_grad_()
    arguments = x, second, w, sizes, phi, reverse
    torch.library.opcheck(getattr(OPS, name).default, arguments)
    torch.library.opcheck(getattr(OPS, name).kernel, (*arguments, "default"))


def test_vmap_over_batch_sizes_raises():
    z, sizes = torch.zeros(4, 2), torch.tensor([[2, 1, 1], [2, 1, 1]])
    run = lambda sizes: OPS.elman(  # noqa: E731
        z, torch.zeros(2, 2), torch.eye(2), sizes, "tanh", False, "default"
    )
    with pytest.raises(ValueError, match="expected one packing for all, got one for each"):
        vmap(run)(sizes)


@pytest.mark.parametrize("name", ["elman", "linear_recurrence"])
def test_sizes_without_values_are_refused_for_data_that_has_some(name: str) -> None:
    x, w, sizes = torch.randn(8, 2), torch.randn(2, 2), SIZES.to("meta")
    with pytest.raises(RuntimeError, match="meta"):
        getattr(OPS, name)(x, torch.randn(3, 2), w, sizes, "tanh", False, "default")


@pytest.mark.parametrize("name", ["elman", "linear_recurrence", "network"])
def test_sizes_without_numbers_are_refused_in_a_trace(name: str) -> None:
    """The program would run without them, and return memory that nobody wrote."""
    with FakeTensorMode():
        x, h0, w, sizes = torch.empty(5, 3), torch.empty(3, 3), torch.empty(3, 3), torch.tensor([3, 2])
        given: dict[str, tuple[Any, ...]] = {
            "elman": (x, h0, w),
            "linear_recurrence": (x, x, w),
            "network": (x, h0[None], [w, w]),
        }
        run, more = getattr(OPS, name), (False, False) if name == "network" else ()
        run(*given[name], sizes, "tanh", False, *more)
        with pytest.raises(RuntimeError, match="expected batch_sizes with values"):
            run(*given[name], sizes.to("meta"), "tanh", False, *more)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lengths", [None, [5, 3]], ids=["padded", "packed"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_the_operator_of_programs_of_version_0_1(reverse: bool, lengths: Any, bias: bool) -> None:
    """A layer in one direction: `nn.RNN` reads backward beside a direction that reads forward."""
    builtin = torch.nn.RNN(3, 4, bias=bias, bidirectional=reverse, dtype=torch.float64)
    weights = [*builtin.all_weights[-1], None, None][:4]
    x, h0 = torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    given: Any = packed(x, lengths) if lengths else x
    output, h_n = builtin(given, h0.expand(1 + reverse, 2, 4))
    data, sizes = (given.data, given.batch_sizes) if lengths else (x, None)
    found = OPS.layer(data, h0, *weights, sizes, "tanh", reverse, "default")
    expected = getattr(output, "data", output)[..., 4 * reverse :], h_n[-1]
    assert_same(dict(zip("oh", found, strict=True)), dict(zip("oh", expected, strict=True)))
