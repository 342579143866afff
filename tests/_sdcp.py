"""Complementarity problems with known answers, and what a solver claims of them, judged in NumPy.

Nothing here leans on the code under test.
"""

from typing import NamedTuple

import numpy as np

SPECTRA = ("well", "spread", "singular", "rank one")
ASYMMETRIES = ("none", "skew", "slight")


def np_svec(A):
    """Written out entry by entry, so as not to lean on the code under test."""
    return np.array(
        [A[i, j] * (1 if i == j else 2**0.5) for i in range(len(A)) for j in range(i + 1)]
    )


def np_smat(v, k):
    A = np.zeros((k, k))
    entries = iter(v)
    for i in range(k):
        for j in range(i + 1):
            A[i, j] = A[j, i] = next(entries) / (1 if i == j else 2**0.5)
    return A


def violation(alpha, beta, X):
    """The documented residual, computed without the package."""
    image = np_smat(beta @ np_svec(X), len(alpha))
    Z = alpha + image
    size_x, size_z = np.linalg.norm(X), np.linalg.norm(alpha) + np.linalg.norm(image)
    return max(
        -np.linalg.eigvalsh(X)[0] / (size_x or 1),
        -np.linalg.eigvalsh(Z)[0] / (size_z or 1),
        abs(np.sum(X * Z)) / (size_x * size_z or 1),
    )


def orthogonal(rng, n):
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


def monotone(rng, p, spectrum, asymmetry):
    sizes = {
        "well": rng.uniform(0.1, 1, p),
        "spread": 10 ** rng.uniform(-6, 0, p),
        "singular": rng.uniform(0.1, 1, p) * (rng.uniform(size=p) < 0.5),
        "rank one": np.eye(p)[0],
    }[spectrum]
    Q = orthogonal(rng, p)
    beta = (Q * sizes) @ Q.T
    noise = rng.normal(size=(p, p)) / np.sqrt(p)
    if asymmetry == "skew":
        return beta + 0.3 * (noise - noise.T)
    if asymmetry == "slight" and spectrum == "well":  # else it would not stay monotone
        return beta + 0.02 * noise
    return beta


def complementary_pair(rng, k, rank_x, rank_z):
    Q = orthogonal(rng, k)
    x, z = np.zeros(k), np.zeros(k)
    x[:rank_x] = 10 ** rng.uniform(-1, 1, rank_x)
    z[rank_x : rank_x + rank_z] = 10 ** rng.uniform(-1, 0, rank_z)
    return (Q * x) @ Q.T, (Q * z) @ Q.T


def random_scales(rng, alpha, beta):
    return alpha * 10 ** rng.uniform(-8, 8), beta * 10 ** rng.uniform(-8, 8)


def solvable(rng, k, index):
    """alpha = Z* - beta[X*]; the index runs through ranks, degeneracy and kinds of beta."""
    rank_x = index % (k + 1)
    degenerate = index // (k + 1) % 2
    rank_z = rng.integers(0, k - rank_x) if degenerate and rank_x < k else k - rank_x
    X, Z = complementary_pair(rng, k, rank_x, rank_z)
    beta = monotone(rng, k * (k + 1) // 2, rng.choice(SPECTRA), rng.choice(ASYMMETRIES))
    return random_scales(rng, Z - np_smat(beta @ np_svec(X), k), beta)


def unsolvable(rng, k, index):
    """A ray Y >= 0 of rank 1 to k with beta[Y] = beta^T[Y] = 0 and <alpha, Y> < 0."""
    p = k * (k + 1) // 2
    y = np_svec(complementary_pair(rng, k, 1 + index % k, 0)[0])
    y /= np.linalg.norm(y)
    across = np.eye(p) - np.outer(y, y)
    beta = across @ monotone(rng, p, rng.choice(SPECTRA), rng.choice(ASYMMETRIES)) @ across
    side = across @ rng.normal(size=p)
    side /= max(np.linalg.norm(side), 1e-6)
    return random_scales(rng, np_smat(side - 10 ** rng.uniform(-2, 0) * y, k), beta)


def congruent(rng, alpha, beta, decades):
    """The same problem in coordinates X = T X' T^T whose lengths differ by orders of magnitude."""
    k = len(alpha)
    T = np.diag(10 ** rng.uniform(-decades, 0, k)) @ orthogonal(rng, k)
    basis = np.eye(len(beta))
    E = np.stack([np_svec(T @ np_smat(v, k) @ T.T) for v in basis], axis=1)
    return T.T @ alpha @ T, E.T @ beta @ E, T


class Known(NamedTuple):
    """A problem with a solution `X`, or with a ray `Y` that proves that it has none.

    The ray is Y >= 0 with beta^T[Y] <= 0 and <alpha, Y> < 0: of every solution
    0 <= <Y, Z> = <alpha, Y> + <beta^T[Y], X> < 0 would hold. Where both are None nothing is known.
    """

    alpha: np.ndarray
    beta: np.ndarray
    X: np.ndarray | None = None
    Y: np.ndarray | None = None


def _with_solution(X, Z, beta):
    return Known(Z - np_smat(beta @ np_svec(X), len(X)), beta, X)


def regular(rng, k):
    """Strict complementarity, and a strongly monotone beta: one solution, and Newton's own case."""
    rank = rng.integers(0, k + 1)
    beta = monotone(rng, k * (k + 1) // 2, "well", rng.choice(ASYMMETRIES))
    return _with_solution(*complementary_pair(rng, k, rank, k - rank), beta)


def degenerate(rng, k):
    """X and Z share directions in which both vanish."""
    rank_x = rng.integers(0, k)
    beta = monotone(rng, k * (k + 1) // 2, "well", rng.choice(ASYMMETRIES))
    return _with_solution(*complementary_pair(rng, k, rank_x, rng.integers(0, k - rank_x)), beta)


def singular(rng, k):
    """A beta that maps many matrices to zero, or nearly: many solutions, degenerate ones too."""
    rank_x = rng.integers(0, k + 1)
    rank_z = rng.integers(0, k - rank_x + 1)
    beta = monotone(rng, k * (k + 1) // 2, rng.choice(SPECTRA[1:]), rng.choice(ASYMMETRIES))
    return _with_solution(*complementary_pair(rng, k, rank_x, rank_z), beta)


def badly_scaled(rng, k):
    """Coordinates whose lengths differ by orders of magnitude."""
    rank = rng.integers(0, k + 1)
    X, Z = complementary_pair(rng, k, rank, k - rank)
    plain = _with_solution(X, Z, monotone(rng, k * (k + 1) // 2, "well", "none"))
    alpha, beta, T = congruent(rng, plain.alpha, plain.beta, decades=2)
    inverse = np.linalg.inv(T)
    return Known(alpha, beta, inverse @ X @ inverse.T)


def facial(rng, k):
    """alpha and beta vanish on a direction, so that no Z is positive definite."""
    edge = np.diag(np.arange(k) > 0).astype(float)
    E = np.stack([np_svec(edge @ np_smat(v, k) @ edge) for v in np.eye(k * (k + 1) // 2)], axis=1)
    beta = E @ monotone(rng, len(E), "well", "none") @ E
    return _with_solution(complementary_pair(rng, k, rng.integers(0, k + 1), 0)[0], 0 * edge, beta)


def idle(rng, k):
    """Nothing oscillates, whether or not X would be answered."""
    Z = complementary_pair(rng, k, 0, rng.integers(0, k + 1))[1]
    beta = monotone(rng, k * (k + 1) // 2, rng.choice(SPECTRA), rng.choice(ASYMMETRIES))
    return _with_solution(np.zeros((k, k)), Z, beta * rng.integers(0, 2))


def with_ray(rng, k):
    """A ray that beta does not answer at all; alpha falls along it by 0.01 of its size or more."""
    return _along_ray(rng, k, fall=10 ** rng.uniform(-2, 0), opposed=False)


def with_opposed_ray(rng, k):
    """A ray that beta answers by a margin across it: the further X goes, the larger is Z."""
    return _along_ray(rng, k, fall=10 ** rng.uniform(-2, 0), opposed=k > 1)


def with_slight_ray(rng, k):
    """alpha falls along the ray by as little as a millionth of its size."""
    return _along_ray(rng, k, fall=10 ** rng.uniform(-6, -2), opposed=k > 1 and rng.random() < 0.5)


def _along_ray(rng, k, fall, opposed):
    p = k * (k + 1) // 2
    rank = rng.integers(1, k + (not opposed))
    Y, W = complementary_pair(rng, k, rank, k - rank)
    y, w = np_svec(Y) / np.linalg.norm(Y), np_svec(W) / (np.linalg.norm(W) or 1)
    across = np.eye(p) - np.outer(y, y)
    beta = across @ monotone(rng, p, rng.choice(SPECTRA), rng.choice(ASYMMETRIES)) @ across
    if opposed:  # beta[Y] = W >= 0, beta^T[Y] = -W
        beta += 10 ** rng.uniform(-3, 0) * (np.outer(w, y) - np.outer(y, w))
    side = across @ rng.normal(size=p)
    side /= max(np.linalg.norm(side), 1e-6)
    return Known(np_smat(side - fall * y, k), beta, Y=np_smat(y, k))


def on_the_verge(rng, k):
    """No solution and no ray: Z = [[x, 1], [1, 0]] is as little negative as one likes."""
    p = k * (k + 1) // 2
    T = orthogonal(rng, k)
    E = np.stack([np_svec(T @ np_smat(v, k) @ T.T) for v in np.eye(p)], axis=1)
    alpha = np.diag(np.arange(k) > 1).astype(float)
    alpha[0, -1] = alpha[-1, 0] = 1.0
    alpha[-1, -1] = 0.0 if k > 1 else 1.0
    beta = np.zeros((p, p))
    beta[0, 0] = 1.0
    return Known(T @ alpha @ T.T, E @ beta @ E.T)


def not_monotone(rng, k):
    """Any matrix whatever, of which nothing is known."""
    p = k * (k + 1) // 2
    A = rng.normal(size=(k, k))
    return Known(A + A.T, rng.normal(size=(p, p)))


SOLVABLE = (regular, degenerate, singular, badly_scaled, facial, idle)
UNSOLVABLE = (with_ray, with_opposed_ray)
UNCERTAIN = (with_slight_ray, on_the_verge, not_monotone)  # any answer will do that is honest
KINDS = SOLVABLE + UNSOLVABLE + UNCERTAIN


def rescaled(known: Known, size_alpha: float, size_beta: float) -> Known:
    """The problem in other units."""
    X = None if known.X is None else known.X * (size_alpha / size_beta)
    return known._replace(alpha=known.alpha * size_alpha, beta=known.beta * size_beta, X=X)


_EPSILON = float(np.finfo(np.float64).eps)
_LARGEST = 1e8  # documented: the largest trace of a solution, in natural units


class _Judged(NamedTuple):
    """A problem in units in which |alpha| = |beta| = 1, and what an X is in these units.

    `beyond` is the documented residual of X. With long doubles neither units overflow nor are there
    errors as large as those of the code under test, of which `rounding` is a bound: an entry of
    beta[X] takes p products.
    """

    alpha: np.ndarray
    beta: np.ndarray
    x: np.ndarray
    z: np.ndarray
    size_z: float
    beyond: float
    rounding: float

    @classmethod
    def of(cls, alpha: np.ndarray, beta: np.ndarray, X: np.ndarray) -> "_Judged":
        k, (alpha, beta) = len(X), (np.longdouble(A) for A in (np_svec(alpha), beta))
        a, b = _size(alpha) or 1, _size(beta) or 1
        alpha, beta, x = alpha / a, beta / b, np.longdouble(np_svec(X)) * (b / a)
        image = beta @ x
        z, size_x, size_z = alpha + image, _size(x), _size(alpha) + _size(image)
        beyond = max(
            -_lowest(x / (size_x or 1), k),
            -_lowest(z / (size_z or 1), k),
            abs(x @ z) / (size_x * size_z or 1),
        )
        rounding = _EPSILON * (k + len(x) * size_x)
        return cls(alpha, beta, x, z, size_z, float(beyond), float(rounding))


def _size(v):
    return np.sqrt(np.sum(v * v))


def _lowest(v, k):
    return np.linalg.eigvalsh(np_smat(v, k))[0]


def faults(known: Known, X, Z, residual, outcome: str, tol: float = 1e-10) -> list[str]:
    """What does not hold of all that an answer claims; one that is "stalled" claims nothing."""
    if outcome == "stalled":
        return []
    if not (np.all(np.isfinite(X)) and np.all(np.isfinite(Z))):
        return ["not finite"]
    now = _Judged.of(known.alpha, known.beta, X)
    if outcome == "no_solution":
        return list(_false_proof(known, now))
    return list(_false_solution(known, now, Z, residual, tol))


def _false_solution(known: Known, now: _Judged, Z, residual, tol):
    if not (residual <= tol and now.beyond <= tol + now.rounding):
        yield f"a violation of {now.beyond:.1e} where {residual:.1e} is reported"
    trace = _trace(now.x, len(Z))
    if not trace <= (1 + len(Z) * _EPSILON) * _LARGEST:
        yield f"a trace of {trace:.1e}"
    unit = _size(np.longdouble(np_svec(known.alpha))) or 1
    off = _size(np.longdouble(np_svec(Z)) / unit - now.z)
    if not off <= now.rounding:
        yield f"a margin that is wrong by {off:.1e}"
    if known.Y is not None:
        yield from _refuted(known.Y, now, tol)
    if known.X is not None:
        yield from _far_off(known, now, tol)


def _refuted(Y, now: _Judged, tol):
    """<Y, Z> <= <alpha, Y>, so that Z is as negative as that."""
    y = np_svec(Y) / np.linalg.norm(Y)
    fall, least = -now.alpha @ y, tol * now.size_z * _trace(y, len(Y))
    if fall > least + now.rounding:
        yield f"a ray along which alpha falls by {fall:.1e}"


def _far_off(known: Known, now: _Judged, tol):
    """<X - X*, beta[X - X*]> = <X, Z> - <X, Z*> - <X*, Z>, each of which the violation bounds."""
    k, best = len(known.X), _Judged.of(known.alpha, known.beta, known.X)
    sizes = _size(now.x), _size(best.x)
    bound = sizes[0] * (now.size_z + _trace(best.z, k)) + now.size_z * _trace(best.x, k)
    bound *= max(now.beyond, tol)
    # The known solution is one to rounding, of which every product may have as much.
    bound += (now.rounding + best.rounding) * sum(sizes) * max(now.size_z, best.size_z)
    apart = now.x - best.x
    if not apart @ now.beta @ apart <= bound:
        yield f"a distance of {apart @ now.beta @ apart:.1e} from the solution"


def _false_proof(known: Known, now: _Judged):
    """X must be nearly a ray: then every solution has the least trace that is documented."""
    k, y = len(known.alpha), now.x / (_size(now.x) or 1)
    if known.X is not None:
        trace = _trace(_Judged.of(known.alpha, known.beta, known.X).x, k)
        if trace < _LARGEST:
            yield f"no solution although there is one of trace {trace:.1e}"
    # Where every product is rounded beta[Y] is known to p roundings at best.
    rise = -_lowest(-(now.beta.T @ y), k) - len(y) * _EPSILON
    fall = -now.alpha @ y
    if not (fall > 0 and fall > _LARGEST * rise and _lowest(y, k) >= -k * _EPSILON):
        yield f"no proof: alpha falls by {fall:.1e}, and beta rises by {rise:.1e}"


def _trace(v, k):
    return float(np.trace(np_smat(v, k)))
