"""The benchmark's own parts, and that `python -m benchmarks` measures what it says."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse.linalg import lobpcg_standard

from benchmarks.baseline import ConicSolver, lobpcg_products, lobpcg_tolerance
from benchmarks.convergence import order
from benchmarks.measure import Compilations
from centralflow_eqx.engine.complementarity import smat, solve_complementarity, svec

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("k", [1, 4])
def test_products_are_those_that_lobpcg_spends(k):
    n, columns = 60, []
    diagonal = jnp.arange(1.0, n + 1)

    def product(V):
        jax.debug.callback(lambda V: columns.append(V.shape[1]), V)
        return diagonal[:, None] * V

    X = jax.random.normal(jax.random.key(0), (n, k))
    tol = lobpcg_tolerance(1e-6, n)
    values, vectors, iterations = lobpcg_standard(product, X, tol=tol)
    jax.effects_barrier()
    # The callback keeps a check of shapes alive, of one column, that is dead code without it.
    assert sum(columns) - 1 == lobpcg_products(k, int(iterations))
    residuals = np.linalg.norm(diagonal[:, None] * vectors - vectors * values, axis=0)
    assert np.all(residuals < 1.01e-6 * values)


def test_conic_solver_agrees_with_the_package():
    rng = np.random.default_rng(0)
    factor, conic = rng.normal(size=(6, 10)), ConicSolver(3)
    for _ in range(3):
        alpha = 1e-3 * smat(jnp.asarray(rng.normal(size=6)), 3)
        beta = factor @ factor.T
        expected = svec(solve_complementarity(alpha, jnp.asarray(beta)).X)
        assert np.linalg.norm(expected) > 0
        x = conic.solve(np.asarray(svec(alpha)), beta)
        np.testing.assert_allclose(x, expected, atol=1e-4 * np.linalg.norm(expected))


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_order_is_recovered_from_errors_against_a_reference_with_an_error(p):
    def error(n):
        return n**-p - 32**-p

    assert order(4, 8, 32, error(4) / error(8)) == pytest.approx(p, abs=1e-8)


def test_compilations_are_counted():
    double = jax.jit(lambda x: 2 * x)
    x = np.ones(3)
    with Compilations() as first:
        double(x)
    with Compilations() as again:
        double(x)
    assert (first.count, again.count) == (1, 0)


@pytest.mark.slow
def test_quick_run(tmp_path):
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", str(path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    results = json.loads(path.read_text())
    cost, convergence = results["cost"], results["convergence"]
    rows = {row["name"]: row for row in cost["rows"]}
    names = ["optimizer alone", "discrete", "midpoint", "stable", "central", "off the shelf"]
    assert list(rows) == names

    for name, row in rows.items():
        assert f"| {name} |" in run.stdout
        assert row["compilations"] == 0 < row["warm_up_compilations"]
        assert row["over_central"] == pytest.approx(
            row["milliseconds"] / rows["central"]["milliseconds"]
        )
    # Both integrate the same flow: they differ by what the eigensolvers' tolerances allow.
    assert 0 < rows["off the shelf"]["difference_from_central"] < 1e-4
    # A substep takes none while its leading direction is not critical.
    assert rows["off the shelf"]["third_derivatives"] > rows["central"]["third_derivatives"] > 0
    assert rows["off the shelf"]["hvps"] > 2 * rows["central"]["hvps"] >= 2 * 16
    assert rows["central"]["gradients"] == rows["off the shelf"]["gradients"] == 4

    assert sum(cost["floor"]["critical_directions"].values()) == cost["steps"]
    assert cost["floor"]["central_over_floor"] > 1
    errors = [row["error"] for row in convergence["rows"]]
    assert errors[0] > errors[1] > 0
    assert 0.5 < convergence["rows"][1]["order"] < 1.6
