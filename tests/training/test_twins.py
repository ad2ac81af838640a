"""The twins as they train: equal, independent of each other, stopped when they should be, alone too."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training_runs import WARNINGS, assert_equal_weights, small, trained

import manual_rnn
from training import train
from training.callbacks import CompareGradients, stoppers
from training.datamodule import Task, cut
from training.objective import Objective
from training.tasks import TASKS, Adding, CharacterLM, CopyMemory, Parity
from training.twins import Network, Twins

pytestmark = WARNINGS


@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains(name: str) -> None:
    record, _ = trained(TASKS[name](batch_size=8), fast_dev_run=3)
    assert record.compared == record.steps == [1, 2, 3]
    assert record.failure is None
    assert record.sentence().startswith(
        "3 steps, 6 parameters: every gradient equal to nn.RNN's to round-off"
    )


@pytest.mark.parametrize("kind", [Adding, CopyMemory])
def test_with_the_reference_kernel_the_twins_are_bitwise_equal(kind: type[Task]) -> None:
    record, twins = trained(small(kind), {"kernel": "reference", "num_layers": 2, "dropout": 0.3})
    assert record.bitwise_equal
    assert_equal_weights(dict(twins.manual.state_dict()), dict(twins.builtin.state_dict()))


@pytest.mark.parametrize("clip", [0.05, 0])
def test_neither_twin_touches_the_other(monkeypatch: pytest.MonkeyPatch, clip: float) -> None:
    """Beside another ManualRNN, nn.RNN's twin takes the same path to the last bit."""

    def run() -> Twins:
        torch.manual_seed(0)
        return trained(compare=CompareGradients(tolerance=1e30), gradient_clip_val=clip)[1]

    alike, swap = run(), manual_rnn.swap_rnn

    def other_twin(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(3)
        return swap(model)

    monkeypatch.setattr(manual_rnn, "swap_rnn", other_twin)
    other = run()
    assert_equal_weights(dict(alike.builtin.state_dict()), dict(other.builtin.state_dict()))
    assert not torch.equal(alike.manual.readout.weight, other.manual.readout.weight)


def test_each_twin_is_clipped_by_its_own_norm() -> None:
    model = Twins(2, 1, hidden_size=4)
    optimizer = torch.optim.SGD(model.parameters())
    for i, twin in enumerate(model.twins.values()):
        for p in twin.parameters():
            p.grad = torch.full_like(p, 10.0**i)
    model.configure_gradient_clipping(optimizer, 0.5, "norm")
    for twin in model.twins.values():
        norm = nn.utils.get_total_norm([p.grad for p in twin.parameters() if p.grad is not None])
        assert norm.item() == pytest.approx(0.5, rel=1e-4)
    model.configure_gradient_clipping(optimizer, 0.01, "value")
    assert all(p.grad is not None and p.grad.abs().max() <= 0.01 for p in model.parameters())


def test_gradients_are_clipped_at_norm_1_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """With rate 1 a step is the clipped gradient."""
    monkeypatch.setattr(Twins, "configure_optimizers", lambda self: torch.optim.SGD(self.parameters(), 1))
    loss = Objective.loss
    monkeypatch.setattr(Objective, "loss", lambda *args: 1e4 * loss(*args))
    task = small()
    model = Twins.for_task(task, hidden_size=6)
    before = deepcopy(model.twins)
    train(task, model, max_steps=1, enable_progress_bar=False)
    for name, twin in model.twins.items():
        moved = [p - before[name].get_parameter(n) for n, p in twin.named_parameters()]
        assert nn.utils.get_total_norm(moved).item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    ("infinite", "steps"), [("val_loss/builtin", 4), ("val_loss/manual", 4), ("val_mse/manual", 8)]
)
def test_the_loss_of_one_twin_that_diverges_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, infinite: str, steps: int
) -> None:
    """A metric alone doesn't: a perplexity is out of range where its loss is large."""
    task = small()
    model = Twins.for_task(task, hidden_size=6)
    log = model.log

    def set_level(name: str, value: Any, **options: Any) -> None:
        log(name, torch.tensor(math.inf) if name == infinite else value, **options)

    monkeypatch.setattr(model, "log", set_level)
    assert train(task, model, max_epochs=2, enable_progress_bar=False).steps[-1] == steps


def test_a_solved_task_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Adding, "solved", 1e3)
    assert trained()[0].steps[-1] == 4
    assert trained(stop_when_solved=False)[0].steps[-1] == 8
    monkeypatch.setattr(Adding, "solved", 0)
    assert trained()[0].steps[-1] == 8


@pytest.mark.parametrize(("kind", "levels"), [(Adding, (0.1, 0.3)), (Parity, (0.9, 0.7))])
def test_a_task_that_one_twin_alone_solved_goes_on(
    monkeypatch: pytest.MonkeyPatch, kind: type[Task], levels: tuple[float, float]
) -> None:
    """Of the two levels only the first is good enough."""
    monkeypatch.setattr(kind, "solved", sum(levels) / 2)
    metric = f"val_{kind.metric}"
    for order in (levels, levels[::-1]):
        model = Twins.for_task(small(kind), hidden_size=6)
        log = model.log

        def set_level(name: str, value: Any, log: Any = log, order: Any = order, **options: Any) -> None:
            set_to = {f"{metric}/builtin": order[0], f"{metric}/manual": order[1]}
            log(name, set_to.get(name, value), **options)

        monkeypatch.setattr(model, "log", set_level)
        options: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        task = small(kind)
        trainer = Trainer(max_epochs=2, accelerator="cpu", callbacks=stoppers(task, True), **options)
        trainer.fit(model, datamodule=task)
        assert trainer.global_step == 8


@pytest.mark.parametrize("kernel", ["default", "reference"])
def test_twins_that_both_diverge_are_no_wrong_gradient(kernel: str) -> None:
    task = small(train_batches=20)
    model = Twins.for_task(task, hidden_size=6, kernel=kernel, nonlinearity="relu")
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), 1e3)  # type: ignore[method-assign]
    record = train(task, model, max_epochs=2, enable_progress_bar=False, gradient_clip_val=0)
    assert set(record.diverged) == {"builtin", "manual"}
    assert "diverged" in (record.divergence or "")
    assert "; before that " in record.sentence()
    assert record.steps[-1] == 20  # the second epoch is spared


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("kind", [Adding, CharacterLM])
def test_precisions(precision: str, kind: type[Task]) -> None:
    record, _ = trained(small(kind, length=20), precision=precision)
    assert record.failure is None
    assert len(record.compared) == 8


def test_gradients_are_compared_in_the_precision_of_the_training() -> None:
    differences = {}
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        record, _ = trained(precision=precision)
        differences[precision] = max(record.relative.values())
    assert differences["bf16-mixed"] > 100 * differences["32-true"]


def test_accumulated_batches_are_one_step() -> None:
    record, _ = trained(accumulate_grad_batches=2)
    assert record.compared == [1, 1, 2, 2, 3, 3, 4, 4]
    assert record.steps[-1] == 4


@pytest.mark.parametrize("recurrent", ["identity", "orthogonal"])
def test_both_twins_start_from_the_chosen_recurrent_weights(recurrent: Any) -> None:
    model = Twins(2, 1, hidden_size=5, recurrent=recurrent)
    for twin in model.twins.values():
        weight: Any = twin.rnn.weight_hh_l0
        assert torch.allclose(weight.T @ weight, torch.eye(5), atol=1e-6)
        assert (weight.equal(torch.eye(5))) == (recurrent == "identity")


def test_relu_starts_from_the_identity_and_tanh_as_nn_rnn() -> None:
    relu: Any = Twins(2, 1, hidden_size=5, nonlinearity="relu").builtin.rnn
    assert torch.equal(relu.weight_hh_l0, torch.eye(5))
    torch.manual_seed(7)
    tanh: Any = Twins(2, 1, hidden_size=5).builtin.rnn
    torch.manual_seed(7)
    assert torch.equal(tanh.weight_hh_l0, nn.RNN(2, 5).weight_hh_l0)  # type: ignore[arg-type]
    assert tanh.nonlinearity == "tanh"


@pytest.mark.parametrize("kind", ["state_dict", "parent", "lightning"])
def test_both_twins_start_from_a_checkpoint_of_nn_rnn(tmp_path: Path, kind: str) -> None:
    rnn = nn.RNN(2, 6, 2, bidirectional=True)
    parent = nn.ModuleDict({"encoder": rnn, "head": nn.Linear(12, 1)})
    content = {
        "state_dict": rnn.state_dict(),
        "parent": parent.state_dict(),
        "lightning": {"state_dict": parent.state_dict(), "epoch": 3},
    }[kind]
    torch.save(content, tmp_path / "rnn.pt")
    options: Any = {"hidden_size": 6, "num_layers": 2, "nonlinearity": "tanh", "bidirectional": True}
    model = Twins(2, 1, **options, init_from=tmp_path / "rnn.pt")
    for twin in model.twins.values():
        assert_equal_weights(dict(twin.rnn.state_dict()), dict(rnn.state_dict()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            nn.RNN(2, 5).state_dict(),
            r"expected weight_ih_l0 of shape \(6, 2\), got \(5, 2\) from .*rnn\.pt; see",
        ),
        (nn.LSTM(2, 6).state_dict(), r"expected weight_ih_l0 of shape \(6, 2\), got \(24, 2\)"),
        (nn.Linear(2, 6).state_dict(), "expected one RNN .* got none"),
        (
            {f"{k}.{n}": p for k in "ab" for n, p in nn.RNN(2, 6).state_dict().items()},
            r"got \['a\.', 'b\.'\]",
        ),
        (torch.zeros(3), "expected a file with nn.RNN weights, got a Tensor"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "rnn.pt")
    with pytest.raises(ValueError, match=message):
        Twins(2, 1, hidden_size=6, nonlinearity="tanh", init_from=tmp_path / "rnn.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tbptt_steps": 0}, "expected tbptt_steps of at least 1, got 0"),
        ({"tbptt_steps": 3, "bidirectional": True}, "expected one direction with tbptt_steps"),
        ({"init_from": Path("rnn.pt")}, "expected a nonlinearity with init_from"),
    ],
)
def test_options_that_no_twins_can_have_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Twins(2, 1, **options)


def truncated(network: Network, steps: int, batches: int) -> list[float]:
    """Truncated backpropagation through time written out, with plain SGD; the losses."""
    optimizer, losses = torch.optim.SGD(network.parameters(), 0.1), []
    for number in range(batches):
        input, target, _ = Parity(7, batch_size=8).batch("train", number)
        h = None
        for x, y in zip(input.split(steps, 1), target.split(steps, 1), strict=True):
            output, h = network(x, h)
            loss = F.cross_entropy(output.flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            h = h.detach()
    return losses


def test_truncated_backpropagation_is_what_a_loop_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Twins, "configure_optimizers", lambda self: torch.optim.SGD(self.parameters(), 0.1))
    torch.manual_seed(0)
    options: Any = {"max_epochs": 1, "gradient_clip_val": 0}
    record, twins = trained(small(Parity, length=7), {"tbptt_steps": 3}, **options)
    torch.manual_seed(0)
    network = Network(nn.RNN(1, 6, batch_first=True), nn.Linear(6, 2))
    assert record.losses["builtin"] == pytest.approx(truncated(network, 3, 4), rel=1e-6)
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(twins.builtin.state_dict()[name], weight, rtol=1e-6, atol=1e-8)
    assert len(record.compared) == 12
    assert record.failure is None


def test_each_twin_carries_its_own_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """ManualRNN's twin, begun elsewhere, takes the path that a loop takes from there."""
    monkeypatch.setattr(Twins, "configure_optimizers", lambda self: torch.optim.SGD(self.parameters(), 0.1))
    task = small(Parity, length=7)
    model = Twins.for_task(task, hidden_size=6, tbptt_steps=3)
    with torch.no_grad():
        for p in model.manual.parameters():
            p.mul_(2)
    alone = deepcopy(model.manual)
    loose = CompareGradients(tolerance=1e30)
    record = train(task, model, loose, max_epochs=1, enable_progress_bar=False, gradient_clip_val=0)
    assert record.losses["manual"] == pytest.approx(truncated(alone, 3, 4), rel=1e-5)
    piece = cut(task.batch("train", 0), 3, 6)
    for network in model.twins.values():  # compared from one state
        output, _ = network(piece.input, model.carried["builtin"])
        assert torch.equal(model.loss(network, piece), model.objective.loss(output, piece.target))


def test_dropout_draws_anew_for_each_batch_and_alike_for_both_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Twins(2, 1, hidden_size=6, num_layers=2, dropout=0.5, kernel="reference")
    monkeypatch.setattr(model, "log", lambda *args, **options: None)
    batch = small().batch("train", 0)  # type: ignore[attr-defined]
    losses = [model.training_step(batch, number)["losses"] for number in (0, 0, 1)]
    assert losses[0]["manual"] == losses[1]["manual"] != losses[2]["manual"]
    assert all(step["manual"] == step["builtin"] for step in losses)
    for name in ("current_epoch", "global_rank"):
        with monkeypatch.context() as patch:
            patch.setattr(Twins, name, 1)
            assert model.training_step(batch, 0)["losses"]["manual"] != losses[0]["manual"]


def test_no_truncation_where_a_piece_would_have_no_target() -> None:
    with pytest.raises(ValueError, match="expected targets in every 5 steps"):
        trained(model={"tbptt_steps": 5})


def values(count: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(count, 5, 3), torch.randn(count, 2, 1)), batch_size=4)


def test_the_twins_stand_by_themselves(tmp_path: Path) -> None:
    """A plain Trainer with plain loaders; `forward` is ManualRNN's answer."""
    compared, model = CompareGradients(), Twins(3, 1, hidden_size=6)
    options: Any = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, callbacks=compared, default_root_dir=tmp_path, **options)
    trainer.fit(model, values(12), values(4))
    assert compared.record.compared == [1, 2, 3]
    assert compared.record.failure is None
    assert set(compared.record.scores) == set(compared.record.losses) == {"builtin", "manual"}
    (scores,) = trainer.test(model, values(8), verbose=False)
    assert scores["test_mse/manual"] == pytest.approx(scores["test_loss/manual"])
    input = torch.randn(2, 5, 3)
    output, h_n = model(input)
    expected = model.manual(input)
    assert torch.equal(output, expected[0])
    assert torch.equal(h_n, expected[1])


def test_classes_are_scored_by_their_metric(tmp_path: Path) -> None:
    data = TensorDataset(torch.randn(8, 5, 3), torch.randint(4, (8, 2)))
    for metric in ("accuracy", "perplexity"):
        model = Twins(3, 4, metric)  # type: ignore[arg-type]
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        (found,) = trainer.test(model, DataLoader(data, batch_size=8), verbose=False)
        output, target = model(data.tensors[0])[0][:, -2:], data.tensors[1]
        expected = {
            "accuracy": (output.argmax(-1) == target).float().mean().item(),
            "perplexity": math.exp(F.cross_entropy(output.flatten(0, 1), target.flatten()).item()),
        }
        assert found[f"test_{metric}/manual"] == pytest.approx(expected[metric], rel=1e-5)


@pytest.mark.parametrize("weights_only", [True, None])
def test_a_plain_trainer_resumes_from_its_own_checkpoint(tmp_path: Path, weights_only: bool | None) -> None:
    options: Any = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    task = small(Parity, length=5, train_batches=3)
    model = Twins.for_task(task, hidden_size=6)
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path / "a", **options)
    trainer.fit(model, datamodule=task)
    path = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    again = Twins.load_from_checkpoint(path, weights_only=weights_only)
    assert_equal_weights(again.state_dict(), model.state_dict())
    trainer = Trainer(max_epochs=2, default_root_dir=tmp_path / "b", **options)
    trainer.fit(again, datamodule=small(Parity, length=5, train_batches=3), ckpt_path=path)
    assert trainer.global_step == 6


def test_a_prediction_is_that_of_manual_rnn() -> None:
    model = Twins(2, 1, hidden_size=6)
    with torch.no_grad():
        for p in model.manual.parameters():
            p.mul_(2)  # so that the twins answer differently
    input, target = torch.randn(3, 5, 2), torch.randn(3, 1, 1)
    answer = model.predict_step((input, target), 0)
    assert torch.equal(answer["output"], model.manual(input)[0])
    assert not torch.allclose(answer["output"], model.builtin(input)[0])


def test_training_from_python_returns_a_record() -> None:
    record, _ = trained(small(Parity, length=5, train_batches=3))
    assert record.steps == record.compared == [1, 2, 3, 4, 5, 6]
    assert record.validated == [3, 6]
    assert repr(record) == f"Record({record.sentence()})"


def test_callbacks_given_from_python_are_called_too() -> None:
    class Count(Callback):
        steps = 0

        def on_train_batch_end(self, *args: Any) -> None:
            self.steps += 1

    for given in (Count(), [Count()]):
        trained(callbacks=given)
        (count,) = given if isinstance(given, list) else [given]
        assert count.steps == 8


def test_the_validation_before_a_run_is_none_of_its_own() -> None:
    assert trained(num_sanity_val_steps=1)[0].validated == [4, 8]


def test_partings_of_a_run_are_within_the_tolerance() -> None:
    record, _ = trained()
    assert all(0 <= p < 16 for values in record.partings.values() for p in values)


def test_the_losses_of_the_default_run_lie_on_each_other() -> None:
    """At most two percent apart at every step, and solved at its end."""
    task = TASKS["SequentialDigits"]()
    record = train(task, enable_progress_bar=False)
    builtin, manual = record.losses["builtin"], record.losses["manual"]
    assert max(abs(a - b) / max(a, b) for a, b in zip(builtin, manual, strict=True)) <= 0.02
    assert all(task.is_solved(values[-1]) for values in record.scores.values())
    assert len(record.steps) < 400
