"""How flows are integrated and spectra tracked: the one object for both."""

import math
from typing import Any, Literal, get_args

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Method = Literal["adaptive", "midstep", "euler"]
METHODS: tuple[Method, ...] = get_args(Method)
STEP_LENGTHS = tuple(2.0**n for n in range(-3, 5))
"""What `Settings.max_step` may be."""


class Settings(eqx.Module):
    """Settings of flows and of the eigensolver; a spec has them under `flow`, `eigen`, `memory`.

    - `method`: how central flows step: "adaptive" and "midstep" to second order, with one look at
      eigenvectors and third derivatives a step; "euler" to first order, as in arXiv 2410.24206. A
      state rate of "backward" is Euler's in any case.
    - `step_tol`: error that adaptive steps may make, relative to the distance they move.
    - `max_step`: length in optimizer steps, a power of two from 1/8 to 16, that adaptive steps have
      at most (None: 4) and midsteps all (None: 1).
    - `substeps`: Euler steps of a central flow per optimizer step.
    - `critical_above`: effective eigenvalue from which a direction may oscillate.
    - `state_rate`: how the optimizer's state moves through a fraction of a step, "exponential" or
      "backward".
    - `restoration`: rate, per optimizer step, at which a central flow that starts unstable is made
      stable; None is that of the state rate.
    - `max_sharpness`: effective eigenvalue at which a stable flow gives up.
    - `track_above`: effective eigenvalues above it are tracked, with one guard below it;
      `initial` is the least number of tracked directions.
    - `tol`: bound on |H u - theta P u|_K / theta of critical eigenpairs; None: half of `step_tol`,
      and 1e-4 for Euler's method, which changed the reference problems' trajectories by up to 2e-6
      of their length, a thousandth of what a substep does. Steps of second order tighten it where
      loss and oscillation push against each other. Of other tracked eigenpairs only eigenvalues are
      used, which are accurate to the square: they need 1e-3, or three times `tol` if that is more.
    - `rods`: of a rod or an edge flow, which begin with a direction for each: so many are tracked.
    - `hvp_chunk`: Hessian-vector products taken at once; 0 is what suits the device.
    """

    method: Method = "adaptive"
    step_tol: float = 1e-3
    max_step: float | None = None
    substeps: int = 4
    critical_above: float = 1.95
    state_rate: Literal["exponential", "backward"] = "exponential"
    restoration: float | None = None
    max_sharpness: float = 100.0
    track_above: float = 1.5
    initial: int = 1
    tol: float | None = None
    rods: int = 1
    hvp_chunk: int = 0

    @property
    def stepping(self) -> Method:
        """The method that is used."""
        return "euler" if self.state_rate == "backward" else self.method

    @property
    def residual(self) -> float:
        """The tolerance of critical eigenpairs."""
        if self.tol is not None:
            return self.tol
        return 1e-4 if self.stepping == "euler" else 0.5 * self.step_tol

    @property
    def longest(self) -> float:
        """The most optimizer steps that a step takes."""
        if self.max_step is not None:
            return self.max_step
        return 4.0 if self.stepping == "adaptive" else 1.0

    def resolved(self, dtype: Any, restoration: float) -> "Resolved":
        """With numbers as arrays of `dtype`; `restoration` is that of the state rate."""

        def number(x: float) -> Float[Array, ""]:
            return jnp.asarray(x, dtype)

        return Resolved(
            stepping=self.stepping,
            rows=max(1, math.ceil(self.longest)),
            step_tol=number(self.step_tol),
            longest=number(self.longest),
            substeps=jnp.asarray(self.substeps, jnp.int32),
            critical_above=number(self.critical_above),
            restoration=number(restoration if self.restoration is None else self.restoration),
            max_sharpness=number(self.max_sharpness),
            track_above=number(self.track_above),
            initial=jnp.asarray(max(self.initial, self.rods), jnp.int32),
            tol=number(self.residual),
            rods=self.rods,
            hvp_chunk=self.hvp_chunk,
        )


class Resolved(eqx.Module):
    """`Settings` with every default filled in; its numbers are arguments of compiled programs.

    `rows` are the whole optimizer steps that a step may take.
    """

    stepping: Method = eqx.field(static=True)
    rows: int = eqx.field(static=True)
    step_tol: Float[Array, ""]
    longest: Float[Array, ""]
    substeps: Int[Array, ""]
    critical_above: Float[Array, ""]
    restoration: Float[Array, ""]
    max_sharpness: Float[Array, ""]
    track_above: Float[Array, ""]
    initial: Int[Array, ""]
    tol: Float[Array, ""]
    rods: int = eqx.field(static=True)
    hvp_chunk: int = eqx.field(static=True)

    @property
    def dt(self) -> Float[Array, ""]:
        """Length of a substep, in optimizer steps."""
        return 1 / self.substeps.astype(self.tol.dtype)
