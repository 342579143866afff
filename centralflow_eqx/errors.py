"""Exit codes, and the errors that are the user's to fix."""

import contextlib
import difflib
import enum
import itertools
import json
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

_LIBRARIES = str(Path(__file__).parent), *map(sysconfig.get_path, ("purelib", "stdlib"))
_MOST_ENTRIES = 1000


class ExitCode(enum.IntEnum):
    """What the process tells the shell; job scripts branch on it."""

    DONE = 0
    BUG = 1
    BAD_INPUT = 2
    NUMERICAL_STOP = 3
    INTERRUPTED = 4


@dataclass(frozen=True)
class Location:
    """Where a value was given: a line of a file, or a command-line flag (no line)."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the input; `path` is the dotted key it is about, or empty."""

    location: Location
    path: str
    message: str

    def __str__(self) -> str:
        """One line, whatever names and values it quotes."""
        return visible(": ".join(filter(None, (str(self.location), self.path, self.message))))


class InputError(Exception):
    """Bad input: one line per problem, `FILE:LINE: path: what is wrong, what is allowed`.

    Problems are kept in the order of the file's lines, those from the command line last.
    """

    def __init__(self, problems: Iterable[Problem]):
        self.problems = sorted(
            problems, key=lambda p: (p.location.line is None, p.location.line or 0, p.path)
        )
        super().__init__("\n".join(map(str, self.problems)))


class OptionError(ValueError):
    """A component's option turned out impossible once the component was built.

    Components know the name of the option but not where it was given; whoever holds the spec
    turns this into an `InputError` with the file and line.
    """

    def __init__(self, option: str, message: str):
        self.option = option
        self.message = message
        super().__init__(f"{option}: {message}")


class UnsupportedRule(ValueError):
    """The optimizer is outside the theory of central flows; the message says why."""


class NumericalStop(ArithmeticError):
    """A process turned non-finite or lost its constraint; what was recorded before is valid."""

    def __init__(self, process: str, step: int, reason: str):
        self.process = process
        self.step = step
        self.reason = reason
        super().__init__(f"{process} stopped at step {step}: {reason}")


class RunLost(Exception):
    """What keeps a run from going on, such as a full disk; what was recorded is kept."""


def exit_code(action: Callable[[], int]) -> int:
    """What `action` returns; on an error its code, with the error on standard error."""
    try:
        return action()
    except InputError as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_INPUT
    except RunLost as error:
        print(error, file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception:
        traceback.print_exc()
        print("This is a bug in centralflow_eqx: please report it with the above.", file=sys.stderr)
        return ExitCode.BUG


@contextlib.contextmanager
def running(what: str, option: str = "type") -> Iterator[None]:
    """Turns whatever the user's own code raises within into an `OptionError` for `option`.

    `what` is running, in words. The message ends with the line of the user's that was reached.
    """
    try:
        yield
    except OptionError:
        raise
    except Exception as error:
        place = _line_of_the_users(error.__traceback__)
        message = f"{what} raises {one_line(error)}{place and f' ({place})'}"
        raise OptionError(option, message) from None


def _line_of_the_users(reached: TracebackType | None) -> str:
    """The innermost line outside Python's library, installed packages and this one, or nothing."""
    lines = [f for f in traceback.extract_tb(reached) if not f.filename.startswith(_LIBRARIES)]
    return f"{lines[-1].filename}:{lines[-1].lineno}" if lines else ""


def one_line(error: BaseException) -> str:
    """An exception's type and message on one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return text if len(text) <= 300 else text[:297] + "..."


def did_you_mean(word: Any, allowed: Sequence[str]) -> str:
    """` (did you mean 'x'?)` if `word` is close to one of `allowed`, else nothing."""
    close = difflib.get_close_matches(str(word), allowed, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def did_you_mean_file(path: Path) -> str:
    """` (did you mean 'specs/a.yaml'?)` if a file like the missing `path` is near, else nothing.

    Looked for by its name in its folder and the folders in that, after a folder that does not
    exist either was replaced by the nearest that does.
    """
    folder = Path(path.anchor)
    with contextlib.suppress(OSError, ValueError):
        for part in path.parent.relative_to(folder).parts:
            folder /= part if part == ".." else _nearest(part, _entries(folder)) or part
        here = _entries(folder)
        name = _nearest(path.name, [entry for entry in here if (folder / entry).is_file()])
        below = {path.name} | {f"{path.name}{end}" for end in (".yaml", ".yml")}
        deeper = (folder / sub / name for sub in here for name in sorted(below))
        found = folder / name if name else next(filter(Path.is_file, deeper), None)
        return f" (did you mean '{found}'?)" if found else ""
    return ""


def _entries(folder: Path) -> list[str]:
    """The names in a folder, without hidden ones, and not more than can be looked at at once."""
    names = itertools.islice((entry.name for entry in os.scandir(folder)), _MOST_ENTRIES)
    return sorted(name for name in names if not name.startswith("."))


def _nearest(name: str, names: Sequence[str]) -> str | None:
    """The name itself, or the one that is most like it."""
    return name if name in names else next(iter(difflib.get_close_matches(name, names, n=1)), None)


def show(value: Any, width: int = 60) -> str:
    """A value as the user would write it, on one line, cut off at `width` characters."""
    # JSON leaves some invisible characters alone.
    text = visible(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= width else text[: width - 3] + "..."


def visible(text: str) -> str:
    """`text` on one line, without what a terminal might obey."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
