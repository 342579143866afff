"""How flows are integrated and spectra tracked: the one object for both."""

from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Settings(eqx.Module):
    """Settings of flows and of the eigensolver; a spec has them under `flow`, `eigen`, `memory`.

    - `substeps`: Euler steps of a central flow per optimizer step.
    - `critical_above`: effective eigenvalue from which a direction may oscillate.
    - `state_rate`: how the optimizer's state moves through a fraction of a step, "exponential" or
      "backward".
    - `restoration`: rate, per optimizer step, at which a central flow that starts unstable is made
      stable; None is that of the state rate.
    - `max_sharpness`: effective eigenvalue at which a stable flow gives up.
    - `track_above`: effective eigenvalues above it are tracked, with one guard below it;
      `initial` is the least number of tracked directions.
    - `tol`: bound on |H u - theta P u|_K / theta of critical eigenpairs: 1e-4 changed the
      reference problems' trajectories by up to 2e-6 of their length, a thousandth of what a substep
      does. Other tracked eigenpairs need the square root or 1e-3 only, which is 1e-6 of their
      eigenvalues.
    - `hvp_chunk`: Hessian-vector products taken at once; 0 is what suits the device.
    """

    substeps: int = 4
    critical_above: float = 1.95
    state_rate: Literal["exponential", "backward"] = "exponential"
    restoration: float | None = None
    max_sharpness: float = 100.0
    track_above: float = 1.5
    initial: int = 1
    tol: float = 1e-4
    hvp_chunk: int = 0

    def resolved(self, dtype: Any, restoration: float) -> "Resolved":
        """With numbers as arrays of `dtype`; `restoration` is that of the state rate."""

        def number(x: float) -> Float[Array, ""]:
            return jnp.asarray(x, dtype)

        return Resolved(
            substeps=jnp.asarray(self.substeps, jnp.int32),
            critical_above=number(self.critical_above),
            restoration=number(restoration if self.restoration is None else self.restoration),
            max_sharpness=number(self.max_sharpness),
            track_above=number(self.track_above),
            initial=jnp.asarray(self.initial, jnp.int32),
            tol=number(self.tol),
            hvp_chunk=self.hvp_chunk,
        )


class Resolved(eqx.Module):
    """`Settings` with every default filled in; its numbers are arguments of compiled programs."""

    substeps: Int[Array, ""]
    critical_above: Float[Array, ""]
    restoration: Float[Array, ""]
    max_sharpness: Float[Array, ""]
    track_above: Float[Array, ""]
    initial: Int[Array, ""]
    tol: Float[Array, ""]
    hvp_chunk: int = eqx.field(static=True)

    @property
    def dt(self) -> Float[Array, ""]:
        """Length of a substep, in optimizer steps."""
        return 1 / self.substeps.astype(self.tol.dtype)
