"""From the chunks of a simulation to its run directory."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax

from ..errors import ExitCode, NumericalStop, one_line
from ..hosts import HostLost, any_says, are_several, is_first
from ..placement import to_host
from ..record.logs import Logs
from ..record.numerics import NUMERICS, WORDS
from ..record.onlooker import Onlooker
from ..record.row import Halt, Row
from ..record.writer import Recorder
from ..spec import Spec
from .checkpoint import Checkpoint, Checkpoints, Stopped
from .drive import chunks
from .goals import GoalWatch
from .interruption import Interruption
from .kept import keep
from .progress import Progress
from .state import Experiment, RunState


@dataclass(frozen=True)
class _Moment:
    """A run between two chunks, and what a checkpoint says of it beside its state."""

    state: RunState
    step: int
    stops: Mapping[str, Stopped]
    first_loss: float | None

    @property
    def lost(self) -> bool:
        """Whether a process has ended for a numerical reason."""
        return any(stop.numerical for stop in self.stops.values())


class Recording:
    """Writes the rows of a run and, now and then, what it takes to go on from there."""

    def __init__(
        self,
        spec: Spec,
        recorder: Recorder | Onlooker,
        logs: Logs,
        progress: Progress,
        made: Mapping[str, str],
        earlier: Checkpoint | None = None,
    ):
        """`made` is the `fingerprint` of the run, `earlier` the checkpoint that it goes on from."""
        self._spec, self._recorder, self._logs, self._progress = spec, recorder, logs, progress
        self._earlier = earlier
        self._goals = GoalWatch(spec.stop, spec.processes, earlier and earlier.first_loss)
        self._checkpoints = Checkpoints(
            recorder.run_dir, spec.checkpoint.every, spec.checkpoint.keep
        )
        self._made = made
        self._told = NUMERICS(0)
        self._begun = time.monotonic() - (earlier.wall_seconds if earlier else 0.0)

    def record(
        self, experiment: Experiment, state: RunState, interruption: Interruption
    ) -> ExitCode:
        """Go on from `state` to the end, a goal, or an interruption.

        Whatever ends it, the run can go on from a checkpoint before the first step without a row.
        """
        spec, now, goal, asked = self._spec, self._begin(state), "", False
        pauses = spec.checkpoint.every or 0
        try:
            for chunk in chunks(experiment, state, spec.steps, self._progress.working, pauses):
                reached, goal = self._write(now, chunk.rows)
                if goal:
                    break
                now = replace(reached, state=chunk.state, step=chunk.step)
                self._recorder.settle()
                self._logs.flush()
                asked = any_says(bool(interruption))
                if asked:
                    break
                if self._checkpoints.due(now.step):
                    self._save(now)
        except NumericalStop:
            pass  # its row has told why
        except jax.errors.JaxRuntimeError as error:
            if not are_several():
                raise
            self._end(now, goal, interrupted=True)
            raise HostLost(one_line(error)) from None
        return self._end(now, goal, asked and now.step < spec.steps)

    def _begin(self, state: RunState) -> _Moment:
        if self._earlier is None:
            return _Moment(state, 0, {}, None)
        return _Moment(state, self._earlier.step, self._earlier.stops, self._earlier.first_loss)

    def _end(self, now: _Moment, goal: str, interrupted: bool) -> ExitCode:
        lost = now.lost and not goal
        if interrupted and not goal:
            status, code = "interrupted", ExitCode.INTERRUPTED
            self._progress.message(f"interrupted; the rows before step {now.step} are kept")
        elif lost:
            status, code = "numerical stop", ExitCode.NUMERICAL_STOP
        else:
            status, code = "done", ExitCode.DONE
        self._recorder.finish(status, stop_goal=goal)
        self._save(now)
        return code

    def _save(self, now: _Moment) -> None:
        if not is_first():
            return
        self._recorder.publish()  # a checkpoint has all rows before it
        self._logs.flush()
        self._checkpoints.save(
            Checkpoint(
                now.step,
                keep(now.state),
                now.stops,
                now.first_loss,
                self._seconds(),
                self._made,
            )
        )

    def _seconds(self) -> float:
        return time.monotonic() - self._begun

    def _write(self, before: _Moment, rows: list[Row]) -> tuple[_Moment, str]:
        """Write the rows of a chunk; what is known after them, and the goal that one meets."""
        spec, stops, goal = self._spec, dict(before.stops), ""
        for row in rows:
            recorded = row.step % spec.record.every == 0
            if row.series and recorded:
                self._write_row(row)
            if row.series and (recorded or row.stops):
                goal = self._goals(row.series)
            for process, halt in row.stops.items():
                stops[process] = self._stop(row, process, halt)
            self._warn(row)
            if row.series:
                self._progress.update(row.step + 1, spec.steps, **_headline(row))
            if goal:
                goal = f"step {row.step}: {goal}"
                self._progress.message(f"stopped at {goal}")
                break
        return replace(before, stops=stops, first_loss=self._goals.first_loss), goal

    def _write_row(self, row: Row) -> None:
        spec = self._spec.record
        number = row.step // spec.every
        self._recorder.write(number, row.series, row.comparisons, self._seconds())
        self._logs.write(row.step, row.series, row.comparisons)
        if spec.weights_every and row.step % spec.weights_every == 0:
            stored = math.lcm(spec.weights_every, spec.every)
            weights = {name: to_host(w) for name, w in row.weights.items()}
            self._recorder.write_weights(row.step // stored, weights)

    def _warn(self, row: Row) -> None:
        """Tell of what is numerically doubtful, of each kind once in a run."""
        for process, series in row.series.items():
            for doubt in NUMERICS(int(series["numerics"])) & ~self._told:
                self._told |= doubt
                message = f"{WORDS[doubt]}; `numerics` marks the rows, this is told once"
                self._progress.message(f"{process} at step {row.step}: {message}")

    def _stop(self, row: Row, process: str, halt: Halt) -> Stopped:
        number = row.step // self._spec.record.every
        self._recorder.stop(process, number, halt.reason)
        self._progress.message(f"{process} stopped at step {row.step}: {halt.reason}")
        return Stopped(number, halt.reason, halt.numerical)


def _headline(row: Row) -> dict:
    """What progress shows: of the central flow if there is one, else of the first process."""
    name = "central" if "central" in row.series else next(iter(row.series))
    series = row.series[name]
    optimizer = row.series.get("discrete", {}) if name != "discrete" else {}
    return {
        "loss": float(series["train_loss"]),
        "optimizer_loss": float(optimizer.get("train_loss", math.nan)),
        "sharpness": float(series["eigenvalues"][0]),
        "critical": int(series.get("critical_directions", 0)),
    }
