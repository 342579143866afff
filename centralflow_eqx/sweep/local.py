"""Members on this machine: in this process, or in worker processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from typing import NamedTuple

from rich.console import Console

from ..errors import ExitCode, exit_code
from ..spec import Spec
from .conductor import Backend, Event
from .folder import beside, run_arguments

_POLL_SECONDS = 0.2


def in_this_process(console: Console) -> Backend:
    """One member after the other, here."""

    def run(members: Sequence[Spec]) -> Generator[Event, None, None]:
        import jax

        from ..experiment.run import run_spec

        for member in members:
            yield Event(member)
            asked: list[bool] = []

            def run_it(member: Spec = member, asked: list[bool] = asked) -> int:
                code = run_spec(member, console, anew=True)
                asked.append(code == ExitCode.INTERRUPTED)
                return code

            code = exit_code(run_it)
            if any(asked):  # by a signal, not by what keeps this member alone from going on
                raise KeyboardInterrupt
            jax.clear_caches()  # compiled programs of many members would fill the memory
            yield Event(member, code)

    return run


class _Worker(NamedTuple):
    member: Spec
    process: subprocess.Popen


def in_workers(number: int, user_code: bool) -> Backend:
    """Up to `number` members at a time, each in a process of its own on this machine."""

    def run(members: Sequence[Spec]) -> Generator[Event, None, None]:
        waiting, running = deque(members), []
        try:
            while waiting or running:
                while waiting and len(running) < number:
                    worker = _start(waiting.popleft(), number, user_code)
                    running.append(worker)
                    yield Event(worker.member, note=f"log {beside(worker.member, 'log')}")
                time.sleep(_POLL_SECONDS)
                for worker in [w for w in running if w.process.poll() is not None]:
                    running.remove(worker)
                    worker.process.communicate()
                    log = str(beside(worker.member, "log"))
                    yield Event(worker.member, worker.process.returncode, log)
        finally:
            _end(running)

    return run


def _start(member: Spec, number: int, user_code: bool) -> _Worker:
    command = [sys.executable, "-m", "centralflow_eqx", *run_arguments(member, user_code)]
    # Each JAX process takes most of a GPU's memory unless told otherwise.
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / number:.3f}"} if number > 1 else {}
    with beside(member, "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--end-with-stdin"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=share | os.environ,
            start_new_session=True,  # Ctrl-C in the terminal reaches it through us, once
        )
    return _Worker(member, process)


def _end(workers: Sequence[_Worker]) -> None:
    """Interrupt what still runs, and wait until its files are closed."""
    if not workers:
        return
    print("ending the running members, Ctrl-C again kills them", file=sys.stderr)
    for worker in workers:
        worker.process.send_signal(signal.SIGINT)
    try:
        for worker in workers:
            worker.process.wait()
    except KeyboardInterrupt:
        for worker in workers:
            worker.process.kill()
        raise


def end_with_stdin() -> None:
    """End this process as soon as its standard input closes: who started it is gone.

    Otherwise a worker would go on beside those of the sweep's next start. It ends as by Ctrl-C.
    """

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()
