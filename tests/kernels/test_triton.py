r"""The Triton kernel without a GPU: its values by Triton's interpreter, its machine code by compilation for
cards that aren't here, and what it says where it can't run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import on_no_card
from internals import kernels, triton_launch
from torch._subclasses import FakeTensorMode

from manual_rnn import ManualRNN, explain_kernel, use_kernel

HERE = Path(__file__).parent
TRITON = tuple(map(int, version("triton").split(".")[:2])) if find_spec("triton") else (0, 0)
INTERPRETS = pytest.mark.skipif(
    TRITON < (3, 7), reason="before 3.7 Triton's interpreter fails with numpy 2.4"
)
COMPILES = pytest.mark.skipif(TRITON < (3, 6), reason="no Triton of 3.6 or newer is installed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "interpret"),
    [pytest.param("interpreted.py", "1", marks=INTERPRETS), pytest.param("compiled.py", "0", marks=COMPILES)],
)
def test_in_a_process_of_its_own(file: str, interpret: str, tmp_path: Path) -> None:
    """Triton decides as it is imported whether it interprets or compiles."""
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "TRITON_CACHE_DIR": str(tmp_path)}
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", file]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=400, cwd=HERE)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@contextmanager
def a_card(
    seen: bool = True, installed: bool = True, hip: str | None = None, **properties: Any
) -> Iterator[None]:
    """As if there were Triton and an H100, but for this."""
    known = {"major": 9, "minor": 0, "name": "card", "shared_memory_per_block_optin": 227 * 1024}
    card = SimpleNamespace(**{**known, **properties})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: seen)
        patch.setattr(torch.cuda, "get_device_properties", lambda _: card)
        patch.setattr(torch.version, "hip", hip)
        patch.setattr(triton_launch, "find_spec", lambda _: installed or None)
        patch.setattr(triton_launch, "_found", {})
        yield


def without_numbers(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cuda") -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(5, 2, *shape, dtype=dtype, device=device)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (without_numbers(64), None),
        (without_numbers(256, dtype=torch.bfloat16), None),
        (without_numbers(64, device="cpu"), "expected tensors on CUDA, got cpu"),
        (
            without_numbers(64, dtype=torch.float64),
            "expected float32, bfloat16 or float16, got torch.float64",
        ),
        (without_numbers(129), "expected H <= 128 in torch.float32, got 129"),
        (without_numbers(257, dtype=torch.half), "expected H <= 256 in torch.float16, got 257"),
    ],
    ids=str,
)
def test_tensors_that_it_takes(x: torch.Tensor, reason: str | None) -> None:
    with a_card():
        assert triton_launch.unsupported_reason(x) == reason


def test_mixed_and_negated_tensors() -> None:
    x = without_numbers(4)
    with FakeTensorMode():
        negated = torch.empty(5, 2, 4, dtype=torch.complex64, device="cuda").conj().imag
    with a_card():
        assert "one dtype" in str(triton_launch.unsupported_reason(x, without_numbers(4, dtype=torch.half)))
        assert triton_launch.unsupported_reason(negated) == "expected a tensor without a pending negation"


def test_cards_that_it_takes() -> None:
    x, wide = without_numbers(64), without_numbers(128)
    with a_card(major=7, minor=5):
        assert triton_launch.unsupported_reason(x) == "expected compute capability 8.0 or more, card has 7.5"
    with a_card(minor=9, major=8, shared_memory_per_block_optin=99 * 1024):
        assert triton_launch.unsupported_reason(wide) is None
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            assert triton_launch.unsupported_reason(x) is None
            room = "expected 147456 bytes of shared memory to a block, card has 101376"
            assert triton_launch.unsupported_reason(wide) == room
    with a_card(hip="6.0"):
        assert triton_launch.unsupported_reason(x) == "expected a card of NVIDIA's, this torch is for ROCm"
    with a_card(seen=False):
        assert triton_launch.unsupported_reason(x) == "torch sees no CUDA device here"
    with a_card(installed=False):
        assert (
            triton_launch.unsupported_reason(x) == "triton isn't installed: pip install 'manual_rnn[triton]'"
        )


class Wrong:
    """A kernel that leaves memory as it is."""

    def __getitem__(self, grid: Any) -> Any:
        return self.launch

    def launch(self, x: Any, other: Any, m: Any, out: Any, *_: Any, **__: Any) -> None:
        out.zero_()


class Raising(Wrong):
    def launch(self, *_: Any, **__: Any) -> None:
        raise OSError("no driver\nfor this card")


@pytest.mark.parametrize(
    ("kernel", "says"), [(Wrong(), "was off by "), (Raising(), "raised OSError: no driver")]
)
def test_a_self_test_that_fails_warns_once(kernel: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default goes on by the loop; whoever asked for the kernel gets its reason."""
    monkeypatch.setattr(triton_launch, "DEVICE", "cpu")
    monkeypatch.setattr(triton_launch, "_kernel", lambda: kernel)
    monkeypatch.setattr(kernels.KERNELS["native"], "unsupported_reason", lambda *_: "not here")
    z, h0, w = torch.randn(2, 3, 4), torch.randn(3, 4), torch.randn(4, 4)
    with a_card():
        with pytest.warns(UserWarning, match=f"'triton' won't run on cpu: its self-test .*{says}") as seen:
            assert says in str(triton_launch.unsupported_reason(z, h0, w))
        assert len(seen) == 1
        assert kernels.choose("default", z, h0, w) is kernels.KERNELS["torch"]
        with use_kernel("triton"), pytest.raises(RuntimeError, match=f"can't run here: its self-.*{says}"):
            ManualRNN(3, 4)(torch.randn(5, 2, 3))


def test_while_a_graph_is_captured_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with a_card():
        reason = triton_launch._test((torch.device("cuda", 0), torch.float32, "tf32", 4))
        assert "while a CUDA graph is captured" in str(reason)
        assert not triton_launch._found


def test_explain_kernel_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "_absent", lambda: None)
    monkeypatch.setattr(triton_launch, "_why_not_on", lambda *_: None)
    rnn = ManualRNN(3, 4)
    with FakeTensorMode():
        on_no_card(rnn)
        told = explain_kernel(rnn, torch.empty(5, 2, 3, device="cuda"))
    assert "triton    runs: the fastest that can" in told
