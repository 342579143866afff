"""What recorded series mean: units, names, axes."""

import importlib.metadata
import platform
from dataclasses import dataclass

from .. import __version__

ZERO_PADDED = ("sigma_eigenvalues", "empirical_variances")
_PACKAGES = ("jax", "jaxlib", "equinox", "diffrax", "lineax", "optimistix", "optax", "numpy")


@dataclass(frozen=True)
class Quantity:
    """What a dataset holds: its unit ("1" for pure numbers) and a name for axis labels."""

    units: str
    long_name: str


QUANTITIES = {
    "step": Quantity("optimizer steps", "optimizer steps after the warm start"),
    "direction": Quantity("1", "index of the direction, largest eigenvalue first"),
    "parameter": Quantity("1", "index into the flat weight vector"),
    "weights": Quantity("weight", "flat weight vector"),
    "weights_step": Quantity("optimizer steps", "steps at which weights are stored"),
    "train_loss": Quantity("loss", "training loss"),
    "test_loss": Quantity("loss", "test loss"),
    "train_accuracy": Quantity("1", "fraction of training examples classified correctly"),
    "test_accuracy": Quantity("1", "fraction of test examples classified correctly"),
    "grad_norm_sq": Quantity("loss^2/weight^2", "squared norm of the training gradient"),
    "eigenvalues": Quantity("1", "eigenvalues of the effective Hessian (critical value 2)"),
    "raw_eigenvalues": Quantity("loss/weight^2", "eigenvalues of the Hessian"),
    "effective_step": Quantity("weight^2/loss", "effective step size"),
    "eigen_residuals": Quantity("1", "relative residuals of the tracked eigenpairs"),
    "raw_eigen_residuals": Quantity("1", "relative residuals of the Hessian's own eigenpairs"),
    "converged": Quantity("1", "1 where all tracked eigenpairs reached their tolerance"),
    "gain_positive": Quantity("1", "0 where the optimizer's gain is negative somewhere"),
    "numerics": Quantity(
        "1",
        "numerical doubts, added up: 1 eigenpairs, 2 complementarity problem, 4 step error, "
        "8 a flow's sharpness, 16 not finite, 32 negative gain",
    ),
    "distance_moved": Quantity("weight", "distance of the weights from where the process began"),
    "hvps": Quantity(
        "1", "Hessian-vector products in the step, without those of the first spectra"
    ),
    "third_derivatives": Quantity("1", "third derivatives of the loss in the step"),
    "gradients": Quantity("1", "gradients of the loss in the step"),
    "step_length": Quantity("optimizer steps", "length of the flow's step, the shortest in a row"),
    "step_error": Quantity("1", "error of the flow's step before, relative to what it moved"),
    "rejected_steps": Quantity("1", "steps of the flow that were taken anew, half as long"),
    "interpolated": Quantity(
        "1", "1 where eigenvalues and oscillation are those of a step that began earlier"
    ),
    "predicted_loss": Quantity("loss", "predicted time average of the training loss"),
    "predicted_grad_norm_sq": Quantity(
        "loss^2/weight^2", "predicted time average of the squared gradient norm"
    ),
    "sigma_eigenvalues": Quantity(
        "loss", "variance of the oscillation along the eigenvectors of Sigma, in the P metric"
    ),
    "empirical_variances": Quantity(
        "loss", "squared displacement of the discrete run along the eigenvectors of Sigma"
    ),
    "critical_directions": Quantity("1", "directions that may oscillate"),
    "sdcp_residual": Quantity("1", "residual of the complementarity problem"),
    "sdcp_iterations": Quantity("1", "iterations spent on the complementarity problem"),
    "trust_cubic": Quantity(
        "1", "fraction by which a move as large as the oscillation changes the eigenvalue"
    ),
    "trust_quartic": Quantity("1", "neglected quartic share of the averaged loss"),
    "trust_response": Quantity("1", "share of the optimizer's step not linear in the gradient"),
    "trust_equilibrium": Quantity(
        "1", "relative difference of the oscillation's measured and predicted variance"
    ),
    "trust_edge": Quantity(
        "1", "distance of the optimizer's largest effective eigenvalue from the flow's, halved"
    ),
    "untrusted": Quantity("1", "1 where the prediction should not be believed"),
    "stabilised_by_state": Quantity(
        "1", "share of the stabilisation by the optimizer's state, the rest is falling curvature"
    ),
    "sharpness_gap": Quantity(
        "1", "how far below 2 the effective eigenvalue is, on average over the oscillation"
    ),
    "gradient_noise": Quantity(
        "loss", "variance of mini-batch gradients along what oscillates, in the P metric"
    ),
    "curvature_noise": Quantity(
        "1", "variance of mini-batch curvatures along what oscillates, of effective eigenvalues"
    ),
    "excess_kurtosis": Quantity(
        "1", "kurtosis of the oscillation beyond a Gaussian's, relative to that, as predicted"
    ),
    "batch_sharpness": Quantity(
        "1", "mean effective curvature of mini-batches along their own steps (critical value 2)"
    ),
    "ensemble_loss": Quantity("loss", "mean training loss of the optimizers side by side"),
    "ensemble_loss_spread": Quantity("loss", "standard deviation of their training losses"),
    "ensemble_grad_norm_sq": Quantity(
        "loss^2/weight^2", "mean squared norm of the training gradient of the optimizers"
    ),
    "ensemble_eigenvalues": Quantity(
        "1", "mean effective eigenvalues of the optimizers (critical value 2)"
    ),
    "ensemble_eigenvalues_spread": Quantity("1", "standard deviation of effective eigenvalues"),
    "ensemble_variances": Quantity(
        "loss", "mean squared displacement of the optimizers from their mean, along eigenvectors"
    ),
    "ensemble_gap": Quantity(
        "1", "how far below 2 the optimizers' effective eigenvalues are, weighted by displacement"
    ),
    "ensemble_distance": Quantity(
        "weight", "root mean squared distance of optimizers from their mean"
    ),
    "rod_lengths": Quantity("weight", "half the length of each rod"),
    "rod_eigenvalues": Quantity("1", "effective eigenvalue along each rod (critical value 2)"),
    "rod_residuals": Quantity("1", "how far each rod is from an eigenvector, relative to it"),
    "coordinate": Quantity("1", "index into the flat weight vector"),
    "grad_sq_at": Quantity("loss^2/weight^2", "squared gradient of chosen weights"),
    "predicted_grad_sq_at": Quantity(
        "loss^2/weight^2", "predicted time average of the squared gradient of chosen weights"
    ),
    "output": Quantity("1", "index of a network output, example by example"),
    "outputs": Quantity("1", "network outputs on chosen examples"),
    "predicted_outputs": Quantity("1", "predicted time averages of network outputs"),
    "stationary/cosine": Quantity(
        "1", "cosine similarity of the optimizer's averages and their stationary values"
    ),
    "stationary/efficacy": Quantity("loss", "g^T P^-1 g of the optimizer's preconditioner P"),
    "stationary/efficacy_stationary": Quantity("loss", "g^T P^-1 g of the stationary P"),
    "stationary/efficacy_stability": Quantity("loss", "g^T P^-1 g of the least stable P"),
    "stationary/efficacy_scalar": Quantity("loss", "g^T P^-1 g of P = S/2, S the sharpness"),
}

# Series of the parts of an optimizer's state, by what stands around the part's name.
_PARTS = {
    ("state/", "_sum"): "sum over the entries of {} in the optimizer's state",
    ("state/", "_at"): "entries of {} in the optimizer's state at chosen weights",
    ("stationary/", "_at"): "stationary values of {} in the optimizer's state at chosen weights",
}


def axis(name: str) -> str:
    """The dimension scale of a series of vectors."""
    if name.endswith("_at"):
        return "coordinate"
    return "output" if name.endswith("outputs") else "direction"


def quantity(name: str) -> Quantity:
    """What the dataset called `name` (without its process) holds."""
    if name in QUANTITIES:
        return QUANTITIES[name]
    if name.startswith("distance/"):
        a, _, b = name.removeprefix("distance/").partition("-")
        return Quantity("weight", f"distance between the weights of {a} and {b}")
    for (start, end), words in _PARTS.items():
        if name.startswith(start) and name.endswith(end):
            part = name.removeprefix(start).removesuffix(end)
            return Quantity("as the optimizer has it", words.format(part))
    return Quantity("unknown", name.replace("/", " ").replace("_", " "))


def versions() -> dict[str, str]:
    """Versions of this package, of what it computes with, and of Python."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"centralflow_eqx": __version__, **found, "python": platform.python_version()}
