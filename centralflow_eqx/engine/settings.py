"""How flows are integrated and spectra tracked: the one object for both."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Number = float | Float[Array, ""]
Count = int | Int[Array, ""]

_TOLERANCES = {"float64": 1e-6, "float32": 1e-4}


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
    - `tol`: bound on |H u - theta P u|_K / theta of critical eigenpairs; None is 1e-6 in float64
      and 1e-4 in float32. Other tracked eigenpairs need its square root only.
    - `hvp_chunk`: Hessian-vector products taken at once; 0 is what suits the device.

    Once `resolved`, its numbers are arrays: arguments of compiled programs, not constants in them.
    """

    substeps: Count = 4
    critical_above: Number = 1.95
    state_rate: str = eqx.field(static=True, default="exponential")
    restoration: Number | None = None
    max_sharpness: Number = 100.0
    track_above: Number = 1.5
    initial: Count = 1
    tol: Number | None = None
    hvp_chunk: int = eqx.field(static=True, default=0)

    def resolved(self, dtype: jnp.dtype, restoration: float) -> "Settings":
        """With numbers as arrays of `dtype`; `restoration` is that of the state rate."""
        tol = _TOLERANCES[jnp.dtype(dtype).name] if self.tol is None else self.tol

        def number(x: Number | None) -> Float[Array, ""]:
            return jnp.asarray(x, dtype)

        return Settings(
            substeps=jnp.asarray(self.substeps, jnp.int32),
            critical_above=number(self.critical_above),
            state_rate=self.state_rate,
            restoration=number(restoration if self.restoration is None else self.restoration),
            max_sharpness=number(self.max_sharpness),
            track_above=number(self.track_above),
            initial=jnp.asarray(self.initial, jnp.int32),
            tol=number(tol),
            hvp_chunk=self.hvp_chunk,
        )

    @property
    def dt(self) -> Float[Array, ""]:
        """Length of a substep, in optimizer steps, of resolved settings."""
        return 1 / jnp.asarray(self.substeps).astype(jnp.asarray(self.tol).dtype)
