"""What `explain` prints, against what is known of the rule."""

import re

import pytest

from centralflow_eqx.experiment.explain import explain
from centralflow_eqx.spec import load_spec

SPEC = """\
name: explained
precision: float64
data: {type: moons, n: 40}
model: {type: mlp, widths: [4]}
loss: {type: mse}
optimizer: {type: gd, lr: 0.5}
processes: [central]
steps: 5
warm_start: 3
"""


@pytest.fixture
def explained(tmp_path):
    def run(optimizer):
        (tmp_path / "s.yaml").write_text(SPEC)
        return explain(load_spec(tmp_path / "s.yaml", [f"optimizer={optimizer}"]))

    return run


def number(text, pattern):
    """The number where `pattern` has `#`."""
    found = re.search(re.escape(pattern).replace("\\#", r"([-+.e\d]+)"), text)
    assert found, f"no '{pattern}' in\n{text}"
    return float(found[1])


def test_heavy_ball(explained):
    text = explained("{type: heavy_ball, lr: 0.5, momentum: 0.6}")
    assert re.search(r"m +17 +momentum +0\.6 old \+ linear in g +1\.958 steps", text)
    assert re.search(r"count +1 +counter +\+ 1", text)
    assert number(text, "   H exceeds #") == pytest.approx(2 * 1.6 / 0.5, rel=1e-5)
    assert number(text, "   D H exceeds #") == pytest.approx(2 * 1.6 / 0.4, rel=1e-5)
    assert "central flow: defined (state_rate: exponential only" in text


def test_adam_after_its_warm_start(explained):
    text = explained("{type: adam, lr: 1e-3, beta1: 0.9, bias_correction: false}")
    assert re.search(r"nu +17 +average +0\.999 old \+ quadratic in g +999\.5 steps", text)
    assert number(text, "   D H exceeds #") == pytest.approx(38, rel=1e-5)
    assert "   H exceeds" not in text  # its gain is no number


def test_a_sum_and_a_decay(explained):
    text = explained("{type: adagrad, lr: 0.1, weight_decay: 0.5}")
    assert re.search(r"rule\.sum +17 +sum +1 old \+ quadratic in g +- ", text)
    # the step is -lr g/sqrt(sum) - lr 0.5 w: D/K = 1 - lr 0.5/2
    assert number(text, "   D H exceeds #") == pytest.approx(2 - 0.05, rel=1e-5)


def test_a_rule_without_a_flow(explained):
    text = explained("{type: optax, name: lion, args: {learning_rate: 1e-3}}")
    assert "central flow: none, zero response" in text
    assert "exceeds" not in text
