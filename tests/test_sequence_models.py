"""Models of sequences, against loops in NumPy."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from centralflow_eqx.data import Dataset
from centralflow_eqx.errors import OptionError
from centralflow_eqx.losses import CrossEntropy
from centralflow_eqx.models import GRU, LSTM, Interface, Mamba, Transformer
from centralflow_eqx.models._attention import SelfAttention
from centralflow_eqx.models.mamba import causal_convolution, selective_scan
from centralflow_eqx.models.transformer import SinusoidalPositions
from centralflow_eqx.task import Task

LENGTH, VOCABULARY, OUTPUTS = 6, 5, 3
TOKENS = Interface((LENGTH,), OUTPUTS, VOCABULARY, per_position=True)
FEATURES = Interface((LENGTH, 2), OUTPUTS, per_position=True)
KEY = jax.random.key(0)

MODELS_OF_SEQUENCES = {
    "lstm": LSTM(4),
    "gru": GRU(4),
    "transformer": Transformer(4, 1, heads=2, mlp_dim=5),
    "mamba": Mamba(4, 1, state=3, conv_width=3),
}
every_model = pytest.mark.parametrize(
    "model", MODELS_OF_SEQUENCES.values(), ids=MODELS_OF_SEQUENCES.keys()
)


@functools.cache
def built(model, interface=TOKENS):
    """The model's network."""
    return model.build(interface, KEY)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def arrays(module):
    """The module with NumPy's arrays."""
    return jax.tree.map(lambda p: np.asarray(p) if eqx.is_array(p) else p, module)


def test_lstm_is_a_loop_over_the_tokens():
    network = LSTM(4, 2).build(TOKENS, KEY)
    tokens = np.array([1, 4, 0, 4, 2, 2])
    x = np.asarray(network.embedding.weight)[tokens]
    for layer in arrays(network).layers:
        cell, h, c, states = layer.cell, np.zeros(4), np.zeros(4), []
        for now in x:
            gates = cell.weight_ih @ now + cell.weight_hh @ h + cell.bias
            i, f, g, o = gates.reshape(4, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            states.append(h)
        x = np.array(states)
    expected = x @ network.output.weight.T + network.output.bias
    np.testing.assert_allclose(eqx.filter_jit(network)(tokens), expected, rtol=1e-12)


def test_gru_is_a_loop_over_real_inputs():
    network = GRU(4, 2).build(FEATURES, KEY)
    inputs = np.random.default_rng(0).normal(size=(LENGTH, 2))
    x = inputs @ np.asarray(network.embedding.weight) + np.asarray(network.embedding.bias)
    for layer in arrays(network).layers:
        cell, h, states = layer.cell, np.zeros(4), []
        for now in x:
            reset, keep, new = (cell.weight_ih @ now + cell.bias).reshape(3, 4)
            by_reset, by_keep, by_new = (cell.weight_hh @ h).reshape(3, 4)
            keep = sigmoid(keep + by_keep)
            new = np.tanh(new + sigmoid(reset + by_reset) * (by_new + cell.bias_n))
            h = (1 - keep) * new + keep * h
            states.append(h)
        x = np.array(states)
    expected = x @ network.output.weight.T + network.output.bias
    np.testing.assert_allclose(eqx.filter_jit(network)(inputs), expected, rtol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_a_loop_over_heads_and_tokens(causal):
    tokens, dim, heads = 5, 6, 2
    attention = SelfAttention(dim, heads, causal, KEY)
    x = np.random.default_rng(0).normal(size=(tokens, dim))
    queries, keys, values = (np.asarray(attention.projections) @ x.T).reshape(3, heads, 3, tokens)
    mixed = np.zeros((tokens, dim))
    for h in range(heads):
        for t in range(tokens):
            seen = t + 1 if causal else tokens
            weight = np.exp(queries[h, :, t] @ keys[h, :, :seen] / np.sqrt(3))
            mixed[t, 3 * h : 3 * h + 3] = values[h, :, :seen] @ weight / weight.sum()
    expected = mixed @ np.asarray(attention.output).T
    np.testing.assert_allclose(eqx.filter_jit(attention)(x), expected, rtol=1e-12)


def test_transformer_without_positions_knows_earlier_tokens_as_a_set():
    tokens = jnp.array([[0, 1, 2, 3, 4, 1], [3, 2, 0, 4, 1, 1], [0, 1, 2, 3, 3, 1]])
    last = Interface((LENGTH,), OUTPUTS, VOCABULARY)

    def outputs(positions):
        network = Transformer(4, 1, heads=2, mlp_dim=5, positions=positions).build(last, KEY)
        return np.asarray(eqx.filter_jit(eqx.filter_vmap(network))(tokens))

    none = outputs("none")
    np.testing.assert_allclose(none[1], none[0], rtol=1e-12)
    assert np.abs(none[2] - none[0]).min() > 1e-4
    for positions in ("learned", "sinusoidal"):
        placed = outputs(positions)
        assert np.abs(placed[1] - placed[0]).min() > 1e-4


def test_sinusoidal_positions():
    got = eqx.filter_jit(SinusoidalPositions())(np.ones((7, 5)))
    for position in range(7):
        for pair in range(3):
            angle = position / 1e4 ** (2 * pair / 5)
            assert float(got[position, 2 * pair]) == pytest.approx(1 + np.sin(angle), abs=1e-14)
            if pair < 2:
                cosine = float(got[position, 2 * pair + 1])
                assert cosine == pytest.approx(1 + np.cos(angle), abs=1e-14)


def test_scan_is_the_recurrence():
    rng = np.random.default_rng(0)
    x, B, C = (rng.normal(size=(LENGTH, n)) for n in (4, 3, 3))
    step, A = rng.uniform(0.1, 2, size=(LENGTH, 4)), -rng.uniform(0.1, 2, size=(4, 3))
    h, expected = np.zeros((4, 3)), np.zeros((LENGTH, 4))
    for t in range(LENGTH):
        for channel in range(4):
            for n in range(3):
                decay = np.exp(step[t, channel] * A[channel, n])
                driven = step[t, channel] * x[t, channel] * B[t, n]
                h[channel, n] = decay * h[channel, n] + driven
                expected[t, channel] += C[t, n] * h[channel, n]
    np.testing.assert_allclose(selective_scan(*map(jnp.asarray, (x, step, A, B, C))), expected)


@pytest.mark.parametrize("width", [1, 3, LENGTH + 2])
def test_convolution_sees_the_present_and_the_past(width):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(LENGTH, 4)), rng.normal(size=(width, 4))
    expected = np.zeros((LENGTH, 4))
    for channel in range(4):
        # NumPy meets the first entry of a kernel with the present.
        whole = np.convolve(x[:, channel], kernel[::-1, channel])
        expected[:, channel] = whole[:LENGTH]
    got = causal_convolution(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


def test_mamba_block_is_that_of_the_paper():
    model = Mamba(4, 1, state=3, conv_width=3, expansion=2, trainable_norm=False)
    block = built(model).layers[0]
    x = np.random.default_rng(0).normal(size=(LENGTH, 4))
    got = eqx.filter_jit(block)(jnp.asarray(x))
    block = arrays(block)
    normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    u, gate = np.split(normed @ block.inward.T, 2, axis=1)
    u = (
        np.asarray(causal_convolution(jnp.asarray(u), jnp.asarray(block.kernel)))
        + block.kernel_bias
    )
    u = u * sigmoid(u)
    rate, B, C = np.split(u @ block.selection.T, [1, 4], axis=1)
    rate = np.log1p(np.exp(rate @ block.step.weight.T + block.step.bias))
    h, y = np.zeros((8, 3)), []
    for t in range(LENGTH):
        # zero-order hold of A, Euler's rule for B
        h = np.exp(-rate[t, :, None] * np.exp(block.log_rates)) * h
        h = h + np.outer(rate[t] * u[t], B[t])
        y.append(h @ C[t] + block.skip * u[t])
    expected = x + (np.array(y) * gate * sigmoid(gate)) @ block.outward.T
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_mamba_starts_as_in_the_paper():
    block = Mamba(64, 1, state=3).build(TOKENS, KEY).layers[0]
    np.testing.assert_allclose(-np.exp(block.log_rates), np.tile([-1.0, -2.0, -3.0], (128, 1)))
    steps = np.log1p(np.exp(np.asarray(block.step.bias)))
    assert 1e-3 <= steps.min() < 2e-3 and 5e-2 < steps.max() <= 1e-1
    assert block.step.weight.shape == (128, 4)  # one rank for 16 entries of a token


@every_model
def test_outputs_depend_on_tokens_up_to_their_own(model):
    tokens = jnp.array([1, 4, 0, 3, 2, 2])
    changed = jnp.where(jnp.eye(LENGTH, dtype=bool), (tokens + 1) % VOCABULARY, tokens)
    network = built(model)
    outputs = np.asarray(jax.jit(jax.vmap(network))(jnp.concatenate([tokens[None], changed])))
    differs = np.any(outputs[1:] != outputs[0], axis=-1)
    np.testing.assert_array_equal(differs, np.triu(np.ones((LENGTH, LENGTH), bool)))


@every_model
def test_one_output_is_that_of_the_last_position(model):
    tokens = jnp.array([1, 4, 0, 3, 2, 2])
    networks = [built(model), built(model, TOKENS._replace(per_position=False))]
    every, last = jax.jit(lambda x: [network(x) for network in networks])(tokens)
    assert every.shape == (LENGTH, OUTPUTS)
    np.testing.assert_array_equal(last, every[-1])


def test_padding_after_the_end_is_ignored():
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, 3, (2, 4, LENGTH))
    labels[:, 4:] = -1
    network = built(MODELS_OF_SEQUENCES["transformer"])

    @eqx.filter_jit
    def gradient(task):
        return jax.grad(task)(task.initial_weights)

    def of(tokens):
        data = Dataset(tokens, labels, None, None, OUTPUTS, VOCABULARY)
        return gradient(Task(network, CrossEntropy(), data, "float64"))

    padded = np.where(labels < 0, (tokens + 1) % VOCABULARY, tokens)
    np.testing.assert_allclose(of(padded), of(tokens), rtol=1e-12, atol=1e-15)
    wrong = np.where(labels < 0, tokens, (tokens + 1) % VOCABULARY)
    assert np.abs(of(wrong) - of(tokens)).max() > 1e-3


@every_model
def test_output_scale_is_that_of_the_last_layer_at_the_start(model):
    plain = built(model)
    scaled = eqx.tree_at(lambda m: m.output_scale, model, 0.25).build(TOKENS, KEY)
    assert eqx.tree_equal(plain.layers, scaled.layers)
    np.testing.assert_array_equal(scaled.output.weight, plain.output.weight / 4)
    np.testing.assert_array_equal(scaled.output.bias, plain.output.bias / 4)


@every_model
@pytest.mark.parametrize(
    ("interface", "found"),
    [
        (Interface((1, 8, 8), 3), r"the data's inputs have shape \[1, 8, 8\]"),
        (Interface((7,), 3), r"the data's inputs have shape \[7\]"),
        (Interface((7, 2), 3, vocabulary=5), r"the data's tokens have shape \[7, 2\]"),
    ],
    ids=["images", "vectors", "tables of tokens"],
)
def test_other_data_are_refused(model, interface, found):
    needs = r"takes sequences, tokens \[length\] or real inputs \[length, features\], "
    with pytest.raises(OptionError, match=needs + found) as refusal:
        model.build(interface, KEY)
    assert refusal.value.option == "type"


def test_heads_divide_dim():
    with pytest.raises(OptionError, match=r"must divide dim, 32, got 3") as refusal:
        Transformer(heads=3).build(TOKENS, KEY)
    assert refusal.value.option == "heads"


def test_kinks_warn():
    with pytest.warns(UserWarning, match="relu has kinks"):
        eqx.filter_eval_shape(Mamba(activation="relu").build, TOKENS, KEY)
