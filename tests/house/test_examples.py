r"""The examples in the docstrings of the public functions run and print what they say."""

import doctest
import importlib
import runpy
from types import ModuleType
from typing import Any

import pytest
import torch

import manual_rnn
from manual_rnn import inspect, pictures

PUBLIC: dict[str, Any] = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (manual_rnn, inspect, pictures)
    for name in module.__all__
    if name not in ("KernelName", "Pass", "Trace")  # types, which nobody calls
}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_examples_of(name: str) -> None:
    """Each public function and class has one at least, and it holds."""
    torch.manual_seed(0)
    public = PUBLIC[name]
    module: ModuleType = importlib.import_module(public.__module__)
    names = {**vars(module), "torch": torch, "nn": torch.nn}
    tests = doctest.DocTestFinder(exclude_empty=True).find(public, name, module, globs=names)
    assert any(test.name == name for test in tests if test.examples), "expected an example in its docstring"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    for test in tests:
        runner.run(test, out=said.append)
    assert not runner.summarize(verbose=False).failed, "".join(said)


def test_python_m_manual_rnn(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("manual_rnn", run_name="__main__")
    said = capsys.readouterr().out
    assert f"manual_rnn {manual_rnn.__version__}, torch {torch.__version__}" in said
    assert all(word in said for word in ("reference", "native", "python -m manual_rnn.training", "pytest"))
