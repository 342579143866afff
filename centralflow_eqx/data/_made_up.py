"""How much data there may be: one zero too many should be told, and not fill the memory."""

import math

from ..errors import OptionError

MOST_MADE_UP = 2**22
"""Numbers in the inputs of a data set that is made up, which `validate` waits for."""
MOST_READ = 2**28
"""Numbers that files may become."""


def check_amount(option: str, *factors: int, most: int = MOST_MADE_UP) -> None:
    """Raise `OptionError` for `option` if the product of these is more than `most`."""
    if math.prod(factors) > most:
        message = f"asks for more than {most} numbers of data, which must be fewer"
        raise OptionError(option, message)
