"""Comparisons of runs: labels, outcomes, overlays, distances between weights, page."""

import csv
import re

import h5py
import numpy as np
import pytest
import yaml

from centralflow_eqx.errors import InputError
from centralflow_eqx.record.reader import load_run
from centralflow_eqx.record.writer import Layout, Recorder
from centralflow_eqx.report import summarise_comparison, write_comparison
from centralflow_eqx.report._labels import LONGEST, labels, shortened
from centralflow_eqx.report._outcomes import outcomes
from centralflow_eqx.report._overlay import OVERLAYS, members, relative_distance
from centralflow_eqx.report._smooth import trend
from centralflow_eqx.report._style import PALETTE, distinct
from centralflow_eqx.report._weights import distances_apart

EDGE = 10  # row from which made-up runs are at the edge of stability


def spec(name="run", **changes):
    """A resolved spec with dotted keys, where `__` stands for the dot."""
    content = {"name": name, "seed": 0, "optimizer": {"type": "gd", "lr": 0.1}}
    content |= {"flow": {"smoothing": 3.0}, "record": {"every": 1}, "output": {"dir": name}}
    for key, value in changes.items():
        section, _, leaf = key.rpartition("__")
        (content[section] if section else content)[leaf] = value
    return yaml.safe_dump(content)


def row(t, scale):
    """A row of each process; the loss falls as scale / (1 + t)."""
    loss, theta = scale / (1 + t), 2.0 if t >= EDGE else 1.0
    swing = 0.1 * scale if t >= EDGE else 0.0
    common = {"raw_eigenvalues": np.array([10 / scale, 1.0]), "hvps": np.int32(4 * scale)}
    return {
        "discrete": common
        | {
            "train_loss": loss + swing * (1 + (-1) ** t),
            "eigenvalues": np.array([theta, 0.5]),
            "test_accuracy": 0.5 + t / 100,
            "effective_step": 0.3,
        },
        "midpoint": {"train_loss": loss, "eigenvalues": np.array([theta, 0.5])},
        "central": common
        | {
            "train_loss": loss,
            "predicted_loss": loss + swing,
            "eigenvalues": np.array([theta, 0.5]),
            "sigma_eigenvalues": np.array([swing, 0.0]),
            "untrusted": np.int32(t in (12, 13)),
            "distance_moved": float(t),
        },
    }


def make_run(
    folder, name, rows=30, written=None, scale=1.0, names=None, size=5, stored=True, **changes
):
    """A run directory whose weights end at scale * (1, ..., 1)."""
    written = rows if written is None else written
    steps = np.arange(rows)
    weights_steps = steps[::10] if stored else steps[:0]
    text = spec(name, optimizer__lr=scale, **changes)
    with Recorder.create(folder / name, Layout(text, steps, weights_steps)) as recorder:
        for t in range(written):
            series = {p: s for p, s in row(t, scale).items() if names is None or p in names}
            pairs = {"distance/midpoint-central": 0.05 * scale * t}
            recorder.write(t, series, pairs if len(series) == 3 else {}, 2.0 * t)
            if stored and t % 10 == 0:
                w = np.full(size, scale * (1.0 if t >= 20 else 0.5))
                recorder.write_weights(t // 10, dict.fromkeys(series, w))
        recorder.finish("done" if written == rows else "interrupted")
    return recorder.run_dir


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder, f"r{scale}", scale=scale) for scale in (1.0, 2.0, 4.0)]


def together(run_dirs, names=None):
    runs = [load_run(run_dir) for run_dir in run_dirs]
    return members(runs, names or [f"run {i}" for i in range(len(runs))])


def cells(run_dirs):
    """The table with columns called as in the CSV."""
    table = outcomes(together(run_dirs))
    return [{"/".join(filter(None, c)): v for c, v in row.items()} for row in table.rows]


def overlaid(run_dirs, name):
    (overlay,) = (overlay for overlay in OVERLAYS if overlay.name == name)
    return overlay.chart(together(run_dirs))


# Labels


def test_a_label_is_what_differs():
    texts = [spec("a", optimizer__lr=0.1), spec("b", optimizer__lr=0.25)]
    assert labels(texts, "ab") == ["optimizer.lr=0.1", "optimizer.lr=0.25"]


def test_keys_that_only_some_have_are_told_only_if_they_must_be():
    gd, adam = spec(), spec(optimizer__type="adam", optimizer__beta1=0.9)
    assert labels([gd, adam], "ab") == ["optimizer.type=gd", "optimizer.type=adam"]
    other = spec(optimizer__type="adam", optimizer__beta1=0.8)
    assert labels([gd, adam, other], "abc") == [
        "optimizer.type=gd",
        "optimizer.type=adam, optimizer.beta1=0.9",
        "optimizer.type=adam, optimizer.beta1=0.8",
    ]


def test_settings_that_change_no_result_come_last():
    texts = [spec(seed=s, record__every=e) for s, e in ((0, 1), (1, 2))]
    assert labels(texts, "ab") == ["seed=0", "seed=1"]
    texts = [spec(record__every=e) for e in (1, 2)]
    assert labels(texts, "ab") == ["record.every=1", "record.every=2"]


def test_values_of_labels():
    values = ("a$b", "two\nlines", [1, 2], None, {"schedule": "cosine"}, True)
    texts = [spec(x=value) for value in values]
    assert labels(texts, "abcdef") == [
        "x=a$b",
        r'x="two\nlines"',
        "x=[1, 2]",
        "x=null",
        "x.schedule=cosine",
        "x=true",
    ]


def test_labels_of_equal_specs():
    assert labels([spec(), spec()], ["first", "second"]) == ["first", "second"]
    assert labels([spec(), spec()], ["same", "same"]) == ["same #1", "same #2"]
    texts = [spec(seed=0), spec(seed=0), spec(seed=1)]
    assert labels(texts, "abc") == ["seed=0 (a)", "seed=0 (b)", "seed=1"]
    assert labels([spec()], ["alone"]) == ["alone"]
    assert labels([], []) == []


def test_names_stand_for_keys_that_a_figure_has_no_room_for():
    texts = [
        spec(seed=i, steps=i, optimizer__type=rule, optimizer__lr=i, warm_start=i)
        for i, rule in enumerate(("gd", "adam"))
    ]
    assert labels(texts, ["plain", "adaptive"]) == ["plain", "adaptive"]
    told = labels(texts, ["same", "same"])
    assert "optimizer.type=adam" in told[1] and "seed=1" in told[1]


def test_labels_too_long_for_a_figure_stay_different(run_dirs):
    assert shortened("a" * 30 + "b" * 30, 20) == "a" * 10 + "..." + "b" * 7
    assert shortened("x" * LONGEST) == "x" * LONGEST
    middle = [f"{'a' * 40}{i}{'z' * 40}" for i in range(3)]
    names = [member.short for member in together(run_dirs, middle)]
    assert [name[-3:] for name in names] == [" #1", " #2", " #3"]
    assert len(set(names)) == 3


# Outcomes


def test_outcomes(run_dirs):
    first, _, last = cells(run_dirs)
    assert (last["run"], last["name"], last["status"], last["last step"]) == (
        "run 2",
        "r4.0",
        "done",
        29,
    )
    assert last["edge at step"] == EDGE
    assert (last["untrusted rows"], last["wall seconds"]) == (2, 58.0)
    # 0.05 * 4 * t away after moving t.
    np.testing.assert_allclose(last["relative distance"], 0.2)
    np.testing.assert_allclose(last["central/final train loss"], 4 / 30)
    np.testing.assert_allclose(last["discrete/final train loss"], 4 / 30)  # an odd row
    np.testing.assert_allclose(last["discrete/min train loss"], 4 / 30)
    np.testing.assert_allclose(last["discrete/final test accuracy"], 0.79)
    assert last["central/HVPs per step"] == 16
    assert (first["at the end/raw eigenvalue"], last["at the end/raw eigenvalue"]) == (10, 2.5)
    assert last["at the end/effective eigenvalue"] == 2
    assert last["at the end/oscillating directions"] == 1
    # Smoothing over three rows does not quite remove the swing of the discrete loss.
    assert 0 < last["median error/loss"] < 0.02
    assert "midpoint/HVPs per step" not in last


def test_outcomes_of_a_run_that_stopped_and_of_one_with_a_single_process(tmp_path):
    stopped = make_run(tmp_path, "stopped", written=7)
    alone = make_run(tmp_path, "alone", names=("stable", "discrete"), rows=20)
    first, second = cells([stopped, alone])
    assert (first["status"], first["last step"]) == ("interrupted", 6)
    assert "edge at step" not in first
    np.testing.assert_allclose(first["central/final train loss"], 1 / 7)
    np.testing.assert_allclose(second["discrete/final train loss"], 1 / 20)
    assert second["at the end/raw eigenvalue"] == 10
    assert not {name for name in second if name.startswith(("central", "median", "relative"))}


def test_columns_of_a_group_stay_together(tmp_path):
    dirs = [
        make_run(tmp_path, "a", names=("central",)),
        make_run(tmp_path, "b", names=("discrete", "central")),
    ]
    table = outcomes(together(dirs))
    groups = [group for group, _ in table.groups()]
    assert len(groups) == len(set(groups))
    assert sum(width for _, width in table.groups()) == len(table.columns)


# Overlays


def test_overlaid_losses(run_dirs):
    chart = overlaid(run_dirs, "loss")
    assert len(chart.curves) == 6
    discrete, predicted = chart.curves[2:4]
    assert (discrete.name, predicted.name) == (
        "run 1, discrete, smoothed",
        "run 1, central, predicted",
    )
    run = load_run(run_dirs[1])
    loss = run.series["discrete"]["train_loss"]
    np.testing.assert_array_equal(discrete.y[:EDGE], loss[:EDGE])
    np.testing.assert_allclose(discrete.y[EDGE:], trend(loss[EDGE:], 3.0))
    np.testing.assert_array_equal(predicted.y, run.series["central"]["predicted_loss"])
    assert discrete.colour == predicted.colour == PALETTE[1]
    assert discrete.look.dash == () != predicted.look.dash
    assert (discrete.in_legend, predicted.in_legend) == (True, False)
    assert discrete.legend_name == predicted.legend_name == "run 1"
    assert [key.name for key in chart.keys] == ["discrete, smoothed", "central, predicted"]


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (("midpoint", "central"), ["midpoint", "central, predicted"]),
        (("midpoint",), ["midpoint"]),
        (("central",), ["central, predicted"]),
    ],
)
def test_overlaid_losses_of_other_processes(tmp_path, names, kinds):
    chart = overlaid([make_run(tmp_path, "a", names=names)], "loss")
    assert [key.name for key in chart.keys] == kinds


def test_overlaid_eigenvalues(run_dirs):
    sharpness = overlaid(run_dirs, "sharpness")
    assert [curve.y[0] for curve in sharpness.curves] == [10, 5, 2.5]
    effective = overlaid(run_dirs, "effective_eigenvalue")
    assert effective.references[0].y == 2
    assert effective.curves[0].y[[0, -1]].tolist() == [1, 2]
    # One process for all runs: nothing to tell apart by dashes.
    assert not any(curve.look.dash for curve in sharpness.curves)


def test_sharpness_of_a_run_without_a_flow(tmp_path, run_dirs):
    alone = make_run(tmp_path, "alone", names=("discrete",), scale=5.0)
    chart = overlaid([run_dirs[0], alone], "sharpness")
    assert [key.name for key in chart.keys] == ["central", "discrete"]
    assert chart.curves[1].y[3] == 2


def test_stationary_and_least_stable_preconditioners(run_dirs):
    (overlay,) = (overlay for overlay in OVERLAYS if overlay.name == "stationary_efficacy")
    runs = together(run_dirs)
    assert overlay.chart(runs) is None
    known = np.arange(30) % 10 == 0
    for kind, value in (("stationary", 1.5), ("stability", 2.0)):
        values = np.where(known, value, np.nan)
        runs[1].run.series["midpoint"][f"stationary/efficacy_{kind}"] = values
    (curve,) = overlay.chart(runs).curves
    np.testing.assert_array_equal(curve.x, [0, 10, 20])
    np.testing.assert_array_equal(curve.y, np.full(3, 0.75))
    assert curve.colour == PALETTE[1]


def test_shares_of_the_stabilisation(run_dirs):
    (overlay,) = (overlay for overlay in OVERLAYS if overlay.name == "stabilisation")
    runs = together(run_dirs)
    assert overlay.chart(runs) is None
    runs[1].run.series["central"]["stabilised_by_state"] = np.full(30, 0.4)
    (curve,) = overlay.chart(runs).curves
    np.testing.assert_array_equal(curve.y, np.full(30, 0.4))


def test_other_overlays(run_dirs):
    path = overlaid(run_dirs, "loss_sharpness").curves[1]
    np.testing.assert_array_equal(path.x, np.full(30, 5.0))
    np.testing.assert_allclose(path.y, 2 / (1 + np.arange(30)))
    accuracy = overlaid(run_dirs, "test_accuracy").curves[0]
    np.testing.assert_allclose(accuracy.y, 0.5 + np.arange(30) / 100)
    assert overlaid(run_dirs, "effective_step").curves[0].y[0] == 0.3
    closeness = overlaid(run_dirs, "closeness").curves[2]
    assert np.isnan(closeness.y[0])
    np.testing.assert_allclose(closeness.y[1:], 0.2)
    assert overlaid(run_dirs, "test_loss") is None


def test_relative_distance_is_unknown_without_a_flow(tmp_path):
    run_dir = make_run(tmp_path, "a", names=("discrete",))
    assert relative_distance(load_run(run_dir)) is None


def test_runs_of_unequal_length(tmp_path):
    dirs = [make_run(tmp_path, "a", rows=12), make_run(tmp_path, "b", rows=40, written=25)]
    short, long = overlaid(dirs, "sharpness").curves
    assert (short.x.size, np.isfinite(long.y).sum()) == (12, 25)


def test_more_runs_than_colours():
    assert distinct(3) == PALETTE[:3]
    many = distinct(20)
    assert len(set(many)) == 20
    brightness = [sum(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in many]
    assert brightness == sorted(brightness)


# Distances between weights


def test_distances_between_final_weights(run_dirs):
    apart = distances_apart(run_dirs)
    assert (apart.process, apart.runs, apart.steps) == ("midpoint", (0, 1, 2), (20, 20, 20))
    expected = np.sqrt(5) * np.array([[0, 1, 3], [1, 0, 2], [3, 2, 0]])
    np.testing.assert_allclose(apart.matrix, expected)


def test_weights_of_runs_that_stopped_or_are_of_another_kind(tmp_path):
    dirs = [
        make_run(tmp_path, "a"),
        make_run(tmp_path, "stopped", written=15, scale=3.0),
        make_run(tmp_path, "larger", size=7),
        make_run(tmp_path, "unstored", stored=False),
    ]
    apart = distances_apart(dirs)
    assert (apart.runs, apart.other_size, apart.without) == ((0, 1), (2,), (3,))
    assert apart.steps == (20, 10)
    np.testing.assert_allclose(apart.matrix[0, 1], np.sqrt(5) * 0.5)


def test_the_process_that_most_runs_stored(tmp_path):
    dirs = [
        make_run(tmp_path, "a", names=("central",)),
        make_run(tmp_path, "b", names=("midpoint", "central")),
    ]
    assert distances_apart(dirs).process == "central"


# The page


def test_a_comparison_on_disk(run_dirs, tmp_path):
    page = write_comparison(run_dirs, tmp_path / "out", "learning <rates>")
    assert page == tmp_path / "out" / "report.html"
    text = page.read_text()
    assert text.count("plotly.js v") == 1
    outside = re.sub(r"(?s)<script[^>]*>.*?</script>", "", text)
    assert not re.search(r"""(?:src|href)\s*=|url\(|@import|<link|https?:""", outside)
    assert "learning &lt;rates&gt;" in outside
    drawn = re.findall(r'id="chart-(\w+)"', outside)
    kinds = ("png", "pdf")
    files = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in drawn for kind in kinds}
    assert "weights_apart" in drawn
    assert "optimizer.lr=4" in outside
    assert "Between the last stored weights of the process midpoint, at step 20." in outside
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [f"optimizer.lr={lr}" for lr in (1, 2, 4)]
    np.testing.assert_allclose(float(rows[1]["central/final_train_loss"]), 2 / 30, rtol=1e-15)


def test_equal_runs_give_equal_comparisons(run_dirs, tmp_path):
    def contents(folder):
        write_comparison(run_dirs, folder, "x")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [(path.name, path.read_bytes()) for path in files]

    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("number", [0, 1])
def test_hardly_any_runs(run_dirs, tmp_path, number):
    page = write_comparison(run_dirs[:number], tmp_path, "few")
    text = page.read_text()
    assert ("There is no run to compare." in text) == (number == 0)
    assert not (tmp_path / "figures" / "weights_apart.png").exists()
    assert (tmp_path / "figures" / "loss.png").exists() == (number == 1)
    assert len((tmp_path / "comparison.csv").read_text().splitlines()) == number + 1
    assert len(summarise_comparison(run_dirs[:number]).splitlines()) == number + 1


def test_figures_of_an_earlier_comparison_do_not_stay(run_dirs, tmp_path):
    write_comparison(run_dirs[:2], tmp_path, "x")
    assert (tmp_path / "figures" / "weights_apart.pdf").exists()
    write_comparison(run_dirs[:1], tmp_path, "x")
    assert not (tmp_path / "figures" / "weights_apart.pdf").exists()


def test_runs_left_out_of_the_distances_are_named(tmp_path):
    dirs = [
        make_run(tmp_path, "a"),
        make_run(tmp_path, "b", scale=2.0),
        make_run(tmp_path, "larger", size=7, scale=3.0),
        make_run(tmp_path, "unstored", stored=False, scale=4.0),
    ]
    text = write_comparison(dirs, tmp_path / "out", "x").read_text()
    assert (
        "No weights of the process midpoint are stored by: optimizer.lr=4. "
        "record.weights_every in a spec stores them." in text
    )
    assert "Another number of parameters have: optimizer.lr=3." in text


def test_a_run_in_progress(tmp_path):
    steps = np.arange(30)
    text = spec("going")
    with Recorder.create(tmp_path / "going", Layout(text, steps, steps[:1])) as recorder:
        for t in range(5):
            recorder.write(t, row(t, 1.0), {}, 1.0)
        recorder.publish()
        page = write_comparison([recorder.run_dir], tmp_path / "out", "x")
        assert "running" in page.read_text()
        assert "running" in summarise_comparison([recorder.run_dir])


def test_a_run_without_rows(tmp_path, run_dirs):
    empty = make_run(tmp_path, "empty", written=0)
    write_comparison([run_dirs[0], empty], tmp_path / "out", "x")
    assert cells([empty])[0].keys() == {"run", "name", "status", "untrusted rows"}


def test_what_is_no_run_is_named_all_at_once(tmp_path, run_dirs):
    for compare in (
        summarise_comparison,
        lambda dirs: write_comparison(dirs, tmp_path / "out", "x"),
    ):
        with pytest.raises(InputError) as caught:
            compare([run_dirs[0], tmp_path / "nothing", tmp_path / "neither"])
        assert "nothing" in str(caught.value)
        assert "neither" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_summary_is_a_table(run_dirs):
    header, *lines = summarise_comparison(run_dirs).splitlines()
    assert header.split()[:4] == ["run", "status", "loss", "sharpness"]
    assert [line.split()[:4] for line in lines] == [
        ["optimizer.lr=1", "done", "0.03333", "10"],
        ["optimizer.lr=2", "done", "0.06667", "5"],
        ["optimizer.lr=4", "done", "0.1333", "2.5"],
    ]
    assert len({len(line) for line in (header, *lines)}) == 1


def test_reading_leaves_the_runs_alone(run_dirs, tmp_path):
    before = [(run_dir / "data.h5").read_bytes() for run_dir in run_dirs]
    write_comparison(run_dirs, tmp_path, "x")
    assert [(run_dir / "data.h5").read_bytes() for run_dir in run_dirs] == before
    with h5py.File(run_dirs[0] / "data.h5") as file:
        assert file.attrs["status"] == "done"
