"""The tasks: what they draw, their chance levels, and that no batch comes twice."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from training.datamodule import Task, cut, pieces
from training.objective import Batch, Objective
from training.tasks import (
    TASKS,
    Adding,
    CharacterLM,
    CopyMemory,
    Parity,
    SequentialDigits,
    SinePrediction,
    TemporalOrder,
    perplexities,
)

every_task = pytest.mark.parametrize("name", TASKS)


def metric(task: Task, output: Tensor, target: Tensor) -> float:
    measure = task.objective.new_metric()
    measure.update(*task.objective.scored(output, target))
    return measure.compute().item()


@every_task
def test_a_batch_is_a_function_of_its_number(name: str) -> None:
    batch = TASKS[name]().batch("train", 3)
    same = TASKS[name]().batch("train", 3)
    assert torch.equal(batch.input, same.input)
    assert torch.equal(batch.target, same.target)
    others = [("train", 4, 0), ("val", 3, 0), ("test", 3, 0), ("train", 3, 1)]
    for split, number, seed in others:
        assert not torch.equal(batch.input, TASKS[name](seed=seed).batch(split, number).input)


@every_task
def test_shapes_are_as_declared(name: str) -> None:
    task = TASKS[name](batch_size=6)
    input, target, starts = task.batch("train", 0)
    B, T, features = input.shape
    assert (B, features, len(target), starts) == (6, task.input_size, 6, True)
    assert input.dtype == torch.float32
    output = torch.zeros(B, T, task.output_size, requires_grad=True)
    task.objective.loss(output, target).backward()
    assert output.grad is not None
    assert (output.grad[:, -target.size(1) :] != 0).any()


@every_task
def test_a_task_states_its_source_its_chance_and_when_it_is_solved(name: str) -> None:
    task = TASKS[name]()
    assert task.source
    assert task.is_solved(task.solved)
    assert not task.is_solved(task.chance)


@every_task
def test_workers_repeat_no_batch(name: str) -> None:
    five: dict[str, Any] = {"batch_size": 256} if name == "SequentialDigits" else {"train_batches": 5}
    alone = [batch.input for batch in TASKS[name](**five).train_dataloader()]
    shared = [batch.input for batch in TASKS[name](**five, num_workers=2).train_dataloader()]
    assert len(alone) == len(shared) == 5
    for i, input in enumerate(alone):
        assert torch.equal(input, shared[i])
        assert not any(torch.equal(input, other) for other in shared[:i])


@every_task
@pytest.mark.parametrize(
    ("argument", "value"),
    [("length", 0), ("batch_size", 0), ("train_batches", 0), ("num_workers", -1), ("seed", -1)],
)
def test_a_parameter_out_of_range_is_refused(name: str, argument: str, value: int) -> None:
    if name == "SequentialDigits" and argument in ("length", "train_batches"):
        with pytest.raises(TypeError, match=argument):
            TASKS[name](**{argument: value})  # the data decide
    else:
        with pytest.raises(ValueError, match=rf"expected {argument} of at least \d+, got {value}"):
            TASKS[name](**{argument: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adding(1), "expected length of at least 2, got 1"),
        (lambda: CopyMemory(symbols=0), "expected symbols of at least 1, got 0"),
        (lambda: CopyMemory(alphabet=1), "expected alphabet of at least 2, got 1"),
        (lambda: TemporalOrder(9), "expected length of at least 10, got 9"),
        (lambda: SinePrediction(10), "expected length of at least 11, got 10"),
    ],
)
def test_what_only_one_task_asks_for(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_adding_marks_one_number_in_each_half() -> None:
    task = Adding(7, batch_size=5000)
    input, target, _ = task.batch("val", 0)
    marks = input[..., 1]
    assert torch.equal(marks[:, :3].sum(1), torch.ones(5000))
    assert torch.equal(marks[:, 3:].sum(1), torch.ones(5000))
    assert torch.allclose(target[:, 0, 0], (input[..., 0] * marks).sum(1))
    assert metric(task, torch.ones(5000, 7, 1), target) == pytest.approx(task.chance, rel=0.05)


def test_copy_memory_asks_for_the_letters_after_the_delay() -> None:
    input, target, _ = CopyMemory(4, symbols=3, alphabet=5).batch("train", 0)
    shown = input.argmax(-1)
    assert shown.shape == target.shape == (64, 10)
    assert torch.equal(shown[:, :3], target[:, -3:])
    assert (shown[:, 3:6] == 5).all()
    assert (shown[:, 6] == 6).all()  # the marker
    assert (shown[:, 7:] == 5).all()
    assert (target[:, :-3] == 5).all()


def test_copy_memory_counts_the_recalled_letters_alone() -> None:
    task = CopyMemory(batch_size=2000)
    _, target, _ = task.batch("val", 0)
    right = torch.nn.functional.one_hot(target, task.output_size).float()
    guess = right.clone()
    guess[:, -task.symbols :] = torch.rand_like(guess[:, -task.symbols :]) * torch.tensor([1.0] * 8 + [0.0])
    assert metric(task, right, target) == 1
    assert metric(task, guess, target) == pytest.approx(task.chance, abs=0.02)


def test_temporal_order_is_the_order_of_two_letters() -> None:
    task = TemporalOrder(30, batch_size=2000)
    input, target, _ = task.batch("val", 0)
    shown = input.argmax(-1)
    places = (shown < 2).nonzero()[:, 1].view(-1, 2)
    first, second = shown.gather(1, places).unbind(1)
    assert ((places >= torch.tensor([3, 15])) & (places <= torch.tensor([6, 18]))).all()
    assert torch.equal(2 * first + second, target[:, 0])
    assert target.unique().tolist() == [0, 1, 2, 3]


def test_parity_counts_the_ones_so_far() -> None:
    input, target, _ = Parity(6).batch("train", 0)
    assert torch.equal((input[..., 0] == 1).cumsum(1) % 2, target)
    assert input.unique().tolist() == [-1, 1]


def test_sine_prediction_is_one_step_ahead() -> None:
    task = SinePrediction(30, batch_size=2000)
    input, target, _ = task.batch("val", 0)
    assert torch.equal(input[:, 11:], target[:, :-1])
    assert metric(task, torch.zeros(2000, 30, 1), target) == pytest.approx(task.chance, rel=0.03)
    assert metric(task, input, target) == pytest.approx(0.22**2, rel=0.05)  # repeating the last value


@pytest.mark.parametrize(("by", "shape"), [("row", (8, 8)), ("pixel", (64, 1))])
def test_digits_come_once_in_a_round_and_never_from_another_split(by: Any, shape: tuple[int, int]) -> None:
    task = SequentialDigits(by, batch_size=100)
    assert task.batch("train", 0).input.shape == (100, *shape)
    assert len(task.rows["train"].unique()) == 1285
    assert sum(len(rows) for rows in task.rows.values()) == len(torch.cat(list(task.rows.values())).unique())
    first_round = torch.cat([task.batch("train", i).input for i in range(13)])[:1285]
    expected = task.images[task.rows["train"]]
    assert torch.equal(first_round.sum(0), expected.sum(0))
    rounds = [SequentialDigits(by, batch_size=1285).batch("train", number).input for number in range(2)]
    assert not torch.equal(*rounds)  # another order
    assert [len(task.batch("val", i).input) for i in range(3)] == [100, 100, 56]
    assert task.batches["val"] == 3
    assert torch.equal(SequentialDigits(by, seed=5).rows["val"], task.rows["val"])


def test_characters_follow_one_another(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("abcd" * 100)
    task = CharacterLM(path, length=5)
    input, target, _ = task.batch("train", 0)
    assert task.characters == ["a", "b", "c", "d"]
    assert torch.equal(input.argmax(-1)[:, 1:], target[:, :-1])
    assert torch.equal((input.argmax(-1) + 1) % 4, target)


def test_the_levels_of_a_text_are_those_of_its_frequencies() -> None:
    text = torch.arange(4).repeat(5000)
    chance, solved = perplexities(text, text[:100], 4)
    assert chance == pytest.approx(4, rel=1e-3)  # four characters, each as often
    assert solved == pytest.approx(1, rel=1e-2)  # each decides the next
    random = torch.randint(3, (50_000,), generator=torch.Generator().manual_seed(0))
    assert perplexities(random, random, 3) == pytest.approx((3, 3), rel=1e-2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("aaaa" * 100, r"expected a text of two different characters or more, got \['a'\]"),
        ("ab" * 50, "expected a text of more than 119 characters, got 100"),
    ],
)
def test_a_text_that_is_too_little_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "text"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        CharacterLM(path, length=5)


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match="expected a text, got nowhere: no such file"):
        CharacterLM(Path("nowhere"))


def test_every_process_gets_its_share_of_a_batch() -> None:
    task, whole = Adding(train_batches=5, batch_size=4), Adding(train_batches=5, batch_size=4)
    task.trainer = SimpleNamespace(global_rank=1, world_size=2)  # type: ignore[assignment]
    batch = next(iter(task.val_dataloader()))
    assert torch.equal(batch.input, whole.batch("val", 0).input[1::2])
    task.trainer = SimpleNamespace(global_rank=0, world_size=3)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="expected a batch_size that 3 processes can share, got 4"):
        task.val_dataloader()


def test_pieces_of_a_batch_keep_inputs_and_targets_together() -> None:
    input, target = torch.arange(14).view(1, 14, 1), torch.arange(3, 14)[None]
    parts = [cut(Batch(input, target), i, i + 5) for i in (0, 5, 10)]
    assert pieces(Batch(input, target), 5) == 3
    assert [part.starts for part in parts] == [True, False, False]
    for part in parts:
        assert torch.equal(part.input[0, -part.target.size(1) :, 0], part.target[0])
    assert torch.equal(torch.cat([part.input for part in parts], 1), input)
    assert torch.equal(torch.cat([part.target for part in parts], 1), target)


def test_a_piece_without_a_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected targets in every 3 steps .* last 11 of 14 steps only"):
        pieces(Batch(torch.zeros(1, 14, 1), torch.zeros(1, 11)), 3)


def test_a_loader_goes_on_with_the_rest_of_an_epoch_and_then_with_new_batches() -> None:
    task = Adding(train_batches=5, batch_size=2)
    loader = task.train_dataloader()
    begun = iter(loader)
    next(begun)
    next(begun)
    for numbers in (range(2, 5), range(5, 10)):
        batches = list(loader)
        assert len(batches) == len(numbers)
        for batch, number in zip(batches, numbers, strict=True):
            assert torch.equal(batch.input, task.batch("train", number).input)
    assert torch.equal(next(iter(task.train_dataloader())).input, task.batch("train", 0).input)
    resumed = {"fit_loop": SimpleNamespace(total_batch_idx=6), "lightning_module": None}  # 7 were drawn
    task.trainer = SimpleNamespace(**resumed, global_rank=0, world_size=1)  # type: ignore[assignment]
    batches = list(task.train_dataloader())
    assert len(batches) == 3
    assert torch.equal(batches[0].input, task.batch("train", 7).input)
    assert torch.equal(next(iter(task.val_dataloader())).input, task.batch("val", 0).input)


@pytest.mark.parametrize(
    ("input", "target", "metric", "words"),
    [
        (torch.zeros(4, 3, 2), torch.zeros(4, 2, 5), "mse", None),
        (torch.zeros(4, 3, 2), torch.zeros(4, 2).long(), "accuracy", None),
        (
            torch.zeros(4, 3),
            torch.zeros(4, 2, 5),
            "mse",
            r"input of floats \(B, T, 2\), got float32 \(4, 3\)",
        ),
        (torch.zeros(4, 3, 2).long(), torch.zeros(4, 2, 5), "mse", "input of floats"),
        (
            torch.zeros(4, 3, 2),
            torch.zeros(4, 2, 1),
            "mse",
            r"\(B, K, O\) .* O = 5 for mse, got float32 \(4, 2, 1\)",
        ),
        (torch.zeros(4, 3, 2), torch.zeros(4, 4, 5), "mse", "1 <= K <= T = 3"),
        (torch.zeros(4, 3, 2), torch.zeros(3, 2, 5), "mse", "B = 4"),
        (torch.zeros(4, 3, 2), torch.zeros(4, 0, 5), "mse", "1 <= K"),
        (
            torch.zeros(4, 3, 2),
            torch.zeros(4, 2),
            "accuracy",
            r"whole numbers \(B, K\) .* got float32 \(4, 2\)",
        ),
        (torch.zeros(4, 3, 2), torch.full((4, 2), 5), "perplexity", "classes from 0 to 4, got 5 to 5"),
        (torch.zeros(4, 3, 2), torch.full((4, 2), -1), "accuracy", "classes from 0 to 4, got -1 to -1"),
    ],
)
def test_a_batch_is_checked_against_sizes_and_metric(
    input: Tensor, target: Tensor, metric: Any, words: str | None
) -> None:
    if words is None:
        Objective(metric, 5).check(Batch(input, target), 2)
        return
    with pytest.raises(ValueError, match=words):
        Objective(metric, 5).check(Batch(input, target), 2)


def test_what_is_no_batch_or_has_no_known_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="expected sample to return a Batch of two tensors, got tuple"):
        Objective("mse", 5).check((torch.zeros(1), torch.zeros(1)), 2)

    class Odd(Adding):
        metric = "f1"  # type: ignore[assignment]

    with pytest.raises(ValueError, match="expected a metric of mse, accuracy, perplexity, got f1"):
        Odd().check()
