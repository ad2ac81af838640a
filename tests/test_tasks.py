"""The tasks: what they draw, their chance levels, and that no batch comes twice."""

import pytest
import torch

from training.tasks import TASKS, Adding, CopyMemory

tasks = pytest.mark.parametrize("name", TASKS)


@tasks
def test_a_batch_is_a_function_of_its_number(name: str) -> None:
    task, same, other = TASKS[name](), TASKS[name](), TASKS[name](seed=1)
    for a, b in zip(task.batch("train", 3), same.batch("train", 3), strict=True):
        assert torch.equal(a, b)
    different = [task.batch("train", 4), task.batch("val", 3), other.batch("train", 3)]
    assert all(not torch.equal(task.batch("train", 3)[0], batch[0]) for batch in different)


@tasks
def test_shapes_are_as_declared(name: str) -> None:
    task = TASKS[name](batch_size=6)
    input, target = task.batch("train", 0)
    B, T, features = input.shape
    output = torch.zeros(B, T, task.output_size, requires_grad=True)
    assert (B, features) == (6, task.input_size)
    assert len(target) == 6
    task.loss(output, target).backward()
    assert task.metric in task.metrics(output, target)


@tasks
def test_what_a_task_states(name: str) -> None:
    task = TASKS[name]()
    assert task.source
    better = task.solved > task.chance if task.metric == "accuracy" else task.solved < task.chance
    assert better


@tasks
def test_workers_repeat_no_batch(name: str) -> None:
    alone = list(TASKS[name](train_batches=5).train_dataloader())
    shared = list(TASKS[name](train_batches=5, num_workers=2).train_dataloader())
    assert len(shared) == 5
    for (a, _), (b, _) in zip(alone, shared, strict=True):
        assert torch.equal(a, b)


@tasks
@pytest.mark.parametrize(
    ("argument", "value"), [("length", 0), ("batch_size", 0), ("train_batches", 0), ("num_workers", -1)]
)
def test_a_parameter_out_of_range_is_refused(name: str, argument: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"expected {argument} of at least \d, got {value}"):
        TASKS[name](**{argument: value})


def test_adding_marks_one_number_in_each_half() -> None:
    input, target = Adding(length=7).batch("train", 0)
    marks = input[..., 1]
    assert torch.equal(marks[:, :3].sum(1), torch.ones(64))
    assert torch.equal(marks[:, 3:].sum(1), torch.ones(64))
    assert torch.allclose(target[:, 0], (input[..., 0] * marks).sum(1))


def test_chance_in_adding_is_what_answering_one_gets() -> None:
    task = Adding(batch_size=20_000)
    _, target = task.batch("val", 0)
    assert task.loss(torch.ones(len(target), task.length, 1), target).item() == pytest.approx(
        task.chance, rel=0.03
    )


def test_copy_memory_asks_for_the_letters_after_the_delay() -> None:
    input, target = CopyMemory(length=4, symbols=3, alphabet=5).batch("train", 0)
    shown = input.argmax(-1)
    assert shown.shape == target.shape == (64, 10)
    assert torch.equal(shown[:, :3], target[:, -3:])
    assert (shown[:, 3:6] == 5).all()
    assert (shown[:, 6] == 6).all()  # the marker
    assert (shown[:, 7:] == 5).all()
    assert (target[:, :-3] == 5).all()


def test_copy_memory_counts_the_recalled_letters_alone() -> None:
    task = CopyMemory(batch_size=2000)
    _, target = task.batch("val", 0)
    right = torch.nn.functional.one_hot(target, task.output_size).float()
    guess = right.clone()
    guess[:, -task.symbols :] = torch.rand_like(guess[:, -task.symbols :]) * torch.tensor([1.0] * 8 + [0.0])
    assert task.metrics(right, target)["accuracy"] == 1
    assert task.metrics(guess, target)["accuracy"].item() == pytest.approx(task.chance, abs=0.02)


def test_an_alphabet_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="expected alphabet of at least 2, got 1"):
        CopyMemory(alphabet=1)
