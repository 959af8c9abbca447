"""Interrupts that wait for a good moment."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread


class Interrupt:
    """Whether somebody asked to stop."""

    asked = False


@contextmanager
def deferred() -> Iterator[Interrupt]:
    """Within, SIGINT and SIGTERM only set a mark; only the main thread can listen to them."""
    interrupt = Interrupt()
    if current_thread() is not main_thread():
        yield interrupt
        return

    def ask(_number: int, _frame: object) -> None:
        interrupt.asked = True

    former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
