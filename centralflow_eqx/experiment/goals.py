"""Goals that end a run early: a loss or an accuracy reached, or a loss that ran away."""

from collections.abc import Mapping
from typing import Any

from ..spec.schema import Stop


def goal_met(goals: Stop, process: str, series: Mapping[str, Any], first_loss: float) -> str:
    """Which goal a row of `process` meets, in words; empty if none.

    `series` is what was recorded of the process in this row, `first_loss` the training loss of its
    first row.
    """
    loss = float(series["train_loss"])
    found = f"the training loss of {process} is {loss:.4g}"
    if goals.loss_below is not None and loss <= goals.loss_below:
        return f"{found}, loss_below = {goals.loss_below:g} is reached"
    if goals.diverged_above and 0 < goals.diverged_above * first_loss <= loss:
        times = f"{goals.diverged_above:g} times the first row's {first_loss:.4g}"
        return f"{found}, diverged_above = {times} is reached"
    accuracy = float(series.get("train_accuracy", 0.0))
    if goals.accuracy_above is not None and accuracy >= goals.accuracy_above:
        found = f"the training accuracy of {process} is {accuracy:.4g}"
        return f"{found}, accuracy_above = {goals.accuracy_above:g} is reached"
    return ""


class GoalWatch:
    """Holds what the goals are compared with, over the recorded rows of a run."""

    def __init__(self, goals: Stop, processes: tuple[str, ...], first_loss: float | None = None):
        """`first_loss` is that of the first row, if this is not the first that is watched."""
        self._goals = goals
        self._process = goals.process or processes[0]
        self.first_loss = first_loss

    def __call__(self, series: Mapping[str, Mapping[str, Any]]) -> str:
        """Which goal the next recorded row meets, in words; empty if none."""
        if self._process not in series:  # the process stopped by itself
            return ""
        row = series[self._process]
        if self.first_loss is None:
            self.first_loss = float(row["train_loss"])
        return goal_met(self._goals, self._process, row, self.first_loss)
