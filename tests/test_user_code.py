"""Classes of the user's own that a spec names: importing, checking and refusing them."""

import os
import re
import sys
import textwrap

import jax.numpy as jnp
import pytest
import yaml

from centralflow_eqx.cli import main
from centralflow_eqx.errors import ExitCode, InputError
from centralflow_eqx.models import MODELS, AbstractModel
from centralflow_eqx.optimizers import Adam
from centralflow_eqx.spec import json_schema, load_spec

SPEC = """\
name: small
data: {type: moons, n: 20}
model: {type: mlp, widths: [3]}
loss: {type: mse}
processes: [discrete]
steps: 5
optimizer:
"""
MINE = """\
from typing import Annotated

import equinox as eqx
import jax
from annotated_types import Gt

from centralflow_eqx.models import AbstractModel
from centralflow_eqx.optimizers import AbstractOptimizer, LearningRate


class Signed(AbstractOptimizer):
    lr: LearningRate
    power: float
    floor: Annotated[int, Gt(0)] = 1
    nested: list[int | list[int]] = eqx.field(default_factory=list)
    table: dict[str, float] = eqx.field(default_factory=dict)

    def __check_init__(self):
        if self.power > 5:
            raise ValueError("power is\\nfar too large")
        if self.floor == 7:
            raise ValueError("seven")

    def init(self, params):
        return ()

    def update(self, grad, state, params):
        return jax.tree.map(lambda g: -self.lr(0) * g * abs(g) ** self.power, grad), state


class Half(AbstractOptimizer):
    lr: eqx.AbstractVar[float]

    def init(self, params):
        return ()


class Wrapper(Signed, strict=False):
    inner: AbstractOptimizer = eqx.field(kw_only=True)


class Wide(AbstractModel):
    width: int

    def build(self, in_features, out_features, key):
        return eqx.nn.Linear(in_features, out_features, key=key)


class Other:
    pass


def function():
    pass
"""
GOOD = "type: mine.Signed\nargs: {lr: 0.5, power: 1}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory is elsewhere; nothing of Python's path changes for good."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "mine.py").write_text(MINE)
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before


@pytest.fixture
def load(folder):
    def load(section, **kwargs):
        (folder / "s.yaml").write_text(SPEC + textwrap.indent(section, "  "))
        return load_spec(folder / "s.yaml", **kwargs)

    return load


@pytest.fixture
def refused(load):
    """The problems of a section, the first line of which is line 8."""

    def refused(section, **kwargs):
        with pytest.raises(InputError) as error:
            load(section, **kwargs)
        return [str(p).partition("s.yaml:")[2] for p in error.value.problems]

    return refused


def first_step(optimizer):
    w = jnp.asarray([1.0, 2.0])
    return optimizer.update(jnp.asarray([3.0, -4.0]), optimizer.init(w), w)[0].tolist()


def test_a_class_beside_the_spec(load):
    optimizer = load(GOOD).optimizer.build()
    assert type(optimizer).__name__ == "Signed"
    assert (optimizer.power, optimizer.floor) == (1.0, 1)
    assert isinstance(optimizer.power, float)
    assert first_step(optimizer) == [-4.5, 8.0]


def test_a_learning_rate_needs_no_converter_and_may_be_a_schedule(load):
    lr = "{schedule: linear, init_value: 0.5, end_value: 0.1, transition_steps: 4}"
    optimizer = load(f"type: mine.Signed\nargs: {{lr: {lr}, power: 0}}").optimizer.build()
    assert optimizer.lr(4) == pytest.approx(0.1)


def test_a_class_that_python_finds_itself(load):
    spec = load("type: centralflow_eqx.optimizers.Adam\nargs: {lr: 0.5, beta1: 0.8}")
    assert spec.optimizer.build() == Adam(lr=0.5, beta1=0.8)
    assert yaml.safe_load(spec.to_yaml())["optimizer"]["folder"] is None


def test_a_package_in_the_working_directory(load):
    os.mkdir("pkg")
    with open("pkg/rules.py", "w") as file:
        file.write(MINE)
    spec = load("type: pkg.rules.Signed\nargs: {lr: 0.5, power: 1}")
    assert first_step(spec.optimizer.build()) == [-4.5, 8.0]
    assert yaml.safe_load(spec.to_yaml())["optimizer"]["folder"] == os.getcwd()


def test_the_spec_s_folder_comes_before_the_working_directory(load):
    with open("mine.py", "w") as file:
        file.write("raise RuntimeError")
    assert first_step(load(GOOD).optimizer.build()) == [-4.5, 8.0]


def test_a_chosen_folder_is_relative_to_the_spec(load, folder):
    (folder / "lib").mkdir()
    (folder / "mine.py").rename(folder / "lib" / "mine.py")
    spec = load(GOOD + "\nfolder: lib")
    assert first_step(spec.optimizer.build()) == [-4.5, 8.0]
    assert yaml.safe_load(spec.to_yaml())["optimizer"]["folder"] == str(folder / "lib")


def test_the_resolved_spec_keeps_its_class_wherever_it_lies(load, folder, monkeypatch):
    spec = load(GOOD)
    run_dir = folder / "runs" / "small"
    run_dir.mkdir(parents=True)
    (run_dir / "spec.yaml").write_text(spec.to_yaml())
    monkeypatch.chdir("/")
    again = load_spec(run_dir / "spec.yaml")
    assert again.to_yaml() == spec.to_yaml()
    assert type(again.optimizer.build()) is type(spec.optimizer.build())
    section = yaml.safe_load(spec.to_yaml())["optimizer"]
    assert section == {
        "type": "mine.Signed",
        "args": {"lr": 0.5, "power": 1.0, "floor": 1, "nested": [], "table": {}},
        "folder": str(folder),
    }


def test_each_folder_has_its_own_module_of_a_name(load, folder):
    first = load(GOOD).optimizer.build()
    other = folder / "other"
    other.mkdir()
    (other / "helper.py").write_text("DEFAULT = 9")
    changed = MINE.replace("= 1", "= DEFAULT").replace("import jax", "import jax, helper")
    (other / "mine.py").write_text("from helper import DEFAULT\n" + changed)
    (other / "s.yaml").write_text((folder / "s.yaml").read_text())
    assert load_spec(other / "s.yaml").optimizer.build().floor == 9
    again = load(GOOD).optimizer.build()
    assert (first.floor, again.floor) == (1, 1)


def test_a_module_of_a_deleted_name_is_not_remembered(load, folder, refused):
    load(GOOD)
    (folder / "other").mkdir()
    (problem,) = refused(GOOD + "\nfolder: other")
    assert problem == f"8: optimizer.type: no module 'mine' in {folder}/other or on Python's path"


def test_a_module_that_the_process_uses_already_is_not_replaced(refused, folder):
    (folder / "optax.py").write_text("")
    (problem,) = refused("type: optax.Mine")
    assert problem.startswith("8: optimizer.type: a module 'optax' from ")
    assert problem.endswith(f"is in use already; rename the one in {folder}")


@pytest.mark.parametrize(
    ("section", "problems"),
    [
        (
            "type: mine.Signed\nargs:\n  lr: 0\n  power: x\n  floor: 0\n  flor: 2\n",
            [
                "10: optimizer.args.lr: must be a number > 0 or {schedule: NAME, ...}, got 0",
                '11: optimizer.args.power: must be a number, got "x"',
                "12: optimizer.args.floor: must be a whole number > 0, got 0",
                "13: optimizer.args.flor: unknown key, must be one of lr, power, floor, nested, "
                "table (did you mean 'floor'?)",
            ],
        ),
        (
            "type: mine.Signed",
            [
                "7: optimizer.args.lr: missing, must be a number > 0 or {schedule: NAME, ...}",
                "7: optimizer.args.power: missing, must be a number",
            ],
        ),
        (
            "type: mine.Signed\nargs: 3",
            [
                "9: optimizer.args: must be a mapping with lr, power, floor, nested, table, got 3",
            ],
        ),
        (
            "type: mine.Signed\nlr: 1\nargs: {lr: 1, power: 1}",
            ["9: optimizer.lr: unknown key, must be one of type, args, folder"],
        ),
        (
            "type: mine.Signed\nargs:\n  lr: 1\n  power: 1\n  nested: [1, [2, x]]\n  table:\n"
            "    a: b\n",
            [
                "12: optimizer.args.nested[1]: must be a whole number or a list, each a whole "
                'number, got [2, "x"]',
                '14: optimizer.args.table.a: must be a number, got "b"',
            ],
        ),
        (
            "type: mine.Signed\nargs:\n  lr: 1\n  power: 6",
            ["11: optimizer.args.power: Signed refuses: ValueError: power is far too large"],
        ),
        (
            "type: mine.Signed\nargs:\n  lr: 1\n  power: 1\n  floor: 7",
            ["12: optimizer.args.floor: Signed refuses: ValueError: seven"],
        ),
        (
            "type: gd\nlr: 1\nargs: {lr: 1}",
            ["10: optimizer.args: unknown key, must be one of type, lr, weight_decay"],
        ),
        (
            "type: mine.Signd",
            ["8: optimizer.type: module 'mine' has no class 'Signd' (did you mean 'Signed'?)"],
        ),
        (
            "type: mine.Half",
            ["8: optimizer.type: mine.Half is abstract, it lacks lr, update"],
        ),
        (
            "type: mine.Other",
            [
                "8: optimizer.type: mine.Other must be a subclass of "
                "centralflow_eqx.optimizers.AbstractOptimizer"
            ],
        ),
        ("type: mine.function", ["8: optimizer.type: mine.function is no class"]),
        (
            "type: mine.Wrapper",
            [
                "8: optimizer.type: the fields of mine.Wrapper are no options of a spec: TypeError:"
                " field 'inner' has no default and no type that a spec can hold"
            ],
        ),
        (
            "type: optax.adam",
            ["8: optimizer.type: optax.adam is no class; for Optax write type: optax and its name"],
        ),
        (
            "type: mine..Signed",
            ['8: optimizer.type: must be a dotted name such as module.Class, got "mine..Signed"'],
        ),
        (
            "type: mine.Signed\nfolder: 3\nargs: {lr: 1, power: 1}",
            ["9: optimizer.folder: must be a file path or null, got 3"],
        ),
    ],
    ids=lambda x: x.replace("\n", " ") if isinstance(x, str) else "",
)
def test_mistakes_are_reported_at_their_lines(refused, section, problems):
    assert refused(section) == problems


@pytest.mark.parametrize("folder_", ["~nobody-of-this-name", "/dev/null", "x/y", "x" * 9000])
def test_a_folder_that_cannot_be(refused, folder_):
    (problem,) = refused(f"{GOOD}\nfolder: {folder_}")
    assert problem.startswith("8: optimizer.type: no module 'mine' in ")


def test_a_name_that_goes_on_after_a_line(refused):
    (problem,) = refused('type: "mine.Signed\\n"')
    assert problem.endswith('must be a dotted name such as module.Class, got "mine.Signed\\n"')


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("import jax\nx = undefined", "NameError: name 'undefined' is not defined ({}:2)"),
        ("def f(:", "SyntaxError: invalid syntax ({}:1)"),
        ("import sys\nsys.exit(3)", "SystemExit: 3 ({}:2)"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library' ({}:1)"),
        ("def f():\n    raise OSError('two\\nlines')\n\nf()", "OSError: two lines ({}:4)"),
    ],
)
def test_a_module_that_fails_to_import(refused, folder, content, reason):
    (folder / "mine.py").write_text(content)
    expected = f"8: optimizer.type: importing 'mine' raises {reason}"
    assert refused(GOOD) == [expected.format(folder / "mine.py")]


def test_a_module_that_is_not_there(refused, folder):
    (problem,) = refused("type: mien.Signed")
    places = f"{folder}, {folder}/elsewhere or on Python's path (did you mean 'mine'?)"
    assert problem == f"8: optimizer.type: no module 'mien' in {places}"
    (problem,) = refused("type: mine.rules.Signed")
    assert problem.startswith("8: optimizer.type: no module 'mine.rules' in ")


def test_a_component_of_another_kind_needs_a_registry_with_a_base(load, refused, monkeypatch):
    optimizer = "type: gd\nlr: 1\n"
    model = SPEC.replace("{type: mlp, widths: [3]}", "{type: mine.Wide, args: {width: 3}}")
    monkeypatch.setattr("test_user_code.SPEC", model)
    monkeypatch.setattr(MODELS, "base", None)
    assert any(line.startswith("3: model.type: must be ") for line in refused(optimizer))
    monkeypatch.setattr(MODELS, "base", AbstractModel)
    assert load(optimizer).model.build().width == 3
    assert refused("type: mine.Wide\nargs: {width: 3}") == [
        "8: optimizer.type: mine.Wide must be a subclass of "
        "centralflow_eqx.optimizers.AbstractOptimizer"
    ]


def test_without_user_code_nothing_is_imported(refused, folder):
    (folder / "mine.py").write_text("open('imported', 'w')")
    (problem,) = refused(GOOD, user_code=False)
    assert problem.startswith(
        '8: optimizer.type: "mine.Signed" would import code, which --no-user-code refuses; must '
        "be one of adagrad, "
    )
    assert not os.path.exists("imported")


def test_the_command_line(load, folder, capsys):
    load(GOOD)
    command = ["validate", str(folder / "s.yaml")]
    assert main(command) == ExitCode.DONE
    assert "5 steps of mine.Signed" in capsys.readouterr().out
    for refusal in (["--no-user-code"], ["--set", "optimizer.args.power=6"]):
        assert main([*command, *refusal]) == ExitCode.BAD_INPUT
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("command", ["run", "validate"])
def test_help_says_that_a_spec_can_run_code(capsys, command):
    assert main(["--help"]) == ExitCode.DONE
    assert "imported and run as Python code" in capsys.readouterr().out
    assert main([command, "--help"]) == ExitCode.DONE
    assert "--no-user-code" in capsys.readouterr().out


def test_the_json_schema_allows_dotted_names():
    schema = json_schema()
    named, dotted = schema["properties"]["optimizer"]["anyOf"]
    assert "oneOf" in named
    assert dotted == {"$ref": "#/$defs/ClassOptions"}
    properties = schema["$defs"]["ClassOptions"]["properties"]
    assert set(properties) == {"type", "args", "folder"}
    pattern = properties["type"]["pattern"]
    for name, fits in (("a.B", True), ("a.b_2.C", True), ("adam", False), ("a..B", False)):
        assert bool(re.search(pattern, name)) is fits
