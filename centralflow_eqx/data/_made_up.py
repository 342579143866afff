"""How much data may be made up: one zero too many should not fill the memory."""

import math

from ..errors import OptionError

MOST_NUMBERS = 2**22
"""In the inputs of a data set, some ten times those that a flow can follow in an hour."""


def check_amount(option: str, *factors: int) -> None:
    """Raise `OptionError` for `option` if the product of these is more than `MOST_NUMBERS`."""
    if math.prod(factors) > MOST_NUMBERS:
        message = f"asks for more than {MOST_NUMBERS} numbers of data, which must be fewer"
        raise OptionError(option, message)
