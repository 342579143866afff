"""Symmetric matrices as vectors, and their positive and negative parts."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def pairs(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the lower triangle of a k x k matrix, row by row.

    The first n(n+1)/2 pairs are those of the leading n x n block, so that padding k appends.
    """
    return np.tril_indices(k)


def svec(A: Float[Array, "*b k k"]) -> Float[Array, "*b p"]:
    """Coordinates of symmetric matrices in which <A, B> = tr(A B) is the dot product.

    The p = k(k+1)/2 entries follow `pairs`; off-diagonal ones are multiplied by sqrt(2).
    """
    rows, cols = pairs(A.shape[-1])
    return A[..., rows, cols] * np.where(rows == cols, 1.0, np.sqrt(2.0)).astype(A.dtype)


def smat(v: Float[Array, "*b p"], k: int) -> Float[Array, "*b k k"]:
    """The symmetric k x k matrices with coordinates v: the inverse of `svec`."""
    rows, cols = pairs(k)
    position = np.zeros((k, k), dtype=int)
    position[rows, cols] = position[cols, rows] = np.arange(rows.size)
    return v[..., position] * np.where(np.eye(k, dtype=bool), 1.0, np.sqrt(0.5)).astype(v.dtype)


def decompose(A: Float[Array, "n k k"]) -> tuple[Float[Array, "n k"], Float[Array, "n k k"]]:
    """Eigenvalues and eigenvectors of symmetric matrices, one matrix after the other.

    A batch is shared out among XLA's threads for CPUs by one of them, which waits until all of it
    is done. Where as many batches are due at once as there are threads, they wait for ever.
    """
    return jax.lax.map(jnp.linalg.eigh, A)


@jax.custom_jvp
def split(A: Float[Array, "k k"]) -> tuple[Float[Array, "k k"], Float[Array, "k k"]]:
    """The positive and the negative part: A = X - Z with X, Z >= 0 and X Z = 0.

    Where A is singular, and X only semismooth, the derivative is an element of the generalised
    derivative, the one that treats zero eigenvalues as half positive.
    """
    return _split_spectrum(*jnp.linalg.eigh(A))


@split.defjvp
def _split_jvp(primals, tangents):
    # Daleckii-Krein: in the eigenbasis the derivative of a spectral function multiplies entry
    # (i, j) by the divided difference [f(a) - f(b)]/(a - b). Differentiating eigh would divide by
    # zero at a = b; this form, equal for f = max(., 0), has neither the pole nor cancellation.
    (A,), (dA,) = primals, tangents
    eigenvalues, Q = jnp.linalg.eigh(A)
    total = jnp.abs(eigenvalues)[:, None] + jnp.abs(eigenvalues)[None, :]
    slope = (eigenvalues[:, None] + eigenvalues[None, :]) / jnp.where(total > 0, total, 1.0)
    dX = Q @ (0.5 * (1 + slope) * (Q.T @ dA @ Q)) @ Q.T
    return _split_spectrum(eigenvalues, Q), (dX, dX - dA)


def _split_spectrum(eigenvalues, Q):
    positive, negative = jnp.maximum(eigenvalues, 0), jnp.maximum(-eigenvalues, 0)
    return (Q * positive) @ Q.T, (Q * negative) @ Q.T
