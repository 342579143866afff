"""Sequences of tokens whose beginning determines the rest."""

import numpy as np
from jaxtyping import Int

from ..errors import OptionError
from ._base import Dataset


def distinct(
    rng: np.random.Generator, number: int, length: int, symbols: int
) -> Int[np.ndarray, "number length"]:
    """Different sequences of the symbols 0 to `symbols - 1`, all equally likely.

    Raises `OptionError` for the option `n` if there are not so many.
    """
    there = symbols ** min(length, 64)  # more than anybody wants, and no number of a million digits
    if number > there:
        message = f"n + test_n must be <= vocabulary^length = {there}, got {number}"
        raise OptionError("n", message)
    drawn = np.empty((0, length), np.int64)
    while len(drawn) < number:
        more = rng.integers(symbols, size=(number, length))
        drawn = np.concatenate([drawn, more])
        first = np.unique(drawn, axis=0, return_index=True)[1]
        drawn = drawn[np.sort(first)]
    return drawn[:number]


def completions(
    sequences: Int[np.ndarray, "m length"], given: int, n: int, vocabulary: int
) -> Dataset:
    """Prediction of every next token after the first `given`; the first `n` sequences train.

    The inputs are all tokens but the last. The label of a position is the token after it, or -1
    where that is one of the given ones.
    """
    inputs, labels = sequences[:, :-1], sequences[:, 1:].copy()
    labels[:, : given - 1] = -1
    test = (inputs[n:], labels[n:]) if n < len(sequences) else (None, None)
    return Dataset(inputs[:n], labels[:n], *test, vocabulary, vocabulary)
