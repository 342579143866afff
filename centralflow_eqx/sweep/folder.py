"""What lies in a sweep's folder, and in folders of run directories in general."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError, Location, Problem
from ..experiment.earlier import read_mapping
from ..record.files import set_aside
from ..spec import Plan, Spec
from ..spec.document import dump

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


def beside(member: Spec, suffix: str) -> Path:
    """A file beside the run directory of `member`."""
    return member.run_dir.with_name(f"{member.name}.{suffix}")


def run_arguments(member: Spec, user_code: bool) -> list[str]:
    """The command line that runs `member`, from a spec written beside its run directory.

    One that was interrupted goes on from its last checkpoint.
    """
    flags = [] if user_code else ["--no-user-code"]
    path = beside(member, "yaml")
    path.write_text(member.to_yaml(), encoding="utf-8")
    return ["run", str(path), "--resume", *flags]


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


def all_runs(folder: Path) -> Iterator[Path]:
    """Every run directory in a folder and in the sweeps in it, those set aside as well.

    Also folders that look like one but whose data are missing. Raises `OSError`.
    """
    if is_run(folder) or _is_named(folder):
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if is_sweep(path):
            yield from (member for member in sorted(path.iterdir()) if is_run(member))
        elif is_run(path) or _is_named(path):
            yield path


def _is_named(path: Path) -> bool:
    """Whether a run has left its spec in `path`."""
    return (path / "spec.yaml").is_file() and (path / "metrics.jsonl").is_file()


def _runs_in(folder: Path) -> Iterator[Path]:
    """The members of a sweep in their order, or all run directories that were not set aside."""
    if not folder.is_dir():
        return
    names = (read_mapping(folder / _MEMBERS) or {}).get("members")
    if isinstance(names, list):
        yield from (folder / str(name) for name in names if is_run(folder / str(name)))
        return
    for path in sorted(folder.iterdir()):
        name = str((read_mapping(path / "spec.yaml") or {}).get("name"))
        if is_run(path) and not re.fullmatch(rf"{re.escape(name)}\.\d+", path.name):
            yield path
