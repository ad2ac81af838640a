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

from torch.compiler import is_dynamo_compiling

KernelName = Literal["default", "native", "triton", "torch", "aten", "reference", "vendor"]
ALIASES: dict[str, KernelName] = {"vendor": "aten"}  # its older name
DEFAULT: KernelName = "default"
Function = TypeVar("Function", bound=Callable[..., Any])

if "_live" not in globals():  # a module that is loaded again has blocks already
    _live: dict[object, str] = {}  # for each block of any thread the kernel it asks for, the newest last
    _newest: str = DEFAULT  # the kernel of that one
    _own: ContextVar[tuple[object, ...]] = ContextVar("the blocks of this thread or task", default=())
    _lock = RLock()  # may be taken twice: a collected generator can leave its block anywhere


def requested_kernel() -> str:
    """The kernel that was asked for, or "default"."""
    if is_dynamo_compiling() or not _live:
        return _newest
    return next(filter(None, map(_live.get, reversed(_own.get()))), _newest)


def _leave(*blocks: object) -> None:
    global _newest
    with _lock:
        for block in blocks:
            _live.pop(block, None)
        _newest = [DEFAULT, *_live.values()][-1]
    _own.set(tuple(block for block in _own.get() if block in _live))


def _forget_other_threads() -> None:
    """In a forked process, where no other thread is left to leave its block."""
    global _lock
    _lock = RLock()
    _leave(*(_live.keys() - set(_own.get())))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


class use_kernel:  # noqa: N801  # used like a function, as torch.no_grad is
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

    unused = False  # of a request that was refused

    def __init__(self, name: KernelName) -> None:
        names = get_args(KernelName)
        if name not in names:
            raise ValueError(f"expected a kernel among {', '.join(names)}, got {name!r}")
        self.name = ALIASES.get(name, name)
        self.entered: list[Any] = []  # its blocks; in a trace the kernel asked for before
        self.unused = True

    def __enter__(self) -> None:
        global _newest
        self.unused = False
        if is_dynamo_compiling():  # one thread at a time, and blocks end in order
            self.entered.append(_newest)
            _newest = self.name
            return
        block = object()
        self.entered.append(block)
        with _lock:
            _live[block] = _newest = self.name
        _own.set((*_own.get(), block))

    def __exit__(self, *_: Any) -> None:
        global _newest
        if is_dynamo_compiling():
            _newest = self.entered.pop()
            return
        with _lock:  # one object may be entered in several threads
            own = [block for block in self.entered if block in _own.get()]
            block = (own or self.entered)[-1]  # not its own: a generator that another thread closes
            self.entered.remove(block)
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
            with use_kernel(self.name):
                return function(*args, **kwargs)

        return asking  # type: ignore[return-value]

    def __del__(self) -> None:
        if self.unused:
            warnings.warn(
                f"use_kernel({self.name!r}) was never entered and did nothing; "
                f"write `with use_kernel({self.name!r}):` around the calls",
                stacklevel=2,
            )
