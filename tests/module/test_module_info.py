r"""The `ModuleInfo` entry for `nn.RNN` with which torch tests itself, run on `ManualRNN`.

It has 32 samples of two layers: the nonlinearities, bias, batch_first, both directions, `hx` or not,
each beside a reference for unbatched input; and packed ones on request. And a list of errors.
"""

import copy
import io
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import assert_same
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from manual_rnn import ManualRNN

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ImportWarning)  # hypothesis, which it would use, isn't there
    from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
torch.backends.__allow_nonbracketed_mutation_flag = True  # type: ignore[attr-defined]  # that import forbids it

INFO = next(info for info in module_db if info.module_cls is nn.RNN)
PACKED = partial(INFO.module_inputs_func, with_packed_sequence=True)
COUNT = len(PACKED(INFO, "cpu", torch.float64, False, True))
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
SAMPLES = pytest.mark.parametrize("number", range(COUNT))
THIRD = pytest.mark.parametrize("number", range(0, COUNT, 3))  # every option still comes both ways


def sample(number: int, dtype: torch.dtype, training: bool, requires_grad: bool = False) -> Any:
    torch.manual_seed(0)
    return PACKED(INFO, "cpu", dtype, requires_grad, training)[number]


def build(given: Any, dtype: torch.dtype, training: bool, kind: type[nn.Module] = ManualRNN) -> Any:
    torch.manual_seed(1)
    constructor = given.constructor_input
    return kind(*constructor.args, **constructor.kwargs, device="cpu", dtype=dtype).train(training)


def flat(results: Any) -> dict[str, Tensor]:
    """Output and `h_n` by name, unpacked."""
    output, h_n = results
    return {"output": output.data if isinstance(output, PackedSequence) else output, "h_n": h_n}


def run(module: nn.Module, given: Any) -> dict[str, Tensor]:
    return flat(module(*given.forward_input.args, **given.forward_input.kwargs))


def test_there_are_samples_of_every_kind() -> None:
    assert COUNT == 64
    kinds = {type(sample(number, torch.float64, True).forward_input.args[0]) for number in range(COUNT)}
    assert kinds == {Tensor, PackedSequence}
    assert len(errors()) >= 7


@MODES
@pytest.mark.parametrize("dtype", INFO.dtypes, ids=str)
@SAMPLES
def test_forward(number: int, dtype: torch.dtype, training: bool) -> None:
    """Against `nn.RNN`, and against torch's own reference for input without a batch."""
    given = sample(number, dtype, training)
    module = build(given, dtype, training)
    found = run(module, given)
    bound = 8 * torch.finfo(dtype).eps
    assert_same(found, run(build(given, dtype, training, nn.RNN), given), bound)
    if not isinstance(given.forward_input.args[0], PackedSequence):
        reference = given.reference_fn(module, *given.forward_input.args, **given.forward_input.kwargs)
        assert_same(found, flat(reference), bound)


def differentiated(given: Any, module: nn.Module) -> tuple[Callable[..., Any], list[Tensor]]:
    """The module as a function of its inputs and parameters, and these."""
    input, *hx = given.forward_input.args
    parameters = dict(module.named_parameters())
    data = input.data if isinstance(input, PackedSequence) else input
    leaves = [data, *hx, *parameters.values()]

    def function(data: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        arranged = input._replace(data=data) if isinstance(input, PackedSequence) else data
        weights = dict(zip(parameters, others[len(hx) :], strict=True))
        results = torch.func.functional_call(module, weights, (arranged, *others[: len(hx)]))
        return tuple(flat(results).values())

    return function, [leaf.detach().requires_grad_() for leaf in leaves]


@MODES
@THIRD
def test_gradients(number: int, training: bool) -> None:
    given = sample(number, torch.float64, training)
    function, leaves = differentiated(given, build(given, torch.float64, training))
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True, check_batched_grad=True)


@MODES
@pytest.mark.parametrize("number", [0, 21, 42, 63])
def test_second_gradients(number: int, training: bool) -> None:
    given = sample(number, torch.float64, training)
    function, leaves = differentiated(given, build(given, torch.float64, training))
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@MODES
@THIRD
def test_factory_arguments(number: int, training: bool) -> None:
    """Parameters are made where and as asked for; without being asked, as by default."""
    given = sample(number, torch.float64, training)
    for device, dtype in (("cpu", torch.float64), ("meta", torch.float16)):
        kwargs = given.constructor_input.kwargs
        for parameter in ManualRNN(**kwargs, device=device, dtype=dtype).parameters():
            assert parameter.device.type == device
            assert parameter.dtype == dtype
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in ManualRNN(**kwargs).parameters())


@MODES
@THIRD
def test_pickle_and_deepcopy(number: int, training: bool) -> None:
    given = sample(number, torch.float32, training)
    module = build(given, torch.float32, training)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (torch.load(file, weights_only=False), copy.deepcopy(module)):
        assert twin.training == training
        assert_same(run(twin, given), run(module, given), bound=0)


@MODES
@SAMPLES
def test_non_contiguous_inputs(number: int, training: bool) -> None:
    """Results and gradients don't depend on how the arguments lie in memory."""
    given = sample(number, torch.float64, training)
    function, leaves = differentiated(given, build(given, torch.float64, training))
    spread = [leaf.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_() for leaf in leaves]
    assert not any(leaf.is_contiguous() for leaf in spread if leaf.numel() > 1)
    names = [str(number) for number in range(len(leaves))]
    found = []
    for arguments in (spread, leaves):
        results = function(*arguments)
        gradients = torch.autograd.grad(sum(result.square().sum() for result in results), arguments)
        found.append(dict(zip(["output", "h_n", *names], [*results, *gradients], strict=True)))
    assert_same(found[0], found[1])


@MODES
def test_train_and_eval_differ_where_there_is_dropout(training: bool) -> None:
    assert INFO.train_and_eval_differ
    module, input = ManualRNN(2, 3, 2, dropout=0.5).train(training), torch.randn(5, 2, 2)
    assert torch.equal(module(input)[0], module(input)[0]) is not training


def errors() -> list[Any]:
    return [
        entry
        for dtype in (torch.float32, torch.float64)
        for entry in INFO.module_error_inputs_func(INFO, "cpu", dtype, False, True)
    ]


@MODES
@pytest.mark.parametrize("entry", errors(), ids=lambda entry: entry.error_regex[:40])
def test_errors(entry: Any, training: bool) -> None:
    given = entry.module_error_input

    def attempt() -> None:
        module = ManualRNN(*given.constructor_input.args, **given.constructor_input.kwargs)
        module.train(training)
        if entry.error_on is ModuleErrorEnum.FORWARD_ERROR:
            module(*given.forward_input.args, **given.forward_input.kwargs)

    with pytest.raises(entry.error_type, match=entry.error_regex):
        attempt()
