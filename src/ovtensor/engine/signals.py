"""What a signal handler raises, handed on as what it is."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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
    raised: list[BaseException] = []
    late: list[Callable[[], Any]] | None = None  # what came while handlers were put back

    def watched(handler: Callable[..., Any], number: int, frame: Any) -> None:
        if late is not None:
            late.append(functools.partial(handler, number, frame))
            return
        try:
            handler(number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    handlers: dict[int, tuple[Any, Any]] = {}
    try:
        for number in signal.valid_signals():
            if callable(handler := signal.getsignal(number)):
                handlers[number] = handler, functools.partial(watched, handler)
                signal.signal(number, handlers[number][1])
        yield
    except BaseException as error:
        if not raised or any(error is one for one in raised):
            raise
        raise raised.pop() from None
    finally:
        late = []
        for number, (handler, watching) in handlers.items():
            if signal.getsignal(number) is watching:  # nobody has set another one since
                signal.signal(number, handler)
        for call in late:
            call()
    if raised:
        raise raised.pop()
