"""The documentation agrees with what it is about, page by page; nothing here computes."""

import ast
import re
import runpy
import shlex
from types import SimpleNamespace

import pytest
import yaml
from _pages import EXECUTED, ROOT, blocks

import centralflow_eqx
from centralflow_eqx.spec import load_plan
from centralflow_eqx.spec.schema import COMPONENTS, spec_model

DOCS = ROOT / "docs"
PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "benchmarks" / "README.md"],
    key=lambda path: path.as_posix(),
)
SITE = DOCS / "_site"
BASE = ROOT / "specs" / "gd_moons.yaml"
LARGEST_PICTURE = 150_000

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: f"{path.relative_to(ROOT)}")


def hook(name):
    """What a hook of the site defines."""
    return runpy.run_path(str(SITE / f"{name}.py"))


def code(page):
    """Every piece of code on a page: fenced blocks line by line, indented lines, code in text."""
    text = page.read_text()
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    lines = "\n".join(fenced).replace("\\\n", " ").splitlines()
    lines += re.findall(r"^ {4}(.+)$", rest, re.M)
    return [line.strip() for line in lines + re.findall(r"`([^`\n]+)`", rest)]


def commands(program):
    """The command lines of a program on all pages, as (page, arguments)."""
    found = []
    for page in PAGES:
        for line in code(page):
            start = re.match(rf"(?:\S*&& )*(?:\S*/)?{program}(?= |$)(.*)", line)
            if start:
                words = start[1].replace(" ...", "").partition(" > ")[0].partition("  ")[0]
                found.append((page.name, shlex.split(words, comments=True)))
    return found


def test_commands_are_such_that_the_command_line_takes_them():
    parser = hook("command_line")["parser"]()
    found = commands("python -m centralflow_eqx")
    assert len(found) > 20
    for page, arguments in found:
        if not arguments:  # the program's name
            continue
        try:
            parser.parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{page}: {shlex.join(arguments)}")
        specs = [word for word in arguments if word.startswith("specs/")]
        assert all((ROOT / spec).is_file() for spec in specs), page


def test_scripts_and_modules_that_are_to_be_run_exist():
    found = commands("python -m benchmarks[.a-z_]*") + commands("python docs/[a-z_/]*.py")
    assert len(found) > 10
    for page in PAGES:
        for name in re.findall(r"python -m (benchmarks[.a-z_]*)", page.read_text()):
            path = ROOT / name.rstrip(".").replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), page
        for name in re.findall(r"python (docs/[\w/]+\.py)", page.read_text()):
            assert (ROOT / name).exists(), page


@each_page
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists()


@each_page
def test_specs_and_parts_of_specs_are_valid(page, tmp_path):
    if page in EXECUTED:  # they are run
        return
    base = yaml.safe_load(BASE.read_text())
    for block in blocks(page, "yaml"):
        given = yaml.safe_load(block)
        whole = given if "name" in given else base | given
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(whole))
        assert load_plan(tmp_path / "spec.yaml").specs


@each_page
def test_python_is_python(page):
    for block in blocks(page, "python"):
        ast.parse(block)


def test_every_key_and_component_is_in_the_reference():
    made = hook("spec_keys")
    keys, components = made["keys"](), made["components"]()
    for name, field in spec_model().model_fields.items():
        assert name in COMPONENTS or f"### {name}\n" in keys or f"| `{name}` |" in keys
        for inner in getattr(field.annotation, "model_fields", {}):
            assert f"| `{inner}` |" in keys
    for section, registry in COMPONENTS.items():
        assert all(f"#### {section}: {name}\n" in components for name in registry.names())
    text = (DOCS / "reference" / "spec.md").read_text()
    assert all(mark in text for mark in made["MARKS"])


def test_every_public_name_is_in_the_reference():
    text = (DOCS / "reference" / "api.md").read_text()
    named = set(re.findall(r"^::: centralflow_eqx\.(\w+)$", text, re.M))
    assert named | {"__version__"} == set(centralflow_eqx.__all__)


def test_the_rooms_are_drawn_as_they_are():
    made = runpy.run_path(str(DOCS / "architecture.py"))
    drawn = (DOCS / "architecture.svg").read_text()
    assert drawn == made["picture"](), "python docs/architecture.py draws them anew"
    table = (DOCS / "architecture.md").read_text()
    assert all(f"`{room}`" in table for room in made["rooms"]()[0])


def test_the_gallery_has_every_spec_and_small_pictures():
    text = (DOCS / "gallery.md").read_text()
    specs = {path.stem for path in (ROOT / "specs" / "paper").glob("*.yaml")}
    assert all(f"{name}.yaml" in text for name in specs)
    shown = set(re.findall(r"\(pictures/(\w+)\.png\)", text))
    assert shown == set(runpy.run_path(str(DOCS / "gallery.py"))["FIGURES"]) <= specs
    sizes = {path.stem: path.stat().st_size for path in (DOCS / "pictures").glob("*.png")}
    assert set(sizes) == shown and max(sizes.values()) < LARGEST_PICTURE


def tables(page):
    """The tables of a page, each a list of rows without the line below the header."""
    found = re.findall(r"^(\|.*\|\n)\| -.*\n((?:\|.*\|\n)+)", page.read_text(), re.M)
    lines = ((head + body).splitlines() for head, body in found)
    return [[[c.strip() for c in line.strip("|").split("|")] for line in each] for each in lines]


@pytest.mark.parametrize("name, page", [("optimizer", "accuracy"), ("per step", "performance")])
def test_the_readmes_tables_are_columns_of_the_long_ones(name, page):
    (short,) = (table for table in tables(ROOT / "README.md") if table[0][0] == name)
    long = next(table for table in tables(DOCS / f"{page}.md") if table[0][0] == name)
    columns = [long[0].index(column) for column in short[0]]
    assert len(short) > 5
    assert all(row in [[other[i] for i in columns] for other in long] for row in short)


def test_links_of_built_pages_are_looked_through(tmp_path, caplog):
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="b.html#end">b</a><a href="c.html">c</a>'
        '<a href="https://example.org">elsewhere</a><script src="https://example.org/x.js"></script>'
    )
    (tmp_path / "b.html").write_text('<a href="a.html#top">a</a><img src="a.png">')
    hook("links")["on_post_build"](SimpleNamespace(site_dir=str(tmp_path)))
    assert [record.getMessage() for record in caplog.records] == [
        "a.html: b.html#end has no such place",
        "a.html: c.html leads nowhere",
        "a.html: https://example.org/x.js is fetched from elsewhere",
        "b.html: a.png leads nowhere",
    ]


def test_citation_and_changes_are_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == centralflow_eqx.__version__
    assert f"## {centralflow_eqx.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert len(cited["references"][0]["authors"]) == 5
