"""Preconditioners of convex programs, by an independent conic solver."""

import cvxpy as cp
import numpy as np

_TIGHT = {f"tol_{kind}": 1e-11 for kind in ("gap_abs", "gap_rel", "feas")}


def stationary_average(H, g, lr):
    """(lr P)^2 with min tr P + g^T P^{-1} g / lr^2 over diagonal P with H <= 2 P."""
    # In units of the largest entry of H, Clarabel's absolute tolerances are relative ones.
    unit = np.abs(H).max()
    P = cp.Variable(len(H))
    cost = cp.sum(P) + cp.sum(cp.multiply((g / (lr * unit)) ** 2, cp.inv_pos(P)))
    problem = cp.Problem(cp.Minimize(cost), [2 * cp.diag(P) - H / unit >> 0])
    problem.solve(solver=cp.CLARABEL, **_TIGHT)
    return (lr * unit * P.value) ** 2


def least_stable(H):
    """The diagonal P >= 0 of least trace with H <= 2 P."""
    P = cp.Variable(len(H))
    problem = cp.Problem(cp.Minimize(cp.sum(P)), [2 * cp.diag(P) - H >> 0, P >= 0])
    problem.solve(solver=cp.CLARABEL, **_TIGHT)
    return P.value
