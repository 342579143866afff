"""No answer of the complementarity solver claims what does not hold, whatever it is asked.

A problem that was not solved, and not proved to be unsolvable either, is loud: `stalled`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _marks import quick
from _sdcp import KINDS, SOLVABLE, UNSOLVABLE, Known, faults, rescaled

from centralflow_eqx.engine.complementarity import RESULTS, solve_complementarity

OUTCOMES = ("solved", "no_solution", "stalled")
FEW = ((1, 110), (3, 110))
# Problems of k directions: fewer where each takes long.
NUMBERS = {8: 1000, 12: 350, 16: 90, 20: 40, 24: 20}
MANY = tuple((k, next(n for most, n in NUMBERS.items() if k <= most)) for k in range(1, 25))
assert sum(n for _, n in MANY) == 10_000


@jax.jit
def _solve(alphas, betas):
    """Solutions with the fallback and without it, and their outcomes."""

    def one(problem):
        answers = [solve_complementarity(*problem, fallback=fallback) for fallback in (True, False)]
        flags = [[s.result == getattr(RESULTS, o) for o in OUTCOMES] for s in answers]
        return answers, jnp.asarray(flags)

    return jax.lax.map(one, (alphas, betas))


def problems(k: int, number: int) -> list[Known]:
    """So many problems of all kinds by turns, in units of their own."""
    rng = np.random.default_rng([k, number])
    kinds = (KINDS[i % len(KINDS)] for i in range(number))
    return [rescaled(kind(rng, k), *10 ** rng.uniform(-100, 100, 2)) for kind in kinds]


def answers(asked: list[Known]):
    """Outcome and faults of the answer to every problem, with the fallback and without it."""
    alphas, betas = (jnp.asarray(np.stack([q[i] for q in asked])) for i in range(2))
    solutions, flags = jax.tree.map(np.asarray, _solve(alphas, betas))
    for i, known in enumerate(asked):
        outcomes = [OUTCOMES[j] for j in np.argmax(flags[i], axis=1)]
        found = [
            faults(known, s.X[i], s.Z[i], s.residual[i], outcome)
            for s, outcome in zip(solutions, outcomes, strict=True)
        ]
        yield outcomes, found


@pytest.mark.parametrize("case", quick(FEW + MANY, *FEW), ids="{0[0]}-{0[1]}".format)
def test_no_answer_claims_what_does_not_hold(case):
    (k, number), stalled = case, 0
    for i, (outcomes, found) in enumerate(answers(problems(k, number))):
        kind = KINDS[i % len(KINDS)]
        assert found == [[], []], (kind.__name__, i)
        # With the fallback what has a solution is solved,
        assert kind not in SOLVABLE or outcomes[0] == "solved", (kind.__name__, i)
        # and of what has a ray nothing is solved, and hardly anything left without a proof.
        assert kind not in UNSOLVABLE or "solved" not in outcomes, (kind.__name__, i)
        stalled += kind in UNSOLVABLE and outcomes[0] == "stalled"
    assert stalled <= number / 100


SIZES = np.array([-300, -295, -280, -200, -160, 0, 160, 200, 280, 307])


def test_what_float64_cannot_hold_is_not_solved():
    """Squares of the larger and smaller of these sizes, and some X, are beyond its range."""
    rng = np.random.default_rng(0)
    plain = [KINDS[i % len(SOLVABLE)](rng, 3) for i in range(len(SIZES) ** 2)]
    sizes = [(a, b) for a in SIZES for b in SIZES]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        asked = [
            q._replace(alpha=q.alpha * 10.0**a, beta=q.beta * 10.0**b, X=None)
            for q, (a, b) in zip(plain, sizes, strict=True)
        ]
    for (a, b), (outcomes, found) in zip(sizes, answers(asked), strict=True):
        assert found == [[], []], (a, b)
        if max(abs(a), abs(b), abs(a - b)) <= 280:
            assert outcomes[0] == "solved", (a, b)
