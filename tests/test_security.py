"""Specs, data and runs of somebody else: nothing in them is executed or written elsewhere."""

import ast
import html
import os
import re
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import h5py
import jax
import matplotlib
import numpy as np
import pytest
import yaml
from _mutants import PWNED, surroundings
from test_report import make_run

import centralflow_eqx
from centralflow_eqx.cli import main
from centralflow_eqx.data import Chebyshev, Classification, Copying, Moons, Sorting
from centralflow_eqx.errors import ExitCode, InputError, OptionError
from centralflow_eqx.optimizers.optax_rule import _factories, _factory
from centralflow_eqx.record.reader import load_run
from centralflow_eqx.report import summarise, summarise_comparison, write_comparison, write_report
from centralflow_eqx.spec import load_plan
from centralflow_eqx.spec.document import parse

SPEC = """\
name: small
data: {type: moons, n: 20}
model: {type: mlp, widths: [3]}
loss: {type: mse}
optimizer: {type: gd, lr: 0.1}
processes: [discrete]
steps: 2
"""
TASK = "task: {function: mine.loss, start: [1.0, 0.5]}\n"
PACKAGE = Path(centralflow_eqx.__file__).parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    here = tmp_path / "specs" / "of"
    here.mkdir(parents=True)
    surroundings(here)
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def refused(folder, capsys):
    """What `validate` says about a spec that it must refuse without running anything of it."""

    def refused(text, *flags):
        (folder / "s.yaml").write_text(text)
        assert main(["validate", "s.yaml", *flags]) == ExitCode.BAD_INPUT
        assert not {PWNED, "imported"} & set(os.listdir())
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err and not captured.out
        return captured.err

    return refused


# Nothing is executed


def test_no_module_can_run_what_a_file_says():
    loads = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    runs = {"eval", "exec", "compile", "__import__"}
    unsafe = {
        "load",
        "load_all",
        "unsafe_load",
        "full_load",
        "Loader",
        "FullLoader",
        "UnsafeLoader",
    }
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {(getattr(node, "module", None) or "").partition(".")[0]}
                names |= {alias.name.partition(".")[0] for alias in node.names}
                found += [where] if names & loads else []
            if isinstance(node, ast.Name) and node.id in runs:
                found.append(where)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found += [where] if node.value.id == "yaml" and node.attr in unsafe else []
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                found += [where] if given.get("allow_pickle") != "False" else []
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                found += [where] if ast.unparse(node.value) != "False" else []
    assert not found


DATA = "data: {type: moons, n: 20}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (DATA, "data: {type: npz, path: pickled.npz}"),
        (DATA, "data: {type: npz, path: data.npz, labels: pickled}"),
        (DATA, "data: {type: npz, path: pickled}"),
        (DATA, "data: {type: npz, path: pickled.npy}"),
        (DATA, "data: {type: cifar10, path: pickled.npz}"),
        (DATA, "data: {type: cifar10, path: pickled}"),
        (DATA, "data: {type: sst2, path: pickled}"),
        (DATA, "data: {type: sst2, path: pickled.npz}"),
        ("steps: 2", "steps: 2\ninit: {path: pickled.npz, key: inputs}"),
        ("steps: 2", "steps: 2\ninit: {path: pickled, key: inputs}"),
    ],
)
def test_data_files_with_pickles_are_refused(refused, folder, old, new):
    with (
        np.load(folder / "pickled.npz", allow_pickle=False) as pickled,
        np.load("data.npz") as good,
    ):
        arrays = dict(good)
        with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
            pickled["inputs"]
    # The file is what it should be: another reader would run what is in it.
    np.load("pickled.npz", allow_pickle=True)["inputs"]
    os.remove(PWNED)
    wanted = "pickled" if "pickled}" in new and "data.npz" in new else None
    content = np.empty(12, object)
    content[:] = 0
    np.savez(folder / "data.npz", **arrays, **({wanted: content} if wanted else {}))
    np.save(folder / "pickled.npy", content, allow_pickle=True)
    line = SPEC[: SPEC.index(old)].count("\n") + 1 + ("init" in new)
    assert refused(SPEC.replace(old, new)).startswith(f"s.yaml:{line}: ")


@pytest.mark.parametrize(
    "text",
    [
        f"!!python/object/apply:os.system ['touch {PWNED}']",
        f"!!python/object/apply:subprocess.check_call [[touch, {PWNED}]]",
        f"!!python/object/apply:builtins.open [{PWNED}, w]",
        "!!python/name:os.system ''",
        "!!python/module:antigravity ''",
    ],
)
def test_yaml_makes_no_objects(refused, text):
    assert "s.yaml:7: steps: tag " in refused(SPEC.replace("steps: 2", f"steps: {text}"))
    assert "--set: steps: tag " in refused(SPEC, "--set", f"steps={text}")


@pytest.mark.parametrize("levels", [4, 8, 60])
def test_aliases_of_aliases_are_bounded(levels):
    text = "a0: &a0 [1]\n"
    text += "".join(f"a{i}: &a{i} [{', '.join(10 * [f'*a{i - 1}'])}]\n" for i in range(1, levels))
    begin = time.process_time()
    if levels > 4:
        with pytest.raises(InputError, match="too large, more than 30000"):
            parse(text, "s.yaml")
    else:
        parse(text, "s.yaml")
    assert time.process_time() - begin < 2


# Code of one's own


USER_CODE = {
    "optimizer": "{type: mine.Signed, args: {lr: 1, power: 1}}",
    "model": "{type: mine.Signed}",
    "data": "{type: mine.Signed, folder: .}",
    "loss": "{type: os.system}",
    "task": "{function: mine.loss, start: [1.0]}",
}


@pytest.mark.parametrize("section", USER_CODE)
@pytest.mark.parametrize("how", ["file", "list", "dotted", "grid", "set", "set in a sweep"])
def test_no_user_code_holds_in_every_section(refused, section, how):
    value, flags = USER_CODE[section], ["--no-user-code"]
    own = yaml.safe_load(f"{section}: {value}")[section]
    kind = "function" if section == "task" else "type"
    text = SPEC if section != "task" else "".join(SPEC.splitlines(True)[i] for i in (0, 4, 5, 6))
    if section == "task" and how in ("dotted", "grid"):
        text += "task: {start: [1.0]}\n"
    match how:
        case "file":
            text = re.sub(rf"^{section}: .*\n", "", text, flags=re.M) + f"{section}: {value}\n"
        case "list":
            text += f"sweep: {{list: [{{name: a, seed: 1}}, {{name: b, {section}: {value}}}]}}\n"
        case "dotted":
            text += f"sweep: {{list: [{{{section}.{kind}: {own[kind]}}}, {{seed: 1}}]}}\n"
        case "grid":
            text += f"sweep: {{grid: {{{section}.{kind}: [{own[kind]}]}}}}\n"
        case "set":
            flags += ["--set", f"{section}={value}"]
        case "set in a sweep":
            flags += ["--set", f"sweep.grid.{section}=[{value}]"]
    name = re.escape(f'"{own[kind]}" would import code, which --no-user-code refuses')
    before = set(sys.modules)
    assert re.search(rf": {section}\.{kind}: {name}", refused(text, *flags))
    assert "mine" not in set(sys.modules) - before


@pytest.mark.parametrize(
    "name",
    [
        *(
            "__loader__",
            "__builtins__.eval",
            "_src.base",
            "contrib._muon.muon",
            "contrib.__loader__",
        ),
        *("contrib.muon.__globals__", "adam.__call__", "adam.func", "contrib.x.__class__", "."),
        *("optax.adam", "jax.jit", "losses.jnp.load", "losses.np.load", "losses.jax.jit", "..adam"),
        *("", "adam.", ".adam", "GradientTransformation", "tree", "projections.optax", "safe_norm"),
        *("inspect.os.system", "schedules.constant_schedule", "losses", "adam\n", "ａdam"),
    ],
)
def test_names_in_optax_lead_to_nothing_but_its_optimizers(refused, name):
    text = SPEC.replace("{type: gd, lr: 0.1}", yaml.safe_dump({"type": "optax", "name": name})[:-1])
    text = text.replace("optimizer: name:", "optimizer:\n  name:").replace("\ntype:", "\n  type:")
    assert ": optimizer.name: " in refused(text, "--no-user-code")


def test_all_that_a_spec_can_name_in_optax_is_optax_s():
    assert len(_factories()) > 40
    for name in _factories():
        factory = _factory(name)
        function = getattr(factory, "func", factory)
        assert function.__module__.partition(".")[0] == "optax"


@pytest.mark.parametrize(
    "name", ["__loader__", "constant.__globals__", "join", "os.system", "inject"]
)
def test_schedules_are_those_of_a_list(refused, name):
    text = SPEC.replace("lr: 0.1", f"lr: {{schedule: {name}, value: 1}}")
    assert ": optimizer.lr.schedule: must be one of constant, " in refused(text, "--no-user-code")


# Nothing is written elsewhere


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../up",
        "/tmp/up",
        "a/b",
        "a\\b",
        "~",
        "~root",
        "",
        " ",
        "a\n",
        "-a",
        ".a",
        "a\0",
        "a:b",
    ],
)
def test_names_that_would_lead_elsewhere(refused, name):
    written = yaml.safe_dump(name).partition("\n...")[0].strip()
    assert ": name: " in refused(SPEC.replace("small", written))
    assert ": name: " in refused(SPEC + f"sweep: {{list: [{{seed: 1, name: {written}}}]}}\n")


@pytest.mark.parametrize(
    "value",
    ["../../up", "/tmp/up", "..", "a/../..", "~", "a\\b", "x\0y", "%2e%2e", "é/ü", "\n", "{a: ..}"],
)
def test_values_of_a_grid_stay_within_their_folder(folder, value):
    """They name directories; those of a free text are as they please."""
    keys = ["optimizer.lr", "data.path", "model.activation", "../up", "a/b"]
    for key in keys:
        sweep = {"list": [{"name": "a"}], "grid": {key: [value, 0.5]}}
        (folder / "s.yaml").write_text(SPEC + yaml.safe_dump({"sweep": sweep}))
        with pytest.raises(InputError):
            load_plan("s.yaml")
    arguments = {"function": "mine.loss", "start": [1.0], "args": {"scale": 1}}
    spec = {k: v for k, v in yaml.safe_load(SPEC).items() if k not in ("data", "model", "loss")}
    spec |= {"task": arguments, "sweep": {"grid": {"task.args.scale": [value, 1]}}}
    (folder / "s.yaml").write_text(yaml.safe_dump(spec, allow_unicode=True))
    try:
        plan = load_plan("s.yaml")
    except InputError as error:
        assert "\0" in value and "stands for none" in str(error)
        return
    assert plan.folder == folder / "runs" / "small"
    for member in plan.specs:
        assert member.run_dir.parent == plan.folder
        assert Path(os.path.normpath(member.run_dir)) == member.run_dir


class _Writes:
    """Files and folders that this process makes, renames or removes; Python keeps audit hooks."""

    def __init__(self):
        self.paths: list[str] | None = None
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if self.paths is None:
            return
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, mode, flags = arguments
            if set(mode or "") & set("wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR):
                self.paths.append(os.fsdecode(path))
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink"):
            self.paths += [os.fsdecode(p) for p in arguments[:2] if isinstance(p, str | bytes)]


@pytest.fixture(scope="module")
def writes():
    return _Writes()


def test_runs_write_within_their_directories(folder, writes, tmp_path):
    """What HDF5 writes Python does not see: files are compared as well."""
    note = "{note: [../../up, /tmp/up]}".replace("note:", "task.args.note:")
    text = re.sub("(?m)^(data|model|loss): .*\n", "", SPEC) + TASK + f"sweep: {{grid: {note}}}\n"
    (folder / "s.yaml").write_text(text + "record: {weights_every: 1}\noutput: {dir: out}\n")

    def files():
        return {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}

    before, writes.paths = files(), []
    try:
        assert main(["run", "s.yaml", "--no-cache"]) == ExitCode.DONE
    finally:
        seen, writes.paths = {Path(path).absolute() for path in writes.paths}, None
    own = folder / "out" / "small"
    members = {path.parent.name for path in own.glob("*/data.h5")}
    assert members == {"note=.._.._up", "note=_tmp_up"}
    # `mine` leaves a file itself, and the libraries keep programs and fonts for later.
    caches = {jax.config.jax_compilation_cache_dir or own, matplotlib.get_cachedir()}
    allowed = (own, *map(Path, caches), folder / "imported", folder / "__pycache__")
    elsewhere = [p for p in (files() - before) | seen if not any(map(p.is_relative_to, allowed))]
    assert set(elsewhere) <= {folder / "out", Path(os.devnull)}


# The report


HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>"
FLAT = HOSTILE.replace("/", "")  # a slash in HDF5's names makes a group
TERMINAL = "\x1b[2J\r\x07\u202e"


class Page(HTMLParser):
    """The tags of a page, with the names of their attributes, and the texts of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._in_script = set(), [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add((tag, tuple(name for name, _ in attrs)))
        self._in_script = tag == "script"

    def handle_data(self, data):
        if self._in_script:
            self.scripts.append(data)

    def handle_endtag(self, tag):
        self._in_script = False


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run whose every string is an attack."""
    run_dir = make_run(tmp_path_factory.mktemp("hostile"), rows=100)
    words = HOSTILE + TERMINAL
    quoted = yaml.safe_dump({"name": words, f"key {FLAT}": words, "flow": {"smoothing": 6.0}})
    (run_dir / "spec.yaml").write_text(f"# {HOSTILE}\n{quoted}")
    with h5py.File(run_dir / "data.h5", "a") as file:
        for process in ("discrete", "stable"):
            copy = f"{process}{FLAT}%{{x}}{TERMINAL}"
            file.copy(process, copy)
            file[copy].attrs["stop_reason"] = words
            file[copy].attrs["stop_row"] = 5
        for attribute in ("status", "stop_goal", "platform", f"version_{FLAT}"):
            file.attrs[attribute] = words
        file.copy("distance/midpoint-central", f"distance/discrete-{FLAT}")
    return run_dir


def _is_as_harmless(page: str, other: str) -> None:
    """Assert that a page has no tags and attributes that the other has not, nor hidden ones."""
    page_, other_ = Page(page), Page(other)
    assert page_.tags <= other_.tags
    assert len(page_.scripts) == len(other_.scripts)
    assert "<img" not in page and "<script>alert" not in page
    drawn = "".join(script for script in page_.scripts if "plotly.js v" not in script)
    unescaped = drawn.replace("\\u003c", "<").replace("\\u003e", ">")
    # Of the tags that Plotly takes in the texts that it draws there are only these.
    assert set(re.findall(r"<(\w+)", unescaped)) <= {"br", "extra"}
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f\u202e]", re.sub(r"(?s)<script.*?</script>", "", page)
    )


def test_a_report_shows_strings_as_they_are(hostile, tmp_path):
    plain = make_run(tmp_path, rows=100)
    page = write_report(hostile).read_text()
    _is_as_harmless(page, write_report(plain).read_text())
    assert html.escape(HOSTILE, quote=False).replace("'", "&#39;") in page
    assert summarise(hostile).replace("\n", "").isprintable()


def test_a_comparison_shows_strings_as_they_are(hostile, tmp_path):
    plain, other = make_run(tmp_path / "a", rows=100), make_run(tmp_path / "b", rows=100)
    for i, run_dir in enumerate((plain, other)):
        (run_dir / "spec.yaml").write_text(f"name: run{i}\nseed: {i}\nflow: {{smoothing: 6.0}}\n")
    page = write_comparison([hostile, plain], tmp_path / "c", HOSTILE).read_text()
    _is_as_harmless(page, write_comparison([plain, other], tmp_path / "d", "two").read_text())
    text = summarise_comparison([hostile, plain])
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("spec.yaml", b"\xff"),
        ("spec.yaml", b"[1"),
        ("data.h5", b""),
        ("data.h5", b"\x89HDF\r\n\x1a\n" + bytes(90)),
        ("data.h5", b"\x80\x04c__builtin__\nopen\n(X\x05\x00\x00\x00pwnedX\x01\x00\x00\x00wtR."),
    ],
)
def test_damaged_runs_are_bad_input(tmp_path, monkeypatch, capsys, name, content):
    monkeypatch.chdir(tmp_path)
    run_dir = make_run(tmp_path, rows=20)
    (run_dir / name).write_bytes(content)
    assert main(["report", str(run_dir)]) == ExitCode.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{run_dir / name}:")
    assert not os.path.exists(PWNED)


@pytest.mark.parametrize(
    "text", ["- a\n", "3\n", "flow: 3\n", "flow: {smoothing: x}\n", "name: [a]\n", ""]
)
def test_a_run_s_spec_may_be_anything(tmp_path, text):
    run_dir = make_run(tmp_path, rows=20)
    (run_dir / "spec.yaml").write_text(text)
    run = load_run(run_dir)
    assert run.smoothing == 15.0 and run.name in ("made_up", "[a]") or "a" in run.name


@pytest.mark.parametrize("damage", ["step", "stop_row", "weights", "distance"])
def test_a_run_s_data_of_another_form_are_bad_input(tmp_path, damage):
    run_dir = make_run(tmp_path, rows=20)
    with h5py.File(run_dir / "data.h5", "a") as file:
        if damage == "step":
            del file["step"]
            file.create_group("step")
        elif damage == "stop_row":
            file["stable"].attrs["stop_reason"] = "none"
            file["stable"].attrs["stop_row"] = "soon"
        elif damage == "weights":
            file["central/words"] = ["a", "b"]
        else:
            del file["distance"]
            file["distance"] = 3
    with pytest.raises(InputError, match="data.h5: is not as a run writes it: "):
        load_run(run_dir)


# One zero too many


@pytest.mark.parametrize(
    ("data", "option"),
    [
        (Moons(n=10**9), "n"),
        (Chebyshev(n=10**9), "n"),
        (Copying(n=10**9), "n"),
        (Copying(length=10**9), "n"),
        (Copying(vocabulary=10**30), "vocabulary"),
        (Sorting(n=10**9), "n"),
        (Classification(n=10**9), "n"),
        (Classification(n=10, features=10**5, informative=10**5), "informative"),
    ],
)
def test_made_up_data_do_not_fill_the_memory(data, option):
    begin = time.process_time()
    with pytest.raises(OptionError) as error:
        data.load(0)
    assert error.value.option == option
    assert time.process_time() - begin < 1
