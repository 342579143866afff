"""Several processes, on one host or many, that carry out one run together.

All of them compute the same, each on its own devices; the first alone writes and prints. What is
decided by time or by a signal has to be agreed on, since programs of several processes wait for
each other.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from .errors import ExitCode, one_line

JOIN_SECONDS = 300
"""How long a process waits for the others to be started."""
_GONE_SECONDS = 30
"""Silence after which a process is taken for lost."""


class NotJoined(RuntimeError):
    """The processes of a run did not find each other."""


class HostLost(RuntimeError):
    """Another process of the run does not answer any more."""


def join(coordinator: str | None = None, processes: int | None = None, index: int | None = None):
    """Become one of the processes of a run, before anything is computed.

    `coordinator` is the address (host:port) of the first one. Without arguments a cluster's
    scheduler or MPI says all that, and if there is none this process is alone. Raises `NotJoined`.
    """
    if jax.distributed.is_initialized():
        return
    # JAX ends the process itself when its own time is up: this one is up before, in another thread.
    pool = ThreadPoolExecutor(1, "join")
    joining = pool.submit(
        jax.distributed.initialize,
        coordinator,
        processes,
        index,
        initialization_timeout=JOIN_SECONDS + _GONE_SECONDS,
        heartbeat_timeout_seconds=_GONE_SECONDS,
    )
    try:
        joining.result(JOIN_SECONDS)
    except TimeoutError:
        raise NotJoined(
            f"not all were there after {JOIN_SECONDS} s; each has to be started, with an index "
            "of its own, and to reach the coordinator's host and port"
        ) from None
    except Exception as error:  # of many kinds
        if coordinator is not None or jax.distributed.is_initialized():
            raise NotJoined(one_line(error)) from None
        if not isinstance(error, ValueError):  # which says that there is no scheduler
            raise NotJoined(one_line(error)) from None
    finally:
        pool.shutdown(wait=False)


def leave(code: int) -> None:
    """End this process at once if others share its run and it has not come to its end.

    JAX would have it wait for the others, which may wait for it, or not be there at all. Files are
    whole at any time.
    """
    if code != ExitCode.DONE and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def are_several() -> bool:
    """Whether there are others."""
    return jax.process_count() > 1


def first_says(value: int) -> int:
    """What the first process gives here; all have to call it."""
    return int(_all(value)[0])


def any_says(value: bool) -> bool:
    """Whether any process says so; all have to call it."""
    return bool(_all(value).any())


def _all(value: int | bool) -> np.ndarray:
    if not are_several():
        return np.array([value])
    from jax.experimental import multihost_utils

    gathered: Any = multihost_utils.process_allgather(np.asarray(value, np.int32))
    return np.asarray(gathered)
