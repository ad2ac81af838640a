r"""`swap_rnn`, `from_builtin` and `to_builtin`: the same parameters, hooks and ties in another class."""

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import ByHand, LeakyRNN
from helpers import assert_same, gradients, packed
from models import MODELS, OPTIMIZERS, VOCABULARY, WordModel, made, train
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from manual_rnn import ManualRNN, swap_rnn, use_kernel

CONFIGURATIONS = [
    {},
    {"nonlinearity": "relu", "bias": False},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"num_layers": 3, "dropout": 0.4},
]


def builtin(seed: int = 0, **kwargs: Any) -> Any:
    torch.manual_seed(seed)
    return nn.RNN(3, 4, dtype=torch.float64, **kwargs)


def inputs(seed: int = 2) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(5, 2, 3, dtype=torch.float64)


# The same answers


@pytest.mark.parametrize("kwargs", CONFIGURATIONS, ids=str)
def test_there_and_back_gives_the_same_answers(kwargs: dict[str, Any]) -> None:
    rnn, input = builtin(**kwargs), inputs().requires_grad_()
    expected = gradients(rnn, input)
    parameters = list(rnn.parameters())
    assert swap_rnn(rnn) is rnn
    assert type(rnn) is ManualRNN
    assert_same(gradients(rnn, input), expected)
    with use_kernel("reference"):
        assert_same(gradients(rnn, input), expected, bound=0)
    assert swap_rnn(rnn, to=nn.RNN) is rnn
    assert type(rnn) is nn.RNN
    assert_same(gradients(rnn, input), expected, bound=0)
    assert all(a is b for a, b in zip(rnn.parameters(), parameters, strict=True))


@pytest.mark.parametrize("kwargs", CONFIGURATIONS, ids=str)
def test_a_swapped_module_lacks_nothing_and_keeps_nothing_else(kwargs: dict[str, Any]) -> None:
    rnn = builtin(**kwargs)
    before = vars(rnn).keys()
    swapped, made = swap_rnn(deepcopy(rnn)), ManualRNN(3, 4, dtype=torch.float64, **kwargs)
    assert vars(swapped).keys() == vars(made).keys()
    assert repr(swapped) == repr(made)
    assert swapped._all_weights == made._all_weights
    back = swap_rnn(swapped, to=nn.RNN)
    assert vars(back).keys() == before
    assert repr(back) == repr(rnn)


def test_packed_input_after_the_swap() -> None:
    rnn, input = builtin(num_layers=2, bidirectional=True), inputs()
    pack = lambda input: packed(input, [3, 5])  # noqa: E731
    expected = gradients(rnn, input, pack=pack)
    assert_same(gradients(swap_rnn(rnn), input, pack=pack), expected)


def test_every_rnn_at_any_depth_and_no_other_module() -> None:
    model, input = made("mixed"), inputs()
    expected, names = gradients(model, input), list(dict(model.named_parameters()))
    strangers = model.lstm, model.gru, model.cell
    assert swap_rnn(model) is model
    assert type(model.first) is type(model.rest["deep"][1]) is ManualRNN
    assert (model.lstm, model.gru, model.cell) == strangers
    assert [type(m) for m in strangers] == [nn.LSTM, nn.GRU, nn.RNNCell]
    assert list(dict(model.named_parameters())) == names
    assert_same(gradients(model, input), expected)
    swap_rnn(model, to=nn.RNN)
    assert type(model.first) is type(model.rest["deep"][1]) is nn.RNN
    assert_same(gradients(model, input), expected, bound=0)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_model_without_an_rnn_is_returned_as_it_is(kind: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), kind(2, 2))
    found = (
        f"nothing to swap: expected an nn.RNN in the model, found 1 Sequential, 1 Linear, 1 {kind.__name__}"
    )
    with pytest.warns(UserWarning, match=found) as seen:
        assert [type(m) for m in swap_rnn(model)] == [nn.Linear, kind]
    assert seen[0].filename == __file__
    words = WordModel(kind.__name__)
    with pytest.warns(UserWarning, match="nothing to swap"):
        assert swap_rnn(words) is words
    assert type(words.rnn) is kind


def test_nothing_to_swap_back_warns_too_and_names_no_more_than_ten_kinds() -> None:
    kinds = nn.ModuleList([type(f"Kind{number}", (nn.Identity,), {})() for number in range(20)])
    with pytest.warns(UserWarning, match=r"expected a ManualRNN in the model, found .*, 1 Kind8, \.\.\.$"):
        swap_rnn(kinds, to=nn.RNN)


def test_swapping_twice_changes_nothing() -> None:
    model = swap_rnn(made("mixed"))
    before = model.first
    assert swap_rnn(model).first is before
    assert type(before) is ManualRNN


def test_tied_modules_stay_tied() -> None:
    model = swap_rnn(made("mixed"))
    assert model.again is model.first
    assert isinstance(model.again, ManualRNN)


def test_tied_parameters_stay_tied() -> None:
    rnn = builtin(num_layers=2)
    rnn.weight_hh_l1 = rnn.weight_hh_l0
    expected = gradients(rnn, inputs())
    swap_rnn(rnn)
    assert rnn.weight_hh_l1 is rnn.weight_hh_l0
    assert_same(gradients(rnn, inputs()), expected)


def test_no_random_number_is_drawn() -> None:
    model = made("mixed")
    before = torch.get_rng_state()
    swap_rnn(swap_rnn(model), to=nn.RNN)
    ManualRNN.from_builtin(model.first).to_builtin()
    assert torch.equal(torch.get_rng_state(), before)


def test_mode_and_requires_grad_are_kept() -> None:
    rnn = builtin(num_layers=2, dropout=0.5).eval()
    rnn.weight_hh_l0.requires_grad_(False)
    rnn.mine = "kept"
    expected = gradients(rnn, inputs())
    swap_rnn(rnn)
    assert not rnn.training
    assert rnn.mine == "kept"
    assert [n for n, p in rnn.named_parameters() if not p.requires_grad] == ["weight_hh_l0"]
    assert_same(gradients(rnn, inputs()), expected)


def test_meta_and_double_conversions_after_the_swap() -> None:
    with torch.device("meta"):
        rnn = swap_rnn(nn.RNN(3, 4))
    assert rnn(torch.empty(5, 2, 3, device="meta"))[0].shape == (5, 2, 4)
    rnn = swap_rnn(rnn.to_empty(device="cpu").double(), to=nn.RNN)
    rnn.reset_parameters()
    assert rnn(inputs())[0].dtype == torch.float64


# What hangs on the module


def test_hooks_of_every_kind_are_kept_and_can_be_removed() -> None:
    rnn, input, called = builtin(), inputs().requires_grad_(), []
    note = lambda name: lambda *args, **kwargs: called.append(name)  # noqa: E731
    handles = [
        rnn.register_forward_pre_hook(note("forward pre")),
        rnn.register_forward_hook(note("forward")),
        rnn.register_full_backward_pre_hook(note("backward pre")),
        rnn.register_full_backward_hook(note("backward")),
        rnn.register_state_dict_pre_hook(note("state pre")),
        rnn.register_state_dict_post_hook(note("state post")),
        rnn.register_load_state_dict_pre_hook(note("load pre")),
        rnn.register_load_state_dict_post_hook(note("load post")),
        rnn.weight_hh_l0.register_hook(note("parameter")),
    ]

    def use() -> list[str]:
        called.clear()
        rnn(input)[0].sum().backward()
        rnn.load_state_dict(rnn.state_dict())
        return list(called)

    expected = use()
    assert len(expected) == len(handles)
    swap_rnn(rnn)
    assert sorted(use()) == sorted(expected)
    swap_rnn(rnn, to=nn.RNN)
    assert sorted(use()) == sorted(expected)
    swap_rnn(rnn)
    for handle in handles:
        handle.remove()
    assert use() == []


def test_a_forward_hook_may_change_the_output() -> None:
    rnn = builtin()
    rnn.register_forward_hook(lambda module, args, output: (2 * output[0], output[1]))
    expected = gradients(rnn, inputs())
    assert_same(gradients(swap_rnn(rnn), inputs()), expected)


PARAMETRIZATIONS: dict[str, Any] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_parametrizations_are_kept_and_can_be_removed(name: str) -> None:
    rnn = builtin(num_layers=2).eval()
    PARAMETRIZATIONS[name](rnn, "weight_hh_l0")
    rnn.eval()
    expected, names = gradients(rnn, inputs()), list(rnn.state_dict())
    twin = swap_rnn(rnn)
    assert isinstance(twin, ManualRNN)
    assert type(twin).__name__ == "ParametrizedManualRNN"
    assert parametrize.is_parametrized(twin, "weight_hh_l0")
    assert list(twin.state_dict()) == names
    assert_same(gradients(twin, inputs()), expected)
    assert_same(gradients(deepcopy(twin), inputs()), expected)
    assert isinstance(swap_rnn(twin, to=nn.RNN), nn.RNN)
    assert_same(gradients(deepcopy(twin), inputs()), expected)
    swap_rnn(twin)
    parametrize.remove_parametrizations(twin, "weight_hh_l0")
    assert type(twin) is ManualRNN
    assert_same({"output": twin(inputs())[0]}, {"output": expected["output"]})


def test_a_copy_that_shares_the_parametrized_class_is_left_alone() -> None:
    rnn = parametrizations.weight_norm(builtin(), "weight_hh_l0")
    copy = deepcopy(rnn)
    assert type(copy) is type(rnn)
    swap_rnn(rnn)
    assert isinstance(copy, nn.RNN)
    assert_same(gradients(rnn, inputs()), gradients(copy, inputs()))


def test_a_parametrization_added_after_the_swap_survives_the_way_back() -> None:
    rnn = parametrizations.weight_norm(swap_rnn(builtin()), "weight_hh_l0")
    expected = gradients(rnn, inputs())
    assert_same(gradients(swap_rnn(rnn, to=nn.RNN), inputs()), expected)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")  # old models have it
def test_old_weight_norm_and_pruning_are_kept() -> None:
    rnn = builtin(num_layers=2)
    nn.utils.weight_norm(rnn, "weight_hh_l0")
    prune.l1_unstructured(rnn, "weight_hh_l1", 0.5)
    expected = gradients(rnn, inputs())
    assert_same(gradients(swap_rnn(rnn), inputs()), expected)
    nn.utils.remove_weight_norm(rnn, "weight_hh_l0")
    prune.remove(rnn, "weight_hh_l1")
    assert set(dict(rnn.named_parameters())) == set(ManualRNN(3, 4, 2)._flat_weights_names)
    assert_same({"output": rnn(inputs())[0]}, {"output": expected["output"]})


def test_a_dropped_weight_is_kept_as_the_plain_tensor_it_is() -> None:
    rnn = builtin()
    raw = nn.Parameter(rnn.weight_hh_l0.detach().clone())
    del rnn.weight_hh_l0
    rnn.flatten_parameters = lambda: None  # as the AWD-LSTM recipe does
    rnn.weight_hh_l0 = raw * 0.5
    expected = gradients(rnn, inputs())
    assert_same(gradients(swap_rnn(rnn), inputs()), expected)
    assert "weight_hh_l0" not in dict(rnn.named_parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_model_compiled_before_the_swap() -> None:
    model = nn.Sequential(builtin())
    compiled: Any = torch.compile(model, backend="eager")
    expected = compiled(inputs())[0]
    swap_rnn(compiled)
    assert type(model[0]) is ManualRNN
    assert_same({"output": compiled(inputs())[0]}, {"output": expected})


# Back in nn.RNN, its caches live


def test_assignment_and_conversion_reach_nn_rnn_on_the_way_back() -> None:
    rnn = swap_rnn(swap_rnn(builtin()), to=nn.RNN)
    rnn.weight_hh_l0 = nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))
    twin = builtin()
    twin.weight_hh_l0 = nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))
    assert rnn._flat_weights[1] is rnn.weight_hh_l0
    assert_same(gradients(rnn, inputs()), gradients(twin, inputs()), bound=0)
    assert_same(gradients(rnn.float(), inputs().float()), gradients(twin.float(), inputs().float()), bound=0)


@pytest.mark.parametrize("to", [ManualRNN, nn.RNN])
def test_pickle_and_deepcopy_after_the_swap(to: Any) -> None:
    rnn = swap_rnn(swap_rnn(builtin(num_layers=2)), to=to)
    expected = gradients(rnn, inputs())
    for copy in deepcopy(rnn), pickle.loads(pickle.dumps(rnn)):
        assert type(copy) is to
        assert_same(gradients(copy, inputs()), expected, bound=0)


# An optimizer made before


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_twenty_steps_before_between_and_after_equal_a_model_never_swapped(
    model_name: str, optimizer_name: str
) -> None:
    model, never = made(model_name), made(model_name)
    optimizer, other = (OPTIMIZERS[optimizer_name](m.parameters()) for m in (model, never))
    losses = train(model_name, model, optimizer, {20: ManualRNN, 40: nn.RNN, 60: ManualRNN})
    expected = train(model_name, never, other, {})
    assert len(losses) == 60
    assert any(isinstance(m, ManualRNN) for m in model.modules())
    assert sum(losses[-5:]) < sum(losses[:5])
    assert model_name != "mixed" or losses[-1] < 0.5 * losses[0]
    assert losses == pytest.approx(expected, rel=1e-10, abs=0)
    assert_same(model.state_dict(), never.state_dict(), bound=1e-10)


# One module


def test_from_builtin_shares_the_parameters_and_leaves_the_given_one_alone() -> None:
    rnn = builtin(num_layers=2, bidirectional=True, batch_first=True, dropout=0.1).eval()
    expected, before = gradients(rnn, inputs()), vars(rnn).copy()
    made = ManualRNN.from_builtin(rnn)
    assert type(made) is ManualRNN
    assert type(rnn) is nn.RNN
    assert vars(rnn) == before
    assert not made.training
    assert all(a is b for a, b in zip(made.parameters(), rnn.parameters(), strict=True))
    assert_same(gradients(made, inputs()), expected)
    back = made.to_builtin()
    assert type(back) is nn.RNN
    assert type(made) is ManualRNN
    assert back is not rnn
    assert all(a is b for a, b in zip(back.parameters(), rnn.parameters(), strict=True))
    assert_same(gradients(back, inputs()), expected, bound=0)


def test_registries_are_not_shared() -> None:
    rnn = builtin()
    handle = rnn.register_forward_hook(lambda module, args, output: None)
    made = ManualRNN.from_builtin(rnn)
    made.register_forward_pre_hook(lambda module, args: None)
    made.weight_hh_l0 = nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))
    made.register_buffer("mask", torch.ones(4), persistent=False)
    made.extra = nn.Linear(1, 1)
    handle.remove()
    assert rnn.weight_hh_l0.any()
    assert not rnn._forward_pre_hooks
    assert not rnn._forward_hooks
    assert len(made._forward_hooks) == 1
    assert not dict(rnn.named_buffers())
    assert not rnn._non_persistent_buffers_set
    assert not list(rnn.children())


def test_from_builtin_of_a_parametrized_module() -> None:
    rnn: Any = parametrizations.weight_norm(builtin(), "weight_hh_l0")
    expected = gradients(rnn, inputs())
    made: Any = ManualRNN.from_builtin(rnn)
    assert made.parametrizations.weight_hh_l0.original0 is rnn.parametrizations.weight_hh_l0.original0
    parametrize.remove_parametrizations(made, "weight_hh_l0")
    assert parametrize.is_parametrized(rnn)
    assert_same(gradients(rnn, inputs()), expected)
    assert_same({"output": made(inputs())[0]}, {"output": expected["output"]})


def test_a_recurrence_of_your_own_on_the_weights_of_an_nn_rnn() -> None:
    rnn, input = builtin(), inputs()
    made = LeakyRNN.from_builtin(rnn)
    assert type(made) is LeakyRNN
    expected = {"output": ByHand(LeakyRNN, rnn, [])(input)[0]}
    assert_same({"output": made(input)[0]}, expected)
    assert type(swap_rnn(rnn, to=LeakyRNN)) is LeakyRNN
    assert_same({"output": rnn(input)[0]}, expected)


# What can't be swapped is named, and nothing is changed


class Noisy(nn.RNN):
    def forward(self, input: Any, hx: Any = None) -> Any:
        output, h_n = super().forward(input, hx)
        return output + torch.randn_like(output), h_n


class WithConstructor(ManualRNN):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.leak = 0.5


def with_forward(rnn: Any) -> Any:
    rnn.forward = lambda input, hx=None: (input, hx)
    return rnn


class Gates(nn.Module):
    def forward(self, gates: Tensor, hidden: Tensor, weight_hh: Tensor) -> Tensor:
        return gates


def with_step_module(rnn: Any) -> Any:
    rnn.step = Gates()
    return rnn


def with_step(rnn: Any) -> Any:
    rnn.step = lambda gates, hidden, weight_hh: gates
    return rnn


REFUSED = {
    "subclass": (lambda: Noisy(3, 4), ManualRNN, "expected RNN itself, got Noisy"),
    "parametrized subclass": (
        lambda: parametrizations.weight_norm(Noisy(3, 4), "weight_hh_l0"),
        ManualRNN,
        "expected RNN itself, got Noisy",
    ),
    "forward on the object": (lambda: with_forward(nn.RNN(3, 4)), ManualRNN, "got forward set on"),
    "a name the other class has": (lambda: with_step(nn.RNN(3, 4)), ManualRNN, "got step set on"),
    "projected": (
        lambda: nn.RNN(3, 4, 1, "tanh", True, False, 0.0, False, 2),
        ManualRNN,
        "expected proj_size 0, got 2",
    ),
    "callable": (lambda: ManualRNN(3, 4, nonlinearity=torch.sin), nn.RNN, "'tanh' or 'relu', got <built-in"),
    "callable module": (lambda: ManualRNN(3, 4, nonlinearity=nn.Tanh()), nn.RNN, r"'relu', got Tanh\(\)"),
    "overridden step": (lambda: LeakyRNN(3, 4), nn.RNN, "expected ManualRNN itself, got LeakyRNN"),
    "step on the object": (lambda: with_step(ManualRNN(3, 4)), nn.RNN, "got step set on"),
    "submodule of that name": (lambda: with_step_module(nn.RNN(3, 4)), ManualRNN, "got step set on"),
    "step module": (lambda: with_step_module(ManualRNN(3, 4)), nn.RNN, "got step set on"),
    "forward on the object, back": (lambda: with_forward(ManualRNN(3, 4)), nn.RNN, "got forward set on"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_its_behaviour_is_refused(case: str) -> None:
    make, to, words = REFUSED[case]
    source = ManualRNN if to is nn.RNN else nn.RNN
    model = nn.ModuleDict({"good": source(3, 4), "bad": nn.Sequential(make())})
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(TypeError, match=words) as error:
        swap_rnn(model, to=to)
    assert "bad.0: " in str(error.value)
    assert "good" not in str(error.value)
    assert [type(m) for m in model.modules()] == kinds
    with pytest.raises(TypeError, match=words):
        ManualRNN.from_builtin(make()) if to is ManualRNN else make().to_builtin()
    with pytest.raises(TypeError, match="the model itself: "):
        swap_rnn(make(), to=to)


def test_all_refused_modules_are_named_at_once() -> None:
    model = nn.Sequential(Noisy(3, 4), nn.RNN(4, 4), with_forward(nn.RNN(4, 4)))
    with pytest.raises(TypeError, match=r"0: expected RNN itself.*2: expected the methods"):
        swap_rnn(model)


@pytest.mark.parametrize("to", [nn.LSTM, nn.Module, nn.RNN(1, 1), "RNN", Noisy])
def test_an_unknown_target_is_refused(to: Any) -> None:
    with pytest.raises(TypeError, match=r"expected nn\.RNN, ManualRNN or a subclass of it, got"):
        swap_rnn(nn.RNN(3, 4), to=to)


def test_a_subclass_with_a_constructor_is_refused() -> None:
    with pytest.raises(TypeError, match="WithConstructor has an __init__ of its own"):
        swap_rnn(nn.RNN(3, 4), to=WithConstructor)
    with pytest.raises(TypeError, match="WithConstructor has an __init__ of its own"):
        WithConstructor.from_builtin(nn.RNN(3, 4))


@pytest.mark.parametrize("other", [nn.LSTM(3, 4), nn.GRU(3, 4), nn.Linear(3, 4), ManualRNN(3, 4), {}])
def test_from_builtin_takes_nothing_but_an_nn_rnn(other: Any) -> None:
    with pytest.raises(TypeError, match="expected RNN itself, got"):
        ManualRNN.from_builtin(other)


# Modules saved long ago


def test_a_module_without_the_attributes_of_later_versions() -> None:
    rnn, input = builtin(nonlinearity="relu"), inputs()
    expected = gradients(rnn, input)
    del rnn.proj_size, rnn.nonlinearity, rnn._flat_weight_refs, rnn._flat_weights
    swap_rnn(rnn)
    assert (rnn.proj_size, rnn.nonlinearity) == (0, "relu")
    assert_same(gradients(rnn, input), expected)
    assert_same(gradients(swap_rnn(rnn, to=nn.RNN), input), expected, bound=0)


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("mixed", lambda model: (model.again, model.first)),
        ("word model", lambda model: (model.decoder.weight, model.embedding.weight)),
    ],
    ids=["mixed", "word model"],
)
def test_a_whole_model_on_disk_is_loaded_and_swapped(name: str, tied: Any, tmp_path: Path) -> None:
    model = made(name).eval()
    torch.save(model, tmp_path / "model.pt")
    loaded = swap_rnn(torch.load(tmp_path / "model.pt", weights_only=False))
    assert {type(m) for m in loaded.modules()} & {nn.RNN, ManualRNN} == {ManualRNN}
    one, other = tied(loaded)
    assert one is other
    input = inputs() if name == "mixed" else torch.arange(12).remainder(VOCABULARY).view(6, 2)
    assert_same(gradients(loaded, input), gradients(model, input))


def test_an_old_pickle_is_loaded_and_swapped() -> None:
    rnn, input = builtin(), inputs()
    expected = gradients(rnn, input)
    state = rnn.__getstate__()
    del state["proj_size"], state["nonlinearity"]
    state["all_weights"] = state.pop("_all_weights")  # the name of torch 0.1
    old = nn.RNN.__new__(nn.RNN)
    old.__setstate__(state)
    assert_same(gradients(swap_rnn(old), input), expected)
