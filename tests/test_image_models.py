"""Image models, against explicit NumPy and by hand."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _models import SQUARE, Case, small_task
from jax.extend.core import jaxprs_in_params
from scipy.signal import correlate
from scipy.special import erf

from centralflow_eqx.engine.curvature import third_derivative
from centralflow_eqx.errors import OptionError
from centralflow_eqx.models import CNN, MLP, Interface, ResNet, ViT
from centralflow_eqx.models._images import average_pool
from centralflow_eqx.models._layers import Norm
from centralflow_eqx.models.vit import patches

RNG = np.random.default_rng(3)
KEY = jax.random.key(0)
CIFAR = Interface((3, 32, 32), 10)


def shaken(network):
    """The network with parameters away from their special initial values, zeros and ones."""
    params, rest = eqx.partition(network, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(lambda p: p + 0.3 * RNG.normal(size=p.shape), params), rest)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def standardise(x, norm):
    """Groups of channels, one after the other."""
    parts = [(g - g.mean()) / np.sqrt(g.var() + 1e-5) for g in np.split(x, norm.groups)]
    affine = [np.reshape(p, (-1,) + (1,) * (x.ndim - 1)) for p in (norm.weight, norm.bias)]
    return affine[0] * np.concatenate(parts) + affine[1]


def convolve(x, layer, stride=1):
    kernel = np.asarray(layer.conv.weight)
    margin = kernel.shape[-1] // 2
    x = np.pad(x, [(0, 0), (margin, margin), (margin, margin)])
    y = np.concatenate([correlate(x, k, "valid") for k in kernel])[:, ::stride, ::stride]
    return y + layer.conv.bias if layer.norm is None else standardise(y, layer.norm)


def apply(layer, x):
    return x @ layer.weight.T + layer.bias


@pytest.mark.parametrize("norm", ["group", "none"])
def test_cnn(norm):
    x = RNG.normal(size=(2, 5, 4))
    net = shaken(CNN(4, 2, norm=norm, groups=2).build(Interface(x.shape, 3), KEY))
    h = gelu(convolve(x, net.convs[0]))
    # pixels of the last row take no part
    h = (h[:, 0:4:2, ::2] + h[:, 1:4:2, ::2] + h[:, 0:4:2, 1::2] + h[:, 1:4:2, 1::2]) / 4
    h = gelu(convolve(h, net.convs[1])).mean((1, 2))
    np.testing.assert_allclose(eqx.filter_jit(net)(x), apply(net.output, h), rtol=1e-12)


@pytest.mark.parametrize("norm", ["group", "none"])
def test_resnet(norm):
    x = RNG.normal(size=(2, 5, 4))
    net = shaken(ResNet(4, 2, 2, norm=norm, groups=2).build(Interface(x.shape, 3), KEY))
    h = gelu(convolve(x, net.stem))
    for block, stride in zip(net.blocks, (1, 1, 2, 1), strict=True):
        first, second = block.convs
        y = convolve(gelu(convolve(h, first, stride)), second)
        h = gelu(y + (h if stride == 1 else convolve(h, block.projection, stride)))
    assert h.shape == (8, 3, 2)
    np.testing.assert_allclose(
        eqx.filter_jit(net)(x), apply(net.output, h.mean((1, 2))), rtol=1e-12
    )


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vit(pooling):
    x = RNG.normal(size=(2, 4, 6))
    net = shaken(ViT(2, 6, 2, 3, 5, pooling=pooling).build(Interface(x.shape, 3), KEY))
    corners = [(i, j) for i in (0, 2) for j in (0, 2, 4)]
    squares = np.array([x[:, i : i + 2, j : j + 2].ravel() for i, j in corners])
    h = apply(net.embedding, squares) + net.positions
    if pooling == "cls":
        h = np.concatenate([net.cls[None], h])
    for block in net.blocks:
        y = np.array([standardise(token, block.norms[0]) for token in h])
        q, k, v = np.split(y @ block.attention.projections.T, 3, axis=1)
        heads = []
        for part in np.split(np.arange(6), 3):
            weights = np.exp(q[:, part] @ k[:, part].T / np.sqrt(2))
            heads.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
        h = h + np.concatenate(heads, axis=1) @ block.attention.output.T
        y = np.array([standardise(token, block.norms[1]) for token in h])
        h = h + apply(block.layers[1], gelu(apply(block.layers[0], y)))
    h = np.array([standardise(token, net.norm) for token in h])
    h = h[0] if pooling == "cls" else h.mean(0)
    np.testing.assert_allclose(eqx.filter_jit(net)(x), apply(net.output, h), rtol=1e-12)


def test_average_pool():
    x = jnp.arange(15.0).reshape(1, 3, 5)
    np.testing.assert_array_equal(average_pool(x), [[[3.0, 5.0]]])


def test_patches():
    x = jnp.arange(16.0).reshape(2, 2, 4)
    np.testing.assert_array_equal(patches(x, 2)[1], [2, 3, 6, 7, 10, 11, 14, 15])


def test_norm_has_the_right_third_derivative_at_a_constant():
    v = RNG.normal(size=(4, 3))

    def along(t):
        return Norm(4, 2)(0.7 + t * v)

    for _ in range(3):
        along = (lambda f: lambda t: jax.jvp(f, (t,), (1.0,))[1])(along)
    # t c / sqrt(var t^2 + eps) = t c (1 - var t^2 / (2 eps) + ...) / sqrt(eps)
    grouped = v.reshape(2, 6)
    centred = grouped - grouped.mean(1, keepdims=True)
    expected = -3 * centred * grouped.var(1, keepdims=True) * 1e-5**-1.5
    np.testing.assert_allclose(along(0.0), expected.reshape(4, 3), rtol=1e-12)


@pytest.mark.parametrize(
    "model", [CNN(4, 1, norm="group", groups=4), ResNet(4, 1, 1, groups=4), ViT(2, 4, 1, 2, 4)]
)
def test_derivatives_are_finite_for_a_blank_image(model):
    network = model.build(SQUARE, KEY)
    params, rest = eqx.partition(network, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(params)

    def loss(leaves):
        network = eqx.combine(jax.tree.unflatten(structure, leaves), rest)
        return jnp.sum(network(jnp.zeros(SQUARE.shape)) ** 2)

    def along(f, v):
        return lambda x: jax.jvp(f, (x,), (v,))[1]

    ones = jax.tree.map(jnp.ones_like, leaves)
    third = jax.jit(along(along(jax.grad(loss), ones), ones))(leaves)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in third)


def products(jaxpr):
    """Every matrix product, in functions called too."""
    for eqn in jaxpr.eqns:
        assert eqn.primitive.name != "conv_general_dilated"
        if eqn.primitive.name == "dot_general":
            yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from products(inner)


@pytest.mark.parametrize(("model", "number"), [(CNN(4, 2, norm="group"), 3), (ResNet(4, 1, 2), 7)])
def test_layers_take_all_examples_at_once(model, number):
    task = small_task(Case("", model, SQUARE, 0), n=7)
    w = task.initial_weights
    assert len(list(products(jax.make_jaxpr(lambda w: task(w))(w).jaxpr))) == number
    third = list(products(jax.make_jaxpr(lambda w: third_derivative(task, w, w, w))(w).jaxpr))
    assert len(third) > number
    for eqn in third:
        batch = eqn.params["dimension_numbers"][1]
        assert batch == ((), ()), "a product for every example"


@pytest.mark.parametrize("model", [CNN(4, 1), ResNet(4, 1, 1), ViT(2, 4, 1, 1, 4), MLP((3,))])
def test_output_scale_multiplies_the_initial_outputs(model):
    x = RNG.normal(size=SQUARE.shape)
    plain = eqx.filter_jit(model.build(SQUARE, KEY))(x)
    scaled = eqx.filter_jit(dataclasses.replace(model, output_scale=0.25).build(SQUARE, KEY))(x)
    np.testing.assert_allclose(scaled, plain / 4, rtol=1e-12)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (CNN(32), 32 * (27 + 1) + 32 * (288 + 1) + 10 * (2048 + 1)),
        (
            ResNet(16, 3, 3),
            (27 * 16 + 32)
            + 6 * (144 * 16 + 32)
            + (144 * 32 + 64) + 5 * (288 * 32 + 64) + (16 * 32 + 64)
            + (288 * 64 + 128) + 5 * (576 * 64 + 128) + (32 * 64 + 128)
            + 650,
        ),
        (
            ViT(4, 64, 4, 4, 128),
            64 * 49 + 64 * 64 + 4 * (4 * 4096 + 128 * 65 + 64 * 129 + 256) + 128 + 650,
        ),
    ],
)  # fmt: skip
def test_parameters_of_full_sizes(model, parameters):
    shapes = eqx.filter_eval_shape(model.build, CIFAR, KEY)
    leaves = [x for x in jax.tree.leaves(shapes) if jnp.issubdtype(x.dtype, jnp.inexact)]
    assert sum(x.size for x in leaves) == parameters


@pytest.mark.parametrize("model", [CNN(4, 1, norm="group"), ResNet(4, 1, 1), ViT(2, 4, 1, 1, 4)])
def test_a_fixed_scale_and_shift_are_no_parameters(model):
    fixed = dataclasses.replace(model, trainable_norm=False).build(SQUARE, KEY)
    trained = model.build(SQUARE, KEY)
    is_norm = lambda x: isinstance(x, Norm)  # noqa: E731
    for network, number in ((trained, 2), (fixed, 0)):
        norms = [x for x in jax.tree.leaves(network, is_leaf=is_norm) if is_norm(x)]
        assert norms
        assert all(len(jax.tree.leaves(norm)) == number for norm in norms)
    x = RNG.normal(size=SQUARE.shape)
    np.testing.assert_allclose(eqx.filter_jit(fixed)(x), eqx.filter_jit(trained)(x), rtol=1e-12)


@pytest.mark.parametrize(
    ("model", "interface", "option", "message"),
    [
        (CNN(), Interface((64,), 2), "type", r"cnn takes images \[channels, height, width\], "
         r"the data's inputs have shape \[64\]"),
        (ResNet(), Interface((8, 8), 2), "type", r"resnet takes .* have shape \[8, 8\]"),
        (ViT(), Interface((9,), 2, 5), "type", "vit takes images .* inputs are tokens"),
        (CNN(), Interface((3, 8, 8), 2, None, True), "type", "one label each, .* one per position"),
        (CNN(depth=4), Interface((1, 8, 9), 2), "depth", "<= 3, as often as 8 x 9 .*, got 4"),
        (ResNet(stages=5), Interface((1, 9, 8), 2), "stages", "<= 4, one more than 9 x 8 .* got 5"),
        (CNN(6, norm="group"), CIFAR, "groups", "must divide the width 6, got 4"),
        (ResNet(6), CIFAR, "groups", "must divide the width 6, got 4"),
        (ViT(5), CIFAR, "patch", "must divide the images' 32 x 32 pixels, got 5"),
        (ViT(heads=3), CIFAR, "heads", "must divide dim, 64, got 3"),
    ],
)  # fmt: skip
def test_refusals(model, interface, option, message):
    with pytest.raises(OptionError, match=message) as error:
        model.build(interface, KEY)
    assert error.value.option == option


def test_groups_do_not_matter_without_a_norm():
    assert CNN(6, groups=4).build(CIFAR, KEY).convs[0].norm is None


def test_relu_warns_once(recwarn):
    ResNet(activation="relu", depth=2).build(CIFAR, KEY)
    assert ["relu has kinks" in str(w.message) for w in recwarn] == [True]
