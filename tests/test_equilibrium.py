"""Rows are flagged where the optimizer does not oscillate as the flow, in equilibrium, says."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import centralflow_eqx as cf
from centralflow_eqx.experiment.equilibrium import (
    DOUBTFUL,
    DOUBTFUL_EDGE,
    WINDOW,
    EquilibriumWatch,
)

PUBLISHED = Path(__file__).parent / "data" / "chebyshev_tanh.npz"


def watched(measured, predicted):
    """A flow's row before it is looked at."""
    return {
        "empirical_variances": np.array(measured),
        "sigma_eigenvalues": np.array(predicted),
        "untrusted": np.asarray(0),
    }


@pytest.mark.parametrize(
    ("measured", "predicted", "off"),
    [
        ([0.0, 0.0], [2.0, 1.0], 1.0),
        ([1.0, 2.0], [2.0, 1.0], 0.0),  # sums count: directions exchange variance
        ([1.0, 5.0], [4.0, 0.0], 0.6),  # where nothing is said to swing nothing is compared
        ([4.0, np.nan], [1.0, np.nan], 0.6),
        ([4.0], [0.0], np.nan),
    ],
)
def test_the_relative_difference_of_sums(measured, predicted, off):
    row = watched(measured, predicted)
    EquilibriumWatch(1)({"central": row, "discrete": {"train_loss": 1.0}})
    np.testing.assert_allclose(row["trust_equilibrium"], off, atol=1e-15)


def test_it_is_averaged_over_a_window():
    """An oscillation that sets in is believed once most of the window has seen it."""
    watch, found = EquilibriumWatch(3), []
    for step in range(0, 90, 3):
        row = watched([float(step >= 30)], [1.0])
        watch({"central": row})
        found.append((float(row["trust_equilibrium"]), int(row["untrusted"])))
    off = np.array([value for value, _ in found])
    assert np.all(off[:10] == 1) and off[-1] < 0.05 and np.all(np.diff(off[10:]) < 0)
    assert [flag for _, flag in found] == list((off > DOUBTFUL).astype(int))
    seen = np.arange(0, 60, 3) + 3  # steps since it set in
    share = (1 - np.exp(-seen / WINDOW)) / (1 - np.exp(-(30 + seen) / WINDOW))
    np.testing.assert_allclose(off[10:], (1 - share) / (1 + share), rtol=1e-12)


def rows_of(loss, lr, start, steps, **options):
    options = {"processes": ["discrete", "central"]} | options
    return list(cf.simulate(loss, cf.optimizers.GD(lr), start, steps=steps, **options))


def series(rows, name):
    return np.array([float(row.series["central"][name]) for row in rows])


def test_a_cycle_close_to_its_onset_is_believed():
    """GD on (x^2 - 1)^2/4: the predicted variance is 8/9 of the true one around the true centre."""
    rows = rows_of(lambda w: (w[0] ** 2 - 1) ** 2 / 4, 1.1, np.array([1.02]), 300)
    true, predicted = (1 - 1 / 1.1) / 4, 2 * (1 - 1 / 1.1) / 9
    apart = np.sqrt((1 + 3 / 1.1) / 4) - np.sqrt((1 + 2 / 1.1) / 3)
    measured = true + apart**2
    off = (measured - predicted) / (measured + predicted)
    # an average over a window that forgets weighs the two points of the cycle differently
    uneven = 4 * np.sqrt(true) * abs(apart) * np.tanh(1 / (2 * WINDOW)) / (measured + predicted)
    assert series(rows, "trust_equilibrium")[-1] == pytest.approx(off, abs=uneven)
    assert series(rows, "trust_equilibrium")[-200:].max() < DOUBTFUL


@pytest.mark.parametrize("lr", [1.02, 1.1, 1.2])
def test_all_indicators_together_on_a_cycle(lr):
    """GD on (x^2 - 1)^2/4, up to where the cycle doubles its period (lr = sqrt(5) - 1 = 1.236).

    The variance is off by 1/9 for any lr. What grows is the cubic share, and with it the doubt.
    """
    w = np.sqrt((1 + 2 / lr) / 3)
    rows = rows_of(lambda w: (w[0] ** 2 - 1) ** 2 / 4, lr, np.array([w + 1e-3]), 200)
    variance = 2 * (1 - 1 / lr) / 9
    expected = {
        "trust_cubic": np.sqrt(variance) * 6 * w * lr / 2,  # D3 = 6 w, of an eigenvalue 2 / lr
        "trust_quartic": variance * 6 * lr / (12 * 2),  # D4 = 6
        "trust_response": 0.0,
    }
    for name, value in expected.items():
        found = np.max(rows[-1].series["central"][name])
        assert found == pytest.approx(value, rel=1e-2, abs=1e-12), name
    assert series(rows, "trust_equilibrium")[-1] < DOUBTFUL
    assert bool(series(rows, "untrusted")[-1]) == (expected["trust_cubic"] > 0.3)


def test_a_start_without_noise_is_not_believed_once_it_matters():
    """The example of the README: the optimizer passes the threshold long before it swings."""

    def loss(w):
        return (1 + w[1] ** 2) * w[0] ** 2 / 2 + (w[1] - 3) ** 2 / 20

    names = ["discrete", "midpoint", "central"]
    rows = rows_of(loss, 0.5, np.array([0.1, 0.5]), 40, processes=names)
    apart = np.array([row.comparisons["distance/midpoint-central"] for row in rows])
    assert apart[-1] > 0.8
    assert series(rows, "untrusted")[apart > 0.03].all()
    assert not series(rows, "untrusted")[:13].any()


def test_an_oscillation_that_has_not_set_in_is_seen():
    """The published run passes the threshold at step 381, and first swings after step 620."""
    with np.load(PUBLISHED) as file:
        w0 = file["w0"]
    task = cf.make_task(
        cf.data.Chebyshev(6, 20),
        cf.models.MLP((30, 20), "tanh"),
        cf.losses.MSE(),
        dtype="float64",
        initial_weights=w0,
    )
    rows = rows_of(task, 0.2, jnp.asarray(w0), 60, warm_start=400)
    acts = np.array([row.series["central"]["sigma_eigenvalues"][0] > 0 for row in rows])
    assert acts.sum() > 30
    assert series(rows, "untrusted")[acts].all()


def compared(watch, optimizer, flow):
    """What is said of largest eigenvalues, where no variance is predicted."""
    found = watched([0.0], [0.0]) | {"eigenvalues": np.array([flow, 0.5])}
    watch({"discrete": {"eigenvalues": np.array([optimizer, 0.5])}, "central": found})
    return float(found["trust_edge"]), int(found["untrusted"])


def test_eigenvalues_are_compared_even_where_nothing_oscillates():
    watch, k = EquilibriumWatch(3), np.exp(-3 / WINDOW)
    found = [compared(watch, *pair) for pair in [(2.4, 2.0), (1.2, 2.0), (np.nan, 2.0), (1.5, 1.5)]]
    late = abs(0.2 * k - 0.4)
    means = [0.2, late / (1 + k), np.nan, k * late / (1 + k + k**2)]
    np.testing.assert_allclose([off for off, _ in found], means, rtol=1e-12)
    assert not any(flag for _, flag in found)
    *_, (off, flag) = (compared(watch, 1.2, 2.0) for _ in range(10))
    assert DOUBTFUL_EDGE < off < 0.4 and flag == 1


def test_a_catapult_that_leaves_the_flow_at_the_edge_is_doubted():
    """GD on (u v)^2/2 has the eigenvalue lr (u^2 + v^2) where it rests: that of the flow is 2, the
    optimizer's falls far below in a burst (Lewkowycz et al., arXiv 2003.02218)."""
    start = np.array([1.6, 0.1])
    lr = 2.5 / (start @ start)
    rows = rows_of(lambda w: (w[0] * w[1]) ** 2 / 2, lr, start, 60)
    optimizer, flow = (lr * np.sum(rows[-1].weights[of] ** 2) for of in ("discrete", "central"))
    assert optimizer < 1.3 and flow == pytest.approx(2, abs=1e-3)
    # 60 steps are 4 windows, the first of them with the burst
    off = series(rows, "trust_edge")
    assert off[-1] == pytest.approx((flow - optimizer) / 2, rel=np.exp(-2))
    assert off[-30:].min() > DOUBTFUL_EDGE and series(rows, "untrusted")[-30:].all()
