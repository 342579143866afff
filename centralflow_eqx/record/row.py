"""A recorded step."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float


class Row(NamedTuple):
    """What one recorded step showed.

    `series` by process and name, `comparisons` between processes, the weights `[d]` of each
    process on device, and for processes that go no further the reason.
    """

    step: int
    series: dict[str, dict[str, np.ndarray]]
    comparisons: dict[str, float]
    weights: dict[str, Float[Array, " d"]]
    stops: dict[str, str]
