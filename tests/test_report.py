"""The report: facts computed from a run's data, figures, page."""

import dataclasses
import re

import matplotlib.image
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from centralflow_eqx.errors import InputError
from centralflow_eqx.recorder import Recorder
from centralflow_eqx.report import summarise, write_report
from centralflow_eqx.report._data import Run, load_run, ranges, smooth
from centralflow_eqx.report._edge import find_edge, smoothed
from centralflow_eqx.report.narrative import describe, gather

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
    with Recorder.create(folder, "made_up", SPEC, steps, stored, {"device": "cpu"}) as recorder:
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


def test_smoothing_starts_at_the_edge(run_dir, facts):
    run = load_run(run_dir)
    loss = run.get("discrete", "train_loss")
    edge = facts.edges[0].row
    result = smoothed(run, loss)
    assert np.isnan(result[:edge]).all()
    np.testing.assert_allclose(result[edge:], smooth(loss[edge:], 6.0), rtol=1e-12)


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
    loss, grad = facts.errors
    assert (loss.quantity, grad.quantity) == ("train_loss", "grad_norm_sq")
    # The empirical variance swings slowly about the predicted one by a half.
    assert loss.median < 0.02 < loss.own
    assert grad.median < 0.15 < 0.5 < grad.own
    assert loss.worst_step >= loss.first_step == facts.edges[0].step


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
    with Recorder.create(tmp_path, "x", SPEC, steps, steps[:0], {}) as recorder:
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
    html = page.read_text()
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']{0,30})""", html)
    assert len(sources) == len(FIGURES)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"url\(|@import|<script|<link", html)
    assert "&lt;made &amp; up&gt;" in html
    assert "<made" not in html
    assert "steps 50 to 51, 100" in html


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
    assert {path.stem for path in (run_dir / "figures").iterdir()} == set(FIGURES) - left_out


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_hardly_any_rows(tmp_path, rows):
    run_dir = make_run(tmp_path, rows=rows)
    assert "made & up" in summarise(run_dir)
    assert write_report(run_dir).exists()


def test_a_figure_without_data_does_not_stay(tmp_path):
    run_dir = make_run(tmp_path, ("stable",))
    (run_dir / "figures").mkdir()
    (run_dir / "figures" / "distances.png").write_bytes(b"old")
    write_report(run_dir)
    assert not (run_dir / "figures" / "distances.png").exists()


def test_drawing_leaves_matplotlib_as_it_was(run_dir):
    before = dict(matplotlib.rcParams)
    write_report(run_dir)
    assert dict(matplotlib.rcParams) == before


def test_equal_data_give_equal_reports(run_dir):
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is this a run directory"):
        summarise(tmp_path)
    (tmp_path / "spec.yaml").write_text("name: x\n")
    with pytest.raises(InputError, match="data.h5: cannot be read"):
        write_report(tmp_path)
