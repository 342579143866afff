"""Sequences to sort."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from typing_extensions import Doc

from ._base import AbstractData, Dataset
from ._made_up import check_amount
from ._registry import DATASETS
from ._sequences import completions, distinct


@DATASETS.register("sorting")
@dataclass(frozen=True)
class Sorting(AbstractData):
    """Random symbols, a separator, and the symbols sorted, to be predicted token by token."""

    n: Annotated[int, Ge(2), Doc("Training sequences, all different.")] = 1000
    length: Annotated[int, Ge(1), Doc("Symbols to sort.")] = 8
    vocabulary: Annotated[
        int, Ge(2), Doc("Number of symbols, 0 to vocabulary - 1; the separator is one more token.")
    ] = 4
    test_n: Annotated[
        int, Ge(0), Doc("Test sequences, different from the training ones. 0: no test.")
    ] = 1000

    def load(self, seed: int) -> Dataset:
        check_amount("n", self.n + self.test_n, 2 * self.length + 1)
        check_amount("vocabulary", self.vocabulary)
        rng = np.random.default_rng(seed)
        drawn = distinct(rng, self.n + self.test_n, self.length, self.vocabulary)
        separator = np.full((len(drawn), 1), self.vocabulary)
        sequences = np.concatenate([drawn, separator, np.sort(drawn, axis=1)], axis=1)
        return completions(sequences, self.length + 1, self.n, self.vocabulary + 1)
