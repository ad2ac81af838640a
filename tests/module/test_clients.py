r"""Clients that know modules or tensors by class: ExpandedWeights, and files loaded with `weights_only`."""

import io
from typing import Any

import pytest
import torch
from helpers import assert_same, packed, twins
from torch import Tensor, nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import PackedSequence

from manual_rnn import ManualRNN, swap_rnn

OPTIONS: list[dict[str, Any]] = [
    {},
    {"nonlinearity": "relu", "bias": False},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 3, "bias": False, "bidirectional": True, "nonlinearity": "relu"},
]
LENGTHS = {"padded": None, "sorted": [5, 3, 3], "unsorted": [2, 5, 3]}


def per_sample(rnn: nn.Module, input: Any, hx: Tensor | None, **how: Any) -> dict[str, Tensor]:
    """`grad_sample` of every weight, the gradient of every leaf that goes in, and what comes out."""
    torch.manual_seed(1)
    given = [input] if hx is None else [input, hx]
    output, h_n = call_for_per_sample_grads(rnn, **how)(*given)
    data = output.data if isinstance(output, PackedSequence) else output
    loss = data.square().sum() + h_n.sin().sum()
    (loss / len(h_n[0]) if how.get("loss_reduction") == "mean" else loss).backward()
    samples = {name: w.grad_sample for name, w in rnn.named_parameters() if w.requires_grad}  # type: ignore[attr-defined]
    return {"output": data.detach(), "h_n": h_n.detach(), **samples}


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_expanded_weights_give_the_gradients_of_each_sample(
    options: dict[str, Any], batch_first: bool, lengths: list[int] | None, given: bool
) -> None:
    """To Opacus `grad_sample_mode="ew"`."""
    builtin, manual = twins(3, 4, batch_first=batch_first, dtype=torch.float64, **options)
    input = torch.randn((3, 5, 3) if batch_first else (5, 3, 3), dtype=torch.float64)
    hx = torch.randn(sum(1 for _ in builtin.all_weights), 3, 4, dtype=torch.float64) if given else None
    data: Any = input if lengths is None else packed(input, lengths, batch_first)
    for reduction in ("sum", "mean"):
        for rnn in (builtin, manual):
            for weight in rnn.parameters():
                weight.grad_sample = None  # type: ignore[attr-defined]
        how = {"batch_size": 3, "loss_reduction": reduction}
        assert_same(per_sample(manual, data, hx, **how), per_sample(builtin, data, hx, **how))


def test_frozen_weights_beside_expanded_ones() -> None:
    builtin, manual = twins(3, 4, 2, dtype=torch.float64)
    for rnn in (builtin, manual):
        rnn.weight_ih_l0.requires_grad_(False)
        rnn.bias_hh_l1.requires_grad_(False)
    input = torch.randn(5, 3, 3, dtype=torch.float64)
    how = {"batch_size": 3}
    assert_same(per_sample(manual, input, None, **how), per_sample(builtin, input, None, **how))


def test_expanded_weights_know_no_recurrence_of_your_own() -> None:
    rnn = ManualRNN(3, 4, nonlinearity=torch.sin)
    with pytest.raises(RuntimeError, match="ExpandedWeights: expected 'tanh' or 'relu', got a recurrence of"):
        call_for_per_sample_grads(rnn, batch_size=2)(torch.randn(5, 2, 3))


class WordModel(nn.Module):
    """As pytorch/examples' word_language_model, which saves whole models."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.rnn, self.decoder = nn.Embedding(9, 3), nn.RNN(3, 4), nn.Linear(4, 9)

    def forward(self, words: Tensor) -> Tensor:
        return self.decoder(self.rnn(self.encoder(words))[0])


def test_a_whole_model_loads_with_weights_only() -> None:
    """The client allows what it knows; it needn't know that its nn.RNN was swapped."""
    for change in (lambda model: model, swap_rnn):
        model, file, words = change(WordModel()), io.BytesIO(), torch.arange(6).reshape(3, 2)
        torch.save(model, file)
        file.seek(0)
        with torch.serialization.safe_globals([WordModel, nn.Embedding, nn.RNN, nn.Linear]):
            loaded = torch.load(file, weights_only=True)
        assert type(loaded.rnn) is type(model.rnn)
        assert torch.equal(loaded(words), model(words))
