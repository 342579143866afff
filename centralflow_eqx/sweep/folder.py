"""What lies in a sweep's folder, and in folders of run directories in general."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py

from ..errors import InputError, Location, Problem
from ..record.writer import set_aside
from ..spec import Plan, Spec
from ..spec.document import dump, parse

_MEMBERS = "sweep.yaml"


def start_folder(plan: Plan) -> None:
    """Make the sweep's folder, setting aside what is no sweep's."""
    assert plan.folder is not None
    if (plan.folder / "data.h5").exists():
        set_aside(plan.folder)
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        text = dump({"name": plan.name, "members": [spec.name for spec in plan.specs]})
        (plan.folder / _MEMBERS).write_text(text, encoding="utf-8")
    except OSError as error:
        message = f"cannot be written: {error.strerror}"
        raise InputError([Problem(Location(str(plan.folder)), "", message)]) from None


def is_recorded(spec: Spec) -> bool:
    """Whether the run directory is that of this very spec, wherever that lies, and readable."""
    found = _plain(spec.run_dir / "spec.yaml")
    wanted = parse(spec.to_yaml(), "")[0].plain()
    same = found is not None and found | {"output": None} == wanted | {"output": None}
    return same and _status(spec.run_dir) is not None


def is_done(spec: Spec) -> bool:
    """Whether the run directory has the finished run of this very spec."""
    return is_recorded(spec) and _status(spec.run_dir) == "done"


def _status(run_dir: Path) -> str | None:
    """How the run ended; None if its data cannot be read."""
    try:
        with h5py.File(run_dir / "data.h5", "r", locking=False) as file:
            return str(file.attrs["status"])
    except (OSError, KeyError):
        return None


def beside(member: Spec, suffix: str) -> Path:
    """A file beside the run directory of `member`."""
    return member.run_dir.with_name(f"{member.name}.{suffix}")


def run_arguments(member: Spec, user_code: bool) -> list[str]:
    """The command line that runs `member`, from a spec written beside its run directory."""
    path = beside(member, "yaml")
    path.write_text(member.to_yaml(), encoding="utf-8")
    return ["run", str(path), *([] if user_code else ["--no-user-code"])]


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory, finished or not."""
    return (path / "data.h5").is_file()


def is_sweep(path: Path) -> bool:
    """Whether `path` is the folder of a sweep."""
    return (path / _MEMBERS).is_file()


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Run directories among `paths` and in them; `InputError` for a path without one."""
    found, problems = [], []
    for path in paths:
        runs = [path] if is_run(path) else list(_runs_in(path))
        if not runs:
            what = "no such directory" if not path.exists() else "no run directory, and holds none"
            problems.append(Problem(Location(str(path)), "", what))
        found += runs
    if problems:
        raise InputError(problems)
    return list(dict.fromkeys(found))


def _runs_in(folder: Path) -> Iterator[Path]:
    """The members of a sweep in their order, or all run directories that were not set aside."""
    if not folder.is_dir():
        return
    names = (_plain(folder / _MEMBERS) or {}).get("members")
    if isinstance(names, list):
        yield from (folder / str(name) for name in names if is_run(folder / str(name)))
        return
    for path in sorted(folder.iterdir()):
        name = str((_plain(path / "spec.yaml") or {}).get("name"))
        if is_run(path) and not re.fullmatch(rf"{re.escape(name)}\.\d+", path.name):
            yield path


def _plain(path: Path) -> dict | None:
    """The mapping in a YAML file; None if there is none."""
    try:
        found = parse(path.read_text(encoding="utf-8"), str(path))[0].plain()
    except (OSError, UnicodeDecodeError, InputError):
        return None
    return found if isinstance(found, dict) else None
