"""Valid specs: reading, defaults, overrides, resolution, and the schema derived from components."""

import dataclasses
import json
from collections.abc import Callable
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from annotated_types import Ge, Lt
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import Doc

from centralflow_eqx.data import DATASETS, AbstractData
from centralflow_eqx.errors import InputError
from centralflow_eqx.losses import LOSSES
from centralflow_eqx.models import MODELS
from centralflow_eqx.optimizers import GD, OPTIMIZERS, AdamW, DecoupledDecay
from centralflow_eqx.options import options_of
from centralflow_eqx.processes import PROCESSES
from centralflow_eqx.registry import Registry
from centralflow_eqx.spec import json_schema, load_spec
from centralflow_eqx.spec.document import dump, parse

SPEC = """\
name: small
precision: float64
data: {type: moons, n: 20}
model: {type: mlp, widths: [3]}
loss: {type: mse}
optimizer: {type: gd, lr: 4e-1}
processes: [discrete]
steps: 5
"""


@pytest.fixture
def load(tmp_path):
    def load(text=SPEC, *overrides):
        path = tmp_path / "spec.yaml"
        path.write_text(text)
        return load_spec(path, overrides)

    return load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.5E+2", 150.0),
        (".5", 0.5),
        ("-.inf", -float("inf")),
        ("0o17", 15),
        ("0x1F", 31),
        ("010", 10),
        ("-7", -7),
        ("off", "off"),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("True", True),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("'1e-3'", "1e-3"),
        ("1e", "1e"),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    node, problems = parse(f"key: {text}", "f")
    assert node.plain() == {"key": value}
    assert type(node.plain()["key"]) is type(value)
    assert problems == []


_texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _texts
_trees = st.recursive(
    _scalars, lambda inner: st.lists(inner) | st.dictionaries(_texts, inner), max_leaves=8
)


@given(_trees)
def test_dumped_yaml_reads_back(tree):
    assert parse(dump(tree), "f")[0].plain() == tree


def test_aliases_are_expanded_with_the_line_they_were_written_on():
    node, _ = parse("a: &w\n  - 1\n  - 2\nb: *w\n", "f")
    assert node.plain() == {"a": [1, 2], "b": [1, 2]}
    assert node.find(("b", 1))[0].at.line == 3


def test_merge_keys_fill_in_what_is_not_given():
    text = (
        "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\n"
        "c: {<<: *a, y: 5}\nd:\n  w: 6\n  <<: [*b, *a]\ne: {'<<': 7}\n"
    )
    document, problems = parse(text, "f")
    assert problems == []
    plain = document.plain()
    assert plain["c"] == {"x": 1, "y": 5}
    assert plain["d"] == {"x": 1, "y": 3, "z": 4, "w": 6}
    assert plain["e"] == {"<<": 7}
    assert document.find(("d", "z"))[0].at.line == 2  # where it was written
    for wrong in ("a: {<<: 3}", "a: {<<: [{b: 1}, 3]}"):
        (problem,) = parse(wrong, "f")[1]
        assert str(problem) == "f:1: a.<<: must be a mapping or a list of mappings"
    with pytest.raises(InputError, match="contains itself|nested too deeply"):
        parse("a: &a {<<: *a}", "f")


@pytest.mark.parametrize(("name", "shown"), [("2024", "2024"), ("true", "true"), ("1e3", "1000.0")])
def test_a_name_that_yaml_takes_for_something_else(load, name, shown):
    with pytest.raises(InputError, match=f"got {shown}; quote it if it is meant as text"):
        load(SPEC.replace("name: small", f"name: {name}"))


def test_defaults_are_those_of_the_contract(load):
    spec = load(SPEC.replace("precision: float64\n", ""))
    resolved = yaml.safe_load(spec.to_yaml())
    output = resolved.pop("output")["dir"]
    assert resolved == {
        "name": "small",
        "seed": 0,
        "precision": "float32",
        "data": {"type": "moons", "n": 20, "noise": 0.1},
        "model": {
            "type": "mlp",
            "widths": [3],
            "activation": "gelu",
            "output_scale": 1.0,
            "bias": True,
            "init": "default",
            "init_scale": 1.0,
        },
        "loss": {"type": "mse"},
        "task": None,
        "init": None,
        "optimizer": {"type": "gd", "lr": 0.4, "weight_decay": 0.0},
        "processes": ["discrete"],
        "steps": 5,
        "warm_start": 0,
        "eigen": {"track_above": 1.5, "initial": 1, "tol": pytest.approx(5e-4)},
        "flow": {
            "method": "adaptive",
            "tol": 1e-3,
            "max_step": None,
            "substeps": 4,
            "critical_above": 1.95,
            "state_rate": "exponential",
            "restoration": None,
            "max_sharpness": 100.0,
            "smoothing": 15.0,
            "rods": 1,
        },
        "stop": dict.fromkeys(("process", "loss_below", "accuracy_above", "diverged_above")),
        "record": {
            "every": 1,
            "exact": False,
            "weights_every": 0,
            "raw_spectra": True,
            "coordinates": 0,
            "examples": [],
            "preconditioners_every": 0,
            "log_to": [],
        },
        "minibatch": dict.fromkeys(("size", "sharpness_every", "sample"), 0)
        | {"draw": "epochs", "seeds": 1, "noise": "off", "critical_above": 1.0},
        "memory": {"microbatch": 0, "hvp_chunk": 0, "remat": False},
        "forward": dict.fromkeys(("precision", "third_derivatives"), "highest"),
        **dict.fromkeys(("devices", "shard"), "auto"),
        "distributed": "off",
        "checkpoint": {"every": None, "keep": 2},
    }
    assert output.startswith("/")


@pytest.mark.parametrize(
    "lr",
    ["0.1", "{schedule: cosine_decay_schedule, init_value: 0.1, decay_steps: 9}"],
)
def test_resolved_spec_loads_to_itself_from_anywhere(load, tmp_path, monkeypatch, lr):
    spec = load(SPEC, f"optimizer.lr={lr}", "name='1e-3'")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = load(spec.to_yaml())
    assert again.to_yaml() == spec.to_yaml()
    assert again.run_dir == spec.run_dir
    assert again.eigen.tol == pytest.approx(spec.flow.tol / 2)


def test_input_files_are_relative_to_the_spec_and_output_to_the_working_directory(
    tmp_path, monkeypatch
):
    folder = tmp_path / "specs"
    folder.mkdir()
    (folder / "arrays.npz").touch()
    data = "data: {type: npz, path: arrays.npz}"
    (folder / "s.yaml").write_text(SPEC.replace("data: {type: moons, n: 20}", data))
    monkeypatch.chdir(tmp_path)
    spec = load_spec("specs/s.yaml")
    assert spec.data.build().path == folder / "arrays.npz"
    assert spec.run_dir == tmp_path / "runs" / "small"


def test_overrides(load):
    overrides = ("optimizer.lr=1e-2", "model.widths=[4, 5]", "flow.state_rate=backward", "seed=3")
    spec = load(SPEC, *overrides, "seed=4")
    assert spec.optimizer.build().lr(0) == 0.01
    assert spec.model.build().widths == (4, 5)
    assert (spec.flow.state_rate, spec.flow.substeps) == ("backward", 4)
    assert spec.seed == 4


def test_an_override_replaces_what_was_wrong_in_the_file(load):
    assert load(SPEC.replace("steps: 5", "steps: -5"), "steps=6").steps == 6


@dataclasses.dataclass(frozen=True)
class Blobs(AbstractData):
    """Blobs.

    More about blobs.
    """

    spread: Annotated[float, Ge(0), Lt(1), Doc("Size of a blob.")]
    names: tuple[str, ...] = ("a", "b")
    depth: int | None = None

    def load(self, seed):
        raise NotImplementedError


def test_options_and_schema_come_from_the_fields_of_the_component(load, monkeypatch):
    monkeypatch.setattr(DATASETS, "_components", dict(DATASETS._components))
    DATASETS.register("blobs")(Blobs)
    assert DATASETS.summary("blobs") == "Blobs."
    spec = load(SPEC, "data={type: blobs, spread: 0, names: [c]}")
    assert spec.data.build() == Blobs(0.0, ("c",), None)
    spread = json_schema()["$defs"]["Blobs"]["properties"]["spread"]
    assert (spread["minimum"], spread["exclusiveMaximum"]) == (0, 1)
    assert spread["description"] == "Size of a blob."


def step(optimizer):
    """The optimizer's second step, from a gradient and weights that differ."""
    w, g = jnp.asarray([1.0, -2.0]), jnp.asarray([0.5, 3.0])
    _, state = optimizer.update(g, optimizer.init(w), w)
    return w, optimizer.update(2 * g, state, w)[0]


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS.names()) - {"adamw", "optax"}))
def test_every_optimizer_takes_decoupled_weight_decay(load, name):
    halved = "{schedule: exponential_decay, init_value: 0.1, transition_steps: 1, decay_rate: 0.5}"
    section = f"optimizer={{type: {name}, lr: {halved}}}"
    plain = load(SPEC, section).optimizer.build()
    decayed = load(SPEC, section, "optimizer.weight_decay=3").optimizer.build()
    assert type(plain) is OPTIMIZERS[name]
    w, undecayed = step(plain)
    np.testing.assert_allclose(step(decayed)[1], undecayed - 0.05 * 3 * w, rtol=1e-12)


def test_weight_decay_is_the_rules_own_where_it_has_one(load):
    adamw = load(SPEC, "optimizer={type: adamw, lr: 0.1, weight_decay: 0.2}").optimizer.build()
    assert isinstance(adamw, AdamW)
    assert adamw.weight_decay == 0.2
    decayed = load(SPEC, "optimizer.weight_decay=0.2").optimizer.build()
    assert isinstance(decayed, DecoupledDecay)
    assert isinstance(decayed.rule, GD)


@dataclasses.dataclass(frozen=True)
class Odd(AbstractData):
    """Fields of types that a spec cannot hold, and defaults that do not fit their types."""

    size: float = None  # type: ignore
    limit: float = float("inf")
    pair: Any = (1, 2)
    function: Callable = len
    inner: Blobs = Blobs(0.5)
    made: list[int] = dataclasses.field(default_factory=lambda: [1])

    def load(self, seed):
        raise NotImplementedError


def test_what_a_spec_cannot_hold_is_left_to_the_component(load, monkeypatch):
    monkeypatch.setattr(DATASETS, "_components", dict(DATASETS._components))
    DATASETS.register("odd")(Odd)
    spec = load(SPEC, "data={type: odd}")
    assert yaml.safe_load(spec.to_yaml())["data"] == {"type": "odd", "made": [1]}
    assert spec.data.build() == Odd()
    assert load(spec.to_yaml()).data.build() == Odd()
    assert load(SPEC, "data={type: odd, size: 2}").data.build() == Odd(size=2.0)


def test_a_name_is_registered_once():
    registry = Registry("thing")
    registry.register("x")(Blobs)
    with pytest.raises(ValueError, match="thing 'x' is registered twice"):
        registry.register("x")(Blobs)
    with pytest.raises(KeyError, match="unknown thing 'y', must be one of x"):
        registry["y"]


def test_json_schema_covers_every_component_and_resolves():
    schema = json.loads(json.dumps(json_schema()))
    properties, definitions = schema["properties"], schema["$defs"]
    for section, registry in (
        ("data", DATASETS),
        ("model", MODELS),
        ("loss", LOSSES),
        ("optimizer", OPTIMIZERS),
    ):
        for name in registry.names():
            model = options_of(registry, name)
            found = definitions[model.__name__]
            assert found["properties"]["type"]["const"] == name
            assert set(found["properties"]) == set(model.model_fields)
            assert not found["additionalProperties"]
            assert f"#/$defs/{model.__name__}" in json.dumps(properties[section])
    for name in PROCESSES.names():
        assert name in json.dumps(properties["processes"])
    references = {part.split('"')[0] for part in json.dumps(schema).split('"#/$defs/')[1:]}
    assert references <= set(definitions)
    assert set(schema["required"]) == {"name", "optimizer", "processes", "steps"}
    assert schema["anyOf"] == [{"required": ["data", "model", "loss"]}, {"required": ["task"]}]


def test_every_key_that_is_no_section_is_described():
    keys = json_schema()["properties"]
    plain = {name: key for name, key in keys.items() if "$ref" not in json.dumps(key)}
    assert "processes" in plain and "steps" in plain
    assert not [name for name, key in plain.items() if not key.get("description")]
