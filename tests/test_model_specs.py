"""The specs of every model: small ones at the edge of stability, and full sizes.

`pytest -m slow tests/test_model_specs.py` runs all the small ones.
"""

from pathlib import Path

import numpy as np
import pytest
from _marks import quick
from _runs import SETTLING, Run

from benchmarks.full_size import load
from centralflow_eqx.cli import main
from centralflow_eqx.models import MODELS

pytestmark = pytest.mark.optimized

SPECS = Path(__file__).parents[1] / "specs"
SMALL = sorted(path.stem for path in (SPECS / "models").glob("*.yaml"))
FULL = sorted(path.stem for path in (SPECS / "full_size").glob("*.yaml"))


def test_every_model_has_its_specs():
    assert SMALL == FULL == sorted(set(MODELS.names()) - {"mlp"})


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_flow_of_every_model_follows_its_optimizer(name, tmp_path):
    arguments = ["--set", f"output.dir={tmp_path}"]
    assert main(["run", str(SPECS / "models" / f"{name}.yaml"), *arguments]) == 0
    run = Run(tmp_path / f"model_{name}")
    theta, onset = run["central/eigenvalues"][:, 0], run.onset()
    assert np.sum(theta > 1.98) >= 60
    np.testing.assert_allclose(theta[onset + SETTLING :], 2, atol=3e-3)
    distance, loss = run.accuracy()
    assert distance < 0.03 and loss < 0.03
    # the flow that does not oscillate goes elsewhere
    apart = run["distance/midpoint-stable"]
    last = np.flatnonzero(np.isfinite(apart))[-1]
    assert apart[last] > 2 * run["distance/midpoint-central"][last]


@pytest.mark.parametrize("name", quick(FULL, "cnn", "lstm", "transformer"))
def test_full_sizes_are_valid_on_data_of_their_shape(name, tmp_path):
    spec, task = load(SPECS / "full_size" / f"{name}.yaml", [], tmp_path)
    assert spec.model.type == name
    assert len(task.train_inputs) == 1000
    assert task.num_parameters > 10_000
