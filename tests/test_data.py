"""Data sets against their definitions."""

import numpy as np
import pytest
from sklearn.datasets import load_digits, make_moons

from centralflow_eqx.data import (
    DATASETS,
    Circles,
    Classification,
    Copying,
    Digits,
    Moons,
    Npz,
    Sorting,
)
from centralflow_eqx.data._made_up import MOST_READ, check_amount
from centralflow_eqx.errors import OptionError


@pytest.mark.parametrize("data", [Moons(n=30), Circles(n=30), Classification(n=30), Digits(n=30)])
def test_shapes_types_and_seeds(data):
    drawn, again, other = data.load(0), data.load(0), data.load(1)
    assert drawn.train_inputs.shape == (30, drawn.test_inputs.shape[1])
    assert drawn.train_inputs.dtype == drawn.test_inputs.dtype == np.float64
    assert set(drawn.train_labels) | set(drawn.test_labels) == set(range(drawn.classes))
    np.testing.assert_array_equal(drawn.train_inputs, again.train_inputs)
    assert not np.array_equal(drawn.train_inputs, other.train_inputs)


def test_digits_are_the_first_n_of_the_permutation():
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(7).permutation(1797)
    drawn = Digits(n=100).load(7)
    expected = (pixels - pixels.mean()) / pixels.std()
    np.testing.assert_array_equal(drawn.train_inputs, expected[order[:100]])
    np.testing.assert_array_equal(drawn.train_labels, labels[order[:100]])
    np.testing.assert_array_equal(drawn.test_inputs, expected[order[100:]])


def test_fewer_digits_keep_the_scale_of_all_images():
    pixels, labels = load_digits(return_X_y=True)
    kept = pixels[labels < 3]
    drawn = Digits(n=len(kept), classes=3).load(0)
    assert drawn.classes == 3
    assert drawn.test_inputs is None and drawn.test_labels is None
    expected = np.sort(((kept - pixels.mean()) / pixels.std()).sum(axis=1))
    np.testing.assert_allclose(np.sort(drawn.train_inputs.sum(axis=1)), expected, rtol=1e-12)


def test_enlarged_digits_are_interpolated_between_the_centres_of_pixels():
    flat, images = Digits(n=3).load(1), Digits(n=3, size=24).load(1)
    centres = np.arange(8) + 0.5
    at = (np.arange(24) + 0.5) / 3
    for image, pixels in zip(images.train_inputs, flat.train_inputs, strict=True):
        wide = np.array([np.interp(at, centres, row) for row in pixels.reshape(8, 8)])
        expected = np.array([np.interp(at, centres, column) for column in wide.T]).T
        np.testing.assert_allclose(image, expected[None], rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(images.train_labels, flat.train_labels)
    assert images.test_inputs.shape == (1794, 1, 24, 24)


def test_digits_of_their_own_size_are_only_reshaped():
    flat, images = Digits(n=50).load(1), Digits(n=50, size=8).load(1)
    np.testing.assert_array_equal(images.train_inputs, flat.train_inputs.reshape(50, 1, 8, 8))


@pytest.mark.parametrize("data", [Moons(n=40), Circles(n=40), Classification(n=40)])
def test_drawn_data_are_in_units_of_the_training_half(data):
    drawn = data.load(3)
    np.testing.assert_allclose(drawn.train_inputs.mean(axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(drawn.train_inputs.std(axis=0), 1, rtol=1e-14)
    assert np.abs(drawn.test_inputs.mean(axis=0)).max() > 1e-6


def test_moons_are_scikit_learns_up_to_units():
    points, labels = make_moons(80, noise=0.2, random_state=5)
    drawn = Moons(n=40, noise=0.2).load(5)
    np.testing.assert_array_equal(np.r_[drawn.train_labels, drawn.test_labels], labels)
    points = (points - points[:40].mean(axis=0)) / points[:40].std(axis=0)
    np.testing.assert_array_equal(np.r_[drawn.train_inputs, drawn.test_inputs], points)


def test_a_constant_feature_is_not_divided_by_zero():
    drawn = Circles(n=2, noise=0.0).load(0)
    assert np.isfinite(drawn.train_inputs).all()


def test_npz_labels_become_0_to_c_in_order(tmp_path):
    path = tmp_path / "a.npz"
    inputs = np.arange(8, dtype=np.int16).reshape(4, 2)
    np.savez(path, x=inputs, y=[7, -2, 30, 7], x2=inputs[:2] + 0.5, y2=[30, -2])
    drawn = Npz(path, "x", "y", "x2", "y2").load(0)
    np.testing.assert_array_equal(drawn.train_labels, [1, 0, 2, 1])
    np.testing.assert_array_equal(drawn.test_labels, [2, 0])
    np.testing.assert_array_equal(drawn.test_inputs, inputs[:2] + 0.5)
    assert drawn.classes == 3
    assert drawn.train_inputs.dtype == np.float64


@pytest.mark.parametrize(
    ("options", "option", "match"),
    [
        ({"test_inputs": "x2"}, "test_labels", "needs both"),
        ({"test_inputs": "x2", "test_labels": "y3"}, "test_labels", "values that labels takes"),
        (
            {"test_inputs": "wide", "test_labels": "y2"},
            "test_inputs",
            r"must have shape \[examples, 2\]",
        ),
    ],
)
def test_npz_test_splits_must_match(tmp_path, options, option, match):
    path = tmp_path / "a.npz"
    x = np.ones((4, 2))
    np.savez(path, x=x, y=[0, 1, 0, 1], x2=x[:2], y2=[0, 1], y3=[0, 2], wide=np.ones((2, 3)))
    with pytest.raises(OptionError, match=match) as caught:
        Npz(path, "x", "y", **options).load(0)
    assert caught.value.option == option


def test_npz_inputs_of_any_shape(tmp_path):
    path, inputs = tmp_path / "a.npz", np.random.default_rng(0).normal(size=(4, 3, 2, 5))
    np.savez(path, inputs=inputs, labels=[0, 1, 0, 1], x2=inputs[:1], y2=[1], x3=inputs[:, :, :1])
    drawn = Npz(path, test_inputs="x2", test_labels="y2").load(0)
    np.testing.assert_array_equal(drawn.train_inputs, inputs)
    np.testing.assert_array_equal(drawn.test_inputs, inputs[:1])
    with pytest.raises(OptionError, match=r"must have shape \[examples, 3, 2, 5\] as inputs has"):
        Npz(path, test_inputs="x3", test_labels="labels").load(0)


TOKENS = np.array([[0, 4, 2], [1, 1, 3]], np.int16)


def test_npz_tokens_with_labels_per_position(tmp_path):
    path, labels = tmp_path / "a.npz", np.array([[-1, 4, 0], [-1, -1, 2]])
    np.savez(path, inputs=TOKENS, labels=labels, x2=TOKENS[:1], y2=[[3, 3, -1]])
    drawn = Npz(path, test_inputs="x2", test_labels="y2", vocabulary=6).load(0)
    np.testing.assert_array_equal(drawn.train_inputs, TOKENS)
    np.testing.assert_array_equal(drawn.train_labels, labels)
    np.testing.assert_array_equal(drawn.test_labels, [[3, 3, -1]])
    assert (drawn.classes, drawn.vocabulary) == (6, 6)
    assert drawn.train_inputs.dtype == np.int64


def test_npz_tokens_with_one_label_each(tmp_path):
    np.savez(tmp_path / "a.npz", inputs=TOKENS, labels=[1, -1])
    drawn = Npz(tmp_path / "a.npz", vocabulary=5).load(0)
    np.testing.assert_array_equal(drawn.train_labels, [1, 0])
    assert (drawn.classes, drawn.vocabulary) == (2, 5)


def test_npz_real_sequences_with_labels_per_position(tmp_path):
    labels = np.array([[7, -1, 7], [-1, -1, 3]])
    np.savez(tmp_path / "a.npz", inputs=np.ones((2, 3, 4)), labels=labels)
    drawn = Npz(tmp_path / "a.npz").load(0)
    np.testing.assert_array_equal(drawn.train_labels, [[1, -1, 1], [-1, -1, 0]])
    assert (drawn.classes, drawn.vocabulary) == (2, None)


@pytest.mark.parametrize(
    ("arrays", "option", "match"),
    [
        ({"inputs": TOKENS * 1.0}, "inputs", "must hold integer tokens, got an array of float64"),
        ({"inputs": TOKENS + 1}, "inputs", r"tokens must be 0 to 4, got 5 at \[0, 1\]"),
        ({"inputs": TOKENS - 1}, "inputs", r"tokens must be 0 to 4, got -1 at \[0, 0\]"),
        ({"inputs": TOKENS[None]}, "inputs", r"shape \[examples, length\], got \[1, 2, 3\]"),
        ({"inputs": TOKENS[:, :0]}, "inputs", r"shape \[examples, length\], got \[2, 0\]"),
        ({"labels": TOKENS + 1}, "labels", "must only take tokens, or -1"),
        ({"labels": TOKENS - 2}, "labels", "must only take tokens, or -1"),
        ({"labels": TOKENS * 0 - 1}, "labels", "must count somewhere, all are -1"),
        ({"labels": TOKENS[:, 1:]}, "labels", r"or \[2, 3\], one label per position, got \[2, 2\]"),
        ({"y2": [0, 1]}, "test_labels", "must be one label per position, as labels are"),
        ({"y2": TOKENS * 0 - 1}, "test_labels", "must count somewhere, all are -1"),
    ],
)  # fmt: skip
def test_npz_tokens_that_do_not_fit(tmp_path, arrays, option, match):
    good = {"inputs": TOKENS, "labels": TOKENS, "y2": TOKENS}
    np.savez(tmp_path / "a.npz", **good | arrays)
    data = Npz(tmp_path / "a.npz", test_inputs="inputs", test_labels="y2", vocabulary=5)
    with pytest.raises(OptionError, match=match) as caught:
        data.load(0)
    assert caught.value.option == option


@pytest.mark.parametrize(
    ("data", "middle"),
    [
        (Sorting(n=30, length=5, vocabulary=3, test_n=8), [3]),
        (Copying(n=30, length=5, vocabulary=3, test_n=8), [3]),
        (Copying(n=30, length=5, vocabulary=3, test_n=8, blanks=2), [4, 4, 3]),
    ],
)
def test_sequences_are_given_and_then_completed(data, middle):
    drawn, again, other = data.load(4), data.load(4), data.load(5)
    assert drawn.classes == drawn.vocabulary == 4 + (len(middle) > 1)
    inputs = np.concatenate([drawn.train_inputs, drawn.test_inputs])
    labels = np.concatenate([drawn.train_labels, drawn.test_labels])
    assert (len(drawn.train_inputs), len(inputs)) == (30, 38)
    given = 5 + len(middle)
    assert inputs.shape == labels.shape == (38, given + 4)
    sequences, results = inputs[:, :5], labels[:, given - 1 :]
    np.testing.assert_array_equal(inputs[:, 5:given], np.tile(middle, (38, 1)))
    expected = np.sort(sequences, axis=1) if isinstance(data, Sorting) else sequences
    np.testing.assert_array_equal(results, expected)
    np.testing.assert_array_equal(labels[:, : given - 1], -1)
    # every label is the next input
    np.testing.assert_array_equal(inputs[:, given:], labels[:, given - 1 : -1])
    assert set(sequences.ravel()) == {0, 1, 2}
    assert len(np.unique(sequences, axis=0)) == 38
    np.testing.assert_array_equal(drawn.train_inputs, again.train_inputs)
    assert not np.array_equal(drawn.train_inputs, other.train_inputs)


def test_there_may_be_as_many_sequences_as_different_ones():
    drawn = Sorting(n=20, length=3, vocabulary=3, test_n=7).load(0)
    sequences = np.concatenate([drawn.train_inputs, drawn.test_inputs])[:, :3]
    assert sorted(map(tuple, sequences)) == list(np.ndindex(3, 3, 3))
    assert Copying(n=27, length=3, vocabulary=3, test_n=0).load(0).test_inputs is None


def test_symbols_are_equally_likely():
    sequences = Copying(n=4000, length=10, vocabulary=4).load(0).train_inputs[:, :10]
    # 40 000 symbols: the standard deviation of a count is sqrt(40 000 * 3/16) = 87
    np.testing.assert_allclose(np.bincount(sequences.ravel()), 10_000, atol=4 * 87)


@pytest.mark.parametrize(
    ("data", "option"),
    [
        (Sorting(n=20, length=3, vocabulary=3, test_n=8), "n"),
        (Copying(n=5, length=1, vocabulary=5, test_n=1), "n"),
        (Digits(n=1798), "n"),
        (Digits(n=200, classes=1), "n"),
        (Classification(features=3, informative=4), "informative"),
        (Classification(classes=5, informative=2), "classes"),
    ],
)
def test_impossible_options(data, option):
    with pytest.raises(OptionError) as caught:
        data.load(0)
    assert caught.value.option == option


def test_every_data_set_has_a_summary():
    assert all(DATASETS.summary(name) for name in DATASETS.names())


def test_a_zero_too_many_is_told_and_whole_data_sets_are_not():
    check_amount("length", 64, 67_349 + 872, most=MOST_READ)  # all of SST-2
    with pytest.raises(OptionError, match="n: asks for more than 4194304 numbers"):
        check_amount("n", 10_000_000, 4)
