"""The report: facts computed from a run's data, figures, page."""

import base64
import dataclasses
import html
import json
import re

import h5py
import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from centralflow_eqx.errors import InputError
from centralflow_eqx.record.reader import Run, load_run
from centralflow_eqx.record.writer import Layout, Recorder
from centralflow_eqx.report import summarise, write_report
from centralflow_eqx.report._chart import (
    Chart,
    Curve,
    HeatMap,
    Key,
    Reference,
    Strand,
    chart,
    families,
)
from centralflow_eqx.report._edge import find_edge, smoothed
from centralflow_eqx.report._images import write_images
from centralflow_eqx.report._interactive import division
from centralflow_eqx.report._smooth import ranges, smooth, trend
from centralflow_eqx.report._style import FULL, PREDICTED, Look
from centralflow_eqx.report.facts import gather
from centralflow_eqx.report.figures import PLOTS, charts
from centralflow_eqx.report.narrative import describe, percent

T = 120
ONSETS = (46, 80)  # rows from which the two leading directions oscillate
ALL = ("discrete", "midpoint", "stable", "central")
FIGURES = ("loss", "eigenvalues", "variances", "distances", "grad_norm")
SPEC = "name: <made & up>\nflow:\n  smoothing: 6.0\n"


def oscillation(t):
    """Variances of the two leading directions, and displacements whose average they are."""
    since = np.maximum(0.0, t - np.array(ONSETS))
    variance = np.array([0.012, 0.004]) * (1 - np.exp(-since / 6))
    swing = 1 + 0.5 * np.sin(t / np.array([3.0, 4.0]))
    return variance, (-1) ** t * np.sqrt(variance * swing)


def leading(t, k):
    """Effective eigenvalues that rise to 2 at the onsets and stay there."""
    arrival = np.array([*ONSETS, 140, 200])[:k]
    return np.minimum(2.0, 0.7 + 1.3 * t / arrival)


def processes(t):
    """A row of each process of a run that reaches the edge of stability."""
    k = 2 if t < 60 else 4
    loss, grad, theta = 0.03 + np.exp(-t / 30), 0.05 * np.exp(-t / 30), leading(t, k)
    variance, delta = oscillation(t)
    residuals = {"eigen_residuals": np.full(k, 1e-8), "hvps": np.int32(6 + k)}
    jitter = np.where(theta >= 2, 0.05 * (-1) ** t, 0.0)
    central = {
        "train_loss": loss,
        "grad_norm_sq": grad,
        "eigenvalues": theta,
        "predicted_loss": loss + variance.sum(),
        "predicted_grad_norm_sq": grad + 20 * variance.sum(),
        "sigma_eigenvalues": variance,
        "empirical_variances": delta**2,
        "trust_cubic": np.where(theta >= 2, 0.1 + 0.3 * (t == 50), np.nan),
        "trust_quartic": np.where(theta >= 2, 0.02, np.nan),
        "untrusted": np.int32(t in (50, 51, 100)),
        "sdcp_residual": 1e-11 * (1 + (t == 77)),
        "third_derivatives": np.int32(3),
    }
    return {
        "discrete": residuals
        | {
            "train_loss": loss + np.sum(delta**2),
            "grad_norm_sq": grad + 20 * np.sum(delta**2),
            "eigenvalues": theta + jitter,
        },
        "midpoint": residuals | {"train_loss": loss, "eigenvalues": theta},
        "stable": {"train_loss": 0.9 * loss, "eigenvalues": (0.7 + 1.3 * t / 46) * np.ones(1)},
        "central": residuals | central,
    }


DISTANCES = {
    "distance/discrete-central": 0.02,
    "distance/midpoint-central": 0.004,
    "distance/midpoint-stable": 0.08,
}


def make_run(folder, names=ALL, rows=T, stable_rows=90, weights=True, status="done"):
    """Write a run directory; the stable flow stops before row `stable_rows`."""
    steps, stored = np.arange(T), np.arange(0, T, 10) if weights else np.arange(0)
    with Recorder.create(
        folder / "made_up", Layout(SPEC, steps, stored, {"device": "cpu"})
    ) as recorder:
        for t in range(rows):
            going = [n for n in names if n != "stable" or t < stable_rows]
            series = {name: values for name, values in processes(t).items() if name in going}
            pairs = {
                pair: (1 + t) * slope
                for pair, slope in DISTANCES.items()
                if set(pair.removeprefix("distance/").split("-")) <= set(going)
            }
            recorder.write(t, series, pairs, 0.25 * t)
            if weights and t % 10 == 0:
                recorder.write_weights(t // 10, {name: np.full(4, 0.1 * t) for name in going})
        if "stable" in names and stable_rows < rows:
            recorder.stop("stable", stable_rows - 1, "the effective sharpness passed its limit")
        recorder.finish(status)
    return recorder.run_dir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def facts(run_dir):
    return gather(load_run(run_dir))


# Smoothing


def test_smoothing_agrees_with_scipy_inside():
    values = np.random.default_rng(0).normal(size=200)
    expected = gaussian_filter1d(values, 5.0, truncate=4.0)
    np.testing.assert_allclose(smooth(values, 5.0)[20:-20], expected[20:-20], atol=1e-12)


def test_smoothing_keeps_constants_and_gaps():
    values = np.full((50, 2), 3.0)
    values[10:20, 0] = np.nan
    result = smooth(values, 4.0)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(values))
    np.testing.assert_allclose(result[np.isfinite(result)], 3.0, rtol=1e-13)


def test_smoothing_removes_oscillation_of_period_two():
    values = 1 + (-1.0) ** np.arange(60)
    np.testing.assert_allclose(smooth(values, 3.0)[15:-15], 1, atol=1e-4)
    np.testing.assert_array_equal(smooth(values, 0.0), values)


def test_smoothing_wider_than_the_run():
    values = np.arange(7.0)
    np.testing.assert_allclose(smooth(values, 1e6), values.mean(), rtol=1e-6)
    np.testing.assert_allclose(trend(values, 1e6), values, atol=1e-9)


def test_trends_are_not_shifted_at_ends_and_gaps():
    line = 5 - 0.1 * np.arange(60)
    values = np.stack([line, np.where(np.abs(np.arange(60) - 30) < 4, np.nan, line)], axis=1)
    np.testing.assert_allclose(trend(values, 5.0), values, atol=1e-12)
    assert np.abs(smooth(values, 5.0) - values)[0].min() > 0.3
    noisy = line + 0.1 * (-1.0) ** np.arange(60)
    np.testing.assert_allclose(trend(noisy, 5.0)[25:-25], smooth(noisy, 5.0)[25:-25], atol=1e-3)
    np.testing.assert_allclose(trend(noisy, 5.0), line, atol=0.03)


def test_trends_stay_within_their_values():
    rising = np.exp(np.arange(60) / 5.0)
    found = trend(rising, 6.0)
    assert found.min() == rising.min() and found.max() <= rising.max()
    alone = np.array([np.nan, 2.0, np.nan])
    np.testing.assert_array_equal(trend(alone, 1.0), alone)
    np.testing.assert_array_equal(trend(np.full(3, np.nan), 1.0), np.full(3, np.nan))


def test_smoothing_starts_at_the_edge(run_dir, facts):
    run = load_run(run_dir)
    loss = run.get("discrete", "train_loss")
    edge = facts.edges[0].row
    result = smoothed(run, loss)
    assert np.isnan(result[:edge]).all()
    np.testing.assert_allclose(result[edge:], trend(loss[edge:], 6.0), rtol=1e-12)


def test_ranges():
    assert ranges(np.array([1, 1, 0, 0, 1, 0, 1], bool)) == [(0, 1), (4, 4), (6, 6)]
    assert ranges(np.zeros(3, bool)) == []


# The edge of stability


def rise(before, after):
    return np.concatenate([np.linspace(0.5, 1.9, before), after])


def test_edge_is_found_at_its_row():
    largest = rise(30, np.full(40, 2.001))
    largest[45] = 1.99
    edge = find_edge("central", np.arange(0, 140, 2), largest, 0.05)
    assert (edge.row, edge.step) == (30, 60)
    assert edge.median == 2.001
    np.testing.assert_allclose(edge.drift, 0.01, rtol=1e-9)


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(np.linspace(1.95, 8, 40), id="passes through"),
        pytest.param(np.tile([2.0, 1.5, 1.5], 10), id="touches"),
        pytest.param(np.full(4, 2.0), id="too late to tell"),
        pytest.param(np.full(40, np.nan), id="stops"),
    ],
)
def test_edge_is_not_found(after):
    largest = rise(30, after)
    assert find_edge("central", np.arange(largest.size), largest, 0.05).step is None


def test_edge_of_a_swinging_eigenvalue():
    largest = rise(30, 2.2 + 0.1 * (-1.0) ** np.arange(40))
    steps = np.arange(70)
    assert find_edge("discrete", steps, largest, 0.5).step == 30
    assert find_edge("central", steps, largest, 0.05).step is None


def test_edge_after_a_start_beyond_it():
    largest = np.concatenate([[2.7], np.full(30, 2.0)])
    assert find_edge("central", np.arange(31), largest, 0.05).step == 1


# Facts


def test_edges_of_a_run(facts):
    steps = {edge.process: edge.step for edge in facts.edges}
    # The eigenvalue passes 1.95 a little before it arrives at 2.
    arrival = next(t for t in range(T) if leading(t, 1)[0] >= 1.95)
    assert steps == {"central": arrival, "midpoint": arrival, "discrete": arrival}
    assert facts.edges[0].process == "central"
    assert facts.edges[0].median == 2.0
    assert facts.edges[0].drift == 0.0


def test_oscillating_directions(facts, tmp_path):
    assert (facts.most_oscillating, facts.last_oscillating) == (2, 2)
    early = gather(load_run(make_run(tmp_path, rows=ONSETS[0])))
    assert (early.most_oscillating, early.last_oscillating) == (0, 0)
    assert "No direction oscillated" in " ".join(describe(early)["What happened"])


def test_errors_of_predictions(facts):
    loss, grad, variances = facts.errors
    quantities = [error.quantity for error in facts.errors]
    assert quantities == ["train_loss", "grad_norm_sq", "empirical_variances"]
    assert {error.flow for error in facts.errors} == {"central"}
    # The empirical variance swings slowly about the predicted one by a half.
    assert loss.median < 0.02 < loss.own
    assert grad.median < 0.15 < 0.5 < grad.own
    assert loss.worst_step >= loss.first_step == facts.edges[0].step
    # Judged where Sigma is not zero, which is from the row after the first onset on.
    assert variances.first_step == ONSETS[0] + 1
    assert variances.median < 0.2
    assert np.isnan(variances.own)


def constant_run(**central):
    """A run of a discrete loss 1 + (-1)^t / 10 and constant series of a central flow."""
    t = np.arange(60)
    series = {
        "discrete": {"train_loss": 1 + 0.1 * (-1.0) ** t},
        "central": {name: np.full(60, value) for name, value in central.items()},
    }
    return Run(t, series, {}, {}, {}, "constant", "", smoothing=5.0, wall_seconds=np.nan)


def test_error_is_relative_to_the_smoothed_discrete_run():
    (error,) = gather(constant_run(train_loss=0.8, predicted_loss=1.03)).errors
    np.testing.assert_allclose(error.median, 0.03, atol=2e-4)
    np.testing.assert_allclose(error.own, 0.2, atol=2e-4)


def test_error_leaves_out_what_smoothing_does_to_a_slope():
    run = constant_run(train_loss=1.0, predicted_loss=1.0)
    falling = np.exp(-np.arange(60) / 10)
    for series in run.series.values():
        series.update(dict.fromkeys(series, falling))
    (error,) = gather(run).errors
    assert error.worst < 1e-12


def test_closeness(facts):
    close = facts.closeness
    # Compared where the stable flow stopped, at its last row 89.
    assert (close.reference, close.step) == ("midpoint", 89)
    np.testing.assert_allclose(
        [close.distance, close.largest, close.stable], [0.004 * 90, 0.004 * 120, 0.08 * 90]
    )
    # The weights moved from 0 to 0.1 * 80 in four coordinates when they were last stored.
    np.testing.assert_allclose(close.moved, 2 * 8)


def test_closeness_to_the_discrete_run_without_midpoints(tmp_path):
    close = gather(load_run(make_run(tmp_path, ("discrete", "central"), weights=False))).closeness
    assert (close.reference, close.step) == ("discrete", T - 1)
    assert np.isnan(close.moved)
    assert np.isnan(close.stable)


def test_trust(facts):
    trust = facts.trust
    assert trust.ranges == ((50, 51), (100, 100))
    assert trust.rows == 3
    assert dataclasses.astuple(trust.cubic) == (pytest.approx(0.4), 50, "central")
    assert dataclasses.astuple(trust.sdcp_residual) == (pytest.approx(2e-11), 77, "central")
    assert trust.quartic.value == 0.02
    sentences = " ".join(describe(facts)["Where not to trust them"])
    assert "3 of 120 recorded rows should not be believed: steps 50 to 51, 100." in sentences


@pytest.mark.parametrize(("grows_at", "step"), [(25, None), (50, 50), (60, "never")])
def test_an_oscillation_that_comes_late(grows_at, step):
    t = np.arange(60)
    run = constant_run(train_loss=1.0)
    run.series["central"]["sigma_eigenvalues"] = np.where(t < 20, 0, 0.01)[:, None]
    run.series["central"]["empirical_variances"] = np.where(t < grows_at, 1e-6, 0.008)[:, None]
    facts = gather(run)
    said = "half of the predicted variance" in " ".join(describe(facts)["Where not to trust them"])
    assert said == (step is not None)
    if step is None:
        assert facts.late is None
    else:
        assert (facts.late.predicted_from, facts.late.step) == (
            20,
            None if step == "never" else step,
        )


def test_a_stop_after_the_last_row(tmp_path):
    steps = np.arange(2)
    with Recorder.create(tmp_path / "x", Layout(SPEC, steps, steps[:0])) as recorder:
        for t in range(2):
            recorder.write(t, processes(t), {}, 0.0)
        recorder.stop("central", 2, "broke")
    assert "stopped at step 1: broke" in summarise(recorder.run_dir)


def test_halts_and_costs(facts):
    (halt,) = facts.halts
    assert (halt.process, halt.step) == ("stable", 89)
    costs = {cost.process: cost for cost in facts.costs}
    assert costs["central"].hvps == 9  # 8 on one half of the rows, 10 on the other
    assert costs["central"].third_derivatives == 3
    assert facts.wall_seconds == 0.25 * (T - 1)


def test_a_run_stopped_early(tmp_path):
    facts = gather(load_run(make_run(tmp_path, rows=70, status="interrupted")))
    assert (facts.recorded, facts.rows, facts.last_step) == (70, T, 69)
    assert facts.status == "interrupted"
    assert facts.losses["central"][1] == pytest.approx(0.03 + np.exp(-69 / 30))


def test_summary_is_plain_text_that_fits(run_dir):
    summary = summarise(run_dir)
    assert summary.isascii()
    assert max(map(len, summary.splitlines())) <= 100
    assert "reached the edge of stability at step 45" in summary
    assert "the effective sharpness passed its limit" in summary


def test_every_fact_can_be_missing():
    empty = Run(np.arange(5), {}, {}, {}, {}, "empty", "", 15.0, np.nan)
    facts = gather(empty)
    assert facts.recorded == 0
    assert "Nothing was recorded" in describe(facts)["What happened"][0]
    assert dataclasses.is_dataclass(facts)


def test_errors_of_several_values_at_once_are_of_their_norm():
    run = constant_run(train_loss=1.0)
    rows = np.ones((60, 1))
    run.series["discrete"]["grad_sq_at"] = rows * [3.0, 4.0]
    run.series["central"]["predicted_grad_sq_at"] = rows * [3.0, 4.5]
    run.series["central"]["grad_sq_at"] = rows * [0.0, 0.0]
    run.series["discrete"]["outputs"] = rows * [-2.0]
    run.series["central"]["predicted_outputs"] = rows * [-1.9]
    run.series["discrete"]["state/nu_sum"] = np.full(60, 8.0)
    run.series["central"]["state/nu_sum"] = np.full(60, 10.0)
    grads, outputs, averages = gather(run).errors
    assert (grads.quantity, outputs.quantity) == ("grad_sq_at", "outputs")
    np.testing.assert_allclose([grads.median, grads.worst, grads.own], [0.1, 0.1, 1.0])
    np.testing.assert_allclose(outputs.median, 0.05)
    assert np.isnan(outputs.own)
    assert averages.quantity == "state/nu_sum"
    np.testing.assert_allclose(averages.median, 0.25)
    told = " ".join(describe(gather(run))["How good the predictions are"])
    assert "predicted time average of the network's outputs is off by 5%" in told


def test_errors_of_every_flow_the_central_flow_first():
    run = constant_run(train_loss=1.0, predicted_loss=1.1)
    run.series["ablated"] = {"train_loss": np.ones(60), "predicted_loss": np.full(60, 1.2)}
    central, ablated = gather(run).errors
    assert (central.flow, ablated.flow) == ("central", "ablated")
    np.testing.assert_allclose([central.median, ablated.median], [0.1, 0.2], atol=2e-4)
    told = " ".join(describe(gather(run))["How good the predictions are"])
    assert "The loss that the ablated flow predicts is off by 20%." in told


def test_error_of_the_variance_only_while_directions_oscillate():
    run = constant_run(train_loss=1.0)
    on = (np.arange(60) >= 20)[:, None]
    run.series["central"]["sigma_eigenvalues"] = np.where(on, [[0.02, 0.0]], 0.0)
    run.series["central"]["empirical_variances"] = np.where(on, [[0.025, 0.0]], 1e-9)
    (error,) = gather(run).errors
    assert (error.quantity, error.first_step) == ("empirical_variances", 20)
    np.testing.assert_allclose([error.median, error.worst], [0.2, 0.2])


@pytest.mark.parametrize(
    ("share", "shown"), [(0.0123, "1.2%"), (3.0, "300%"), (10.5, "more than 1000%")]
)
def test_percentages(share, shown):
    assert percent(share) == shown


def ablated_run(rows=60):
    run = constant_run(train_loss=0.5)
    run.series["central"]["raw_eigenvalues"] = np.full((60, 2), [4.0, 3.0])
    known = np.arange(60) < rows
    run.series["ablated"] = {
        "train_loss": np.where(known, 0.7, np.nan),
        "raw_eigenvalues": np.where(known, np.linspace(4, 9, 60), np.nan)[:, None],
    }
    return run


def test_the_ablated_flow_beside_the_central_flow():
    ablation = gather(ablated_run()).ablation
    assert (ablation.step, ablation.loss, ablation.sharpness) == (59, (0.7, 0.5), (9.0, 4.0))
    stopped = gather(ablated_run(rows=10)).ablation
    assert stopped.step == 9
    (told,) = describe(gather(ablated_run()))["What stabilised it"]
    assert "At step 59 its training loss is higher: 0.7, against 0.5." in told
    assert "in sharper regions: the largest eigenvalue of the Hessian is 9, against 4." in told


def test_what_the_state_does():
    run = constant_run(train_loss=1.0)
    t = np.arange(60)
    run.series["central"] |= {
        "sigma_eigenvalues": np.where(t < 30, 0.0, 0.01)[:, None],
        "stabilised_by_state": np.where(t < 30, 0.9, 0.25),
        "stationary/cosine": np.where(t % 20 == 0, 0.5 + t / 100, np.nan),
    }
    adaptation = gather(run).adaptation
    assert (adaptation.flow, adaptation.by_state, adaptation.step) == ("central", 0.25, 40)
    np.testing.assert_allclose(adaptation.cosine, 0.9)
    told = " ".join(describe(gather(run))["What stabilised it"])
    assert "the optimizer's state does 25% of the stabilisation" in told
    assert "cosine similarity 0.900" in told


def test_nothing_is_told_about_what_was_not_run(facts):
    assert (facts.ablation, facts.adaptation) == (None, None)
    assert "What stabilised it" not in describe(facts)


# Charts


def curves(drawn):
    """Curves by name."""
    return {curve.name: curve for curve in drawn.curves}


def drawn(run, name):
    (plot,) = (plot for plot in PLOTS if plot.name == name)
    return plot.chart(run)


def test_a_chart_has_only_what_its_axes_can_show():
    x = np.arange(3.0)
    lines = [Curve(x, np.array([1.0, -1, 0]), "a", "k"), Curve(x, -x, "b", "k")]
    shown = chart(lines, "y", log_y=True)
    assert [curve.name for curve in shown.curves] == ["a"]
    np.testing.assert_array_equal(shown.curves[0].y, [1, np.nan, np.nan])
    assert len(chart(lines, "y").curves) == 2
    assert chart(lines[1:], "y", log_y=True) is None
    assert chart([], "y") is None


def test_families_of_curves():
    x, unknown = np.arange(2.0), np.full(2, np.nan)
    strands = [
        Strand("a", "average", x, unknown, "red", FULL),
        Strand("a", "raw", x, x, "red", FULL),
        Strand("a", "predicted", x, x, "red", PREDICTED),
        Strand("b", "raw", x, x, "blue", FULL),
    ]
    shown = families(strands, "y", log_x=True)
    assert [(c.name, c.legend_name, c.in_legend) for c in shown.curves] == [
        ("a, raw", "a", True),
        ("a, predicted", "a", False),
        ("b, raw", "b", True),
    ]
    assert [(key.name, key.look) for key in shown.keys] == [("raw", FULL), ("predicted", PREDICTED)]
    assert shown.log_x
    assert families(strands[:1], "y") is None


def test_loss_chart(run_dir, facts):
    run = load_run(run_dir)
    shown = curves(drawn(run, "loss"))
    assert list(shown) == [
        "discrete",
        "discrete, smoothed",
        "stable",
        "central, its own",
        "central, predicted time average",
    ]
    discrete, edge = run.series["discrete"]["train_loss"], facts.edges[0].row
    np.testing.assert_array_equal(shown["discrete"].y, discrete)
    average = shown["discrete, smoothed"].y
    assert np.isnan(average[:edge]).all()
    np.testing.assert_allclose(average[edge:], trend(discrete[edge:], 6.0))
    predicted = shown["central, predicted time average"]
    np.testing.assert_array_equal(predicted.y, run.series["central"]["predicted_loss"])
    np.testing.assert_array_equal(predicted.x, np.arange(T))
    assert predicted.look.dash


def test_what_never_oscillated_is_not_smoothed(tmp_path):
    run = load_run(make_run(tmp_path, rows=40))
    assert "discrete, smoothed" not in curves(drawn(run, "loss"))
    # Unless it is known to be noisy.
    run.series["discrete_minibatch"] = run.series.pop("discrete")
    assert "discrete minibatch, smoothed" in curves(drawn(run, "loss"))


def test_eigenvalue_chart(run_dir):
    run = load_run(run_dir)
    shown = drawn(run, "eigenvalues")
    assert shown.references == (Reference(2, "critical value 2"),)
    largest = max(np.nanmax(run.series[p]["eigenvalues"]) for p in ("discrete", "central"))
    np.testing.assert_allclose(shown.y_range, [0.9 * 0.7, 1.05 * max(largest, 2.2)])
    pale = [curve for curve in shown.curves if not curve.in_legend]
    assert [curve.group for curve in pale] == ["midpoint"] * 3 + ["central"] * 3
    np.testing.assert_array_equal(pale[3].y, run.series["central"]["eigenvalues"][:, 1])


def test_variance_chart(run_dir):
    run = load_run(run_dir)
    shown = curves(drawn(run, "variances"))
    assert len(shown) == 4
    sigma = run.series["central"]["sigma_eigenvalues"][:, 1]
    along = np.where(sigma > 0.012e-6, sigma, np.nan)
    np.testing.assert_array_equal(shown["direction 2, predicted"].y, along)
    measured = shown["direction 2, measured"].y
    np.testing.assert_array_equal(np.isnan(measured), np.isnan(along))


def test_distance_chart(run_dir):
    shown = curves(drawn(load_run(run_dir), "distances"))
    assert list(shown)[:2] == ["discrete to central", "midpoint to central"]
    np.testing.assert_allclose(shown["midpoint to stable"].y[:90], 0.08 * np.arange(1, 91))
    np.testing.assert_allclose(shown["central to its start"].x, np.arange(10, T, 10))
    np.testing.assert_allclose(shown["central to its start"].y, 2 * 0.1 * np.arange(10, T, 10))


def test_what_all_charts_share(run_dir):
    for shown in charts(load_run(run_dir)).values():
        assert shown.shaded == ((49.5, 51.5), (99.5, 100.5))
        np.testing.assert_allclose(shown.x_range, (-1.69, 120.69))


def test_coordinate_charts():
    run = constant_run(train_loss=1.0)
    run = dataclasses.replace(run, coordinates=(7, 3, 1, 9, 12))
    values = np.outer(np.linspace(1, 2, 60), np.arange(1.0, 6.0))
    sparse = np.where(np.arange(60)[:, None] % 10 == 0, values, np.nan)
    run.series["discrete"] |= {"grad_sq_at": values, "state/nu_at": 2 * values}
    run.series["central"] |= {
        "predicted_grad_sq_at": 3 * values,
        "state/nu_at": 4 * values,
        "stationary/nu_at": 5 * sparse,
    }
    grads, averages = curves(drawn(run, "coordinates")), curves(drawn(run, "nu"))
    assert len(grads) == len(averages) == 4 * 3
    np.testing.assert_array_equal(grads["weight 3, discrete"].y, values[:, 1])
    average = grads["weight 3, discrete, smoothed"].y
    np.testing.assert_allclose(average, trend(values[:, 1], 5.0))
    np.testing.assert_array_equal(grads["weight 9, predicted"].y, 3 * values[:, 3])
    np.testing.assert_array_equal(averages["weight 7, discrete"].y, 2 * values[:, 0])
    np.testing.assert_array_equal(averages["weight 1, central"].y, 4 * values[:, 2])
    settled = averages["weight 7, stationary value"]
    np.testing.assert_array_equal(settled.x, np.arange(0, 60, 10))
    np.testing.assert_array_equal(settled.y, 5 * values[::10, 0])


def test_output_chart():
    run = constant_run(train_loss=1.0)
    values = np.outer(np.linspace(-1, 1, 60), np.arange(1.0, 9.0))
    run.series["discrete"]["outputs"] = values
    run.series["central"] |= {"outputs": values + 1, "predicted_outputs": values + 2}
    shown = curves(drawn(run, "outputs"))
    assert len(shown) == 6 * 4
    np.testing.assert_array_equal(shown["output 6, discrete"].y, values[:, 5])
    np.testing.assert_array_equal(shown["output 6, central, its own"].y, values[:, 5] + 1)
    np.testing.assert_array_equal(shown["output 1, predicted"].y, values[:, 0] + 2)


def test_preconditioner_charts_draw_through_rows_that_were_not_computed():
    run = constant_run(train_loss=1.0)
    t = np.arange(60)
    known = t % 15 == 0
    run.series["discrete"]["stationary/cosine"] = np.where(known, 1 - t / 100, np.nan)
    kinds = ("", "_stationary", "_stability", "_scalar")
    for factor, kind in enumerate(kinds, start=1):
        run.series["central"][f"stationary/efficacy{kind}"] = np.where(known, factor * 1.0, np.nan)
    (cosine,) = drawn(run, "stationary_cosine").curves
    np.testing.assert_array_equal(cosine.x, [0, 15, 30, 45])
    np.testing.assert_allclose(cosine.y, [1, 0.85, 0.7, 0.55])
    efficacies = {curve.name: set(curve.y) for curve in drawn(run, "efficacy").curves}
    assert efficacies == {
        "central, actual": {1.0},
        "stationary": {2.0},
        "only stability": {3.0},
        "best scalar": {4.0},
    }
    run.series["midpoint"] = run.series.pop("central")
    assert drawn(run, "efficacy").curves[0].name == "midpoint, actual"


def test_step_size_and_stabilisation_charts():
    run = constant_run(train_loss=1.0)
    run.series["discrete"]["effective_step"] = np.full(60, 0.3)
    run.series["central"] |= {
        "effective_step": np.full(60, 0.25),
        "raw_eigenvalues": np.full((60, 2), [8.0, -1.0]),
        "stabilised_by_state": np.linspace(0, 1, 60),
    }
    shown = {curve.name: curve.y[0] for curve in drawn(run, "effective_step").curves}
    limit = {"2 / sharpness of the central flow": 0.25}
    assert shown == {"discrete": 0.3, "central": 0.25} | limit
    stabilisation = drawn(run, "stabilisation")
    assert stabilisation.y_range == (0, 1)
    np.testing.assert_array_equal(stabilisation.curves[0].y, np.linspace(0, 1, 60))


def test_charts_without_their_series(run_dir):
    assert set(charts(load_run(run_dir))) == set(FIGURES)


def test_coordinates_are_read_and_are_no_series(tmp_path):
    run_dir = make_run(tmp_path)
    with h5py.File(run_dir / "data.h5", "r+") as file:
        file["coordinate"] = [5, 2]
        file["coordinate"].make_scale("coordinate")
        file["central/output"] = [0, 1, 2]
        file["central/output"].make_scale("output")
        file["central/state/nu_at"] = np.ones((T, 2))
    run = load_run(run_dir)
    assert run.coordinates == (5, 2)
    assert run.series["central"]["state/nu_at"].shape == (T, 2)
    assert not {"output", "direction", "weights", "weights_step"} & set(run.series["central"])


# Drawing


AWKWARD = Chart(
    curves=(
        Curve(np.arange(4), np.array([1.0, np.nan, 4, 9]), r"_<b>$\frac$ & a", "#0072B2"),
        Curve(np.arange(4), np.arange(4.0), "pale", "#888888", in_legend=False, group="g"),
    ),
    y_label="y",
    log_y=True,
    y_range=(0.1, None),
    references=(Reference(2, "two"),),
    keys=(Key("dashes", "#222222", Look(width=3.0, dash=(4, 2))),),
    shaded=((1, 2), (3, 4)),
)


def in_browser(drawing, name="x"):
    """What a page hands to plotly: traces and layout, with arrays as lists."""
    text = division(drawing, name)
    start = text.index("[", text.index("Plotly.newPlot("))
    decoder = json.JSONDecoder()
    traces, end = decoder.raw_decode(text, start)
    layout, _ = decoder.raw_decode(text, text.index("{", end))
    return traces, layout


def numbers(array):
    if isinstance(array, dict):
        return np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"])
    return np.array(array, float)


def test_the_page_draws_the_numbers_of_the_chart(run_dir):
    for name, shown in charts(load_run(run_dir)).items():
        traces, _ = in_browser(shown, name)
        for curve, trace in zip(shown.curves, traces, strict=True):
            np.testing.assert_array_equal(numbers(trace["x"]), curve.x)
            np.testing.assert_array_equal(numbers(trace["y"]), curve.y)
            assert trace["name"] == (curve.group or curve.name)
            assert trace["hovertemplate"].startswith(f"{curve.name}<br>optimizer step")


def test_an_interactive_chart():
    traces, layout = in_browser(AWKWARD)
    line, pale, key = traces
    assert html.unescape(line["name"]) == AWKWARD.curves[0].name
    assert "<" not in line["name"]
    assert (pale["showlegend"], pale["legendgroup"]) == (False, "g")
    assert key["line"]["dash"] == "16.0px,8.0px"  # in units of a width of 4 pixels
    assert layout["yaxis"]["type"] == "log"
    assert layout["yaxis"]["range"] == [-1.0, None]
    reference, *shaded = layout["shapes"]
    assert (reference["y0"], reference["y1"], reference["name"]) == (2, 2, "two")
    assert [(s["x0"], s["x1"], s["showlegend"]) for s in shaded] == [(1, 2, True), (3, 4, False)]


def test_nothing_in_a_page_leads_out_of_it(run_dir):
    text = division(AWKWARD, "x")
    assert '"showSendToCloud": false' in text
    assert "http" not in text


def test_image_files_of_awkward_names(tmp_path):
    for name in "ab":
        write_images(AWKWARD, tmp_path, name)
    for suffix in ("png", "pdf"):
        first = (tmp_path / f"a.{suffix}").read_bytes()
        assert first == (tmp_path / f"b.{suffix}").read_bytes()
        assert first.startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[suffix])


def test_legend_of_an_image(tmp_path, monkeypatch):
    legends = []
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "legend",
        lambda self, handles, labels, **_: legends.append((handles, labels)),
    )
    write_images(AWKWARD, tmp_path, "a")
    ((handles, labels),) = legends
    assert labels == [r"_<b>\$\frac\$ & a", "dashes", "two", "not to be trusted"]
    assert len(handles) == len(labels)


def test_a_long_legend_keeps_the_first_and_the_last(tmp_path, monkeypatch):
    legends = []
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "legend",
        lambda self, handles, labels, **_: legends.append(labels),
    )
    x = np.arange(2.0)
    strands = [Strand(f"run {i}", "flow", x, x + i, "#000000", FULL) for i in range(60)]
    write_images(families(strands, "y"), tmp_path, "a")
    (labels,) = legends
    assert len(labels) == 16 + 1
    assert (labels[0], labels[-2], labels[-1]) == ("run 0", "run 59", "flow")


def test_a_long_legend_makes_the_image_higher(tmp_path):
    x = np.arange(2.0)
    for number in (3, 40):
        curves = tuple(Curve(x, x + i, f"curve {i}", "#000000") for i in range(number))
        write_images(Chart(curves, "y"), tmp_path, str(number))
    few, many = (matplotlib.image.imread(tmp_path / f"{n}.png").shape for n in (3, 40))
    assert few == (690, 1200, 4)
    # Ten lines instead of at most four.
    assert many == (690 + int(6 * 0.19 * 150), 1200, 4)


def test_a_long_interactive_legend_begins_with_the_keys():
    x = np.arange(2.0)
    strands = [Strand(f"run {i}", "flow", x, x + i, "#000000", FULL) for i in range(13)]
    for number, rank, orientation in ((3, 1001, "v"), (13, 999, "h")):
        traces, layout = in_browser(families(strands[:number], "y"))
        assert traces[-1]["legendrank"] == rank
        assert layout["modebar"]["orientation"] == orientation


def test_a_heat_map(tmp_path):
    drawing = HeatMap(np.array([[0, 1.2345], [1.2345, 0]]), ("a", "a"), "distance")
    (trace,), layout = in_browser(drawing)
    assert trace["text"] == [["0", "1.23"], ["1.23", "0"]]
    np.testing.assert_array_equal(numbers(trace["z"]).reshape(2, 2), drawing.values)
    assert layout["yaxis"]["ticktext"] == ["a", "a"]
    write_images(drawing, tmp_path, "heat")
    assert ink(tmp_path / "heat.png")[1] > 20


# Figures and page


def ink(path):
    """Share of the pixels that are not white, and the number of colours."""
    pixels = matplotlib.image.imread(path)[..., :3].reshape(-1, 3)[::11]
    return np.mean(pixels.min(axis=1) < 0.99), len(np.unique(pixels.round(2), axis=0))


def test_figures_and_a_page_that_needs_nothing_else(tmp_path):
    run_dir = make_run(tmp_path)
    page = write_report(run_dir)
    assert page == run_dir / "report.html"
    for name in FIGURES:
        share, colours = ink(run_dir / "figures" / f"{name}.png")
        assert 0.01 < share < 0.5, name
        assert colours > 20, name
        assert (run_dir / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    text = page.read_text()
    scripts = re.findall(r"<script[^>]*>", text)
    assert len(scripts) == 1 + len(FIGURES)
    assert not [tag for tag in scripts if "src" in tag]
    assert text.count("plotly.js v") == 1
    outside = re.sub(r"(?s)<script[^>]*>.*?</script>", "", text)
    assert not re.search(r"""(?:src|href)\s*=|url\(|@import|<link|https?:""", outside)
    assert re.findall(r'id="(chart-\w+)"', outside) == [f"chart-{name}" for name in FIGURES]
    assert "&lt;made &amp; up&gt;" in outside
    assert "<made" not in text
    assert "steps 50 to 51, 100" in outside
    assert "figures/loss.png" in outside


def test_the_page_has_a_table_of_errors(run_dir, facts):
    text = write_report(run_dir).read_text()
    loss = facts.errors[0]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text[text.index("Relative errors") :])
    assert cells[:6] == [
        "central",
        "time average of the loss",
        percent(loss.median),
        percent(loss.worst),
        str(loss.worst_step),
        percent(loss.own),
    ]
    assert cells[17] == ""  # a variance has no value without the oscillation


@pytest.mark.parametrize(
    ("names", "left_out"),
    [
        (("discrete",), {"variances", "distances"}),
        (("midpoint",), {"variances", "distances", "grad_norm"}),
        (("stable",), {"variances", "distances", "grad_norm"}),
        (("central",), {"distances"}),
        (("discrete", "central"), set()),
    ],
)
def test_any_set_of_processes(tmp_path, names, left_out):
    run_dir = make_run(tmp_path, names)
    write_report(run_dir)
    expected = {f"{name}.{kind}" for name in set(FIGURES) - left_out for kind in ("png", "pdf")}
    assert {path.name for path in (run_dir / "figures").iterdir()} == expected


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_hardly_any_rows(tmp_path, rows):
    run_dir = make_run(tmp_path, rows=rows)
    assert "made & up" in summarise(run_dir)
    assert write_report(run_dir).exists()


def test_a_figure_without_data_does_not_stay(tmp_path):
    run_dir = make_run(tmp_path, ("stable",))
    (run_dir / "figures").mkdir()
    old = [run_dir / "figures" / f"distances.{kind}" for kind in ("png", "pdf")]
    for path in old:
        path.write_bytes(b"old")
    write_report(run_dir)
    assert not any(path.exists() for path in old)


def test_drawing_leaves_matplotlib_as_it_was(run_dir):
    before = dict(matplotlib.rcParams)
    write_report(run_dir)
    assert dict(matplotlib.rcParams) == before


def test_equal_data_give_equal_reports(run_dir):
    def contents():
        files = [write_report(run_dir), *sorted((run_dir / "figures").iterdir())]
        return {path.name: path.read_bytes() for path in files}

    assert contents() == contents()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is this a run directory"):
        summarise(tmp_path)
    (tmp_path / "spec.yaml").write_text("name: x\n")
    with pytest.raises(InputError, match="data.h5: cannot be read"):
        write_report(tmp_path)
