"""Imports point one way, and functions are short; read off the source, function by function."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "centralflow_eqx"
LONGEST_FUNCTION = 60

# Each line is a floor: rooms import only rooms of floors above their own, listed earlier. The
# modules outside of the rooms are the way in; they import the command line.
FLOORS = (
    {"errors", "precision", "cache"},
    {"hosts", "placement", "registry"},
    {"options"},
    {"data", "losses", "models", "optimizers"},
    {"task"},
    {"engine"},
    {"processes"},
    {"spec"},
    {"record"},
    {"report"},  # a run ends with its report
    {"experiment"},
    {"sweep", "monitor"},
    {"cli"},
)
WAY_IN = ("__init__", "__main__")


def name_of(path: Path) -> str:
    """The dotted name of a module within the package; a package's is that of its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def known(name: str) -> str:
    """The module that `name`, a module or something in one, belongs to."""
    while name not in MODULES and name:
        name = name.rpartition(".")[0]
    return name or "__init__"


def imports_of(module: str) -> set[str]:
    """The package's modules that a module imports anywhere: in functions, for type checkers."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    package = "" if package == "__init__" else package
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join(filter(None, [*above, node.module or ""]))
            found |= {known(f"{start}.{alias.name}".strip(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
            start = (node.module or "").removeprefix(PACKAGE.name).strip(".")
            found |= {known(f"{start}.{alias.name}".strip(".")) for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if f"{a.name}.".startswith(f"{PACKAGE.name}.")]
            found |= {known(name.removeprefix(PACKAGE.name).strip(".")) for name in names}
    return found - {module}


IMPORTS = {module: imports_of(module) for module in MODULES}


def test_imports_are_found_wherever_they_stand():
    assert "sweep.local" in IMPORTS["sweep"]
    assert "experiment.run" in IMPORTS["cli.run"], "an import in a function"
    assert "data._registry" in IMPORTS["data.digits"]


def test_no_module_imports_itself_by_a_detour():
    # A package's own folder is no detour: importing a member runs the package's file first anyway.
    left = {m: {i for i in found if i != "__init__"} for m, found in IMPORTS.items()}
    while free := [module for module, found in left.items() if not found]:
        left = {m: found - set(free) for m, found in left.items() if m not in free}
    assert not left, "cycles go through these, which import each other"


def room(module: str) -> str:
    return module.partition(".")[0]


def floor(module: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room(module) in rooms)


def test_every_module_is_in_a_room():
    rooms = set().union(*FLOORS)
    assert {room(module) for module in MODULES} - set(WAY_IN) == rooms


@pytest.mark.parametrize("module", [m for m in MODULES if m not in WAY_IN])
def test_a_module_imports_only_from_floors_above(module):
    others = {i for i in IMPORTS[module] if i not in WAY_IN and room(i) != room(module)}
    assert not {i for i in others if floor(i) >= floor(module)}


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


@pytest.mark.parametrize("folder", ["centralflow_eqx", "tests", "benchmarks"])
def test_no_function_is_long(folder):
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if lines_of(node) > LONGEST_FUNCTION
    ]
    assert not long


def test_a_run_starts_without_what_only_its_report_needs():
    program = "import sys, centralflow_eqx.experiment.run; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    heavy = {"matplotlib", "plotly", "xarray", "pandas", "sklearn", "h5netcdf"}
    assert not heavy & set(loaded.stdout.decode().split())
