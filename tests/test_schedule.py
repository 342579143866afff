"""Learning rates as numbers and as Optax schedules."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from centralflow_eqx.optimizers import as_schedule

COSINE = {"schedule": "cosine_decay", "init_value": 0.1, "decay_steps": 10, "alpha": 0.2}
SCHEDULES = {
    "constant": {"value": 0.1},
    "cosine_decay": {"init_value": 0.1, "decay_steps": 10},
    "cosine_onecycle": {"transition_steps": 10, "peak_value": 0.1},
    "exponential_decay": {"init_value": 0.1, "transition_steps": 10, "decay_rate": 0.9},
    "linear_onecycle": {"transition_steps": 10, "peak_value": 0.1},
    "linear": {"init_value": 0.1, "end_value": 0.01, "transition_steps": 10},
    "piecewise_constant": {"init_value": 0.1, "boundaries_and_scales": {5: 0.1}},
    "piecewise_interpolate": {
        "interpolate_type": "linear",
        "init_value": 0.1,
        "boundaries_and_scales": {5: 0.1},
    },
    "polynomial": {"init_value": 0.1, "end_value": 0.01, "power": 2.0, "transition_steps": 10},
    "warmup_constant": {"init_value": 0.0, "peak_value": 0.1, "warmup_steps": 5},
    "warmup_cosine_decay": {
        "init_value": 0.0,
        "peak_value": 0.1,
        "warmup_steps": 5,
        "decay_steps": 10,
    },
    "warmup_exponential_decay": {
        "init_value": 0.0,
        "peak_value": 0.1,
        "warmup_steps": 5,
        "transition_steps": 5,
        "decay_rate": 0.9,
    },
}


@pytest.mark.parametrize("value", [0.4, 1, np.float32(0.5)])
def test_a_number_is_constant_and_a_leaf(value):
    schedule = as_schedule(value)
    assert schedule(jnp.int32(3)) == value
    assert type(schedule(3.5)) is float
    assert jax.tree.leaves(schedule) == [value]
    assert as_schedule(schedule) is schedule


@pytest.mark.parametrize("name", SCHEDULES)
def test_optax_schedules_at_and_between_steps(name):
    arguments = SCHEDULES[name]
    function = getattr(optax, name, None) or getattr(optax, f"{name}_schedule")
    schedule, exact = as_schedule({"schedule": name, **arguments}), function(**arguments)
    exact, rate = jax.jit(jax.vmap(exact)), jax.jit(jax.vmap(schedule))
    steps = jnp.array([0, 3, 7, 30])
    # in double precision for the single-precision counters of optimizers too
    np.testing.assert_allclose(rate(jnp.int32(steps)), exact(jnp.float64(steps)), rtol=1e-14)
    between = jnp.array([3.5, 3.5 + 1e-5, 3.5 - 1e-5])
    np.testing.assert_allclose(rate(between), exact(between), rtol=1e-14)
    slope = (exact(between)[1] - exact(between)[2]) / 2e-5
    assert float(jax.jit(jax.grad(schedule))(3.5)) == pytest.approx(float(slope), abs=1e-9)


def test_a_scheduled_rate_does_not_promote_single_precision():
    rate = jax.jit(as_schedule(COSINE))(jnp.int32(3))
    assert (rate * jnp.ones(2, jnp.float32)).dtype == jnp.float32


def test_both_spellings_and_callables():
    short, long = as_schedule(COSINE), as_schedule(COSINE | {"schedule": "cosine_decay_schedule"})
    own = as_schedule(optax.cosine_decay_schedule(0.1, 10, 0.2))
    assert float(short(4)) == float(long(4)) == float(own(4))
    assert float(short(10)) == pytest.approx(0.02)


def test_equal_schedules_share_one_compilation():
    traces = []

    @eqx.filter_jit
    def rate(schedule, count):
        traces.append(None)
        return schedule(count)

    for schedule in (as_schedule(dict(COSINE)), as_schedule(dict(COSINE))):
        rate(schedule, jnp.int32(1))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (0, "greater than 0"),
        (-0.1, "greater than 0"),
        (float("nan"), "greater than 0"),
        ("fast", "valid number"),
        (True, "valid number"),
        ({"schedule": "sgdr"}, "does not match any of the expected tags"),
        (COSINE | {"decay_steps": -1}, "greater than or equal to 0"),
        (COSINE | {"decay_step": 1}, "Extra inputs are not permitted"),
        ({"schedule": "cosine_decay"}, "Field required"),
        (COSINE | {"decay_steps": 0}, "requires positive decay_steps"),
    ],
)
def test_impossible_rates(value, match):
    with pytest.raises(ValueError, match=match):
        as_schedule(value)
