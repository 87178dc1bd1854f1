"""Ctrl-C and SIGTERM while a run trains: the first asks it to stop, a second Ctrl-C ends at once."""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def graceful(ask: Callable[[], None]) -> Iterator[None]:
    """While it is open, the first SIGINT or SIGTERM calls `ask`, in a thread of its own; a further SIGINT raises
    KeyboardInterrupt. Outside the main thread, where no signal can be heard, nothing changes."""
    heard = False

    def request() -> None:
        try:
            ask()
        except OSError:  # it cannot be asked any more
            _thread.interrupt_main()

    def hear(number, frame):
        nonlocal heard
        if heard and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not heard:
            heard = True
            threading.Thread(target=request, name="kdray-ask").start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # what is started in the background by a shell is to ignore Ctrl-C
            signal.signal(number, hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def interrupt(number, frame):
    """A handler under which SIGTERM is as Ctrl-C."""
    raise KeyboardInterrupt
