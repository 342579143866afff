"""Fields that several optimizers have, with what they allow and mean."""

from typing import Annotated

from annotated_types import Ge, Lt
from typing_extensions import Doc

Momentum = Annotated[float, Ge(0), Lt(1), Doc("Share of the old momentum that a step keeps.")]
Beta1 = Annotated[float, Ge(0), Lt(1), Doc("Share of the old average of g that a step keeps.")]
Beta2 = Annotated[float, Ge(0), Lt(1), Doc("Share of the old average of g^2 that a step keeps.")]
Eps = Annotated[float, Ge(0), Doc("Keeps what the gradient is divided by away from zero.")]
WeightDecay = Annotated[float, Ge(0), Doc("Decoupled: the step gains -lr weight_decay w.")]
BiasCorrection = Annotated[
    bool, Doc("Averages are divided by 1 - beta^t, which makes up for their start at zero.")
]
