"""The files that CIFAR-10 comes in."""

import functools
import gzip
import hashlib
import io
import os
import tarfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from ..errors import OptionError
from ._files import MOST_BYTES, beginning, checked_labels, extra, reading
from ._parquet import Column, read_parquet
from .npz import array_names, read_arrays

_ARCHIVE = "cifar-10-binary.tar.gz"
_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
_DOWNLOAD = f"download {_ARCHIVE} (MD5 {_MD5}) from https://www.cs.toronto.edu/~kriz/cifar.html"
_PICKLED = f"holds Python pickles, which run code when they are read: {_DOWNLOAD} instead"

# A record is a label and the pixels of a 32 x 32 image, all red ones first; a batch has 10 000.
_RECORD = 1 + 3 * 32 * 32
_MOST_RECORDS = 10_000
_BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST_BATCH = "test_batch.bin"
_MOST_MEMBERS = 100


class Images(NamedTuple):
    """Labels of all images, 0 to 9, and the pixels of those that are asked for."""

    labels: Int[np.ndarray, " n"]
    pixels: Callable[[Int[np.ndarray, " k"]], UInt8[np.ndarray, "k 3 32 32"]]


def read_cifar10(path: Path) -> tuple[Images, Images | None]:
    """Training images, and the test images if there are any beside them.

    `path` is the archive of the binary version, its folder, an npz file with Keras's names, a
    parquet file, or a folder of parquet files train*.parquet and test*.parquet. Raises
    `OptionError` for the option `path`.
    """
    if os.path.isdir(path):
        return _read_folder(path)
    if not os.path.isfile(path):
        raise OptionError("path", f"no such file or folder: {path}; {_DOWNLOAD}")
    start = beginning(path, "path")
    if start.startswith(b"\x80"):
        raise OptionError("path", f"{path} {_PICKLED}")
    if start.startswith(b"\x1f\x8b"):
        return _read_archive(path)
    if start.startswith(b"PK"):
        return _read_npz(path)
    if start.startswith(b"PAR1"):
        return _read_parquet([path]), None
    raise OptionError("path", f"no tar.gz, npz or parquet file: {path}; {_DOWNLOAD}")


def _read_folder(path: Path) -> tuple[Images, Images | None]:
    with reading("path", str(path)):
        names = sorted(os.listdir(path))
    if not {_TEST_BATCH, *_BATCHES}.isdisjoint(names):
        batches = {}
        for name in (*_BATCHES, _TEST_BATCH):
            if name in names:
                with reading("path", str(path / name)), (path / name).open("rb") as file:
                    batches[name] = file.read(_MOST_RECORDS * _RECORD + 1)
        return _from_batches(batches, path)
    train, test = (
        [path / n for n in names if n.startswith(split) and n.endswith(".parquet")]
        for split in ("train", "test")
    )
    if train:
        return _read_parquet(train), _read_parquet(test) if test else None
    raise _without_batches(names, path)


def _without_batches(names: Sequence[str], path: Path) -> OptionError:
    """What is wrong with a folder or an archive of files of these names."""
    if "data_batch_1" in names:
        return OptionError("path", f"{path} {_PICKLED}")
    return OptionError("path", f"no {_BATCHES[0]} in {path}; {_DOWNLOAD}")


def _from_batches(batches: Mapping[str, bytes], path: Path) -> tuple[Images, Images | None]:
    for name, content in batches.items():
        if not content or len(content) % _RECORD or len(content) > _MOST_RECORDS * _RECORD:
            raise OptionError(
                "path",
                f"{name} in {path} is damaged: it must hold 1 to {_MOST_RECORDS} images "
                f"of {_RECORD} bytes each",
            )
    train = [batches[name] for name in _BATCHES if name in batches]
    if not train:
        raise _without_batches(list(batches), path)
    test = batches.get(_TEST_BATCH)
    return _from_records(train, path), None if test is None else _from_records([test], path)


def _from_records(batches: Sequence[bytes], path: Path) -> Images:
    records = np.concatenate([np.frombuffer(b, np.uint8).reshape(-1, _RECORD) for b in batches])
    labels = checked_labels(records[:, 0].tolist(), 10, "path", str(path))
    return Images(labels, lambda rows: records[rows, 1:].reshape(-1, 3, 32, 32))


def _read_archive(path: Path) -> tuple[Images, Images | None]:
    with reading("path", str(path)), path.open("rb") as file:
        md5 = hashlib.file_digest(file, functools.partial(hashlib.md5, usedforsecurity=False))
    found = f"its MD5 is {md5.hexdigest()}, that of {_ARCHIVE} is {_MD5}"
    official = md5.hexdigest() == _MD5
    try:
        with reading("path", str(path)), gzip.open(path) as stream:
            members, batches = _unpack(stream)
    except OptionError as error:
        raise OptionError("path", f"{error.message}; {found}: download it again") from None
    if not batches:
        raise _without_batches(members, path)
    images = _from_batches(batches, path)
    if not official:
        warnings.warn(f"data.path: {path} is not as published: {found}", stacklevel=2)
    return images


def _unpack(stream: gzip.GzipFile) -> tuple[list[str], dict[str, bytes]]:
    """Names of the files in a tar stream, without folders, and the batches among them.

    Members are read in memory: their folders, links and permissions mean nothing.
    """
    content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it unpacks to more than {MOST_BYTES >> 20} MiB")
    names, batches = [], {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            names.append(name)
            if len(names) > _MOST_MEMBERS:
                raise ValueError(f"it has more than {_MOST_MEMBERS} members")
            if name not in (*_BATCHES, _TEST_BATCH) or not member.isfile():
                continue
            if name in batches:
                raise ValueError(f"{name} is in it twice")
            if member.issparse() or member.size > _MOST_RECORDS * _RECORD:
                raise ValueError(f"{name} has more than {_MOST_RECORDS} images")
            batch = archive.extractfile(member)
            assert batch is not None
            batches[name] = batch.read()
    return names, batches


def _read_npz(path: Path) -> tuple[Images, Images | None]:
    names = array_names(path)
    if not {"x_train", "y_train"} <= set(names):
        raise OptionError(
            "path",
            f"{path} must hold arrays x_train, y_train and, for a test split, x_test, y_test",
        )
    test = {"x_test", "y_test"} <= set(names)
    return _from_arrays(path, "train"), _from_arrays(path, "test") if test else None


def _from_arrays(path: Path, split: str) -> Images:
    images = read_arrays(path, {"path": f"x_{split}"})["path"]
    labels = read_arrays(path, {"path": f"y_{split}"})["path"]
    if images.dtype != np.uint8 or images.shape[1:] not in ((3, 32, 32), (32, 32, 3)):
        raise OptionError(
            "path",
            f"x_{split} must be of type uint8 and shape [n, 3, 32, 32] or [n, 32, 32, 3], "
            f"got {images.dtype} and {list(images.shape)}",
        )
    n = len(images)
    if labels.dtype.kind not in "iu" or labels.shape not in ((n,), (n, 1)):
        raise OptionError(
            "path",
            f"y_{split} must hold {n} integers as x_{split} holds images, "
            f"got {labels.dtype} and shape {list(labels.shape)}",
        )
    if images.shape[1:] == (32, 32, 3):
        images = images.transpose(0, 3, 1, 2)
    return Images(
        checked_labels(labels.ravel().tolist(), 10, "path", f"y_{split}"),
        lambda rows: images[rows],
    )


def _read_parquet(paths: Sequence[Path]) -> Images:
    encoded, labels = [], []
    for path in paths:
        columns = Column(("img", "image"), "images"), Column(("label",), "integers")
        read, its = read_parquet(path, "path", *columns)
        encoded += read
        labels += its
    return Images(
        checked_labels(labels, 10, "path", str(paths[0])),
        lambda rows: _decode([encoded[row] for row in rows], paths[0]),
    )


def _decode(encoded: Sequence[bytes], path: Path) -> UInt8[np.ndarray, "k 3 32 32"]:
    image = extra("PIL.Image", "path", f"{path.name}, whose images are PNG files,")
    pixels = np.empty((len(encoded), 32, 32, 3), np.uint8)
    with (
        reading("path", f"{path}: one of its images"),
        warnings.catch_warnings(action="ignore", category=image.DecompressionBombWarning),
    ):
        for i, content in enumerate(encoded):
            with image.open(io.BytesIO(content), formats=["PNG"]) as opened:
                # What the header says is checked before anything is unpacked.
                if opened.mode != "RGB" or opened.size != (32, 32):
                    raise ValueError(
                        f"it has {opened.width} x {opened.height} pixels of kind {opened.mode}, "
                        "not 32 x 32 of kind RGB"
                    )
                pixels[i] = opened
    return pixels.transpose(0, 3, 1, 2)
