"""Sequences to copy."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from typing_extensions import Doc

from ._base import AbstractData, Dataset
from ._made_up import check_amount
from ._registry import DATASETS
from ._sequences import completions, distinct


@DATASETS.register("copying")
@dataclass(frozen=True)
class Copying(AbstractData):
    """Random symbols, blanks, a delimiter, and a copy, to be predicted token by token."""

    n: Annotated[int, Ge(2), Doc("Training sequences, all different.")] = 1000
    length: Annotated[int, Ge(1), Doc("Symbols to copy.")] = 8
    vocabulary: Annotated[
        int,
        Ge(2),
        Doc("Number of symbols, 0 to vocabulary - 1; then come the delimiter and the blank."),
    ] = 4
    blanks: Annotated[
        int, Ge(0), Doc("Blanks before the delimiter; with 0 the blank is no token.")
    ] = 0
    test_n: Annotated[
        int, Ge(0), Doc("Test sequences, different from the training ones. 0: no test.")
    ] = 1000

    def load(self, seed: int) -> Dataset:
        check_amount("n", self.n + self.test_n, 2 * self.length + self.blanks + 1)
        check_amount("vocabulary", self.vocabulary)
        rng = np.random.default_rng(seed)
        drawn = distinct(rng, self.n + self.test_n, self.length, self.vocabulary)
        delimiter, blank = self.vocabulary, self.vocabulary + 1
        waiting = np.tile([blank] * self.blanks + [delimiter], (len(drawn), 1))
        sequences = np.concatenate([drawn, waiting, drawn], axis=1)
        tokens = self.vocabulary + (2 if self.blanks else 1)
        return completions(sequences, self.length + self.blanks + 1, self.n, tokens)
