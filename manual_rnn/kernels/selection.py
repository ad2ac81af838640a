r"""Who asked for which kernel: `use_kernel`, and what holds when several have asked.

A request lives from the entrance of its `with` block to its exit, whatever order blocks end in. A call
heeds the innermost live request of its own thread, or of its own task in asyncio; where that has none, the
newest live one of any thread, so that the threads of `nn.DataParallel`, or of a backward pass that
recomputes a checkpoint, run what was asked for around them.

Compiled code heeds the newest of any thread: Dynamo can trace no `ContextVar` (torch 2.13), and notices a
change only of a global.
"""

import os
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isfunction, isgeneratorfunction
from threading import RLock
from typing import Any, Literal, TypeVar, get_args

import torch

__all__ = ["DEFAULT", "KernelName", "Request", "requested_kernel", "use_kernel"]

KernelName = Literal["default", "native", "triton", "torch", "aten", "reference", "vendor"]
ALIASES: dict[str, KernelName] = {"vendor": "aten"}  # its older name
DEFAULT: KernelName = "default"
Function = TypeVar("Function", bound=Callable[..., Any])


class _Live:
    """One block that has been entered and not left."""

    def __init__(self, name: str) -> None:
        self.name, self.left = name, False


if "_live" not in globals():  # a module that is loaded again has blocks already
    _live: list[_Live] = []  # of all threads, the newest last
    _newest: str = DEFAULT  # the name of that one
    _own: ContextVar[tuple[_Live, ...]] = ContextVar("the blocks of this thread or task", default=())
    _lock = RLock()  # may be taken twice: a collected generator can leave its block anywhere


def requested_kernel() -> str:
    """The kernel that was asked for, or "default"."""
    if torch.compiler.is_compiling() or not _live:
        return _newest
    return next((block.name for block in reversed(_own.get()) if not block.left), _newest)


def _enter(name: str) -> _Live:
    global _newest
    block = _Live(name)
    with _lock:
        _live.append(block)
        _newest = name
    _own.set((*_own.get(), block))
    return block


def _leave(block: _Live) -> None:
    global _newest
    with _lock:
        block.left = True  # for the contexts that have a copy of it
        _live.remove(block)
        _newest = _live[-1].name if _live else DEFAULT
    _own.set(tuple(each for each in _own.get() if each is not block))


def _forget_other_threads() -> None:
    """In a forked process, where no other thread is left to leave its block."""
    global _newest, _lock
    _lock = RLock()
    _live[:] = [block for block in _live if block in _own.get()]
    _newest = _live[-1].name if _live else DEFAULT


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


class Request:
    """What `use_kernel` returns: for `with`, also nested in itself or in several threads, and a decorator."""

    unused = False  # of a request that was refused

    def __init__(self, name: str) -> None:
        self.name = name
        self.blocks: list[_Live] = []
        self.before: list[str] = []  # in a trace
        self.unused = True

    def __enter__(self) -> None:
        global _newest
        self.unused = False
        if torch.compiler.is_compiling():  # one thread at a time, and blocks end in order
            self.before.append(_newest)
            _newest = self.name
        else:
            self.blocks.append(_enter(self.name))

    def __exit__(self, *_: Any) -> None:
        global _newest
        if torch.compiler.is_compiling():
            _newest = self.before.pop()
            return
        own = [block for block in self.blocks if block in _own.get()]
        block = (own or self.blocks)[-1]  # not its own: a generator that another thread closes
        self.blocks.remove(block)
        _leave(block)

    def __call__(self, function: Function) -> Function:
        """`function`, with every call of it in a block of its own."""
        self.unused = False
        later = (isgeneratorfunction, iscoroutinefunction, isasyncgenfunction)
        if isinstance(function, type) or not callable(function) or any(kind(function) for kind in later):
            what = repr(function) if not isfunction(function) else f"{function.__name__}, which runs later"
            raise TypeError(f"use_kernel: expected a function to decorate, got {what}; write `with` inside")

        @wraps(function)
        def asking(*args: Any, **kwargs: Any) -> Any:
            with Request(self.name):
                return function(*args, **kwargs)

        return asking  # type: ignore[return-value]

    def __del__(self) -> None:
        if self.unused:
            warnings.warn(
                f"use_kernel({self.name!r}) was never entered and did nothing; "
                f"write `with use_kernel({self.name!r}):` around the calls",
                stacklevel=2,
            )


def use_kernel(name: KernelName) -> Request:
    r"""Ask for a kernel by name for the calls inside a `with` block, or of a function that it decorates.

    A backward pass uses the kernel of its forward pass, wherever it is called. The block holds for its own
    thread or task, and for threads that have no block of their own; compiled code heeds the block entered
    last, in any thread. A block that ends takes back its own request and no other, in whatever order.

    Args:
        name: "reference", "torch", "native", "triton", "aten", or "default", which chooses the fastest.

    Raises:
        ValueError: for any other name, at once.
        TypeError: as a decorator of anything but a function that runs when it is called.
        RuntimeError: inside, where the kernel can't run; the message has the reason.

    Warns:
        UserWarning: once it is thrown away without having been entered.

    Example:
        >>> from manual_rnn import ManualRNN
        >>> rnn, input = ManualRNN(3, 4), torch.randn(5, 2, 3)
        >>> with use_kernel("reference"):  # the equation as a loop
        ...     output, h_n = rnn(input)
        >>> torch.equal(output, rnn.to_builtin()(input)[0])
        True
    """
    names = get_args(KernelName)
    if name not in names:
        raise ValueError(f"expected a kernel among {', '.join(names)}, got {name!r}")
    return Request(ALIASES.get(name, name))
