"""The notebook runs, and a simulation is drawn in it while it goes on."""

import sys
import types

import IPython.display
import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from _pages import FROM_PYTHON, ROOT
from nbclient import NotebookClient

import centralflow_eqx as cf
from centralflow_eqx.record.row import Row
from centralflow_eqx.report import _style as style
from centralflow_eqx.report.live import live_plot

NOTEBOOK = ROOT / "docs" / "examples" / "first_hour.ipynb"


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "stored without what it shows"
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, kernel_name="python3", timeout=240, resources=place).execute()
    images = [
        sum("image/png" in output.get("data", {}) for output in cell.get("outputs", ()))
        for cell in notebook.cells
    ]
    assert [count for count in images if count] == [2, 1, 1]  # two of them were drawn live
    assert (tmp_path / "runs" / "moons" / "report.html").exists()
    assert f"(examples/{NOTEBOOK.name})" in FROM_PYTHON.read_text()


def rows(steps):
    """Rows of two processes, one of which stops half way."""
    for step in range(steps):
        series = {"train_loss": np.array(1 / (1 + step)), "eigenvalues": np.array([2.0, 1.0])}
        running = ("discrete", "central") if 2 * step < steps else ("discrete",)
        yield Row(step, {name: dict(series) for name in running}, {}, {}, {})


@pytest.fixture
def shown(monkeypatch):
    """What a notebook shows: every image of every place, in order."""
    places = []

    class Place:
        def __init__(self, image):
            self.images = [image]
            self.update = self.images.append

    def display(image, display_id):
        assert display_id
        places.append(Place(image))
        return places[-1]

    monkeypatch.setattr(IPython, "get_ipython", lambda: types.SimpleNamespace(kernel=None))
    monkeypatch.setattr(IPython.display, "display", display)
    return places


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_live_plot_draws_in_place_and_passes_the_rows_on(shown, seconds):
    passed = [row.step for row in live_plot(rows(4), seconds=seconds)]
    assert passed == [0, 1, 2, 3]
    assert [len(place.images) for place in shown] == 2 * [5 if seconds == 0 else 2]
    assert all(image.data.startswith(b"\x89PNG") for place in shown for image in place.images)


def test_what_ends_the_rows_is_raised_after_the_last_picture(shown):
    def failing():
        yield from rows(2)
        raise cf.NumericalStop("central", 2, "it diverged")

    with pytest.raises(cf.NumericalStop):
        list(live_plot(failing(), ["train_loss"], seconds=1e9))
    assert [len(place.images) for place in shown] == [2]


def test_a_series_that_no_process_has_is_not_drawn(shown):
    assert len(list(live_plot(rows(3), ["predicted_loss"]))) == 3
    assert not shown


@pytest.mark.parametrize("ipython", [None, types.SimpleNamespace(get_ipython=lambda: None)])
def test_outside_of_a_notebook_rows_pass_undrawn(monkeypatch, ipython):
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert [row.step for row in cf.live_plot(rows(3))] == [0, 1, 2]


def test_everybodys_figures_look_like_those_of_reports():
    with plt.style.context("centralflow_eqx.figures"):
        assert tuple(matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]) == style.PALETTE
        assert matplotlib.rcParams["grid.color"] == style.GRID
        assert matplotlib.rcParams["axes.edgecolor"] == style.AXES
        assert not matplotlib.rcParams["axes.spines.top"]
    assert (style.VERMILION, style.BLUE) == ("#D55E00", "#0072B2")
