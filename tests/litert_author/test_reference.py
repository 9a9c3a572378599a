"""The yardstick itself, against loops that say it plainly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from litert_author import Sequential, attention, dense, gru, reference
from litert_author.graph import Graph
from litert_author.ops import Padding, conv, conv_transpose
from tests.litert_author.models import random_batch, random_state

Floats = NDArray[np.float64]


def plain_conv(x: Floats, k: Floats, stride: int, padding: Padding) -> Floats:
    """As TensorFlow documents it: SAME pads (ceil(n / s) - 1) s + k - n in all, less before."""
    n, size = x.shape[1], k.shape[1]
    if padding == "same":
        out = -(-n // stride)
        zeros = max((out - 1) * stride + size - n, 0)
        x = np.pad(x, ((0, 0), *[(zeros // 2, zeros - zeros // 2)] * 2, (0, 0)))
    else:
        out = (n - size) // stride + 1
    made = np.zeros((len(x), out, out, len(k)))
    for row in range(out):
        for column in range(out):
            r, c = row * stride, column * stride
            window = x[:, r : r + size, c : c + size]
            made[:, row, column] = np.einsum("bhwi,ohwi->bo", window, k)
    return made


@settings(max_examples=12)
@given(
    n=st.integers(3, 8),
    size=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.sampled_from(["same", "valid"]),
)
def test_convolutions_and_their_transposes(
    n: int, size: int, stride: int, padding: Padding
) -> None:
    rng = np.random.default_rng(n)
    x, k = rng.normal(size=(2, n, n, 3)), rng.normal(size=(4, size, size, 3))
    graph = Graph(reference.compute)
    a, b = graph.source("input", "x", x.shape), graph.source("input", "k", k.shape)
    y = conv(a, b, stride, padding)
    expected = plain_conv(x, k, stride, padding)
    (found,) = reference.evaluate([y], {"x": x, "k": k})
    np.testing.assert_allclose(found, expected, atol=1e-12)
    dy = rng.normal(size=expected.shape)
    d = graph.source("input", "d", dy.shape)
    flipped = graph.source("input", "f", (3, *k.shape[1:3], 4))
    back = conv_transpose(d, flipped, x.shape, stride, padding)
    (dx,) = reference.evaluate([back], {"d": dy, "f": k.transpose(3, 1, 2, 0)})
    # <conv(x), dy> = <x, transpose(dy)> is what a transpose is.
    assert float((expected * dy).sum()) == pytest.approx(float((x * dx).sum()))


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def test_a_gru_is_its_formula() -> None:
    model = Sequential((5, 3), [gru(4), dense(2)], batch=2)
    p = {k: v.astype(np.float64) for k, v in random_state(model, 1).items()}
    x = random_batch(model.artefact().info, 1)["x"]
    h = np.zeros((2, 4))
    for step in range(5):
        a = x[:, step] @ p["gru_1/kernel"] + p["gru_1/bias"]
        b = h @ p["gru_1/recurrent"] + p["gru_1/recurrent_bias"]
        z, r = sigmoid(a[:, :4] + b[:, :4]), sigmoid(a[:, 4:8] + b[:, 4:8])
        h = (1 - z) * np.tanh(a[:, 8:] + r * b[:, 8:]) + z * h
    expected = h @ p["dense_1/kernel"] + p["dense_1/bias"]
    (found,) = reference.evaluate([model.written.output], {**p, "x": x})
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_its_formula(causal: bool) -> None:  # noqa: FBT001 - a parameter of the test
    model = Sequential((4, 6), [attention(2, causal=causal), dense(2)], batch=2)
    p = {k: v.astype(np.float64) for k, v in random_state(model, 1).items()}
    x = random_batch(model.artefact().info, 1)["x"].astype(np.float64)
    q, k, v = (x @ p[f"attention_1/{n}_kernel"] for n in ("query", "key", "value"))
    made = np.zeros_like(x)
    for example in range(2):
        for head in (slice(0, 3), slice(3, 6)):
            scores = q[example, :, head] @ k[example, :, head].T / np.sqrt(3)
            if causal:
                scores[np.triu_indices(4, 1)] = -np.inf
            e = np.exp(scores)
            made[example, :, head] = e / e.sum(1, keepdims=True) @ v[example, :, head]
    expected = made @ p["attention_1/output_kernel"] @ p["dense_1/kernel"] + p["dense_1/bias"]
    (found,) = reference.evaluate([model.written.output], {**p, "x": x})
    np.testing.assert_allclose(found, expected, atol=1e-6)
