"""The progress of a run on a terminal and in a log."""

import io

import pytest

from centralflow_eqx.experiment.progress import Progress, Rate, duration


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(progress, clock, steps, seconds_per_step=1.0):
    for step in range(1, steps + 1):
        clock.now += seconds_per_step
        progress.update(step, steps, 0.5, 2.0, 1)


def test_lines_are_complete_and_rate_limited():
    stream, clock = io.StringIO(), Clock()
    with Progress(stream, interval=5, clock=clock) as progress:
        run(progress, clock, 12)
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "step 1/12",
        "step 6/12",
        "step 11/12",
        "step 12/12",
    ]
    expected = "step 6/12  loss 0.5  sharpness 2.000  critical 1  1 steps/s  0:06 left"
    assert lines[1] == expected


def test_the_last_line_is_printed_however_the_run_ends():
    stream, clock = io.StringIO(), Clock()
    with pytest.raises(RuntimeError), Progress(stream, clock=clock) as progress:
        progress.update(1, 9, 0.5, 2.0, 1)
        progress.update(2, 9, 0.5, 2.0, 1)
        raise RuntimeError
    assert [line.split("  ")[0] for line in stream.getvalue().splitlines()] == [
        "step 1/9",
        "step 2/9",
    ]


def test_unknown_numbers_and_a_note():
    stream = io.StringIO()
    with Progress(stream, clock=Clock()) as progress:
        progress.update(0, 9, float("nan"), float("nan"), -1, "k = 4 [compiling]")
    line = "step 0/9  loss -  sharpness -  critical -  - steps/s  - left  k = 4 [compiling]\n"
    assert stream.getvalue() == line


def test_messages_stay_on_one_line():
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.message("[bold]" + "x" * 300)
    assert stream.getvalue() == "[bold]" + "x" * 300 + "\n"


def test_progress_goes_to_standard_error(capsys):
    with Progress() as progress:
        progress.message("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_a_terminal_gets_a_bar(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream, clock = Terminal(), Clock()
    with Progress(stream, clock=clock) as progress:
        run(progress, clock, 12)
        progress.message("the stable flow stopped")
    shown = stream.getvalue()
    assert "━" in shown
    assert "12/12" in shown
    assert "sharpness 2.000" in shown
    assert "the stable flow stopped\n" in shown.replace("\r", "")


def test_rate_forgets_a_slow_start():
    clock = Clock()
    rate = Rate(clock)
    for step in range(10):
        clock.now += 60
        value = rate(step)
    assert value == pytest.approx(1 / 60)
    for step in range(10, 110):
        clock.now += 1
        value = rate(step)
    assert value == pytest.approx(1.0, rel=0.05)


def test_rate_of_fast_steps():
    clock = Clock()
    rate = Rate(clock)
    for step in range(1000):
        clock.now += 0.001
        value = rate(step)
    assert value == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7384, "2:03:04"), (float("inf"), "-")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
