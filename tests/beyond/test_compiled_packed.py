r"""A packed call in compiled code: one operator as a padded one, or one break where the graph has to."""

from typing import Any

import pytest
import torch
from changes import CHANGES, FEW, OF_NO_LEAF, Step, answer, guards_of
from helpers import packed
from torch._dynamo.utils import counters

from manual_rnn import ManualRNN

pytestmark = OF_NO_LEAF


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@pytest.mark.pins_torch
@pytest.mark.skipif(torch.__version__ < "2.13", reason="its Dynamo guards builtins and more: 415")
@pytest.mark.parametrize("lengths", [[3, 2], [2, 3]], ids=["sorted", "unsorted"])
def test_a_packed_call_has_few_guards(lengths: list[int]) -> None:
    hx = torch.randn(1, 2, 3)
    assert guards_of(ManualRNN(4, 3), packed(torch.randn(3, 2, 4), lengths), hx) < FEW + 60


SORTED, UNSORTED = packed(torch.randn(3, 2, 3), [3, 2]), packed(torch.randn(3, 2, 3), [2, 3])


@pytest.mark.parametrize(
    "args",
    [
        (SORTED, torch.randn(1, 2, 4)),
        (UNSORTED, torch.randn(1, 2, 4)),
        (UNSORTED,),
        (SORTED,),
        (SORTED, torch.randn(1, 3, 4)),
        (SORTED, torch.randn(2, 2, 4)),
        (SORTED, torch.randn(1, 4)),
        (SORTED, torch.randn(1, 2, 4, dtype=torch.float64)),
        (SORTED._replace(data=SORTED.data.double()), torch.randn(1, 2, 4)),
        (SORTED._replace(data=SORTED.data[:, :2]), torch.randn(1, 2, 4)),
        (SORTED._replace(batch_sizes=SORTED.batch_sizes.int()), torch.randn(1, 2, 4)),
        (SORTED._replace(batch_sizes=SORTED.batch_sizes[:, None]), torch.randn(1, 2, 4)),
    ],
)
def test_what_is_packed_is_checked(args: tuple[Any, ...]) -> None:
    rnn = ManualRNN(3, 4)
    assert_packed_alike(answer(torch.compile(rnn, backend="aot_eager"), *args), answer(rnn, *args))


def assert_packed_alike(found: Any, expected: Any) -> None:
    """The same numbers and order, or the same kind of error: that of a state's shape the operator raises."""
    if isinstance(expected[0], type):
        assert found[0] is expected[0]
        return
    assert all(given is None for given in expected[0][2:]) == all(given is None for given in found[0][2:])
    tensors = ([x for x in (*each[0], each[1]) if x is not None] for each in (found, expected))
    torch.testing.assert_close(*tensors)


@pytest.mark.parametrize("form", ["sorted", "sorted with hx", "unsorted"])
@pytest.mark.parametrize(
    "change",
    [
        "nothing",
        "mode",
        "batch_first",
        "batch_first that is no bool",
        "a check of the object",
        "a check of the class",
        "an order of the class",
        "a step of the object",
        "a step of the class",
        "weights assigned",
        "a weight replaced",
        "a weight of another size",
        "dropout of one layer",
    ],
)
def test_a_packed_call_notices_a_change(change: str, form: str) -> None:
    rnn, input = ManualRNN(3, 4), UNSORTED if form == "unsorted" else SORTED
    args: tuple[Any, ...] = (input, torch.randn(1, 2, 4)) if form == "sorted with hx" else (input,)
    compiled = torch.compile(rnn, backend="aot_eager")
    compiled(*args)
    CHANGES[change](rnn)
    assert_packed_alike(answer(compiled, *args), answer(rnn, *args))


@pytest.mark.parametrize(
    ("kind", "whole", "graphs"), [(ManualRNN, False, False), (ManualRNN, True, True), (Step, False, True)]
)
def test_a_call_that_breaks_the_graph_is_left_to_eager_code(
    kind: type[ManualRNN], whole: bool, graphs: bool
) -> None:
    """The number of sequences is in `batch_sizes`. A graph that may not break holds it; around a step of the
    user's own there are graphs."""
    rnn = kind(3, 4)
    counters.clear()
    assert_packed_alike(torch.compile(rnn, backend="eager", fullgraph=whole)(SORTED), rnn(SORTED))
    assert (counters["stats"]["unique_graphs"] > 0) == graphs
