"""Optax's transformations as optimizers, from Python and from a spec."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yaml
from pydantic import ValidationError

from centralflow_eqx.errors import InputError, OptionError
from centralflow_eqx.optimizers import Optax
from centralflow_eqx.optimizers.optax_rule import OptaxOptions, _factories
from centralflow_eqx.spec import json_schema, load_spec

SPEC = """\
name: small
data: {type: moons, n: 20}
model: {type: mlp, widths: [3]}
loss: {type: mse}
processes: [discrete]
steps: 5
optimizer:
  type: optax
"""
HALVING = optax.exponential_decay(0.1, transition_steps=1, decay_rate=0.5)
LABELS = {"W": "fast", "b": "slow"}


@pytest.fixture
def read(tmp_path):
    def read(text):
        (tmp_path / "s.yaml").write_text(text)
        return load_spec(tmp_path / "s.yaml")

    return read


@pytest.fixture
def load(read):
    """A spec with these lines about the optimizer, the first of them on line 9."""
    return lambda *lines: read(SPEC + "".join(f"  {line}\n" for line in lines))


def weights(dtype=jnp.float64, seed=0):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in (("W", (3, 2)), ("b", 2))}


def steps(rule, dtype=jnp.float64, update=None):
    """Three steps of a transformation or an optimizer, and the state after them."""
    params, taken = weights(dtype), []
    state = rule.init(params)
    for i in range(3):
        step, state = (update or rule.update)(weights(dtype, i + 1), state, params)
        params = optax.apply_updates(params, step)
        taken.append(step)
    return taken, state


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    "transformation",
    [
        pytest.param(optax.adam(0.1), id="extra args"),
        pytest.param(optax.chain(optax.clip(0.1), optax.sgd(HALVING, 0.9)), id="chain"),
        pytest.param(optax.adamw(0.1, mask={"W": True, "b": False}), id="masked"),
        pytest.param(
            optax.multi_transform({"fast": optax.sgd(1.0), "slow": optax.rmsprop(0.1)}, LABELS),
            id="multi",
        ),
    ],
)
def test_it_is_the_transformation(transformation, dtype):
    expected = steps(transformation, dtype)
    equal(steps(Optax(transformation), dtype), expected)
    assert all(x.dtype == dtype for x in jax.tree.leaves(expected[0]))


def test_it_may_be_closed_over_or_passed_to_a_compiled_function():
    optimizer = Optax(optax.adam(0.1))
    expected = steps(optimizer)[0]
    passed = jax.jit(lambda rule, *args: rule.update(*args))
    for update in (jax.jit(optimizer.update), functools.partial(passed, optimizer)):
        taken = steps(optimizer, update=update)[0]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), taken, expected)


def test_anything_else_is_refused():
    with pytest.raises(TypeError, match="must be an optax.GradientTransformation, such as"):
        Optax(optax.adam)  # type: ignore


def test_weights_in_pairs_are_refused():
    pairs = optax.chain(optax.clip(1.0), optax.lookahead(optax.sgd(0.1), 5, 0.5))
    for w in (jnp.ones(2), optax.LookaheadParams.init_synced(jnp.ones(2))):
        with pytest.raises(OptionError, match="lookahead has weights in pairs, fast and slow"):
            Optax(pairs).init(w)


@pytest.mark.parametrize(
    ("lines", "transformation"),
    [
        (["name: adam", "args: {learning_rate: 1e-3, b1: 0.5}"], optax.adam(1e-3, b1=0.5)),
        (["name: sgd", "args: {learning_rate: 1, momentum: 0.9}"], optax.sgd(1.0, 0.9)),
        (["name: nadamw", "args: {learning_rate: 0.1}"], optax.nadamw(0.1)),
        (
            [
                "name: sgd",
                "args:",
                "  learning_rate:",
                "    {schedule: exponential_decay, init_value: 0.1, transition_steps: 1,",
                "     decay_rate: 0.5}",
            ],
            optax.sgd(HALVING),
        ),
        (
            ["name: adadelta", "args: {learning_rate: {schedule: constant, value: 0.1}}"],
            optax.adadelta(0.1),
        ),
        (
            ["name: contrib.prodigy", "args: {betas: [0.8, 0.9], beta3: null}"],
            optax.contrib.prodigy(betas=(0.8, 0.9)),
        ),
        (["name: adafactor", "args: {learning_rate: 0.1}"], optax.adafactor(0.1)),
        (["name: sign_sgd", "args: {learning_rate: 0.1}"], optax.sign_sgd(0.1)),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_a_spec_names_it_and_its_arguments(load, read, lines, transformation):
    spec = load(*lines)
    optimizer = spec.optimizer.build()
    assert isinstance(optimizer, Optax)
    for step, expected in zip(steps(optimizer)[0], steps(transformation)[0], strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), step, expected)
    assert read(spec.to_yaml()).to_yaml() == spec.to_yaml()


def test_the_resolved_spec_has_the_defaults_that_it_can_hold(load):
    spec = load("name: adafactor", "args: {learning_rate: 0.1}")
    section = yaml.safe_load(spec.to_yaml())["optimizer"]
    assert list(section) == ["type", "name", "args"]
    assert section["args"]["decay_rate"] == 0.8
    assert section["args"]["momentum"] is None
    assert "dtype_momentum" not in section["args"]  # jnp.float32


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["name: adm"], '9: optimizer.name: Optax has no public "adm", must be a name such as'),
        (["name: _src.alias.adam"], '9: optimizer.name: Optax has no public "_src.alias.adam", '),
        (["name: contrib.jax.jit"], '9: optimizer.name: Optax has no public "contrib.jax.jit", '),
        (["name: apply_updates"], '9: optimizer.name: "apply_updates" makes no gradient transfor'),
        (["name: update_moment"], '9: optimizer.name: "update_moment" makes no gradient transfor'),
        (["name: GradientTransformation"], '9: optimizer.name: "GradientTransformation" makes no'),
        (["name: contrib"], '9: optimizer.name: "contrib" makes no gradient transformation'),
        (["name: lookahead"], "9: optimizer.name: optax.lookahead needs fast_optimizer, which a s"),
        (["name: chain"], "9: optimizer.name: optax.chain needs args, which a spec cannot give"),
        (["name: 3"], "9: optimizer.name: must be a name in Optax, such as adam or contrib.muon, "),
        ([], "7: optimizer.name: missing, must be a name in Optax, such as adam or contrib.muon"),
        (["name: sgd"], "7: optimizer.args.learning_rate: missing, must be a number or {schedule"),
        (
            ["name: identity", "lr: 1"],
            "10: optimizer.lr: unknown key, must be one of type, na",
        ),
        (
            ["name: sgd", "args: 1"],
            "10: optimizer.args: must be a mapping with learning_rate, momentum, nesterov, accum",
        ),
        (
            ["name: adam", "args:", "  learning_rate: 1", "  b3: 0.9"],
            "12: optimizer.args.b3: unknown key, must be one of learning_rate, b1, b2, eps, eps_r",
        ),
        (
            ["name: adam", "args:", "  learning_rate: 1", "  b1: {schedule: constant, value: 1}"],
            '12: optimizer.args.b1: must be a number, got {"schedule": "constant", "value": 1}',
        ),
        (
            ["name: sgd", "args:", "  learning_rate: fast"],
            '11: optimizer.args.learning_rate: must be a number or {schedule: NAME, ...}, got "f',
        ),
        (
            ["name: sgd", "args:", "  learning_rate: true"],
            "11: optimizer.args.learning_rate: must be a number or {schedule: NAME, ...}, got tru",
        ),
        (
            ["name: sgd", "args:", "  learning_rate:", "    schedule: constant"],
            "11: optimizer.args.learning_rate.value: missing, must be a number >= 0",
        ),
        (
            ["name: adam", "args:", "  learning_rate: 1", "  b1: 0.9", "  mu_dtype: float99"],
            "13: optimizer.args.mu_dtype: optax.adam refuses: TypeError: data type 'float99' not ",
        ),
        (
            ["name: adamw", "args:", "  learning_rate: 1", "  mask: {W: true}"],
            "12: optimizer.args.mask: optax.adamw refuses: ValueError: ",
        ),
        (
            ["name: lbfgs", "args:", "  memory_size: 0"],
            "11: optimizer.args.memory_size: optax.lbfgs refuses: ValueError: memory_size must be",
        ),
        (["name: lbfgs"], "7: optimizer.args: optax.lbfgs refuses: TypeError: "),
        (
            ["name: contrib.muon", "args:", "  learning_rate: 1", "  ns_coeffs: [[1, 2, x]]"],
            "12: optimizer.args.ns_coeffs: must be a list, ",
        ),
    ],
)
def test_mistakes_are_reported_at_their_lines(load, lines, problem):
    with pytest.raises(InputError) as refused:
        load(*lines)
    (found,) = map(str, refused.value.problems)
    assert found.partition("s.yaml:")[2].startswith(problem), found


@pytest.mark.parametrize(
    ("lines", "suggestion"),
    [
        (["name: adm"], "adam"),
        (["name: optax.adam"], "adam"),
        (["name: muon"], "contrib.muon"),
        (["name: sgd", "args: {learning_rate: 1, momentun: 0.9}"], "momentum"),
    ],
)
def test_misspelt_names_come_with_a_suggestion(load, lines, suggestion):
    with pytest.raises(InputError, match=rf"\(did you mean '{suggestion}'\?\)$"):
        load(*lines)


# They need the loss, its value or examples apart on top of the gradient, a schedule, or labels.
NEED_MORE = {
    *("contrib.momo", "contrib.momo_adam", "contrib.sophia", "contrib.reduce_on_plateau"),
    *("contrib.hutchinson_estimator_diag_hessian", "contrib.differentially_private_aggregate"),
    *("contrib.dpsgd", "lbfgs", "polyak_sgd", "scale_by_polyak", "scale_by_schedule"),
    *("scale_by_backtracking_linesearch", "scale_by_zoom_linesearch", "contrib.scale_by_muon"),
}


def test_all_of_optax_reads_back_from_its_resolved_options():
    usable = 0
    for name in (n for n in _factories() if not n.startswith("transforms.")):  # listed twice
        try:
            model = OptaxOptions.specialised({"name": name})
        except OptionError as error:
            assert "which a spec cannot give" in error.message
            continue
        fields = model.model_fields["args"].annotation.model_fields
        args = {n: 1 if n == "seed" else 0.1 for n, field in fields.items() if field.is_required()}
        try:
            options = model.model_validate({"type": "optax", "name": name, "args": args})
        except ValidationError:
            assert name in NEED_MORE
            continue
        assert name not in NEED_MORE
        assert model.model_validate_json(options.model_dump_json()) == options
        usable += 1
    assert usable > 80


def test_the_json_schema_lets_an_editor_complete_it():
    schema = json_schema()["$defs"]["OptaxOptions"]
    assert schema["required"] == ["type", "name"]
    assert schema["properties"]["args"]["type"] == "object"
    assert "contrib.muon" in schema["properties"]["name"]["description"]
