"""Data sets against their definitions."""

import numpy as np
import pytest
from sklearn.datasets import load_digits, make_moons

from centralflow_eqx.data import DATASETS, Circles, Classification, Digits, Moons, Npz
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
        ({"test_inputs": "wide", "test_labels": "y2"}, "test_inputs", "must have 2 features"),
    ],
)
def test_npz_test_splits_must_match(tmp_path, options, option, match):
    path = tmp_path / "a.npz"
    x = np.ones((4, 2))
    np.savez(path, x=x, y=[0, 1, 0, 1], x2=x[:2], y2=[0, 1], y3=[0, 2], wide=np.ones((2, 3)))
    with pytest.raises(OptionError, match=match) as caught:
        Npz(path, "x", "y", **options).load(0)
    assert caught.value.option == option


@pytest.mark.parametrize(
    ("data", "option"),
    [
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
