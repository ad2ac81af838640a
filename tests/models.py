r"""Models with an `nn.RNN` as people write them, each with what it is trained on."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from helpers import packed
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import PackedSequence

from manual_rnn import swap_rnn

__all__ = ["MODELS", "OPTIMIZERS", "VOCABULARY", "Tagger", "WordModel", "made", "train"]


VOCABULARY = 11


class WordModel(nn.Module):
    """Predicts the next word from all before; decoder and embedding share their weight."""

    def __init__(self, kind: str = "RNN", H: int = 6, **kwargs: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, H)
        self.drop = nn.Dropout(0.1)
        self.rnn = getattr(nn, kind)(H, H, num_layers=2, dropout=0.2, **kwargs)
        self.decoder = nn.Linear(H, VOCABULARY)
        self.decoder.weight = self.embedding.weight

    def forward(self, words: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.rnn.flatten_parameters()
        output, hidden = self.rnn(self.drop(self.embedding(words)), hidden)
        return F.log_softmax(self.decoder(self.drop(output)), dim=-1), hidden


class CharacterClassifier(nn.Module):
    """Says to which of three languages a word of any length belongs, from its one-hot letters."""

    def __init__(self, kind: str = "RNN", H: int = 5, **kwargs: Any) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(VOCABULARY, H, bidirectional=True, **kwargs)
        self.head = nn.Sequential(nn.Linear(2 * H, 3), nn.LogSoftmax(dim=-1))

    def forward(self, letters: PackedSequence) -> Tensor:
        _, h_n = self.rnn(letters)
        return self.head(torch.cat(h_n.unbind(0), dim=-1))


def word_losses(model: nn.Module) -> Iterator[Tensor]:
    """Truncated backpropagation over one long text, the state carried on and detached."""
    text = torch.arange(4 * 7 * 60).remainder(VOCABULARY).square().remainder(VOCABULARY).view(-1, 4)
    hidden = None
    for chunk in text.split(7):
        output, hidden = model(chunk[:-1], hidden)
        hidden = hidden.detach()
        yield F.nll_loss(output.flatten(0, 1), chunk[1:].flatten())


def character_losses(model: nn.Module) -> Iterator[Tensor]:
    while True:
        lengths = torch.randint(1, 8, (6,)).tolist()
        letters = torch.randint(VOCABULARY, (max(lengths), 6))
        one_hot = F.one_hot(letters, VOCABULARY).double()
        yield F.nll_loss(model(packed(one_hot, lengths)), letters[0] % 3)


class Tagger(nn.Module):
    """Embedding, the recurrence given, linear layer."""

    def __init__(self, rnn: Any) -> None:
        super().__init__()
        torch.manual_seed(2)
        dtype = rnn.weight_ih_l0.dtype
        self.embedding = nn.Embedding(7, rnn.input_size, dtype=dtype)
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size * (1 + rnn.bidirectional), 2, dtype=dtype)

    def forward(self, tokens: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, h_n = self.rnn(self.embedding(tokens), hx)
        return self.head(output), h_n


class Mixed(nn.Module):
    """Recurrent modules at several depths, one of them under two names, and strangers among them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.RNN(3, 4, dtype=torch.float64)
        relu = nn.RNN(4, 4, nonlinearity="relu", dtype=torch.float64)
        self.rest = nn.ModuleDict({"deep": nn.Sequential(nn.Identity(), relu)})
        self.again = self.first
        self.lstm = nn.LSTM(4, 4, dtype=torch.float64)
        self.gru = nn.GRU(4, 4, dtype=torch.float64)
        self.cell = nn.RNNCell(4, 4, dtype=torch.float64)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        output = self.rest["deep"](self.first(input)[0])[0]
        output = self.again(output[..., :3])[0]
        output = self.gru(self.lstm(output)[0])[0]
        return output, self.cell(output[-1]).unsqueeze(0)


def mixed_losses(model: nn.Module) -> Iterator[Tensor]:
    while True:
        yield (model(torch.randn(5, 2, 3, dtype=torch.float64))[0] - 0.3).square().mean()


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Iterator[Tensor]]]] = {
    "word model": (WordModel, word_losses),
    "character classifier": (CharacterClassifier, character_losses),
    "mixed": (Mixed, mixed_losses),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.03),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


def made(name: str) -> Any:
    """The model, in float64, always with the same weights."""
    torch.manual_seed(0)
    return MODELS[name][0]().double()


def train(
    name: str, model: nn.Module, optimizer: torch.optim.Optimizer, swaps: dict[int, type[nn.Module]]
) -> list[float]:
    """The losses of 60 steps; after as many steps as `swaps` say the model is swapped."""
    torch.manual_seed(1)
    losses = []
    for step, loss in zip(range(1, 61), MODELS[name][1](model), strict=False):
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        losses.append(loss.item())
        if step in swaps:
            swap_rnn(model, to=swaps[step])
    return losses
