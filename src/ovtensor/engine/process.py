"""What belongs to the whole process: its signal handlers, and what libraries change of it."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# transformers patches torch and sets its default dtype while it loads, so that every tensor that is
# made meanwhile without a dtype gets that one; torch.jit.trace and warnings have such state too. So
# one thread at a time loads or converts.
EXCLUSIVE = threading.RLock()


@contextlib.contextmanager
def handed_on() -> Iterator[None]:
    """Have what a signal handler raises within arrive as it is, whatever is made of it on the way.

    While OpenVINO calls back into Python it makes errors of its own of what is raised there, or
    drops it; libraries that load weights try something else instead; and an alarm's error is none
    of the work that it ends. So the handlers are watched. They run in the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _Watch()
    try:
        watch.begin()
        yield
    except BaseException as error:
        if not watch.raised or any(error is one for one in watch.raised):
            raise
        raise watch.raised.pop() from None
    finally:
        watch.end()
    if watch.raised:
        raise watch.raised.pop()


class _Watch:
    """In place of every signal handler: calls it, and knows afterwards what it has raised."""

    def __init__(self) -> None:
        self.raised: list[BaseException] = []
        self._handlers: dict[int, tuple[Any, Any]] = {}
        self._late: list[Callable[[], Any]] | None = None  # while handlers are put back

    def begin(self) -> None:
        for number in signal.valid_signals():
            if callable(handler := signal.getsignal(number)):
                self._handlers[number] = handler, functools.partial(self._handle, handler)
                signal.signal(number, self._handlers[number][1])

    def end(self) -> None:
        late: list[Callable[[], Any]] = []
        self._late = late
        for number, (handler, watching) in self._handlers.items():
            if signal.getsignal(number) is watching:  # nobody has set another one since
                signal.signal(number, handler)
        for call in late:
            call()

    def _handle(self, handler: Callable[..., Any], number: int, frame: Any) -> None:
        if self._late is not None:
            self._late.append(functools.partial(handler, number, frame))
            return
        try:
            handler(number, frame)
        except BaseException as error:
            self.raised.append(error)
            raise
