r"""Asking for a kernel, and being told which one runs."""

from typing import Any

import pytest
import torch
from helpers import KERNELS
from internals import OPS, KernelName, elman, kernels, linear_recurrence, native, plain_network

from manual_rnn import ManualRNN, explain_kernel, use_kernel


def line(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(name))


def test_what_was_asked_for_ends_with_the_block() -> None:
    with use_kernel("reference"):
        with use_kernel("torch"):
            assert kernels.requested_kernel() == "torch"
        assert kernels.requested_kernel() == "reference"
    assert kernels.requested_kernel() == "default"


def test_a_kernel_that_cannot_run_raises_with_the_reason() -> None:
    rnn = ManualRNN(3, 4, dtype=torch.complex64)
    with use_kernel("native"), pytest.raises(RuntimeError, match="kernel 'native' can't run here: "):
        rnn(torch.randn(5, 2, 3, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_real_numbers_run_in_c(dtype: torch.dtype) -> None:
    told = explain_kernel(ManualRNN(3, 4, dtype=dtype), torch.randn(20, 2, 3, dtype=dtype))
    assert line(told, "native") == "native    runs: the fastest that can"
    assert line(told, "torch") == "torch     could run too, but native was chosen"


def test_complex_numbers_run_in_pytorchs_own_network() -> None:
    rnn, input = ManualRNN(3, 4, dtype=torch.complex64), torch.randn(20, 2, 3, dtype=torch.complex64)
    told = explain_kernel(rnn, input)
    assert line(told, "aten") == "aten      runs: the fastest that can"
    assert "can't run here: " in line(told, "native")
    assert torch.equal(rnn(input)[0], rnn.to_builtin()(input)[0])


def test_without_c_pytorchs_own_network_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    rnn, input = ManualRNN(3, 4), torch.randn(5, 2, 3)
    monkeypatch.setattr(native, "unavailable", "no compiler")
    monkeypatch.setattr(native, "has_aten_node", False)
    told = explain_kernel(rnn, input)
    assert line(told, "native") == "native    can't run here: no compiler"
    assert line(told, "aten") == "aten      runs: the fastest that can"
    assert torch.equal(rnn(input)[0], rnn.to_builtin()(input)[0])


@pytest.mark.skipif(not native.has_aten_node, reason="no compiler, or another torch")
def test_what_it_names_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    rnn, input, ran = ManualRNN(3, 4), torch.randn(5, 2, 3), []

    def watched(name: str, entrance: Any) -> Any:
        def watch(*args: Any) -> Any:
            ran.append(name)
            return entrance(*args)

        return watch

    for name in kernels.KERNELS:
        kernel = kernels.KERNELS[name]
        for entrance in {"elman", "layer", "network", "nn_rnn"} & set(vars(kernel)):
            monkeypatch.setattr(kernel, entrance, watched(name, getattr(kernel, entrance)))
    monkeypatch.setattr(plain_network, "cudnn_rnn", watched("native", plain_network.cudnn_rnn))
    rnn(input)
    assert ran == ["native"]
    assert line(explain_kernel(rnn, input), "native").endswith("runs: the fastest that can")
    for name in ("native", "torch", "aten", "reference"):
        ran.clear()
        with use_kernel(name):  # type: ignore[arg-type]
            rnn(input)
            assert line(explain_kernel(rnn, input), name).endswith("runs: it was asked for")
        assert set(ran) == {name}


def test_autocast_lowers_what_is_judged() -> None:
    rnn, input, hx = ManualRNN(3, 4), torch.randn(5, 2, 3).bfloat16(), torch.zeros(1, 2, 4).bfloat16()
    assert "can't run here: " in line(explain_kernel(rnn, input, hx), "native")  # of two dtypes
    with torch.autocast("cpu", torch.bfloat16):
        told = explain_kernel(rnn, input, hx)
    assert line(told, "native") == "native    runs: the fastest that can"


def test_your_own_recurrence_runs_in_the_reference() -> None:
    told = explain_kernel(ManualRNN(3, 4, nonlinearity=torch.sin), torch.randn(5, 2, 3))
    assert line(told, "reference") == "reference runs: the fastest that can"
    assert "this recurrence is your own" in line(told, "torch")


def test_asked_for_and_unable() -> None:
    with use_kernel("torch"):
        told = explain_kernel(ManualRNN(3, 4, nonlinearity=torch.sin), torch.randn(5, 2, 3))
    assert line(told, "torch").startswith("torch     was asked for and would raise: ")


@KERNELS
@pytest.mark.parametrize("sizes", [[2**62] * 4 + [3], [1, 2], [3, 1], [4, -1], [2]], ids=str)
def test_sizes_that_do_not_share_out_the_rows(sizes: list[int], kernel: str) -> None:
    how = (torch.tensor(sizes), "tanh", False, kernel)
    h, w = torch.randn(3, 6), torch.randn(6, 6)
    for run in (elman, linear_recurrence, OPS.elman, OPS.linear_recurrence):
        with pytest.raises((ValueError, RuntimeError)):
            run(h, h, w, *how)


@pytest.mark.parametrize("reverse", [False, True])
@KERNELS
def test_last_steps_without_rows_change_nothing(kernel: KernelName, reverse: bool) -> None:
    able, sizes = kernels.KERNELS[kernel], torch.tensor([3, 2])
    z, h0, w = torch.randn(5, 4), torch.randn(3, 4), torch.randn(4, 4) / 2
    expected = able.elman(z, h0, w, sizes, "tanh", reverse)
    found = able.elman(z, h0, w, torch.cat([sizes, sizes.new_zeros(2)]), "tanh", reverse)
    torch.testing.assert_close(found, expected)
