"""Data sets that come in files: every format, and files that are damaged or mean harm."""

import gzip
import hashlib
import io
import os
import pickle
import socket
import struct
import sys
import tarfile
import warnings
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from centralflow_eqx.cli import main
from centralflow_eqx.data import Cifar10, Dataset, Npz, Sst2, _cifar_files, _parquet, npz, sst2
from centralflow_eqx.errors import ExitCode, OptionError

OFFICIAL_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("data sets download nothing")

    monkeypatch.setattr(socket, "socket", refuse)


class Boom:
    """Creates the file `loaded` when it is unpickled."""

    def __reduce__(self):
        return (open, ("loaded", "w"))


# ---------------------------------------------------------------------------------- CIFAR-10


def photos(n, seed):
    """Random images [n, 3, 32, 32] and labels that take 0 to 9 in turn."""
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 3, 32, 32), np.uint8)
    return pixels, np.arange(n) % 10


TRAIN, TEST = photos(24, 0), photos(12, 1)


def records(images):
    """A batch of the binary version: label, red, green and blue pixels row by row."""
    return b"".join(bytes([y]) + x.tobytes() for x, y in zip(*images, strict=True))


BATCHES = {
    "data_batch_2.bin": records((TRAIN[0][14:], TRAIN[1][14:])),
    "test_batch.bin": records(TEST),
    "data_batch_1.bin": records((TRAIN[0][:14], TRAIN[1][:14])),
}


def tar(files, folder="cifar-10-batches-bin/"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def image_table(images, encode=png, column="img"):
    encoded = [{"bytes": encode(x), "path": f"{i}.png"} for i, x in enumerate(images[0])]
    return pa.table({column: encoded, "label": images[1]})


def archive_file(folder):
    (folder / "cifar.tar.gz").write_bytes(gzip.compress(tar({"readme.html": b"", **BATCHES})))
    return folder / "cifar.tar.gz"


def bin_folder(folder):
    for name, content in BATCHES.items():
        (folder / name).write_bytes(content)
    return folder


def npz_file(folder):
    np.savez(folder / "c.npz", x_train=TRAIN[0], y_train=TRAIN[1], x_test=TEST[0], y_test=TEST[1])
    return folder / "c.npz"


def keras_npz_file(folder):
    (x, y), (x2, y2) = ((x.transpose(0, 2, 3, 1), y[:, None]) for x, y in (TRAIN, TEST))
    np.savez_compressed(folder / "c.npz", x_train=x, y_train=y.astype("u1"), x_test=x2, y_test=y2)
    return folder / "c.npz"


def parquet_folder(folder):
    for i, part in enumerate((slice(0, 9), slice(9, 24))):
        images = TRAIN[0][part], TRAIN[1][part]
        pq.write_table(image_table(images), folder / f"train-{i}-of-2.parquet")
    pq.write_table(image_table(TEST), folder / "test-0-of-1.parquet")
    return folder


FORMATS = [archive_file, bin_folder, npz_file, keras_npz_file, parquet_folder]


def standardised(train, *others):
    mean, spread = train.mean(axis=(0, 2, 3)), train.std(axis=(0, 2, 3))
    return [(x - mean[:, None, None]) / spread[:, None, None] for x in (train, *others)]


@pytest.mark.filterwarnings("ignore:data.path")
@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_standardised_images(tmp_path, write):
    drawn = Cifar10(write(tmp_path), n=20, test_n=7).load(3)
    rng = np.random.default_rng(3)
    rows, test_rows = rng.permutation(24)[:20], rng.permutation(12)[:7]
    inputs, test_inputs = standardised(TRAIN[0][rows], TEST[0][test_rows])
    np.testing.assert_allclose(drawn.train_inputs, inputs, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(drawn.test_inputs, test_inputs, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(drawn.train_labels, TRAIN[1][rows])
    np.testing.assert_array_equal(drawn.test_labels, TEST[1][test_rows])
    assert (drawn.classes, drawn.vocabulary) == (10, None)
    assert drawn.train_inputs.dtype == drawn.test_inputs.dtype == np.float64


@pytest.mark.parametrize(
    ("options", "labels"),
    [({"classes": 3}, {0, 1, 2}), ({"binary": True}, {0, 1}), ({"classes": 2}, {0, 1})],
)
def test_fewer_classes(tmp_path, options, labels):
    drawn = Cifar10(bin_folder(tmp_path), n=2 * len(labels), **options).load(0)
    assert drawn.classes == len(labels)
    there = np.flatnonzero(np.isin(TEST[1], list(labels)))
    assert sorted(drawn.test_labels) == sorted(TEST[1][there])
    assert set(drawn.train_labels) <= labels


def test_a_file_without_test_images_tests_on_the_rest(tmp_path):
    pq.write_table(image_table(TRAIN, column="image"), tmp_path / "t.parquet")
    drawn = Cifar10(tmp_path / "t.parquet", n=20).load(1)
    rows = np.random.default_rng(1).permutation(24)
    train, test = standardised(TRAIN[0][rows[:20]], TRAIN[0][rows[20:]])
    np.testing.assert_allclose(drawn.train_inputs, train, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(drawn.test_inputs, test, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(drawn.test_labels, TRAIN[1][rows[20:]])


def test_no_test_images_are_wanted(tmp_path):
    drawn = Cifar10(bin_folder(tmp_path), n=20, test_n=0).load(1)
    assert drawn.test_inputs is None and drawn.test_labels is None


def test_constant_channels_are_not_divided_by_zero(tmp_path):
    black = np.zeros((4, 3, 32, 32), np.uint8)
    (tmp_path / "data_batch_1.bin").write_bytes(records((black, np.arange(4))))
    np.testing.assert_array_equal(Cifar10(tmp_path, n=3).load(0).train_inputs, 0)


def refused(data, match, option="path"):
    with pytest.raises(OptionError, match=match) as caught:
        data.load(0)
    assert caught.value.option == option
    assert caught.value.message.isprintable()
    return caught.value.message


@pytest.mark.parametrize(
    ("options", "option", "match"),
    [
        ({"n": 25}, "n", "must be <= 24, the images there are, got 25"),
        ({"n": 4, "classes": 1}, "n", "must be <= 3, the images"),
        ({"n": 4, "binary": True, "classes": 3}, "binary", "two classes, but classes is 3"),
    ],
)
def test_impossible_choices_of_images(tmp_path, options, option, match):
    refused(Cifar10(bin_folder(tmp_path), **options), match, option)


def test_a_missing_file_says_what_to_download(tmp_path):
    message = refused(Cifar10(tmp_path / "nope.tar.gz"), "no such file or folder: ")
    assert f"cifar-10-binary.tar.gz (MD5 {OFFICIAL_MD5})" in message
    refused(Cifar10(tmp_path), "no data_batch_1.bin in .*download cifar-10-binary.tar.gz")


def test_another_checksum_is_a_warning(tmp_path, monkeypatch):
    path = archive_file(tmp_path)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.warns(UserWarning, match=f"MD5 is {md5}, that of .* is {OFFICIAL_MD5}$"):
        Cifar10(path, n=4).load(0)
    monkeypatch.setattr(_cifar_files, "_MD5", md5)
    with warnings.catch_warnings(action="error"):
        Cifar10(path, n=4).load(0)


@pytest.mark.parametrize("kind", ["archive", "folder", "file", "npz"])
def test_pickles_are_refused_and_not_read(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    content, path = pickle.dumps(Boom(), protocol=2), tmp_path / "data_batch_1"
    path.write_bytes(content)
    if kind == "archive":
        path = tmp_path / "cifar-10-python.tar.gz"
        path.write_bytes(gzip.compress(tar({"data_batch_1": content}, "cifar-10-batches-py/")))
    elif kind == "folder":
        path = tmp_path
    elif kind == "npz":
        path = tmp_path / "o.npz"
        np.savez(path, x_train=np.array([Boom()]), y_train=np.array([0]))
    match = (
        "Object arrays cannot be loaded"
        if kind == "npz"
        else ("holds Python pickles, which run code .*: download cifar-10-binary.tar.gz .* instead")
    )
    refused(Cifar10(path), match)
    assert not os.path.exists("loaded")


@pytest.mark.parametrize("kept", [1, 2, 100, 20_000, -1, -9])
def test_truncated_archives(tmp_path, kept):
    path = archive_file(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    match = "no tar.gz" if kept == 1 else "cannot be read: .*its MD5 is .*: download it again"
    refused(Cifar10(path), match)


def one_batch(name="data_batch_1.bin", content=BATCHES["data_batch_1.bin"], **header):
    """A tar archive with one member, of which the header says what is given."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in header.items():
        setattr(member, key, value)
    return member.tobuf() + content + bytes(-len(content) % 512 + 1024)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (tar({"data_batch_1.bin": b""}), "data_batch_1.bin in .* is damaged: it must hold 1 to"),
        (tar({"data_batch_1.bin": b"\x01" * 3072}), "is damaged: .* of 3073 bytes each"),
        (tar({"data_batch_1.bin": b"\x0a" * 3073}), "labels must be 0 to 9, that of row 0 is 10"),
        (tar({"test_batch.bin": BATCHES["test_batch.bin"]}), "no data_batch_1.bin in"),
        (tar({"a.txt": b""}), "no data_batch_1.bin in"),
        (one_batch() [:-1024] + one_batch(), "data_batch_1.bin is in it twice"),
        (one_batch(type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0), "no data_batch_1.bin in"),
        (one_batch(type=tarfile.LNKTYPE, linkname="../x", size=0), "no data_batch_1.bin in"),
        (one_batch(type=tarfile.CHRTYPE, size=0), "no data_batch_1.bin in"),
        (one_batch(size=10**12), "data_batch_1.bin has more than 10000 images"),
        (one_batch("x", size=10**12), "cannot be read: "),
        (one_batch("x", type=tarfile.XHDTYPE, size=10**12), "cannot be read: "),
        (tar({f"{i}.txt": b"" for i in range(101)}), "it has more than 100 members"),
        (b"no tar" * 1000, "cannot be read: "),
    ],
)  # fmt: skip
def test_archives_that_are_not_cifar10(tmp_path, content, match):
    (tmp_path / "c.tar.gz").write_bytes(gzip.compress(content))
    refused(Cifar10(tmp_path / "c.tar.gz"), match)


@pytest.mark.filterwarnings("ignore:data.path")
def test_members_are_never_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = {"../evil.txt": b"x", "/evil.txt": b"x", "../../data_batch_1.bin": records(TRAIN)}
    (tmp_path / "inside").mkdir()
    path = tmp_path / "inside" / "c.tar.gz"
    path.write_bytes(gzip.compress(tar(evil, "")))
    drawn = Cifar10(path, n=24).load(0)
    np.testing.assert_array_equal(np.sort(drawn.train_labels), np.sort(TRAIN[1]))
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "inside",
        "inside/c.tar.gz",
    ]
    assert not os.path.exists("/evil.txt")


def test_a_bomb_in_an_archive_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(_cifar_files, "MOST_BYTES", 2**20)
    path = tmp_path / "c.tar.gz"
    zeros = bytes(2**22)
    for content in (tar({"zeros": zeros, **BATCHES}), tar(BATCHES) + zeros):
        path.write_bytes(gzip.compress(content))
        refused(Cifar10(path), "it unpacks to more than 1 MiB")


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x_train": None}, "must hold arrays x_train, y_train and, for a test split,"),
        ({"x_train": TRAIN[0] / 255}, "x_train must be of type uint8 and shape .*, got float64"),
        ({"x_train": TRAIN[0][0]}, r"x_train must be .*, got uint8 and \[3, 32, 32\]"),
        ({"y_train": TRAIN[1][1:]}, r"y_train must hold 24 integers .*shape \[23\]"),
        ({"y_train": TRAIN[1] * 1.0}, "y_train must hold 24 integers .*got float64"),
        ({"y_train": TRAIN[1] + 1}, "y_train: labels must be 0 to 9, that of row 9 is 10"),
        ({"y_test": TEST[1] - 1}, "y_test: labels must be 0 to 9, that of row 0 is -1"),
    ],
)
def test_npz_files_that_are_not_cifar10(tmp_path, arrays, match):
    names = ("x_train", "y_train", "x_test", "y_test")
    kept = dict(zip(names, (*TRAIN, *TEST), strict=True)) | arrays
    np.savez(tmp_path / "c.npz", **{k: v for k, v in kept.items() if v is not None})
    refused(Cifar10(tmp_path / "c.npz"), match)


def header_only(width, height):
    """A PNG file that says how large it is and then has one byte of nothing."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data


def jpeg(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("encode", "match"),
    [
        (lambda x: png(x)[:200], "one of its images cannot be read: "),
        (lambda x: b"", "one of its images cannot be read: "),
        (jpeg, "one of its images cannot be read: cannot identify image file"),
        (lambda x: png(x[:, 1:]), "it has 32 x 31 pixels of kind RGB, not 32 x 32"),
        (lambda x: png(x[:1].repeat(4, 0)), "it has 32 x 32 pixels of kind RGBA"),
        (lambda x: header_only(32, 32), "one of its images cannot be read: "),
        (lambda x: header_only(12_000, 12_000), "it has 12000 x 12000 pixels"),
        (lambda x: header_only(10**5, 10**5), "could be decompression bomb"),
    ],
)
def test_images_that_are_not_cifar10(tmp_path, encode, match):
    images = TRAIN[0][:4], TRAIN[1][:4]
    pq.write_table(image_table(images, encode), tmp_path / "c.parquet")
    with warnings.catch_warnings(action="error"):
        refused(Cifar10(tmp_path / "c.parquet", n=3), match)


PLAIN = image_table((TRAIN[0][:4], TRAIN[1][:4]))


@pytest.mark.parametrize(
    ("table", "match"),
    [
        (PLAIN.select(["img"]), "no column 'label', it has img$"),
        (
            PLAIN.rename_columns(["i\x1b[2J", "label"]),
            r"no column 'img' or 'image', it has i\?\[2J",
        ),
        (PLAIN.rename_columns(["img", "img"]), "several columns 'img'"),
        (pa.table({"img": [b"x"], "label": [0]}), "'img' must hold images, holds binary"),
        (pa.table({"img": [{"path": "x"}], "label": [0]}), "'img' must hold images, holds struct"),
        (PLAIN.set_column(1, "label", [[0.0] * 4]), "'label' must hold integers, holds double"),
        (PLAIN.set_column(1, "label", [[0, None, 1, 1]]), "'label' has no value in row 1"),
        (PLAIN.set_column(1, "label", [[0, 1, 10, 1]]), "0 to 9, that of row 2 is 10"),
        (pa.table({"img": [{"bytes": b""}, None], "label": [0, 1]}), "'img' has no value in row 1"),
        (PLAIN[:0], "must be <= 0, the images there are"),
    ],
)
def test_tables_that_are_not_cifar10(tmp_path, table, match):
    pq.write_table(table, tmp_path / "c.parquet")
    refused(Cifar10(tmp_path / "c.parquet", n=3), match, "n" if "must be <=" in match else "path")


def test_a_bomb_in_a_parquet_file_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "c.parquet"
    monkeypatch.setattr(_parquet, "MOST_BYTES", 2**20)
    # Zeros that the file itself counts, and a dictionary of one entry that many rows point to.
    long = pa.table({"img": [{"bytes": bytes(2**22)}], "label": [0]})
    wide = pa.table({"img": [{"bytes": bytes(2**16)}] * 200, "label": [0] * 200})
    for table in (long, wide):
        pq.write_table(table, path, compression="zstd")
        assert path.stat().st_size < 10_000
        refused(Cifar10(path), "unpacks to more than 1 MiB")
    monkeypatch.setattr(_parquet, "MOST_ROWS", 199)
    refused(Cifar10(path), "more than 199 rows")


def test_a_parquet_file_that_lies_about_its_size_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(_parquet, "_unpacked", lambda metadata, leaves: 0)
    monkeypatch.setattr(_parquet, "MOST_BYTES", 2**20)
    read = []
    monkeypatch.setattr(_parquet, "_check_size", _counting(_parquet._check_size, read))
    wide = pa.table({"img": [{"bytes": bytes(2**16)}] * 200, "label": [0] * 200})
    pq.write_table(wide, tmp_path / "c.parquet")
    refused(Cifar10(tmp_path / "c.parquet"), "unpacks to more than 1 MiB")
    assert max(read) < 2**21


def _counting(check, sizes):
    def counting(rows, size, path, option):
        sizes.append(size)
        check(rows, size, path, option)

    return counting


def damage(content, rng):
    """One to four bytes changed, or the end cut off."""
    damaged = bytearray(content)
    if rng.random() < 0.2:
        return bytes(damaged[: rng.integers(len(damaged))])
    for _ in range(rng.integers(1, 5)):
        damaged[rng.integers(len(damaged))] = rng.integers(256)
    return bytes(damaged)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["gzip", "tar", "npz", "parquet"])
def test_damaged_files_never_raise_anything_else(tmp_path, kind):
    rng, path = np.random.default_rng(5), tmp_path / "damaged"
    small = TRAIN[0][:3], TRAIN[1][:3]
    if kind == "npz":
        np.savez(tmp_path / "c.npz", x_train=small[0], y_train=small[1])
        content = (tmp_path / "c.npz").read_bytes()
    elif kind == "parquet":
        pq.write_table(image_table(small), tmp_path / "c.parquet")
        content = (tmp_path / "c.parquet").read_bytes()
    else:
        content = tar({"data_batch_1.bin": records(small)})
    refusals = 0
    for _ in range(100):
        # Most of a file is pixels: aim at its structure, in its first and last bytes.
        edge = min(600, len(content) // 2)
        parts = content[:edge], content[edge:-edge], content[-edge:]
        hit = rng.integers(3)
        parts = [damage(p, rng) if i == hit else p for i, p in enumerate(parts)]
        damaged = b"".join(parts)
        damaged = gzip.compress(damaged, 1) if kind == "tar" else damaged
        path.write_bytes(damage(gzip.compress(content, 1), rng) if kind == "gzip" else damaged)
        try:
            drawn = Cifar10(path, n=2).load(0)
            assert isinstance(drawn, Dataset)
        except OptionError as error:
            assert error.message.isprintable()
            refusals += 1
    assert refusals > 20


# ------------------------------------------------------------------------------------- SST-2

SENTENCES = ["b a a c", "A x [PAD] [UNK]", "c zebra b naïve", "a b a b a b c"]
# a 7 times, b 5, c 3, and the others once: alphabetical
WORDS = {"a": 2, "b": 3, "c": 4, "[pad]": 5, "[unk]": 6, "naïve": 7, "x": 8, "zebra": 9}


def sentences_file(folder, name="s.tsv", sentences=SENTENCES, labels=(0, 1, 1, 0)):
    path = folder / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"sentence": sentences, "label": labels}), path)
    else:
        rows = [f"{s}\t{y}" for s, y in zip(sentences, labels, strict=True)]
        path.write_text("\n".join(["sentence\tlabel", *rows]) + "\n", "utf-8")
    return path


def encoded(sentence, length, vocabulary=100):
    ids = [WORDS.get(word, 1) for word in sentence.lower().split()][:length]
    ids = [i if i < vocabulary else 1 for i in ids]
    return [0] * (length - len(ids)) + ids


@pytest.mark.parametrize("name", ["s.tsv", "s.parquet"])
@pytest.mark.parametrize(("length", "vocabulary"), [(6, 100), (3, 6)])
def test_sentences_become_words_by_how_common_they_are(tmp_path, name, length, vocabulary):
    path = sentences_file(tmp_path, name)
    others = sentences_file(tmp_path, "o" + name, ["c q A", "zebra"], (1, 0))
    data = Sst2(path, others, n=4, length=length, vocabulary=vocabulary)
    drawn = data.load(2)
    rng = np.random.default_rng(2)
    order, test_order = rng.permutation(4), rng.permutation(2)
    expected = [encoded(SENTENCES[i], length, vocabulary) for i in order]
    np.testing.assert_array_equal(drawn.train_inputs, expected)
    np.testing.assert_array_equal(drawn.train_labels, np.array([0, 1, 1, 0])[order])
    expected = [encoded(["c q A", "zebra"][i], length, vocabulary) for i in test_order]
    np.testing.assert_array_equal(drawn.test_inputs, expected)
    np.testing.assert_array_equal(drawn.test_labels, np.array([1, 0])[test_order])
    assert (drawn.classes, drawn.vocabulary) == (2, min(vocabulary, 10))
    assert (drawn.train_inputs[:, -1] > 0).all() and (drawn.test_inputs[:, -1] > 0).all()


def test_sentences_not_trained_on_test(tmp_path):
    path = sentences_file(tmp_path)
    drawn = Sst2(path, n=3, length=4).load(0)
    order = np.random.default_rng(0).permutation(4)
    assert drawn.test_labels == np.array([0, 1, 1, 0])[order[3:]]
    known = {word for i in order[:3] for word in SENTENCES[i].lower().split()}
    assert drawn.vocabulary == 2 + len(known)
    unseen = [word not in known for word in SENTENCES[order[3]].lower().split()[:4]]
    np.testing.assert_array_equal(drawn.test_inputs[0] == 1, unseen)
    assert Sst2(path, n=3, test_n=0).load(0).test_inputs is None
    refused(Sst2(path, n=5), "must be <= 4, the sentences there are", "n")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "its first line must name the columns sentence and label"),
        (b"a film\t1\n", "its first line must name the columns"),
        (b"index\tsentence\n0\ta film\n", "its first line must name the columns"),
        (b"sentence\tlabel\n", "no sentences"),
        (b"sentence\tlabel\na film\n", "line 2 has too many or too few columns"),
        (b"sentence\tlabel\na\t1\nb\t1\t1\n", "line 3 has too many or too few columns"),
        (b"sentence\tlabel\na film\t2\n", "labels must be 0 to 1, that of row 0 is \"2\""),
        (b"sentence\tlabel\na\t1\na film\tgood\n", "that of row 1 is \"good\""),
        (b"sentence\tlabel\na film\t-1\n", "the labels of the test split are secret"),
        (b"sentence\tlabel\na\t1\n  \t0\n", "the sentence of row 1 is empty"),
        (b"sentence\tlabel\na \xff\t1\n", "as tab-separated values cannot be read: 'utf-8' codec"),
        (b"sentence\tlabel\n" + b"a" * 200_000 + b"\t1\n", "field larger than field limit"),
        (pickle.dumps(Boom(), protocol=2), "as tab-separated values cannot be read: 'utf-8'"),
        (b"PAR1" + b"x" * 40, "cannot be read: Parquet magic bytes not found"),
    ],
)  # fmt: skip
def test_files_that_are_not_sst2(tmp_path, monkeypatch, content, match):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "s.tsv"
    path.write_bytes(content)
    refused(Sst2(path, n=2), match)
    refused(Sst2(sentences_file(tmp_path, "good.tsv"), path, n=2), match, "test_path")
    assert not os.path.exists("loaded")


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"sentence": [b"a"], "label": [0]}, "'sentence' must hold text, holds binary"),
        ({"sentence": ["a", None], "label": [0, 1]}, "'sentence' has no value in row 1"),
        ({"sentence": ["a"], "label": ["0"]}, "'label' must hold integers, holds string"),
        ({"sentence": ["a"], "label": [-1]}, "use the validation split"),
        ({"text": ["a"], "label": [1]}, "no column 'sentence', it has text, label"),
    ],
)
def test_tables_that_are_not_sst2(tmp_path, table, match):
    pq.write_table(pa.table(table), tmp_path / "s.parquet")
    refused(Sst2(tmp_path / "s.parquet", n=2), match)


def test_tables_of_sentences_are_bounded(tmp_path, monkeypatch):
    path = sentences_file(tmp_path)
    monkeypatch.setattr(sst2, "MOST_ROWS", 3)
    refused(Sst2(path, n=2), "it has more than 3 rows")
    monkeypatch.setattr(sst2, "MOST_BYTES", 10)
    refused(Sst2(path, n=2), "it has more than 0 MiB")


# --------------------------------------------------------------------------------------- npz


def test_a_bomb_in_an_npz_file_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "_MOST_BYTES", 2**16)
    path = tmp_path / "z.npz"
    np.savez_compressed(path, inputs=np.zeros((4, 2**16)), labels=[0, 1, 0, 1])
    refused(Npz(path), "array 'inputs' cannot be read: it unpacks to 2 MiB", "inputs")
    np.savez(path, inputs=np.zeros((4, 2**16)), labels=[0, 1, 0, 1])
    assert Npz(path).load(0).train_inputs.shape == (4, 2**16)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (10**9,)}", "cannot be read"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}", "cannot be read"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (9" + "9" * 30 + ",)}", "cannot be"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", "cannot be read"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "Object arrays cannot"),
        ("{'descr': 'nope', 'fortran_order': False, 'shape': (1,)}", "cannot be read"),
        ("{'descr': '<f8', 1: 2}", "cannot be read"),
        ("{[]: 1}", "cannot be read"),
        ("(" * 300, "cannot be read"),
        ("-" * 9000 + "1", "cannot be read"),
        ("__import__('os').mkdir('made')", "cannot be read"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_arrays_with_made_up_headers(tmp_path, monkeypatch, header, match):
    monkeypatch.chdir(tmp_path)
    text = header.encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(8)
    with zipfile.ZipFile("h.npz", "w") as archive:
        archive.writestr("inputs.npy", content)
        archive.writestr("labels.npy", content)
    refused(Npz(tmp_path / "h.npz"), match, "inputs")
    assert not os.path.exists("made")


def test_names_in_an_archive_cannot_write_to_the_terminal(tmp_path):
    np.savez(tmp_path / "n.npz", **{"a\x1b[2J\n": np.ones(3)})
    refused(Npz(tmp_path / "n.npz"), r"it has a\?\[2J\?$", "inputs")


# ----------------------------------------------------------------------- extras and exit codes


@pytest.mark.parametrize(
    ("module", "package", "option"),
    [("pyarrow.parquet", "pyarrow", "path"), ("PIL.Image", "pillow", "path"),
     ("tokenizers", "tokenizers", "type")],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, module, package, option):
    monkeypatch.setitem(sys.modules, module, None)
    match = rf"needs {package}: install it with pip install 'centralflow_eqx\[data\]'"
    if module == "tokenizers":
        refused(Sst2(sentences_file(tmp_path), n=2), match, option)
    else:
        refused(Cifar10(parquet_folder(tmp_path), n=2), match, option)


SPEC = """\
name: small
data:
  type: {type}
  path: {path}
  n: 2
model: {{type: mlp, widths: [3]}}
loss: {{type: mse}}
optimizer: {{type: gd, lr: 0.4}}
processes: [discrete]
steps: 5
"""


@pytest.mark.parametrize(
    ("kind", "path", "content", "message"),
    [
        ("cifar10", "absent.tar.gz", None, "no such file or folder: "),
        ("cifar10", "c.tar.gz", gzip.compress(b"x" * 600, mtime=0), "c.tar.gz cannot be read: "),
        ("cifar10", "c.bin", pickle.dumps(Boom()), "c.bin holds Python pickles, which run code"),
        ("sst2", "absent.tsv", None, "no such file: "),
        ("sst2", "s.tsv", b"\x00\xff", "s.tsv, no parquet file, as tab-separated values cannot be"),
    ],
)
def test_the_command_line_reports_bad_files(
    tmp_path, monkeypatch, capsys, kind, path, content, message
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / path).write_bytes(content)
    (tmp_path / "s.yaml").write_text(SPEC.format(type=kind, path=path))
    assert main(["validate", "s.yaml"]) == ExitCode.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("s.yaml:4: data.path: ")
    assert message in line
    assert sorted(os.listdir()) == sorted({"s.yaml", path} - {path if content is None else ""})
