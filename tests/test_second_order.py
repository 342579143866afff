"""Central flows in steps of second order, of fixed and of adaptive length."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _losses import TinyMLP
from _marks import quick

from centralflow_eqx.engine import step_control
from centralflow_eqx.engine.geometry import (
    Geometry,
    extrapolate,
    match,
    plan_renewal,
    renew,
    turn,
)
from centralflow_eqx.engine.settings import Settings
from centralflow_eqx.engine.symmetric import smat, svec
from centralflow_eqx.experiment.prepare import build_settings
from centralflow_eqx.experiment.simulate import simulate
from centralflow_eqx.optimizers import GD, HeavyBall, RMSProp
from centralflow_eqx.spec import load_spec

pytestmark = pytest.mark.optimized

FINE = Settings(method="midstep", max_step=1 / 8, tol=1e-8)


@functools.cache
def sharp_start() -> tuple[np.ndarray, float]:
    """Weights of the tiny network, and the largest eigenvalue of its Hessian there."""
    w = np.random.default_rng(3).normal(size=TinyMLP.SIZE)
    return w, float(jnp.linalg.eigvalsh(jax.hessian(TinyMLP.make())(w))[-1])


def flow(optimizer, w, steps, settings, process="central"):
    """The flow's weights at every step, and its rows."""
    rows = list(
        simulate(
            TinyMLP.make(),
            optimizer,
            w,
            processes=(process,),
            steps=steps,
            settings=settings,
            raw_spectra=False,
        )
    )
    return np.stack([row.weights[process] for row in rows]), [row.series[process] for row in rows]


@functools.cache
def fine_descent() -> np.ndarray:
    """Gradient descent's flow in fine steps: it reaches the edge at step 3 and stays there."""
    w, sharpness = sharp_start()
    return flow(GD(1.9 / sharpness), w, 37, FINE)[0]


def test_the_error_is_of_second_order_in_the_step():
    optimizer = GD(1.9 / sharp_start()[1])
    start = fine_descent()[20]  # at the edge, and away from where it was reached
    fine = flow(optimizer, start, 17, FINE)[0]
    lengths = np.array([1, 1 / 2, 1 / 4])
    errors = []
    for h in lengths:
        settings = Settings(method="midstep", max_step=h, tol=1e-8)
        w, rows = flow(optimizer, start, 17, settings)
        errors.append(np.linalg.norm(w[-1] - fine[-1]))
        assert rows[-1]["sigma_eigenvalues"][0] > 0.1
    # The fine flow's own error, of its step squared, is in the differences. An order of one and a
    # half or of two and a half would make these ratios 1.7 and 0.6.
    scaled = np.array(errors) / (lengths**2 - 1 / 64)
    np.testing.assert_allclose(scaled / scaled[1], 1, atol=0.3)


def test_euler_converges_to_the_same_flow():
    optimizer = GD(1.9 / sharp_start()[1])
    start, fine = fine_descent()[20], fine_descent()[20:29]
    ends = [
        flow(optimizer, start, 9, Settings(method="euler", substeps=n, tol=1e-8))[0][-1]
        for n in (16, 32)
    ]
    moved = np.linalg.norm(fine[-1] - fine[0])
    extrapolated = 2 * ends[1] - ends[0]
    assert np.linalg.norm(ends[1] - fine[-1]) > 1e-4 * moved  # by itself it is not there yet
    assert np.linalg.norm(extrapolated - fine[-1]) < 1e-4 * moved


RULES = {
    "gd": lambda sharpness: GD(1.9 / sharpness),
    "heavy_ball": lambda sharpness: HeavyBall(1.9 * 1.5 / sharpness, momentum=0.5),
    "rmsprop": lambda _: RMSProp(0.02, 0.9),
}


@pytest.mark.parametrize("tol", quick([1e-2, 1e-3], 1e-3))
@pytest.mark.parametrize("rule", quick(RULES, "gd"))
def test_adaptive_steps_are_as_accurate_as_asked(rule, tol):
    w, sharpness = sharp_start()
    optimizer, steps = RULES[rule](sharpness), 60 if rule == "rmsprop" else 37
    fine = flow(optimizer, w, steps, FINE)[0]
    found, rows = flow(optimizer, w, steps, Settings(step_tol=tol))
    path = np.sum(np.linalg.norm(np.diff(fine, axis=0), axis=1))
    assert np.max(np.linalg.norm(found - fine, axis=1)) <= tol * path
    assert max(row["sigma_eigenvalues"][0] for row in rows) > 1e-4
    # what is allowed is used
    assert max(float(row["step_length"]) for row in rows) >= (1 if tol == 1e-2 else 0.5)


def test_single_precision_follows_the_same_flow():
    w, sharpness = sharp_start()
    optimizer = GD(1.9 / sharpness)
    rows = list(
        simulate(
            jax.tree.map(lambda x: x.astype(jnp.float32), TinyMLP.make()),
            optimizer,
            w.astype(np.float32),
            processes=("central",),
            steps=37,
        )
    )
    found, fine = np.stack([row.weights["central"] for row in rows]), fine_descent()
    assert found.dtype == np.float32
    path = np.sum(np.linalg.norm(np.diff(fine, axis=0), axis=1))
    assert np.max(np.linalg.norm(found - fine, axis=1)) <= 1e-3 * path


def test_rows_between_steps_cost_nothing_and_say_so():
    w, _ = sharp_start()
    _, rows = flow(RMSProp(0.02, 0.9), w, 60, Settings(step_tol=1e-2))
    between = [row for row in rows if row["interpolated"]]
    assert len(between) > 10
    for row in between:
        assert row["step_length"] > 1
        assert row["hvps"] == row["third_derivatives"] == row["gradients"] == 0
    for row in rows:
        if not row["interpolated"]:
            assert row["gradients"] > 0 and row["hvps"] > 0


def test_exact_records_take_no_steps_over_a_row(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(
        "name: exact\ndata: {type: moons}\nmodel: {type: mlp, widths: [4]}\nloss: {type: mse}\n"
        "optimizer: {type: gd, lr: 0.1}\nprocesses: [central]\nsteps: 1\nrecord: {exact: true}\n"
    )

    def longest(*overrides):
        return build_settings(load_spec(path, overrides)).longest

    assert longest() == 1
    assert longest("flow.max_step=0.5") == 0.5
    assert longest("record.exact=false") == 4


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [("gd", 1e-3), pytest.param("heavy_ball", 5e-3, marks=pytest.mark.slow)],
)
def test_eigenvalues_are_locked_at_two(rule, allowed):
    w, sharpness = sharp_start()
    _, rows = flow(RULES[rule](sharpness), w, 60, Settings())
    locked = [row["eigenvalues"][0] for row in rows[-20:]]
    assert rows[-1]["sigma_eigenvalues"][0] > 1e-3
    np.testing.assert_allclose(locked, 2, rtol=0, atol=allowed)


@pytest.mark.slow
def test_the_ablated_flow_is_that_of_euler():
    w, _ = sharp_start()
    optimizer, steps = RMSProp(0.02, 0.9), 60
    found, rows = flow(optimizer, w, steps, Settings(), "ablated")
    ends = [
        flow(optimizer, w, steps, Settings(method="euler", substeps=n, tol=1e-6), "ablated")[0]
        for n in (8, 16)
    ]
    fine = 2 * ends[1] - ends[0]
    path = np.sum(np.linalg.norm(np.diff(fine, axis=0), axis=1))
    assert np.linalg.norm(found[-1] - fine[-1]) < 1e-3 * path
    assert rows[-1]["sigma_eigenvalues"][0] > 1e-6


def test_a_new_direction_inside_a_step():
    """Two wells of one valley that sharpen fast: the second reaches the edge two steps later."""

    def loss(w):
        x, y, z = w
        return jnp.exp(z) * (x**2 + 0.8 * y**2) / 2 - 0.3 * z + 0.02 * (y * z) ** 2

    def run(settings):
        rows = simulate(
            loss, GD(0.5), jnp.zeros(3), processes=("central",), steps=16,
            settings=settings,
        )  # fmt: skip
        rows = list(rows)
        return np.stack([row.weights["central"] for row in rows])

    fine, found = run(FINE), run(Settings())
    path = np.sum(np.linalg.norm(np.diff(fine, axis=0), axis=1))
    assert np.max(np.linalg.norm(found - fine, axis=1)) < 1e-3 * path


def directions(seed, d=7, k=3):
    """A geometry of random K-orthonormal directions, K the identity."""
    rng = np.random.default_rng(seed)
    Y = np.linalg.qr(rng.normal(size=(d, k)))[0]
    third = jnp.asarray(rng.normal(size=(k * (k + 1) // 2, d)))
    return Geometry(jnp.asarray(Y), 2 + jnp.zeros(k), third, 0 * third, jnp.asarray(k))


def looked_at(before, now, R, X, h, turns=0, every=False):
    """`now` with the third derivatives that a step renews, how many, and whose turn is next."""
    number = jnp.asarray
    plan = plan_renewal(before, R, X, now.critical, number(h), number(turns), number(every))
    fresh = jnp.where(plan.due[:, None], turn(now.third, plan.axes), 0)
    third, slope = renew(before, R, plan, fresh)
    found = eqx.tree_at(lambda g: (g.third, g.slope), now, (third, slope))
    return found, int(plan.due.sum()), plan.turn


def test_a_turn_of_the_basis_is_no_change_of_geometry():
    before = directions(0)
    Q = jnp.asarray(np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0])
    third = turn(before.third, Q)
    turned = Geometry(before.Y @ Q, before.theta, third, 0 * third, before.critical)
    R = match(before, turned.Y, jnp.ones(3))
    np.testing.assert_allclose(R, Q, atol=1e-12)
    X = jnp.diag(jnp.array([1.0, 3.0, 2.0]))
    now = looked_at(before, turned, R, X, 1.0)[0]
    ahead = extrapolate(before, now, R, jnp.asarray(1.0), jnp.asarray(0.7))
    np.testing.assert_allclose(ahead.Y, turned.Y, atol=1e-12)
    np.testing.assert_allclose(ahead.third, turned.third, atol=1e-12)


def test_turned_coordinates_are_those_of_turned_matrices():
    rng = np.random.default_rng(2)
    A = rng.normal(size=(5, 3, 3))
    A = jnp.asarray(A + A.transpose(0, 2, 1))
    R = jnp.asarray(rng.normal(size=(3, 3)))
    np.testing.assert_allclose(smat(turn(svec(A).T, R).T, 3), R.T @ A @ R, atol=1e-12)


def test_a_direction_without_a_past_has_no_slope():
    before, now = directions(3), directions(4)
    Y = before.Y.at[:, :2].set(now.Y[:, :2])
    before = eqx.tree_at(lambda g: (g.Y, g.critical), before, (Y, jnp.asarray(2)))
    R = match(before, now.Y, jnp.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(R, np.diag([1, 1, 0]), atol=1e-12)
    now, number, _ = looked_at(before, now, R, jnp.zeros((3, 3)), 0.5)
    assert number == 6  # of three directions all pairs are looked at
    ahead = extrapolate(before, now, R, jnp.asarray(0.5), jnp.asarray(0.5))
    np.testing.assert_allclose(ahead.Y, now.Y, atol=1e-12)
    known, new = slice(0, 3), slice(3, 6)  # pairs of the first two directions come first
    np.testing.assert_allclose(ahead.third[known], (2 * now.third - before.third)[known])
    np.testing.assert_allclose(ahead.third[new], now.third[new], atol=1e-12)


def test_third_derivatives_of_many_directions_take_turns():
    """What grows linearly is soon known in full, although two pairs a direction are looked at.

    A round of 28 pairs, 8 at a time, is of three steps or four: slopes err by a seventh of what
    they erred by before.
    """
    k, h = 8, 0.5
    rng = np.random.default_rng(5)
    pace = jnp.asarray(rng.normal(size=(k * (k + 1) // 2, 9)))
    Q = jnp.asarray(np.linalg.qr(rng.normal(size=(k, k)))[0])
    X = Q @ jnp.diag(jnp.arange(1.0, k + 1)) @ Q.T  # principal axes are not the directions

    def exact(step):
        first = directions(6, d=9, k=k)
        return eqx.tree_at(lambda g: g.third, first, first.third + h * step * pace)

    now, turns, same = exact(0), 0, jnp.eye(k)
    for step in range(1, 49):
        now, number, turns = looked_at(now, exact(step), same, X, h, turns)
        assert number == 2 * k
    np.testing.assert_allclose(now.third, exact(48).third, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(now.slope, pace, rtol=1e-9, atol=1e-9)
    assert looked_at(now, exact(49), same, X, h, turns, every=True)[1] == k * (k + 1) // 2
    # A direction without a past is looked at with all others.
    seven = jnp.diag(jnp.arange(k) < k - 1).astype(float)
    assert looked_at(now, exact(49), seven, jnp.diag(jnp.arange(k, 0.0, -1)), h)[1] >= 2 * k


def test_lengths_are_powers_of_two_that_meet_every_step():
    def number(x):
        return jnp.asarray(x)

    for h, power in [(1.0, 1.0), (0.99, 0.5), (3.9, 2.0), (0.125, 0.125)]:
        assert step_control.power_of_two(number(h)) == power
    for phase, longest in [(0.0, 4.0), (0.5, 0.5), (0.25, 0.25), (0.75, 0.25), (0.125, 0.125)]:
        assert step_control.aligned(number(4.0), number(phase)) == longest
    tol, most = number(1e-3), number(4.0)
    assert step_control.next_length(number(1.0), number(1e-12), tol, most) == 2
    assert step_control.next_length(number(1.0), number(1e-1), tol, most) == 1 / 8
    assert step_control.next_length(number(1.0), number(jnp.nan), tol, most) == 1 / 8
