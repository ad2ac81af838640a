r"""The tasks, and the table of them: long memory, order, counting, prediction, vision and language."""

from pathlib import Path
from typing import Any, Literal

import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor

from .datamodule import Task, at_least, one_hot, seeded_by
from .files import read_text
from .objective import Batch


class Adding(Task):
    r"""Of ``length`` numbers in [0, 1) two are marked; give their sum at the end.

    Input (B, length, 2): the number and the mark, one in each half. Target (B, 1, 1). Chance: the variance of
    the sum. Solved: the square of 0.08, Hochreiter and Schmidhuber's margin on a scale twice theirs.
    """

    source = "Hochreiter and Schmidhuber 1997 (experiment 4); Le, Jaitly and Hinton 2015"
    metric = "mse"
    input_size, output_size = 2, 1
    chance, solved = 1 / 6, 0.0064
    shortest = 2

    def sample(self, generator: Generator, count: int) -> Batch:
        T = self.length
        numbers = torch.rand(count, T, generator=generator)
        first = torch.randint(T // 2, (count,), generator=generator)
        second = torch.randint(T // 2, T, (count,), generator=generator)
        marks = one_hot(first, T) + one_hot(second, T)
        return Batch(torch.stack((numbers, marks), -1), (numbers * marks).sum(1)[:, None, None])


class CopyMemory(Task):
    r"""``symbols`` letters, ``length`` steps of delay, a marker: recall the letters in order.

    Input (B, length + 2 symbols, alphabet + 2), one-hot: letters, blank, marker. Target (B, T): blank but for
    the last ``symbols`` steps, which alone count for the accuracy.
    """

    source = "Hochreiter and Schmidhuber 1997, in the form of Arjovsky, Shah and Bengio 2016"
    metric = "accuracy"
    solved = 0.99

    def __init__(self, length: int = 10, symbols: int = 5, alphabet: int = 8, **kwargs: Any) -> None:
        super().__init__(length, **kwargs)
        at_least(1, symbols=symbols)
        at_least(2, alphabet=alphabet)
        self.symbols, self.alphabet, self.scored_steps = symbols, alphabet, symbols
        self.input_size, self.output_size, self.chance = alphabet + 2, alphabet + 1, 1 / alphabet

    def sample(self, generator: Generator, count: int) -> Batch:
        blank, marker = self.alphabet, self.alphabet + 1
        letters = torch.randint(self.alphabet, (count, self.symbols), generator=generator)
        blanks = letters.new_full((count, self.length + self.symbols), blank)
        sequence = torch.cat((letters, blanks), 1)
        sequence[:, -self.symbols - 1] = marker
        return Batch(one_hot(sequence, self.alphabet + 2), torch.cat((blanks, letters), 1))


class TemporalOrder(Task):
    r"""Among four distractors an X or a Y comes twice: in which order?

    Input (B, length, 6), one-hot: X, Y and the distractors; the first of the two comes at 1/10 to 2/10 of the
    length, the second at 5/10 to 6/10. Target (B, 1): XX, XY, YX or YY.
    """

    source = "Hochreiter and Schmidhuber 1997, experiment 6a, without its first and last symbol"
    metric = "accuracy"
    input_size, output_size = 6, 4
    chance, solved = 1 / 4, 0.99
    shortest = 10

    def __init__(self, length: int = 40, **kwargs: Any) -> None:
        super().__init__(length, **kwargs)

    def sample(self, generator: Generator, count: int) -> Batch:
        tenth, rows = self.length // 10, torch.arange(count)
        sequence = torch.randint(2, 6, (count, self.length), generator=generator)
        letters = torch.randint(2, (count, 2), generator=generator)
        for i, tenths in enumerate((1, 5)):
            at = torch.randint(tenths * tenth, (tenths + 1) * tenth + 1, (count,), generator=generator)
            sequence[rows, at] = letters[:, i]
        return Batch(one_hot(sequence, 6), letters @ torch.tensor([[2], [1]]))


class Parity(Task):
    r"""At every step: is the number of ones so far odd?

    Input (B, length, 1): a bit as -1 or 1. Target (B, length).
    """

    source = "Minsky and Papert 1969; as a sequence Hochreiter and Schmidhuber 1996"
    metric = "accuracy"
    input_size, output_size = 1, 2
    chance, solved = 1 / 2, 0.99

    def sample(self, generator: Generator, count: int) -> Batch:
        bits = torch.randint(2, (count, self.length), generator=generator)
        return Batch(one_hot(bits, 2)[..., 1:] * 2 - 1, bits.cumsum(1) % 2)


class SinePrediction(Task):
    r"""The next value of a sine wave of random frequency and phase.

    Input (B, length, 1), with 10 to 40 steps in a period. Target (B, length - 10, 1): the values one step
    ahead, once ten steps have told which wave it is. Solved: off by 3 % of the amplitude, root mean square;
    repeating the last value is off by 22 %.
    """

    source = "the time-sequence example of PyTorch"
    metric = "mse"
    input_size, output_size = 1, 1
    chance, solved = 1 / 2, 0.001
    warm_up = 10
    shortest = warm_up + 1

    def __init__(self, length: int = 50, **kwargs: Any) -> None:
        super().__init__(length, **kwargs)

    def sample(self, generator: Generator, count: int) -> Batch:
        period = 10 + 30 * torch.rand(count, 1, generator=generator)
        phase = torch.rand(count, 1, generator=generator)
        wave = torch.sin(2 * torch.pi * (torch.arange(self.length + 1) / period + phase))[..., None]
        return Batch(wave[:, :-1], wave[:, 1 + self.warm_up :])


class SequentialDigits(Task):
    r"""Scanned handwritten digits, 8 by 8 pixels, read one row or one pixel at a step.

    Input (B, 8, 8) or (B, 64, 1). Target (B, 1): the digit. Of the 1797 pictures 256 are for validation
    and 256 for testing; the others are for training, in a new order each time round.

    Args:
        by: what is read at one step.
        batch_size: pictures in one optimizer step, over however many processes.
        num_workers: processes that prepare batches.
        seed: of the order of the pictures; that of the run where none is given.
    """

    source = "Le, Jaitly and Hinton 2015, on the digits of scikit-learn (Alpaydin and Kaynak 1998)"
    metric = "accuracy"
    output_size = 10
    chance, solved = 1 / 10, 0.95
    held_out = 256

    def __init__(
        self,
        by: Literal["row", "pixel"] = "row",
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        at_least(1, batch_size=batch_size)
        digits = load_digits()
        images, labels = torch.tensor(digits.images) / 16, torch.tensor(digits.target)
        self.input_size = {"row": 8, "pixel": 1}[by]
        shuffled = torch.randperm(len(images), generator=seeded_by(0))  # the same split whatever the seed
        sizes = [len(images) - 2 * self.held_out, self.held_out, self.held_out]
        self.images = images.float().view(len(images), -1, self.input_size)
        self.labels = labels[:, None]
        self.rows = dict(zip(("train", "val", "test"), shuffled.split(sizes), strict=True))
        train_batches, val_batches = sizes[0] // batch_size or 1, -(-self.held_out // batch_size)
        super().__init__(64 // self.input_size, batch_size, train_batches, val_batches, num_workers, seed)

    def batch(self, split: str, number: int) -> Batch:
        rows = self.rows[split]
        first, end = number * self.batch_size, (number + 1) * self.batch_size
        if split != "train":
            return self.pictures(rows[first:end])
        rounds = range(first // len(rows), (end - 1) // len(rows) + 1)
        order = torch.cat([torch.randperm(len(rows), generator=seeded_by(self.seed, r)) for r in rounds])
        return self.pictures(rows[order[first - rounds[0] * len(rows) :][: self.batch_size]])

    def pictures(self, rows: Tensor) -> Batch:
        return Batch(self.images[rows], self.labels[rows])


class CharacterLM(Task):
    r"""The next character of a text.

    Input (B, length, V), one-hot over the V characters of the text. Target (B, length). The last twentieth of
    the text is for testing, the one before for validation. Chance is the perplexity there of the characters'
    frequencies in the rest, solved that of the frequencies of pairs: below it a model must remember more.

    Args:
        path: a text file; without one, 36 of Shakespeare's sonnets.
        length: characters in a sequence.
    """

    source = "Elman 1990 for letters in sequence; the default text is Shakespeare's, 1609"
    metric = "perplexity"

    def __init__(self, path: Path | None = None, length: int = 50, **kwargs: Any) -> None:
        super().__init__(length, **kwargs)
        text = read_text(path or Path(__file__).with_name("sonnets.txt"), "a text")
        self.characters = sorted(set(text))
        if len(self.characters) < 2:
            raise ValueError(f"expected a text of two different characters or more, got {self.characters}")
        codes = {character: i for i, character in enumerate(self.characters)}
        numbers = torch.tensor([codes[character] for character in text])
        twentieth = len(text) // 20
        if twentieth <= length:
            raise ValueError(f"expected a text of more than {20 * length + 19} characters, got {len(text)}")
        parts = numbers.split([len(text) - 2 * twentieth, twentieth, twentieth])
        self.text = dict(zip(("train", "val", "test"), parts, strict=True))
        self.input_size = self.output_size = V = len(self.characters)
        self.chance, self.solved = perplexities(self.text["train"], self.text["val"], V)

    def batch(self, split: str, number: int) -> Batch:
        text = self.text[split]
        generator = seeded_by(self.seed, len(text), number)
        starts = torch.randint(len(text) - self.length, (self.batch_size, 1), generator=generator)
        windows = text[starts + torch.arange(self.length + 1)]
        return Batch(one_hot(windows[:, :-1], self.input_size), windows[:, 1:])


def perplexities(train: Tensor, val: Tensor, V: int) -> tuple[float, float]:
    """Of ``val``, by the frequencies in ``train`` of characters, and of pairs of them; smoothed."""
    single = torch.bincount(train, minlength=V) + 1.0
    pairs = torch.bincount(train[:-1] * V + train[1:], minlength=V * V).view(V, V) + single / single.sum()
    by_single = (single / single.sum()).log()[val[1:]]
    by_pair = (pairs / pairs.sum(1, keepdim=True)).log()[val[:-1], val[1:]]
    return (-by_single.mean()).exp().item(), (-by_pair.mean()).exp().item()


TASKS: dict[str, type[Task]] = {
    task.__name__: task
    for task in (Adding, CopyMemory, TemporalOrder, Parity, SinePrediction, SequentialDigits, CharacterLM)
}
