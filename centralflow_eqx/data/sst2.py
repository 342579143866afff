"""Sentences from film reviews."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from jaxtyping import Int
from typing_extensions import Doc

from ..errors import OptionError
from ..registry import InputFile
from ._base import AbstractData, Dataset
from ._files import MOST_BYTES, MOST_ROWS, beginning, checked_labels, extra, reading
from ._made_up import MOST_READ, check_amount
from ._parquet import Column, read_parquet
from ._registry import DATASETS
from ._split import draw

_PADDING, _UNKNOWN = "[PAD]", "[UNK]"


@DATASETS.register("sst2")
@dataclass(frozen=True)
class Sst2(AbstractData):
    """Praise (1) or not (0) in sentences of film reviews (SST-2), from a file of yours."""

    path: Annotated[
        InputFile,
        Doc(
            "SST-2's training split with columns sentence and label: parquet, or GLUE's train.tsv; "
            "relative to the spec file."
        ),
    ]
    test_path: Annotated[
        InputFile | None,
        Doc("Its validation split, to test on; null: rows of `path` that are not trained on."),
    ] = None
    n: Annotated[int, Ge(2), Doc("Training sentences.")] = 1000
    test_n: Annotated[int, Ge(0), Doc("Test sentences at most. 0: no test.")] = 1000
    length: Annotated[
        int, Ge(1), Doc("Tokens of a sentence: longer ones are cut, shorter ones padded in front.")
    ] = 64
    vocabulary: Annotated[
        int,
        Ge(3),
        Doc("Tokens at most: padding (0), unknown (1), the training sentences' commonest words."),
    ] = 8192

    def load(self, seed: int) -> Dataset:
        sentences, labels = _read(self.path, "path")
        others = None if self.test_path is None else _read(self.test_path, "test_path")
        there = None if others is None else len(others[1])
        train, test = draw(seed, len(labels), self.n, there, self.test_n, "sentences")
        chosen = [sentences[i] for i in train]
        check_amount("length", self.length, len(train) + len(test), most=MOST_READ)
        tokenizer = _tokenizer(chosen, self.vocabulary, self.length)
        held_out = (None, None)
        if len(test):
            test_sentences, test_labels = others or (sentences, labels)
            inputs = _encode(tokenizer, [test_sentences[i] for i in test])
            held_out = inputs, test_labels[test]
        size = tokenizer.get_vocab_size()
        return Dataset(_encode(tokenizer, chosen), labels[train], *held_out, 2, size)


def _tokenizer(sentences: Sequence[str], vocabulary: int, length: int) -> Any:
    """Words between spaces, in lower case, by how common they are in the sentences."""
    library = extra("tokenizers", "type", "sst2")
    tokenizer = library.Tokenizer(library.models.WordLevel(unk_token=_UNKNOWN))
    tokenizer.normalizer = library.normalizers.Lowercase()
    tokenizer.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    trainer = library.trainers.WordLevelTrainer(
        vocab_size=vocabulary, special_tokens=[_PADDING, _UNKNOWN], show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    # A sentence may contain the names of the special tokens.
    tokenizer.encode_special_tokens = True
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(direction="left", length=length, pad_id=0, pad_token=_PADDING)
    return tokenizer


def _encode(tokenizer: Any, sentences: Sequence[str]) -> Int[np.ndarray, "n length"]:
    return np.array([encoded.ids for encoded in tokenizer.encode_batch(sentences)], np.int64)


def _read(path: Path, option: str) -> tuple[list[str], Int[np.ndarray, " n"]]:
    """Sentences, none of them empty, and labels."""
    if beginning(path, option).startswith(b"PAR1"):
        columns = Column(("sentence",), "text"), Column(("label",), "integers")
        sentences, values = read_parquet(path, option, *columns)
    else:
        sentences, values = _read_table(path, option)
    if not sentences:
        raise OptionError(option, f"{path}: no sentences")
    empty = next((i for i, sentence in enumerate(sentences) if not sentence.split()), None)
    if empty is not None:
        raise OptionError(option, f"{path}: the sentence of row {empty} is empty")
    if set(values) == {-1}:
        message = "the labels of the test split are secret, all are -1: use the validation split"
        raise OptionError(option, f"{path}: {message}")
    return sentences, checked_labels(values, 2, option, str(path))


def _read_table(path: Path, option: str) -> tuple[list[str], list[Any]]:
    """Sentences and labels, as numbers where they are digits, of tab-separated values."""
    sentences, labels = [], []
    with reading(option, f"{path}, no parquet file, as tab-separated values"):
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if not {"sentence", "label"} <= set(rows.fieldnames or ()):
                raise ValueError("its first line must name the columns sentence and label")
            for row in rows:
                if None in row or None in row.values():
                    raise ValueError(f"line {rows.line_num} has too many or too few columns")
                if len(sentences) == MOST_ROWS:
                    raise ValueError(f"it has more than {MOST_ROWS} rows")
                sentences.append(row["sentence"])
                label = row["label"]
                labels.append(int(label) if label in ("-1", "0", "1") else label)
    return sentences, labels
