r"""Every row of the README's table on a GPU."""

import pytest
import test_beyond
import torch
from helpers import assert_same
from loop import Loop
from test_beyond import EACH_ROW, Row, tensors
from torch import Tensor, nn

from manual_rnn import ManualRNN

CARD = "cuda"
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
    *test_beyond.pytestmark,
]


def moved(rnn: nn.Module, dtype: torch.dtype) -> nn.Module:
    """With new Parameters: under a transform, `to` may not change those that are there."""
    for name, p in list(rnn.named_parameters()):
        setattr(rnn, name, nn.Parameter(p.detach().to(CARD, dtype)))
    return rnn


@EACH_ROW
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-4)], ids=str)
def test_a_card_does_it(row: Row, dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 by `triton`, where it can run, with full precision; the judge is there too, in float64."""
    if "ONNX" in row.name:
        pytest.skip("an ONNX file knows no device")
    if "dropout" in row.name and dtype is torch.float32:
        pytest.skip("a card draws other masks in float32 than in float64")
    batch, build = test_beyond.batch, test_beyond.build

    def run(kind: type[nn.Module], dtype: torch.dtype) -> dict[str, Tensor]:
        monkeypatch.setattr(test_beyond, "batch", lambda *shape: batch(*shape).to(CARD, dtype))
        monkeypatch.setattr(test_beyond, "build", lambda *args, **how: moved(build(*args, **how), dtype))
        return tensors(row.exercise(kind))

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found, expected = run(ManualRNN, dtype), run(Loop, torch.float64)
    assert all(value.device.type == CARD for value in found.values())
    assert_same({name: value.double() for name, value in found.items()}, expected, bound)
