"""The engine, from spec to rows, against trajectories of an independent implementation.

`tests/data` holds excerpts of three runs integrated in float64 (explicit Euler, 4 substeps, state
rate "backward") by a program that shares no code with this package: every third row of the central
flow's weights, every fifteenth of the optimizer's, and the whole of the short series.
"""

from pathlib import Path

import numpy as np
import pytest
from _marks import quick
from _runs import rows_of

from centralflow_eqx.spec import load_spec

pytestmark = pytest.mark.optimized

DATA = Path(__file__).parent / "data"

SPEC = """\
name: reference
precision: float64
data: {{type: npz, path: {file}, inputs: inputs, labels: labels}}
model: {{type: mlp, widths: {widths}, activation: gelu}}
loss: {{type: mse}}
init: {{path: {file}, key: w0}}
optimizer: {optimizer}
processes: [discrete, midpoint, central]
steps: {steps}
warm_start: {warm_start}
eigen: {{initial: {initial}, tol: 1e-6}}
record: {{raw_spectra: false}}
flow: {{substeps: 4, critical_above: 1.95, state_rate: backward}}
"""

RUNS = {
    "gd_moons": {
        "widths": [32, 32],
        "optimizer": "{type: gd, lr: 0.4}",
        "steps": 150,
        "warm_start": 0,
        "initial": 1,
    },
    "scalar_rmsprop_digits": {
        "widths": [16, 16],
        "optimizer": "{type: scalar_rmsprop, lr: 0.05, beta2: 0.99}",
        "steps": 60,
        "warm_start": 30,
        "initial": 5,
    },
    "rmsprop_digits": {
        "widths": [16, 16],
        "optimizer": "{type: rmsprop, lr: 1e-3, beta2: 0.99}",
        "steps": 50,
        "warm_start": 40,
        "initial": 6,
    },
}


@pytest.fixture(scope="module", params=quick(RUNS, "gd_moons", "rmsprop_digits"))
def run(request, tmp_path_factory):
    """The reference and our rows."""
    file = DATA / f"{request.param}.npz"
    path = tmp_path_factory.mktemp("reference") / "spec.yaml"
    path.write_text(SPEC.format(file=file, **RUNS[request.param]))
    spec = load_spec(path)
    with np.load(file) as reference:
        return dict(reference), list(rows_of(spec))


def series(rows, process, name):
    return np.stack([row.series[process][name] for row in rows])


def test_the_optimizer_is_the_same(run):
    reference, rows = run
    weights = np.stack([rows[i].weights["discrete"] for i in reference["discrete_rows"]])
    off = np.abs(weights - reference["discrete_weights"]).max(1)
    assert off[1] < 1e-13
    assert off[:8].max() < 1e-9
    # Beyond the edge of stability rounding errors grow by oscillating: to 1.8e-9 after 120 steps of
    # gd_moons where the compiler optimises little.
    assert off.max() < 1e-8
    loss = series(rows, "discrete", "train_loss")
    np.testing.assert_allclose(loss, reference["discrete_train_loss"], rtol=1e-8)


def test_midpoints_have_the_same_effective_sharpness(run):
    reference, rows = run
    sharpness = series(rows, "midpoint", "eigenvalues")[:, 0]
    # Eigenvalues that are only watched are accurate to the square of their residual, 1e-3.
    np.testing.assert_allclose(sharpness, reference["midpoint_eigenvalues"], rtol=1e-5)


def test_the_central_flow_is_the_same(run):
    reference, rows = run
    weights = np.stack([rows[i].weights["central"] for i in reference["rows"]])
    off = np.linalg.norm(weights - reference["central_weights"], axis=1)
    # A wrong order of updates shows at 1e-3 to 1e-2; the independent conic solver is good to 1e-5.
    assert off.max() <= 1e-4 * reference["central_moved"]


def test_predictions_are_the_same_once_the_start_is_behind(run):
    # The reference evaluates them for an eigenvalue of exactly 2, which a start beyond is not.
    reference, rows = run
    loss = series(rows, "central", "predicted_loss")[3:]
    np.testing.assert_allclose(loss, reference["central_predicted_loss"][3:], rtol=3e-4)
    grad = series(rows, "central", "predicted_grad_norm_sq")[3:]
    np.testing.assert_allclose(grad, reference["central_predicted_grad_norm_sq"][3:], rtol=2e-3)
    variances = reference["central_sigma_eigenvalues"][3:]
    ours = series(rows, "central", "sigma_eigenvalues")[3:, : variances.shape[1]]
    np.testing.assert_allclose(ours, variances, atol=2e-3 * variances.max())


@pytest.mark.parametrize("name", quick(RUNS, "gd_moons"))
def test_single_precision_follows_double(name, tmp_path):
    """To what the eigensolver's residual leaves, a tenth of what substeps err by."""
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.format(file=DATA / f"{name}.npz", **RUNS[name]))
    single = [
        "precision=float32",
        "eigen.tol=1e-4",
        "processes=[central]",
    ]
    spec = load_spec(path, single)
    rows = list(rows_of(spec))
    with np.load(DATA / f"{name}.npz") as reference:
        ours = np.stack([rows[i].weights["central"] for i in reference["rows"]])
        assert ours.dtype == np.float32
        off = np.linalg.norm(ours - reference["central_weights"], axis=1)
        assert off.max() <= 4e-4 * reference["central_moved"]
