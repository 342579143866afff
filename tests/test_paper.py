"""The specs in `specs/paper`, run as they are, and the claims that their comments make.

Minutes each: `pytest -m slow tests/test_paper.py`.
"""

from pathlib import Path

import numpy as np
import pytest
from _runs import SETTLING, Run

from centralflow_eqx.cli import main
from centralflow_eqx.report import smooth
from centralflow_eqx.spec import load_plan

SPECS = Path(__file__).parents[1] / "specs" / "paper"

pytestmark = [pytest.mark.slow, pytest.mark.optimized]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run a spec once; its run, or those of its members by name."""
    folder, done = tmp_path_factory.mktemp("paper"), {}

    def run(name):
        if name not in done:
            arguments = ["--set", f"output.dir={folder}"]
            assert main(["run", str(SPECS / f"{name}.yaml"), *arguments]) == 0
            done[name] = folder / name
        members = sorted(path.parent for path in done[name].glob("*/data.h5"))
        assert (done[name] / "report.html").stat().st_size > 10_000
        return {path.name: Run(path) for path in members} if members else Run(done[name])

    return run


@pytest.fixture
def run(runs, request):
    """`runs`, of those specs that the test is marked to be about, and of all of them."""
    used = set()
    yield lambda name: (used.add(name), runs(name))[1]
    assert used == claimed_by(request.function)


def claimed_by(test):
    """The specs whose claims a test is marked to check."""
    marks = getattr(test, "pytestmark", ())
    return {name for mark in marks if mark.name == "claims" for name in mark.args}


def test_every_spec_has_its_claim_here():
    claimed = set().union(*(claimed_by(test) for test in globals().values()))
    assert claimed == {path.stem for path in SPECS.glob("*.yaml")}
    for name in claimed:
        load_plan(SPECS / f"{name}.yaml")


@pytest.mark.claims("sharpness")
def test_sharpness_rises_to_the_threshold_and_stays(run):
    for name, most in (("one", 1), ("several", 2)):
        member = run("sharpness")[name]
        theta, onset = member["central/eigenvalues"][:, 0], member.onset()
        assert onset > 0 and theta[0] < 1.98
        np.testing.assert_allclose(theta[onset + SETTLING :], 2, atol=1e-3)
        oscillating = member["central/sigma_eigenvalues"] > 1e-6
        assert oscillating.sum(axis=1).max() >= most
        assert np.nanmax(member["stable/eigenvalues"][:, 0]) > 2.1
        distance, loss = member.accuracy()
        assert distance < 0.03 and loss < 0.03


@pytest.mark.claims("architectures")
def test_averages_are_predicted_whatever_the_network(run):
    members = run("architectures")
    assert len(members) == 8
    for name, member in members.items():
        distance, loss = member.accuracy()
        assert distance < 0.03 and loss < 0.03, name
        discrete = smooth(member["discrete/grad_norm_sq"], 15)[30:]
        predicted = smooth(member["central/predicted_grad_norm_sq"], 15)[30:]
        own = smooth(member["central/grad_norm_sq"], 15)[30:]
        error = np.median(np.abs(predicted - discrete) / discrete)
        # and it is the oscillation that makes the difference
        assert error < 0.5 * np.median(np.abs(own - discrete) / discrete), name


@pytest.mark.claims("effective_step")
def test_effective_step_is_two_over_the_sharpness(run):
    member = run("effective_step")
    late = slice(member.onset() + SETTLING, None)
    ratio = member["central/effective_step"] * member.sharpness() / 2
    np.testing.assert_allclose(ratio[late], 1, atol=0.01)
    measured = member["midpoint/effective_step"] * member.sharpness("midpoint") / 2
    np.testing.assert_allclose(np.mean(measured[late]), 1, atol=0.05)


@pytest.mark.claims("learning_rates")
def test_larger_learning_rates_are_flatter_at_the_same_loss(run):
    members = [run("learning_rates")[f"lr={lr}"] for lr in ("0.15", "0.25", "0.4")]
    for process in ("central", "midpoint"):
        losses = [member[f"{process}/train_loss"] for member in members]
        reached = max(np.nanmin(loss) for loss in losses)  # by all
        rows = [int(np.flatnonzero(loss <= reached)[0]) for loss in losses]
        sharpness = [
            member.sharpness(process)[row] for member, row in zip(members, rows, strict=True)
        ]
        assert sharpness[0] > 1.2 * sharpness[1] > 1.2**2 * sharpness[2], process


@pytest.mark.parametrize("optimizer", ["scalar_rmsprop", "rmsprop"])
@pytest.mark.claims("ablated_rmsprop", "ablated_scalar_rmsprop")
def test_without_the_penalty_the_flow_is_sharper_and_slower(run, optimizer):
    names = {"scalar_rmsprop": "ablated_scalar_rmsprop", "rmsprop": "ablated_rmsprop"}
    member = {key: run(name) for key, name in names.items()}[optimizer]
    assert member.sharpness("ablated")[-1] > 1.05 * member.sharpness()[-1]
    assert member["ablated/train_loss"][-1] > 1.01 * member["central/train_loss"][-1]
    # the flow with the penalty is the one that the optimizer follows
    closer = member["distance/midpoint-central"][-1]
    assert closer < 0.7 * member["distance/midpoint-ablated"][-1]


@pytest.mark.claims("covariance")
def test_variances_are_predicted(run):
    for name, member in run("covariance").items():
        predicted = member["central/sigma_eigenvalues"][:, 0]
        measured = member["central/empirical_variances"][:, 0]
        alive = np.arange(predicted.size) > member.onset() + 2 * SETTLING
        ratio = np.mean(measured[alive]) / np.mean(predicted[alive])
        assert 0.8 < ratio < 1.25, (name, ratio)


@pytest.mark.claims("predictions")
def test_single_weights_and_outputs_are_predicted(run):
    member = run("predictions")
    late = slice(30, -30)

    def error(name):
        discrete = smooth(member[f"discrete/{name}"], 15)[late]
        return [
            np.linalg.norm(smooth(member[f"central/{flow}{name}"], 15)[late] - discrete)
            / np.linalg.norm(discrete)
            for flow in ("predicted_", "")
        ]

    predicted, own = error("grad_sq_at")
    assert predicted < 0.5 and predicted < 0.5 * own
    predicted, own = error("outputs")
    assert predicted < 0.01 and predicted < own
    nu, flow = member["discrete/state/nu_at"], member["central/state/nu_at"]
    assert np.linalg.norm(flow - nu) < 0.1 * np.linalg.norm(nu)


@pytest.mark.claims("stationarity")
def test_statistics_are_almost_stationary(run):
    member = run("stationarity")
    cosine = member["central/stationary/cosine"]
    known = np.flatnonzero(np.isfinite(cosine))
    late = known[known > 0.6 * cosine.size]
    assert np.all(cosine[late] > 0.95)
    efficacy = member["central/stationary/efficacy"][late]
    stationary = member["central/stationary/efficacy_stationary"][late]
    np.testing.assert_allclose(efficacy, stationary, rtol=0.15)
    # better than the best single step size
    assert np.all(efficacy > 1.2 * member["central/stationary/efficacy_scalar"][late])


@pytest.mark.claims("beta2")
def test_slow_statistics_leave_the_stabilisation_to_curvature(run):
    members = run("beta2")
    shares = []
    for beta2 in ("0.99", "0.999"):
        member = members[f"beta2={beta2}"]
        oscillates = member["central/sigma_eigenvalues"][:, 0] > 1e-6
        shares.append(np.mean(member["central/stabilised_by_state"][oscillates]))
    assert shares[0] > 1 / 2 and shares[1] < 1 / 4  # most of it, and the lesser part


@pytest.mark.claims("stationary_preconditioner")
def test_the_stationary_preconditioner_tends_to_the_least_stable_one(run):
    members, ratios = run("stationary_preconditioner"), []
    for lr in ("0.0005", "0.001", "0.002", "0.004"):
        series = {
            name: members[f"lr={lr}"][f"midpoint/stationary/efficacy_{name}"]
            for name in ("stationary", "stability")
        }
        ratios.append(np.nanmean(series["stationary"] / series["stability"]))
    assert np.all(np.diff(ratios) > 0)
    assert ratios[-1] > 0.7 and ratios[0] < 0.3 * ratios[-1]


@pytest.mark.claims("accuracy")
def test_the_flow_says_where_it_fails(run):
    members = run("accuracy")
    errors, doubts, cubics = [], [], []
    for lr in ("0.001", "0.002", "0.004", "0.008"):
        member = members[f"lr={lr}"]
        errors.append(member.accuracy()[0])
        doubts.append(np.mean(member["central/untrusted"] == 1))
        cubics.append(np.nanmax(member["central/trust_cubic"]))
    assert np.all(np.diff(errors) > 0) and np.all(np.diff(cubics) > 0)
    # what is not marked is right, what is wrong is marked
    # (the oscillation's averages settle over 15 rows)
    assert errors[1] < 0.03 and doubts[1] <= 0.15
    assert errors[-1] > 0.05 and doubts[-1] > 0.5


@pytest.mark.claims("rivals")
def test_rods_have_the_optimizers_first_burst(run):
    member = run("rivals")
    moved = member["midpoint/distance_moved"][-1]
    apart = {
        name: np.mean(member[f"distance/midpoint-{name}"]) / moved
        for name in ("central", "rod", "edge")
    }
    assert apart["rod"] < 0.3 * apart["central"] and apart["edge"] < apart["central"]
    share = {
        name: member[f"{name}/predicted_loss"] / member[f"{name}/train_loss"] - 1 for name in apart
    }
    share["discrete"] = member["discrete/train_loss"] / member["midpoint/train_loss"] - 1
    onset = {name: int(np.argmax(values > 0.01)) for name, values in share.items()}
    assert onset["central"] < onset["discrete"] - 20
    assert all(abs(onset[name] - onset["discrete"]) <= 5 for name in ("rod", "edge"))
    # the loss at both ends of the rod is the optimizer's, burst by burst
    late = slice(onset["discrete"] + 2 * SETTLING, None)
    measured, predicted = (
        smooth(member[name], 15)[late] for name in ("discrete/train_loss", "rod/predicted_loss")
    )
    np.testing.assert_allclose(predicted, measured, rtol=0.02)
