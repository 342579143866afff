"""Who writes a run directory. File locks are not to be had on every cluster's disks."""

import contextlib
import json
import os
import secrets
import socket
import threading
from pathlib import Path

_NAME = ".owner"
_BEAT_SECONDS = 15.0
_DEAD_SECONDS = 120.0
"""An owner that has not been heard of for this long is gone: killed, and its number another's."""


class DirectoryInUse(RuntimeError):
    """Another process writes the run directory; the message says which."""


class Owner:
    """Holds a run directory for this process; a context manager.

    Its mark is a file with process and machine, touched every few seconds. A mark whose process is
    gone holds nobody back, and none does once it is out of date, by the clock of the disk. Raises
    `DirectoryInUse`, and `OSError` for a directory that cannot be written.
    """

    def __init__(self, run_dir: Path):
        self._path = run_dir / _NAME
        self._mark = {"pid": os.getpid(), "host": _host(), "token": secrets.token_hex(8)}
        self._gone = threading.Event()

    def __enter__(self) -> "Owner":
        check_free(self._path.parent)
        self._path.unlink(missing_ok=True)
        try:
            with self._path.open("x", encoding="utf-8") as file:  # of two at a time one wins
                json.dump(self._mark, file)
        except FileExistsError:
            raise DirectoryInUse("has just been taken by another process") from None
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._gone.set()
        with contextlib.suppress(OSError):
            if self.holds():
                self._path.unlink()

    def holds(self) -> bool:
        """Whether nobody has taken the directory since: a process can be halted for minutes."""
        mark = _read(self._path)
        return mark is None or mark == self._mark

    def _beat(self) -> None:
        while not self._gone.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):
                if self.holds():
                    os.utime(self._path)


def check_free(run_dir: Path) -> None:
    """Raises `DirectoryInUse` if a process that is alive writes the directory."""
    if other := _holder(run_dir):
        raise DirectoryInUse(f"is being written by {other}")


def _holder(run_dir: Path) -> str:
    """Who writes the directory now, in words; empty if nobody does."""
    path = run_dir / _NAME
    mark = _read(path)
    if mark is None:
        return ""
    pid, host = mark.get("pid"), mark.get("host")
    if host == _host():
        gone, where = not (isinstance(pid, int) and pid > 0 and _runs(pid)), ""
    else:
        gone, where = False, f" on {str(host).partition('/')[0]}"
    return "" if gone or _age(path) > _DEAD_SECONDS else f"process {pid}{where}"


def _read(path: Path) -> dict | None:
    """The mark; None for none, or one that was cut off."""
    try:
        mark = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) else None


def _host() -> str:
    """The machine, and since when it runs: process numbers begin anew with it."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()}/{boot[:8]}"
    return socket.gethostname()


def _runs(pid: int) -> bool:
    """Whether there is such a process, this one included, that is more than a zombie."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2][1] != "Z"
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _age(path: Path) -> float:
    """Seconds since the mark was touched, by the disk's own clock."""
    probe = path.with_name(f"{_NAME}.{secrets.token_hex(4)}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except OSError:
        return 0.0
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
