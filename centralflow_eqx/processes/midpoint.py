"""The optimizer's iterates with their oscillation averaged out."""

from typing import ClassVar

from jaxtyping import Array, Float

from ._base import AbstractObserver, View
from ._registry import PROCESSES


@PROCESSES.register("midpoint")
class Midpoint(AbstractObserver):
    """Midpoints of the optimizer's iterates, (w[t-1] + 2 w[t] + w[t+1]) / 4; the first is w[0].

    The weights average the iterates; the optimizer's state is the one the step at w[t] is taken
    with.
    """

    source: ClassVar[str] = "discrete"

    def place(self, view: View) -> Float[Array, "*rows d"]:
        assert view.middle is not None
        return view.middle
