"""A run is a value: advancing it, what the host does, what is counted."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _losses import TinyMLP

from centralflow_eqx.engine.settings import Settings
from centralflow_eqx.errors import NumericalStop
from centralflow_eqx.experiment import drive as driver
from centralflow_eqx.experiment.advance import advance
from centralflow_eqx.experiment.kept import Misfit, fit, keep
from centralflow_eqx.experiment.simulate import simulate
from centralflow_eqx.experiment.start import start
from centralflow_eqx.optimizers import GD, RMSProp
from centralflow_eqx.processes import PROCESSES, Discrete
from centralflow_eqx.processes.probes import Coordinates, Preconditioners

RNG = np.random.default_rng(3)
W = RNG.normal(size=TinyMLP.SIZE)


class Noisy(eqx.Module):
    """A mini-batch loss: the whole one, tilted anew in every step."""

    loss: TinyMLP

    def __call__(self, w, step, key):
        tilt = jax.random.normal(jax.random.fold_in(key, step), w.shape, w.dtype)
        return self.loss(w) + 1e-2 * tilt @ w


def begin(state_rate="exponential", **options):
    loss = TinyMLP.make()
    return start(
        loss,
        RMSProp(0.02, 0.9),
        W,
        settings=Settings(state_rate=state_rate, initial=2),
        minibatch=Noisy(loss),
        **options,
    )


def arrays(tree):
    """Every array of a pytree as bytes that can be compared."""
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    data = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in leaves
    ]
    return [np.asarray(x) for x in data]


def same(a, b):
    return all(
        np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        for x, y in zip(arrays(a), arrays(b), strict=True)
    )


RATED = "stable", "central", "ablated"  # what the state rate makes a difference to
PROBES = Coordinates(indices=jnp.array([0, 5])), Preconditioners(indices=jnp.array([1]))


@pytest.mark.parametrize(
    ("state_rate", "processes", "probes"),
    [
        ("exponential", PROCESSES.names(), PROBES),
        pytest.param("backward", RATED, (), marks=pytest.mark.slow),
    ],
)
def test_advancing_in_pieces_is_advancing_at_once(state_rate, processes, probes):
    experiment, state = begin(state_rate, processes=processes, probes=probes)
    whole, records, flags = advance(experiment, state, 7)
    assert all(int(x) == -1 for kind in flags for x in kind.values())
    parts, first, _ = advance(experiment, state, 3)
    parts, second, _ = advance(experiment, parts, 4)
    assert same(whole, parts)
    for name, track in records.tracks.items():
        pieces = [r.tracks[name] for r in (first, second)]
        assert [int(p.count) for p in pieces] == [3, 4] and int(track.count) == 7
        for key, values in track.series.items():
            joined = np.concatenate([p.series[key][: int(p.count)] for p in pieces])
            np.testing.assert_array_equal(values[:7], joined, err_msg=f"{name}/{key}")
    for key, values in records.comparisons.items():
        joined = np.concatenate([first.comparisons[key][:3], second.comparisons[key][:4]])
        np.testing.assert_array_equal(values[:7], joined, err_msg=key)


def test_a_state_survives_its_serialisation(tmp_path):
    experiment, state = begin(processes=("discrete", "central"))
    state, *_ = advance(experiment, state, 2)
    eqx.tree_serialise_leaves(tmp_path / "state", state)
    again = eqx.tree_deserialise_leaves(tmp_path / "state", state)
    assert same(advance(experiment, again, 2)[0], advance(experiment, state, 2)[0])


def test_the_host_waits_once_in_an_advance(monkeypatch):
    fetched, advanced = [], []
    experiment, state = begin(processes=("discrete", "midpoint", "stable", "central"))
    get = jax.device_get

    def counting_advance(experiment, state, n):
        advanced.append(n)
        with jax.transfer_guard_device_to_host("disallow_explicit"):
            return advance(experiment, state, n)

    monkeypatch.setattr(driver, "advance", counting_advance)
    monkeypatch.setattr(driver.jax, "device_get", lambda x: (fetched.append(1), get(x))[1])
    assert len(list(driver.drive(experiment, state, 30))) == 30
    assert len(fetched) == len(advanced) and sum(advanced) == 30


def test_rows_do_not_depend_on_how_far_an_advance_goes(monkeypatch):
    def rows(most):
        experiment, state = begin(processes=("discrete", "stable", "central"), record_every=2)
        monkeypatch.setattr(driver._Pace, "__call__", lambda self, left: min(most, left))
        return list(driver.drive(experiment, state, 9))

    one, many = rows(1), rows(8)
    assert [row.step for row in one] == [row.step for row in many] == [0, 2, 4, 6, 8]
    for a, b in zip(one, many, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.series, b.series)
        assert a.comparisons == b.comparisons


class Cliff(eqx.Module):
    """A bowl for small weights, that is no number at all further out."""

    edge: float = 1.5

    def __call__(self, w):
        return jnp.where(jnp.abs(w[0]) < self.edge, w @ w / 2, jnp.nan)


def test_a_numerical_stop_ends_its_process_alone():
    # the optimizer swings out, the flow of its average never does
    rows = list(
        simulate(Cliff(), GD(2.2), np.array([1.0, 0.5]), processes=("discrete", "stable"), steps=9)
    )
    (lost,) = [row for row in rows if row.stops]
    assert lost.stops["discrete"].numerical and "finite" in lost.stops["discrete"].reason
    assert "discrete" not in lost.series and rows[-1].step == 8
    assert [row.step for row in rows if "stable" in row.series] == list(range(9))
    assert [row.step for row in rows if "discrete" in row.series] == list(range(lost.step))


def test_what_has_diverged_ends_alone_with_its_row():
    # w -> -1.2 w for the optimizer; its flow shrinks
    bowl = lambda w: w @ w / 2  # noqa: E731
    rows = list(
        simulate(bowl, GD(2.2), np.array([1.0]), processes=("discrete", "stable"), steps=40)
    )
    (lost,) = [row for row in rows if row.stops]
    halt = lost.stops["discrete"]
    assert halt.numerical and "diverged" in halt.reason
    # 1.44^t passes 1e4 at t = 25.3
    assert lost.step == 26 and lost.series["discrete"]["train_loss"] >= 1e4 / 2
    assert "discrete" not in rows[27].series and rows[-1].step == 39
    # of no loss at all there are no multiples
    rows = simulate(
        bowl, GD(0.1), np.zeros(1), processes=("discrete",), steps=3, diverged_above=2.0
    )
    assert not any(row.stops for row in rows)
    # what starts at a minimum may leave it
    rows = list(simulate(bowl, GD(2.2), np.array([1e-6]), processes=("discrete",), steps=40))
    assert len(rows) == 40 and not rows[-1].stops


@pytest.mark.parametrize("step", [3, 6])
def test_driving_in_pieces_gives_the_same_rows(step):
    """Averages over rows go on, too."""
    experiment, state = begin(processes=("discrete", "central"))
    whole = list(driver.drive(experiment, state, 9))
    *_, chunk = driver.chunks(experiment, state, step)
    assert chunk.step == step
    kept = fit(jax.eval_shape(lambda: chunk.state), keep(chunk.state))
    for a, b in zip(whole[step:], driver.drive(experiment, kept, 9), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.series, b.series)


def test_what_was_kept_of_another_simulation_does_not_fit():
    experiment, state = begin(processes=("discrete", "central"))
    kept = keep(state)
    with pytest.raises(Misfit, match=r"missing"):
        fit(begin(processes=("discrete", "stable"))[1], kept)
    name = next(iter(kept))
    with pytest.raises(Misfit, match=r"is float16\[\], not "):
        fit(state, {**kept, name: np.ones((), np.float16)})
    with pytest.raises(Misfit, match="belongs to another"):
        fit(state, {**kept, ".more": np.zeros(1)})


def test_the_last_process_to_be_lost_is_told_by_an_error():
    rows = simulate(Cliff(), GD(2.2), np.array([1.0, 0.5]), processes=("discrete",), steps=9)
    with pytest.raises(NumericalStop, match="discrete.*finite"):
        list(rows)


def test_the_stable_flow_stops_between_records():
    class Sharpening(eqx.Module):
        def __call__(self, w):
            return jnp.exp(w[1]) * w[0] ** 2 / 2 - w[1]

    rows = list(
        simulate(
            Sharpening(),
            GD(0.1),
            np.array([0.0, 0.0]),
            processes=("stable", "discrete"),
            steps=21,
            record_every=10,
            settings=Settings(max_sharpness=0.2),
        )
    )
    # sharpness lr e^y with y = lr t passes 0.2 at t = 10 log 2 = 6.9
    assert [row.step for row in rows] == [0, 7, 10, 20]
    assert (
        "max_sharpness" in rows[1].stops["stable"].reason and not rows[1].stops["stable"].numerical
    )
    assert list(rows[1].series) == ["stable"] and list(rows[2].series) == ["discrete"]


def test_a_schedule_may_start_at_zero():
    warm = {"schedule": "linear", "init_value": 0.0, "end_value": 0.1, "transition_steps": 5}
    rows = list(simulate(TinyMLP.make(), GD(warm), W, processes=("discrete", "central"), steps=8))
    eigenvalues = [row.series["central"]["eigenvalues"][0] for row in rows]
    assert eigenvalues[0] == 0 < eigenvalues[1] < eigenvalues[4]
    # between whole steps the flow's learning rate is between those of the schedule
    assert (
        0
        < np.linalg.norm(rows[1].weights["central"] - W)
        < 0.02 * np.linalg.norm(jax.grad(TinyMLP.make())(W))
    )
    assert (
        rows[-1].comparisons["distance/discrete-central"]
        < 0.2 * (rows[-1].series["discrete"]["distance_moved"])
    )


class Well(eqx.Module):
    """GD on (x^2 - 1)^2/4 has a two-cycle for lr between 1 and 1.236; curvature alternates."""

    curvatures: jax.Array

    def __call__(self, w):
        bulk = self.curvatures * w[1:] ** 2 * (1 + w[0] / 2)
        mixed = w[1:] @ jnp.roll(w[1:], 1) * w[0] / 20
        return (w[0] ** 2 - 1) ** 2 / 4 + jnp.sum(bulk) / 2 + mixed


def products_in_a_cycle(every):
    rows = list(
        simulate(
            Well(jnp.linspace(0.1, 0.9, 40)),
            GD(1.1),
            np.concatenate([[0.8], np.zeros(40)]),
            processes=("discrete",),
            steps=60 * every,
            record_every=every,
            settings=Settings(initial=3, tol=1e-4),
        )
    )
    return np.mean([row.series["discrete"]["hvps"] for row in rows[-20:]])


@pytest.mark.parametrize("every", [1, 2])
def test_an_alternating_optimizer_is_looked_at_where_it_was(every, monkeypatch):
    """In a two-cycle the spectrum of a place is known from the last time there."""
    known = products_in_a_cycle(every)
    # three columns and a guard, whose random part alone is new
    assert known <= 2 * 4
    if every == 1:
        monkeypatch.setattr(Discrete, "oscillates", False)
        jax.clear_caches()
        assert products_in_a_cycle(every) > 1.5 * known
