"""Signals that ask a command to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPPED = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}  # word, exit status

_stop_signals: list[signal.Signals] = []  # signals that asked this command to stop


def stopped() -> bool:
    """Whether the running command was asked to stop: an error may be an interrupt under another name."""
    return bool(_stop_signals)


@contextmanager
def stopping_signals() -> Iterator[list[signal.Signals]]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that partial files are deleted; yields the signals received."""
    _stop_signals.clear()

    def stop(number: int, frame: object) -> None:
        _stop_signals.append(signal.Signals(number))
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield _stop_signals  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, stop) for number in STOPPED}
    try:
        yield _stop_signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
