r"""The Triton kernel without a GPU: its values by Triton's interpreter, its machine code by compilation for
cards that aren't here, and what it says where it can't run."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import on_no_card
from internals import kernels, triton_scan
from torch._subclasses import FakeTensorMode

from manual_rnn import ManualRNN, explain_kernel, use_kernel

HERE = Path(__file__).parent
TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="triton isn't installed")


@TRITON
@pytest.mark.slow
@pytest.mark.parametrize(("file", "interpret"), [("interpreted.py", "1"), ("compiled.py", "0")])
def test_in_a_process_of_its_own(file: str, interpret: str, tmp_path: Path) -> None:
    """Triton decides as it is imported whether it interprets or compiles."""
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "TRITON_CACHE_DIR": str(tmp_path)}
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / file)]
    done = subprocess.run(
        run, env=environment, capture_output=True, text=True, timeout=400, cwd=HERE.parents[1]
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def card(**properties: Any) -> Any:
    """What torch says of an H100, but for these properties."""
    known = {"major": 9, "minor": 0, "name": "card", "shared_memory_per_block_optin": 227 * 1024}
    return SimpleNamespace(**{**known, **properties})


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """As if there were a card and Triton: its properties, to be changed."""
    properties: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card(**properties))
    monkeypatch.setattr(triton_scan, "find_spec", lambda _: True)
    return properties


def why_not(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cuda") -> str | None:
    with FakeTensorMode():
        return triton_scan.why_not(torch.empty(5, 2, *shape, dtype=dtype, device=device))


def test_it_says_why_not(cards: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not(64) is None
    assert why_not(64, device="cpu") == "expected tensors on CUDA, got cpu"
    assert why_not(64, dtype=torch.float64) == "expected float32, bfloat16 or float16, got torch.float64"
    assert why_not(129) == "expected H <= 128 in torch.float32, got 129"
    assert why_not(256, dtype=torch.bfloat16) is None
    cards.update(minor=5, major=7)
    assert why_not(64) == "expected compute capability 8.0 or more, card has 7.5"
    cards.update(major=8, minor=9, shared_memory_per_block_optin=99 * 1024)
    assert why_not(128) is None
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert why_not(128) == "expected 147456 bytes of shared memory to a block, card has 101376"
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert why_not(64) == "expected a card of NVIDIA's, this torch is for ROCm"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert why_not(64) == "torch sees no CUDA device here"
    monkeypatch.setattr(triton_scan, "find_spec", lambda _: None)
    assert why_not(64) == "triton isn't installed: pip install 'manual_rnn[triton]'"


def test_mixed_and_negated_tensors(cards: dict[str, Any]) -> None:
    with FakeTensorMode():
        x = torch.empty(5, 2, 4, device="cuda")
        assert "one dtype" in str(triton_scan.why_not(x, x.half()))
        assert "negation" in str(triton_scan.why_not(torch.imag(torch.conj(x + 0j))))


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
def test_a_self_test_that_fails_warns_once(
    kernel: Any, says: str, cards: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default goes on by the loop; whoever asked for the kernel gets its reason."""
    monkeypatch.setattr(triton_scan, "DEVICE", "cpu")
    monkeypatch.setattr(triton_scan, "_kernel", lambda: kernel)
    monkeypatch.setattr(triton_scan, "_found", {})
    z, h0, w = torch.randn(2, 3, 4), torch.randn(3, 4), torch.randn(4, 4)
    with pytest.warns(UserWarning, match=f"kernel 'triton' won't run on cpu: its self-test .*{says}") as seen:
        assert says in str(triton_scan.why_not(z, h0, w))
    assert len(seen) == 1
    monkeypatch.setattr(kernels.KERNELS["native"], "why_not", lambda *_: "not here")
    assert kernels.choose("default", z, h0, w) is kernels.KERNELS["torch"]
    with use_kernel("triton"), pytest.raises(RuntimeError, match=f"'triton' can't run here: its .*{says}"):
        ManualRNN(3, 4)(torch.randn(5, 2, 3))


def test_while_a_graph_is_captured_it_waits(cards: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    reason = triton_scan._test((torch.device("cuda", 0), torch.float32, "tf32", 4))
    assert "while a CUDA graph is captured" in str(reason)
    assert not triton_scan._found


def test_explain_kernel_names_it(cards: dict[str, Any]) -> None:
    rnn = ManualRNN(3, 4)
    with FakeTensorMode():
        on_no_card(rnn)
        told = explain_kernel(rnn, torch.empty(5, 2, 3, device="cuda"))
    assert "triton    runs: the fastest that can" in told
