"""Hessians and gains that move, as optimizers see them and worse, with the spectra that they have.

A story is a sequence of pencils. Where it turns, nothing that was known need be of use.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from _sdcp import orthogonal

LENGTH = 14
TURN = 3  # the solve before which a story turns, if it does
GAINS = ("scalar", "diagonal", "general")
HIDDEN = 8
"""Exploring solves after which eigenvectors are found that are orthogonal to all that were seen."""


class Story(NamedTuple):
    """Hessians, and gains as matrices.

    `unseen` is how many exploring solves from the turn on may miss what there is then; None: there
    is no turn.
    """

    H: np.ndarray
    K: np.ndarray
    unseen: int | None = None


def gain(rng, d, kind):
    """A gain over two decades."""
    sizes = 10 ** rng.uniform(-1, 1, d)
    if kind == "scalar":
        return sizes[0] * np.eye(d)
    return np.diag(sizes) if kind == "diagonal" else symmetric(sizes, orthogonal(rng, d))


def symmetric(sizes, Q):
    A = (Q * sizes) @ Q.T
    return (A + A.T) / 2


def inverse_root(K):
    k, basis = np.linalg.eigh(K)
    return basis / np.sqrt(k) @ basis.T


def bulk(rng, d, top):
    """A spectrum with these eigenvalues on top, the others from below 1 to well below zero."""
    return np.concatenate([top, rng.uniform(-1, 0.9, d - len(top))])


def slowly(rng, d, Q, angle):
    """The basis Q, turned a little further from step to step."""
    skew = rng.normal(size=(d, d)) / np.sqrt(d)
    step = np.linalg.qr(np.eye(d) + angle * (skew - skew.T))[0]
    for _ in range(LENGTH):
        yield Q
        Q = step @ Q


def tell(rng, d, kind, spectra, angle=1e-3, K=None):
    """A story of these spectra under one gain, in a basis that turns by `angle` at every step."""
    K = gain(rng, d, kind) if K is None else K
    bases = slowly(rng, d, orthogonal(rng, d), angle)
    root = inverse_root(K)  # K^(-1/2) Q diag(s) Q^T K^(-1/2) has the spectrum s with K
    H = np.stack([symmetric(s, root @ Q) for s, Q in zip(spectra, bases, strict=True)])
    return Story(H, np.broadcast_to(K, H.shape))


def clustered(rng, d, m, kind):
    """Eigenvalues from a hundredth to 1e-12 apart, drifting together."""
    width = 10 ** rng.uniform(-12, -2)
    top = rng.uniform(1.9, 2.1) + width * rng.normal(size=rng.integers(2, m))
    moved = np.linspace(0, rng.uniform(-0.2, 0.2), LENGTH)
    rest = bulk(rng, d, top)[len(top) :]
    return tell(rng, d, kind, [np.concatenate([top + move, rest]) for move in moved])


def multiple(rng, d, m, kind):
    """One eigenvalue several times, exactly."""
    spectrum = bulk(rng, d, np.full(rng.integers(2, m), rng.uniform(1.6, 3)))
    return tell(rng, d, kind, [spectrum] * LENGTH, angle=rng.choice([0, 1e-3]))


def crossing(rng, d, m, kind):
    """Eigenvalues that change places, above the threshold; their eigenvectors do not mix."""
    start, end = rng.uniform(1.6, 4, (2, m - 1))
    rest = bulk(rng, d, start)[m - 1 :]
    tops = [(1 - t) * start + t * end for t in np.linspace(0, 1, LENGTH)]
    spectra = [np.concatenate([top, rest]) for top in tops]
    return tell(rng, d, kind, spectra, angle=rng.choice([0, 1e-4]))


def rising(rng, d, m, kind):
    """One eigenvalue comes up from among all the others; its eigenvector has always been one."""
    first = bulk(rng, d, rng.uniform(1.6, 3, rng.integers(0, m - 1)))
    last = first.copy()
    last[-1] = rng.uniform(1.7, 3)
    t = np.clip(np.arange(LENGTH) / TURN, 0, 1)
    spectra = [(1 - a) * first + a * last for a in t]
    return tell(rng, d, kind, spectra, angle=rng.choice([0, 1e-3]))._replace(unseen=HIDDEN)


def exchanged(rng, d, m, kind):
    """The same eigenvectors, but other ones lead from one moment to the next."""
    first = bulk(rng, d, rng.uniform(1.6, 4, rng.integers(0, m)))
    last = bulk(rng, d, rng.uniform(1.6, 4, rng.integers(0, m)))[::-1]
    spectra = [first] * TURN + [last] * (LENGTH - TURN)
    return tell(rng, d, kind, spectra, angle=0)._replace(unseen=HIDDEN)


def jumping(rng, d, m, kind):
    """Another matrix altogether."""
    return joined(*(several(rng, d, m, kind) for _ in range(2)))


def several(rng, d, m, kind, K=None):
    top = rng.uniform(1.6, 4, rng.integers(0, m))
    return tell(rng, d, kind, [bulk(rng, d, top)] * LENGTH, K=K)


def joined(before, after):
    H, K = (
        np.concatenate([a[:TURN], b[TURN:]]) for a, b in zip(before[:2], after[:2], strict=True)
    )
    return Story(H, K, 0)


def regained(rng, d, m, kind):
    """The same Hessian, and from one moment to the next a gain that is a multiple."""
    before = tell(rng, d, kind, [bulk(rng, d, rng.uniform(1.6, 4, m - 1))] * LENGTH, angle=0)
    factor = rng.choice([4.0, 9.0, 2.25, 0.25, 10 ** rng.uniform(-3, 0)])
    if factor > 1:  # from few above the threshold to as many as there is room for
        before = before._replace(K=before.K / factor)
    after = before._replace(K=before.K * factor)
    return joined(before, after)


def negative(rng, d, m, kind):
    """Negative definite."""
    spectrum = -(10 ** rng.uniform(-2, 1, d))
    return tell(rng, d, kind, [spectrum] * LENGTH)


def tiny(rng, d, m, kind):
    """Nearly zero, or zero, and then not."""
    before = several(rng, d, m, kind)
    size = rng.choice([0.0, 10 ** rng.uniform(-14, -3)])
    return joined(before._replace(H=size * before.H), before)


def large(rng, d, m, kind):
    """Far beyond the threshold, with as many below it."""
    top = 10 ** rng.uniform(1, 8, rng.integers(1, m))
    return tell(rng, d, kind, [bulk(rng, d, top)] * LENGTH)


def crowded(rng, d, m, kind):
    """More above the threshold than there is room for, from the turn on or always."""
    spectrum = bulk(rng, d, rng.uniform(1.6, 4, rng.integers(m, m + 4)))
    after = tell(rng, d, kind, [spectrum] * LENGTH)
    return after if rng.random() < 0.5 else joined(several(rng, d, m, kind), after)


def alternating(rng, d, m, kind):
    """Two places by turns."""
    one = several(rng, d, m, kind)
    other = several(rng, d, m, kind, K=one.K[0])
    odd = (np.arange(LENGTH) % 2 == 1)[:, None, None]
    near = one.H + 0.05 * (other.H - one.H)
    return one._replace(H=np.where(odd, near, one.H))


KINDS = (
    clustered,
    multiple,
    crossing,
    rising,
    exchanged,
    jumping,
    regained,
    negative,
    tiny,
    large,
    crowded,
    alternating,
)


def spectra(story: Story) -> np.ndarray:
    """The eigenvalues of every pencil, in descending order, by a dense solver."""
    pairs = zip(story.H, story.K, strict=True)
    return np.stack([scipy.linalg.eigh(H, K, type=2, eigvals_only=True)[::-1] for H, K in pairs])
