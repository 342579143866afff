"""Whatever a spec says, `validate` says that it is valid, or where and what is wrong with it."""

import contextlib
import io
import os
import re
import time
from collections import Counter
from importlib import import_module
from typing import NamedTuple

import pytest
from _mutants import PWNED, Mutant, mutants, surroundings

from centralflow_eqx.cli import main
from centralflow_eqx.errors import ExitCode

FILE = "m.yaml"
PLACE = re.compile(rf"({FILE}:[1-9]\d*|--set|{FILE}: cannot be read): \S")
SECONDS = 2.0 * 2
"""Of this process's own time, as others may use the machine: two, and as much again for the checks
of shapes and types in signatures that only tests make."""


class Verdict(NamedTuple):
    """What became of a mutant; `wrong` says how that is no way to treat one."""

    code: int
    seconds: float
    said: str
    wrong: str


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where mutants are read; specs of the package name a file two folders above their own."""
    here = tmp_path / "specs" / "of"
    here.mkdir(parents=True)
    surroundings(here)
    import_module("sklearn.datasets")  # which the package does only where it needs it
    monkeypatch.chdir(here)
    return here


def judge(mutant: Mutant) -> Verdict:
    """Validate a mutant in the working directory."""
    with open(FILE, "wb") as file:
        file.write(mutant.content)
    flags = [word for setting in mutant.settings for word in ("--set", setting)]
    flags += [] if mutant.user_code else ["--no-user-code"]
    out, err, begin = io.StringIO(), io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["validate", FILE, *flags])
    seconds = time.process_time() - begin
    printed, lines = out.getvalue(), err.getvalue().splitlines()
    problems = [line for line in lines if not line.startswith("warning: ")]
    wrong = ""
    if code == ExitCode.DONE:
        wrong = "says nothing" if f"{FILE}: valid; " not in printed else ""
        wrong = "complains about a valid one" if problems else wrong
    elif code != ExitCode.BAD_INPUT:
        wrong = f"exits {code}"
    elif not problems or printed:
        wrong = "refuses without a word" if not problems else "prints of a refused one"
    elif not all(PLACE.match(line) and line.isprintable() for line in problems):
        wrong = "does not say where"
    return Verdict(code, seconds, err.getvalue(), wrong or ("is slow" if seconds > SECONDS else ""))


def left_behind(user_code: bool) -> list[str]:
    """What code that nobody asked for has left in the working directory."""
    names = (PWNED,) if user_code else (PWNED, "imported")
    return [name for name in names if os.path.exists(name)]


def check(seed: int, number: int) -> list[Verdict]:
    """Validate mutants, and assert that nothing is wrong with the answers."""
    there = sorted(os.listdir())
    verdicts, failures = [], []
    for i, mutant in enumerate(mutants(seed, number)):
        verdict = judge(mutant)
        verdicts.append(verdict)
        left = left_behind(mutant.user_code)
        for name in left_behind(user_code=False):
            os.remove(name)
        if verdict.wrong or left:
            failures.append((i, verdict.wrong or f"leaves {left}", mutant, verdict.said))
    told = [f"{i} {wrong}: {mutant}\n{said[:2000]}" for i, wrong, mutant, said in failures[:5]]
    assert not failures, f"{len(failures)} of {number}:\n" + "\n".join(told)
    assert set(os.listdir()) - set(there) <= {FILE, "__pycache__"}
    return verdicts


def test_mutated_specs_are_valid_or_told_what_is_wrong(folder):
    verdicts = check(seed=1, number=80)
    codes = Counter(verdict.code for verdict in verdicts)
    assert min(codes.values()) > 5 and len(codes) == 2


@pytest.mark.slow
def test_many_mutated_specs_are_valid_or_told_what_is_wrong(folder, capsys):
    verdicts = check(seed=0, number=2000)
    codes = Counter(verdict.code for verdict in verdicts)
    times = sorted(verdict.seconds for verdict in verdicts)
    with capsys.disabled():
        print(
            f"\n{codes[ExitCode.DONE]} valid, {codes[ExitCode.BAD_INPUT]} refused, "
            f"median {times[len(times) // 2]:.3f} s, slowest {times[-1]:.2f} s"
        )
    assert min(codes.values()) > 100 and len(codes) == 2
