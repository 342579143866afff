"""An edge flow: the centre on the symmetrised loss, a direction, and how far it oscillates."""

from typing import ClassVar

from ._base import Setting
from ._registry import PROCESSES
from ._rods import AbstractRodFlow


@PROCESSES.register("edge")
class Edge(AbstractRodFlow):
    """The flow on the average of the loss at two ends, which move apart as the centre is too sharp.

    Their direction follows the flow of the Rayleigh quotient, and their distance grows as the
    optimizer's linear response at the centre says: at the rate theta - 2 for gradient descent with
    effective eigenvalue theta. After the edge flow of Marion (arXiv 2606.18080), whose equations
    may have other coefficients.
    """

    setting: Setting
    oscillates: ClassVar[bool] = False
    secant: ClassVar[bool] = False
