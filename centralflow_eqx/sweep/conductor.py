"""Running the members of a sweep and reporting on them, wherever they run."""

import contextlib
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

from rich.console import Console

from ..errors import ExitCode
from ..experiment.earlier import ending, is_done, is_recorded
from ..experiment.progress import duration
from ..spec import Plan, Spec
from .folder import start_folder

_WORST_FIRST = (
    ExitCode.BUG,
    ExitCode.BAD_INPUT,
    ExitCode.NUMERICAL_STOP,
    ExitCode.INTERRUPTED,
    ExitCode.DONE,
)
_WORDS = {
    ExitCode.DONE: "done",
    ExitCode.BUG: "failed",
    ExitCode.BAD_INPUT: "refused",
    ExitCode.NUMERICAL_STOP: "stopped numerically",
    ExitCode.INTERRUPTED: "interrupted",
}


class Event(NamedTuple):
    """A member was started, or has ended with an exit code; `note` says more."""

    member: Spec
    code: int | None = None
    note: str = ""


Backend = Callable[[Sequence[Spec]], Generator[Event, None, None]]
"""Runs members; closing the iterator ends what still runs."""


def conduct(
    plan: Plan, members: Sequence[Spec], backend: Backend, console: Console, go_on: str
) -> ExitCode:
    """Run `members` of the plan's sweep, and report on all that were recorded.

    Progress goes to standard error, the report to `console`; `go_on` tells how to go on after an
    interruption. A member that fails does not keep others from running.
    """
    start_folder(plan)
    log = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        log.print(text, markup=False, soft_wrap=True)

    ended: list[Event] = []
    try:
        with contextlib.closing(backend(members)) as events:
            _follow(events, len(members), ended, say)
    except KeyboardInterrupt:
        done = sum(map(is_done, plan.specs))
        say(f"interrupted; {done} of {len(plan.specs)} members are done. {go_on}")
        return ExitCode.INTERRUPTED
    _compare(plan, console)
    codes = [event.code for event in ended if event.code is not None]
    for member in _stopped_before(plan, members):
        again = f"remove {member.run_dir} to have it run again"
        say(f"{member.name}: stopped numerically before, and would at the same step; {again}")
        codes.append(ExitCode.NUMERICAL_STOP)
    for event in ended:
        if event.code != ExitCode.DONE:
            say(_ending(event))
    return min(map(_severity, codes), key=_WORST_FIRST.index, default=ExitCode.DONE)


def _follow(
    events: Iterator[Event], total: int, ended: list[Event], say: Callable[[str], None]
) -> None:
    """Tell of every event, and add those that end a member to `ended`."""
    begin, begun = time.monotonic(), {}
    for event in events:
        name, now = event.member.name, time.monotonic()
        if event.code is None:
            begun[name] = now
            say(f"{name}: started, {len(begun)} of {total}{event.note and f', {event.note}'}")
            continue
        ended.append(event)
        left = (now - begin) / len(ended) * (total - len(ended))
        times = f"{duration(now - begun[name])}, {duration(left)} left"
        say(f"{_ending(event)}, {len(ended)} of {total}, after {times}")


def _stopped_before(plan: Plan, members: Sequence[Spec]) -> list[Spec]:
    """Members of the plan that are not run now because they have stopped numerically."""
    names = {member.name for member in members}
    others = (spec for spec in plan.specs if spec.name not in names)
    return [spec for spec in others if ending(spec) == "numerical stop"]


def _severity(code: int) -> ExitCode:
    """A member's exit code as one of ours; a process killed by a signal has a negative one."""
    return ExitCode(code) if code in list(ExitCode) else ExitCode.BUG


def _ending(event: Event) -> str:
    code = event.code or 0
    words = f"killed by {signal.Signals(-code).name}" if code < 0 else _WORDS[_severity(code)]
    see = f" (see {event.note})" if code and event.note else ""
    return f"{event.member.name}: {words}{see}"


def _compare(plan: Plan, console: Console) -> None:
    """Report on the members that have a run directory, and print a summary."""
    from ..report import summarise_comparison, write_comparison, write_report

    run_dirs = [spec.run_dir for spec in plan.specs if is_recorded(spec)]
    if not run_dirs:
        return
    for run_dir in run_dirs:
        if not (run_dir / "report.html").exists():  # killed between its data and its report
            write_report(run_dir)
    assert plan.folder is not None
    page = write_comparison(run_dirs, plan.folder, plan.name)
    console.print(summarise_comparison(run_dirs), soft_wrap=True, markup=False, highlight=False)
    console.print(f"report: {page}", soft_wrap=True, markup=False, highlight=False)
