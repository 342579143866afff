"""Being asked to end, by Ctrl-C or a cluster's time limit."""

import contextlib
import os
import signal
import sys
import threading

from ..errors import ExitCode

_SIGNALS = signal.SIGINT, signal.SIGTERM


class Interruption:
    """Notes SIGINT and SIGTERM, so that a run can end well; a second one ends the process at once.

    A context manager for the main thread; in other threads, which get no signals, it notes
    nothing. Python runs its handlers only between two of its own instructions, which compiled
    programs are not; a thread sees signals at any time.
    """

    def __init__(self):
        self._asked = threading.Event()

    def __bool__(self) -> bool:
        return self._asked.is_set()

    def __enter__(self) -> "Interruption":
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._before = {s: signal.signal(s, lambda *_: None) for s in _SIGNALS}
            self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            os.close(self._write)

    def _watch(self) -> None:
        """Count signals until the other end of the pipe is closed."""
        while found := os.read(self._read, 1):
            if found[0] not in _SIGNALS:
                continue
            if self._asked.is_set():
                os._exit(ExitCode.INTERRUPTED)  # files are whole at any time
            self._asked.set()
            with contextlib.suppress(OSError):  # nobody may listen any more
                print("interrupted: ending soon, another signal ends at once", file=sys.stderr)
        os.close(self._read)
