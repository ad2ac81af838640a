r"""Checkpoints go both ways between `nn.RNN` and `ManualRNN`: state dicts, optimizers, Lightning's."""

import io
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from helpers import assert_same, gradients
from models import OPTIMIZERS, VOCABULARY, made, train
from torch import Tensor, nn

from manual_rnn import ManualRNN, swap_rnn

KINDS = {"nn.RNN": nn.RNN, "ManualRNN": ManualRNN}


def test_a_model_that_looks_its_rnn_up_by_name_builds_the_hand_written_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = made("word model").eval()
    monkeypatch.setattr(nn, "RNN", ManualRNN)
    model = made("word model").eval()
    assert type(model.rnn) is ManualRNN
    words = torch.arange(12).remainder(VOCABULARY).view(6, 2)
    assert_same({"output": model(words)[0]}, {"output": expected(words)[0]})


def test_an_optimizer_checkpoint_of_one_continues_in_the_other() -> None:
    name = "character classifier"
    trained, never = made(name), made(name)
    optimizer, other = (OPTIMIZERS["adam"](m.parameters()) for m in (trained, never))
    train(name, trained, optimizer, {})
    train(name, never, other, {})
    resumed = swap_rnn(made(name))
    resumed.load_state_dict(trained.state_dict())
    again = OPTIMIZERS["adam"](resumed.parameters())
    again.load_state_dict(optimizer.state_dict())
    found, expected = train(name, resumed, again, {}), train(name, never, other, {})
    assert found == pytest.approx(expected, rel=1e-10, abs=0)


# State dicts, both ways


def filled(kind: type, **kwargs: Any) -> Any:
    torch.manual_seed(3)
    return kind(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64, **kwargs)


def alone(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict(), strict=True)


def inside_a_parent(source: nn.Module, target: nn.Module) -> None:
    parent = lambda rnn: nn.ModuleDict({"rnn": rnn, "head": nn.Linear(2, 2)})  # noqa: E731
    parent(target).load_state_dict(parent(source).state_dict(), strict=True)


def assigned(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict(), strict=True, assign=True)
    assert all(p.data_ptr() == q.data_ptr() for p, q in zip(target.parameters(), source.parameters()))  # noqa: B905


def through_a_file(source: nn.Module, target: nn.Module) -> None:
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True), strict=True)


def without_the_prefix_of_data_parallel(source: nn.Module, target: nn.Module) -> None:
    state = nn.DataParallel(source).state_dict()
    assert all(name.startswith("module.") for name in state)
    nn.modules.utils.consume_prefix_in_state_dict_if_present(state, "module.")
    target.load_state_dict(state, strict=True)


def onto_meta(source: nn.Module, target: nn.Module) -> None:
    target.to("meta").load_state_dict(source.state_dict(), strict=True, assign=True)


WAYS = [
    alone,
    inside_a_parent,
    assigned,
    through_a_file,
    without_the_prefix_of_data_parallel,
    onto_meta,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kinds", [("nn.RNN", "ManualRNN"), ("ManualRNN", "nn.RNN")], ids="-".join)
def test_a_state_dict_loads_in_the_other(kinds: tuple[str, str], way: Any) -> None:
    source, target = (filled(KINDS[kind]) for kind in kinds)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(-0.9)
    torch.manual_seed(4)
    input = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    before, expected = gradients(target, input)["output"], gradients(source, input)
    assert not torch.equal(before, expected["output"])
    way(source, target)
    assert_same(gradients(target, input), expected)


def missing(state: dict[str, Any]) -> None:
    del state["weight_hh_l0"], state["bias_ih_l1_reverse"]


def unexpected(state: dict[str, Any]) -> None:
    state["weight_hr_l0"] = state["module.weight"] = torch.zeros(1)


def other_size(state: dict[str, Any]) -> None:
    state["weight_ih_l0"] = torch.zeros(4, 9)


def not_a_tensor(state: dict[str, Any]) -> None:
    state["bias_hh_l0"] = [0.0]


@pytest.mark.parametrize("spoil", [missing, unexpected, other_size, not_a_tensor], ids=lambda f: f.__name__)
def test_errors_of_loading_have_the_words_of_nn_rnn(spoil: Any) -> None:
    messages = []
    for kind in (nn.RNN, ManualRNN):
        rnn = filled(kind)
        state = rnn.state_dict()
        spoil(state)
        with pytest.raises(RuntimeError, match=re.escape(f"loading state_dict for {kind.__name__}")) as error:
            rnn.load_state_dict(state)
        messages.append(str(error.value).replace("ManualRNN", "RNN"))
        assert isinstance(rnn, kind)
    assert messages[1] == messages[0]
    if spoil in (missing, unexpected):
        keys = [filled(kind).load_state_dict(state, strict=False) for kind in (nn.RNN, ManualRNN)]
        assert keys[0] == keys[1]


# Lightning


class Net(lightning.LightningModule):
    def __init__(self, H: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rnn = nn.RNN(3, H, batch_first=True, dtype=torch.float64)
        self.head = nn.Linear(H, 1, dtype=torch.float64)
        self.losses: list[float] = []

    def training_step(self, batch: Tensor) -> Tensor:
        loss = (self.head(self.rnn(batch)[1][0]) - batch.sum((1, 2)).unsqueeze(1)).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def trainer(folder: Any, steps: int) -> lightning.Trainer:
    return lightning.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def batches() -> torch.utils.data.DataLoader:
    torch.manual_seed(5)
    data: Any = torch.randn(4, 5, 3, dtype=torch.float64)
    return torch.utils.data.DataLoader(data, batch_size=2)


# Lightning recommends worker processes, a longer log interval, and still calls what torch 2.13 deprecates.
@pytest.mark.filterwarnings(
    "ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning"
)
def test_a_lightning_checkpoint_of_nn_rnn_is_loaded_swapped_and_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "two_steps.ckpt"
    torch.manual_seed(0)
    fit = trainer(tmp_path, 2)
    fit.fit(Net(), batches())
    fit.save_checkpoint(path)
    never = Net.load_from_checkpoint(path)
    swapped = swap_rnn(Net.load_from_checkpoint(path))
    into_swapped = swap_rnn(Net())
    into_swapped.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    assert isinstance(swapped.rnn, ManualRNN)
    assert_same(dict(into_swapped.state_dict()), dict(never.state_dict()), bound=0)
    for model in (never, swapped):
        trainer(tmp_path, 6).fit(model, batches(), ckpt_path=path)
    assert len(swapped.losses) == 4
    assert swapped.losses == pytest.approx(never.losses, rel=1e-12, abs=0)
    assert_same(dict(swapped.state_dict()), dict(never.state_dict()))


@pytest.mark.filterwarnings(
    "ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning"
)
def test_a_lightning_checkpoint_of_the_swapped_model_loads_in_the_one_with_nn_rnn(tmp_path: Path) -> None:
    model = swap_rnn(Net(H=6))
    fit = trainer(tmp_path, 1)
    fit.fit(model, batches())
    fit.save_checkpoint(tmp_path / "one_step.ckpt")
    loaded = Net.load_from_checkpoint(tmp_path / "one_step.ckpt")
    assert type(loaded.rnn) is nn.RNN
    assert loaded.rnn.hidden_size == 6
    assert_same(dict(loaded.state_dict()), dict(deepcopy(model).state_dict()), bound=0)
