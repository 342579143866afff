"""Spectra that are followed through whatever may befall them, against dense ones at every solve.

A solve that says that it converged, and that there was room, is held to what it says: residuals
are what they are said to be, eigenvalues are as near the pencil's as their residuals have them, and
all that are above the threshold are there. A solve that does not say so is loud, and no fault.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from _marks import quick
from _stories import KINDS, LENGTH, TURN, Story, spectra

from centralflow_eqx.engine.curvature import EigenTracker, LocalModel, unsolved

COLUMNS = 6
ABOVE = 1.5
LEAST = 1e-3  # eigenvalues smaller than this have absolute residuals

# Gain, dimensions, precision, stories. In 16 dimensions a basis has room for all of them.
FEW = (("diagonal", 40, "float64", 24), ("general", 16, "float64", 24))
MANY = (
    ("diagonal", 40, "float64", 144),
    ("general", 40, "float64", 144),
    ("diagonal", 16, "float64", 60),
    ("general", 16, "float64", 60),
    ("diagonal", 40, "float32", 48),
    ("general", 40, "float32", 48),
)


class Options(NamedTuple):
    """What a tracker is told, story by story."""

    initial: np.ndarray
    tol: np.ndarray
    exact_above: np.ndarray
    ahead: np.ndarray
    oscillating: np.ndarray
    explore: np.ndarray


def told(rng, stories, dtype) -> Options:
    n = len(stories)
    tols = (1e-6, 1e-4, 5e-4) if dtype == "float64" else (1e-4, 5e-4)
    # Where eigenvectors are hidden every solve explores, elsewhere every other: not the turn's.
    every = np.array([1 if s.unseen else 2 for s in stories])
    return Options(
        rng.integers(1, 4, n),
        rng.choice(tols, n).astype(dtype),
        rng.choice([1.95, -np.inf, np.inf], n).astype(dtype),
        rng.choice([0.5, 1.0, 2.0], n).astype(dtype),
        rng.random(n) < 0.1,
        np.arange(LENGTH) % every[:, None] == 0,
    )


@jax.jit
def _follow(H, K, options, keys, empty):
    diagonal = K.ndim == 3

    def follow(arguments):
        H, K, options, key = arguments
        tracker = EigenTracker(ABOVE, options.initial, options.tol)

        def solve(pairs, now):
            H, K, explore = now
            found = tracker.solve(
                LocalModel(jnp.zeros((), H.dtype), jnp.zeros(len(H), H.dtype), lambda v: H @ v, 0),
                lx.DiagonalLinearOperator(K) if diagonal else lx.MatrixLinearOperator(K),
                pairs,
                explore=explore,
                exact_above=options.exact_above,
                oscillating=options.oscillating,
                ahead=options.ahead,
            )
            return found, (found, tracker.overflows(found))

        start = unsolved(*empty.shape, empty.dtype, key)
        return jax.lax.scan(solve, start, (H, K, options.explore))[1]

    return jax.lax.map(follow, (H, K, options, keys))


def follow(stories: list[Story], options: Options, dtype: str, diagonal: bool):
    """Eigenpairs of every solve of every story, and whether there was too little room."""
    H, K = (np.stack([s[i] for s in stories]).astype(dtype) for i in range(2))
    K = np.diagonal(K, axis1=2, axis2=3) if diagonal else K
    keys = jax.vmap(lambda i: jr.fold_in(jr.key(0), i))(jnp.arange(len(stories)))
    empty = jnp.zeros((H.shape[-1], COLUMNS), dtype)
    return jax.tree.map(np.asarray, _follow(H, K, options, keys, empty))


def solves(gain: str, d: int, dtype: str, count: int):
    """All solves of so many stories: kind, number, and what is wrong, or why nothing is claimed."""
    rng = np.random.default_rng(d + count)
    kinds = ("scalar", "diagonal") if gain == "diagonal" else ("general",)
    number = len(KINDS)
    stories = [
        KINDS[i % number](rng, d, COLUMNS, kinds[i // number % len(kinds)]) for i in range(count)
    ]
    options = told(rng, stories, dtype)
    pairs, crowded = follow(stories, options, dtype, gain == "diagonal")
    for i, story in enumerate(stories):
        own = Options(*(o[i] for o in options))
        for j, exact in enumerate(spectra(story)):
            found = jax.tree.map(lambda x, i=i, j=j: x[i, j], pairs)
            loud = "crowded" if crowded[i, j] else "" if found.converged else "unconverged"
            wrong = [] if loud else list(faults(story, j, exact, found, own))
            yield KINDS[i % number].__name__, (i, j), loud, wrong


def faults(story: Story, j: int, exact: np.ndarray, found, options: Options):
    """What does not hold of what a solve says that converged."""
    H, K, n = story.H[j], story.K[j], int(found.active)
    Y, U, theta, residuals = (
        np.float64(x[..., :n]) for x in (found.Y, found.U, found.theta, found.residuals)
    )
    # In the metric of K as many digits are lost as K has decades, in sums over all dimensions; and
    # a hundred roundings, in each of up to a hundred expansions, when bases are made orthogonal.
    relative = (1e4 + len(exact) * np.linalg.cond(K)) * np.finfo(found.Y.dtype).eps
    rounding = relative * np.abs(exact).max()
    reported = residuals * np.maximum(np.abs(theta), LEAST)
    if not np.all(np.abs(U.T @ Y - np.eye(n)) <= relative):
        yield "vectors are not orthonormal"
    defect = H @ U - Y * theta
    if not np.all(np.sqrt(np.sum(defect * (K @ defect), 0)) <= 1.001 * reported + rounding):
        yield "residuals are larger than reported"
    if not np.all(np.min(np.abs(theta[:, None] - exact), 1) <= reported + rounding):
        yield f"{theta} are no eigenvalues"
    if not np.all(theta <= exact[:n] + rounding):
        yield f"{theta} are above the largest eigenvalues {exact[:n]}"
    if _is_known(story, j, options):
        yield from _missed(theta, exact, rounding, options, first=j == 0)


def _is_known(story: Story, j: int, options: Options) -> bool:
    """Whether a solve ought to know all there is: the first one, and after enough exploring."""
    if story.unseen is None or j == 0:
        return True
    return np.sum(options.explore[TURN : j + 1]) > story.unseen


def _missed(theta, exact, rounding, options: Options, first: bool):
    """Eigenvalues that are wanted and not there.

    These are all above the threshold; of those below it a first solve, which starts from as many
    random columns as there are, finds the leading ones, and others keep to the ones they know. A
    mixture of two eigenvectors whose eigenvalues are 2 r apart has a residual of r, so that
    eigenvalues no further apart than twice the tolerance cannot be told from one another.
    """
    tol = float(options.tol)
    watched = max(3 * tol, min(tol**0.5, 1e-3))
    slack = 2 * watched * np.maximum(np.abs(exact), LEAST) + rounding
    wanted = max(np.sum(exact - slack > ABOVE), options.initial if first else 0)
    found = np.concatenate([theta, np.full(len(exact), -np.inf)])[:wanted]
    if not np.all(exact[:wanted] - found <= slack[:wanted]):
        yield f"{theta} lack some of {exact[:wanted]}"


@pytest.mark.parametrize("case", quick(FEW + MANY, *FEW), ids=lambda c: "-".join(map(str, c)))
def test_no_spectrum_is_silently_wrong(case):
    wrong = [(kind, where, what) for kind, where, _, what in solves(*case) if what]
    assert not wrong
