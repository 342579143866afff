"""An instrument for training loops of one's own: where their edge of stability is."""

from ._advice import Advice, Forecast
from ._measurement import Measurement
from ._monitor import Monitor

__all__ = ["Advice", "Forecast", "Measurement", "Monitor"]
