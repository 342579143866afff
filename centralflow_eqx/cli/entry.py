"""What runs one command, whatever comes of it."""

import contextlib
import gc
import os
import sys
import warnings
from collections.abc import Iterator

from ..errors import ExitCode, exit_code
from .parser import parse

_CACHE_WARNING = "Error reading persistent compilation cache entry"


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Warnings as one line each, without the source line that Python adds."""

    told: set[str] = set()

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        text = str(message)
        kind = _CACHE_WARNING if text.startswith(_CACHE_WARNING) else text
        if kind not in told:  # a damaged cache has hundreds of entries
            print(f"warning: {text}", file=sys.stderr)
        told.add(kind)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Garbage is looked for less often: nearly all that imports and tracing make is kept."""
    usual = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code (see `errors.ExitCode`)."""
    try:
        args = parse(argv)
    except SystemExit as exit_:  # argparse has printed its help, or what was wrong
        return int(exit_.code or 0)
    try:
        with _one_line_warnings(), _rare_collections():
            code = exit_code(lambda: int(args.action(args)))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = ExitCode.INTERRUPTED
    if code and "jax" in sys.modules:  # else there are no others
        from ..hosts import leave

        leave(code)
    return code
