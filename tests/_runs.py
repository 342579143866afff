"""What tests read of runs and their directories."""

import h5py
import numpy as np

from centralflow_eqx.experiment.build import build_task
from centralflow_eqx.experiment.drive import drive
from centralflow_eqx.experiment.prepare import prepare
from centralflow_eqx.report import smooth

SETTLING = 15
LEAD = 30
"""Rows at the start that errors of smoothed series leave aside: smoothing sees one side there."""


class Run:
    """The data of a run directory: `run["central/train_loss"]`."""

    def __init__(self, folder):
        self.folder = folder

    def __getitem__(self, name):
        with h5py.File(self.folder / "data.h5", locking=False) as file:
            return file[name][()]

    def onset(self, process="central"):
        """The first row whose largest effective eigenvalue is critical."""
        return int(np.argmax(self[f"{process}/eigenvalues"][:, 0] > 1.98))

    def sharpness(self, process="central"):
        return self[f"{process}/raw_eigenvalues"][:, 0]

    def accuracy(self):
        """Mean distance of flow and midpoints over the path, and the error of the mean loss."""
        moved = self["midpoint/distance_moved"][-1]
        distance = np.mean(self["distance/midpoint-central"]) / moved
        loss = smooth(self["discrete/train_loss"], 15)
        error = np.abs(loss - smooth(self["central/predicted_loss"], 15))[LEAD:]
        return distance, error.mean() / loss[LEAD:].mean()


def undocumented(run_dir):
    """The datasets of a run that `QUANTITIES` has no entry for."""
    found = []

    def visit(name, item):
        if item.attrs.get("units") == "unknown":
            found.append(name)

    with h5py.File(run_dir / "data.h5", locking=False) as file:
        file.visititems(visit)
    return found


def rows_of(spec):
    """The rows of a spec's simulation, without a run directory."""
    return drive(*prepare(spec, build_task(spec)), spec.steps)


def contents(run_dir):
    """Every array of data.h5 by name, and the attributes."""
    with h5py.File(run_dir / "data.h5") as file:
        arrays = {}
        file.visititems(
            lambda name, item: (
                arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
        return arrays, dict(file.attrs)
