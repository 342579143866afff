"""How far a run is: a live bar in a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

_RATE_SECONDS = 30.0


class Rate:
    """Steps per second over the last half minute.

    Counted from the first step that was seen, so that compilation does not spoil it.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def restart(self) -> None:
        """Count from the next step on: what passes until then is no step's time."""
        self._seen.clear()

    def __call__(self, step: int) -> float:
        """The rate on arrival at `step`; NaN at first."""
        now = self._clock()
        # A sample a second is enough, however fast the steps come.
        if not self._seen or now - self._seen[-1][0] >= 1.0:
            self._seen.append((now, step))
        while len(self._seen) > 2 and now - self._seen[1][0] > _RATE_SECONDS:
            self._seen.popleft()
        then, first = self._seen[0]
        return (step - first) / (now - then) if now > then else math.nan


def duration(seconds: float) -> str:
    """`H:MM:SS`, `M:SS` below an hour, `-` if unknown."""
    if not math.isfinite(seconds):
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _number(value: float, format_: str) -> str:
    return format(value, format_) if math.isfinite(value) else "-"


class Listened(Console):
    """A console that falls silent when its reader has gone: whoever writes has more to do."""

    def on_broken_pipe(self) -> None:
        """Called by rich, whose own way ends the process."""
        self.quiet = True


class Progress:
    """Shows the progress of a run on `stream` (standard error by default).

    A context manager. In a terminal a bar is redrawn in place; elsewhere, as in the log of a
    batch job, a line appears every `interval` seconds and at the end.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        shown: bool = True,
    ):
        self._console = Listened(file=stream or sys.stderr, highlight=False, quiet=not shown)
        self._rate = Rate(clock)
        self._clock = clock
        self._interval = interval
        self._printed = -math.inf
        self._unprinted = ""
        self._bar = self._live_bar() if shown and self._console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._unprinted:
            self._print(self._unprinted)

    def update(
        self,
        step: int,
        total: int,
        loss: float,
        sharpness: float,
        critical: int,
        note: str = "",
        optimizer_loss: float = math.nan,
    ) -> None:
        """`step` of `total` steps are done.

        `loss` is that of a flow, with the optimizer's beside it, `sharpness` the largest effective
        eigenvalue, `critical` the number of directions that may oscillate; NaN and negative numbers
        stand for unknown. `note` is appended as it is.
        """
        rate = self._rate(step)
        remaining = (total - step) / rate if rate > 0 else math.nan
        parts = (
            f"loss {_number(loss, '.4g')}",
            f"optimizer {optimizer_loss:.4g}" if math.isfinite(optimizer_loss) else "",
            f"sharpness {_number(sharpness, '.3f')}",
            f"critical {critical if critical >= 0 else '-'}",
            f"{_number(rate, '.3g')} steps/s",
            f"{duration(remaining)} left",
            note,
        )
        facts = "  ".join(filter(None, parts))
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=step, total=total, facts=facts, visible=True
            )
            return
        self._unprinted = f"step {step}/{total}  {facts}"
        if step >= total or self._clock() - self._printed >= self._interval:
            self._print(self._unprinted)
            self._printed, self._unprinted = self._clock(), ""

    def working(self, text: str) -> None:
        """Say at once what takes long; the rate of steps does not count it."""
        self._rate.restart()
        self._print(f"{text} ...")

    def message(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def _live_bar(self) -> Bar:
        bar = Bar(
            TextColumn("{task.completed:.0f}/{task.total:.0f}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}", markup=False),
            console=self._console,
            # Standard output belongs to whoever pipes it.
            redirect_stdout=False,
        )
        bar.add_task("", total=1, facts="", visible=False)
        return bar
