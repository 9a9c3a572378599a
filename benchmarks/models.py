"""Models of dense layers and embeddings: logits and gradients, written out.

Every function works in the precision of the tensors that it is given, so that the tests can hold
gradients against numerical differentiation in float64. Gradients come already multiplied by the
learning rate: scaling the few numbers at the loss is cheaper than scaling every weight's gradient.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wire import Tensors

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class RowGradient:
    """The gradient of a table of which a batch has used few rows.

    Args:
        rows: which rows, each once, int64[k].
        values: their gradients, float32[k, columns].
    """

    rows: Integers
    values: Floats


Gradients: TypeAlias = Mapping[str, Floats | RowGradient]


class Model(Protocol):
    """What training and the test need of a model."""

    def initial(self, seed: int) -> Tensors:
        """Weights to start from, float32 by name."""
        ...

    def logits(self, tensors: Tensors, x: NDArray[np.generic]) -> Floats:
        """Scores of the classes for each example, float32[n, classes]."""
        ...

    def gradients(
        self, tensors: Tensors, x: NDArray[np.generic], y: Integers, scale: float = 1.0
    ) -> Gradients:
        """`scale` times the gradient of the batch's mean cross-entropy."""
        ...


def descend(tensors: Tensors, gradients: Gradients, *, norm_max: float = math.inf) -> None:
    """Subtract the gradients, in place; if they are longer than `norm_max`, shortened to it."""
    factor = 1.0
    if norm_max < math.inf:
        parts = (g.values if isinstance(g, RowGradient) else g for g in gradients.values())
        norm = math.sqrt(sum(float(np.vdot(part, part)) for part in parts))
        factor = min(1.0, norm_max / norm) if norm else 1.0
    for name, gradient in gradients.items():
        step = gradient.values if isinstance(gradient, RowGradient) else gradient
        if factor < 1.0:
            step *= factor
        if isinstance(gradient, RowGradient):
            tensors[name][gradient.rows] -= step
        else:
            tensors[name] -= step


def he_normal(chance: np.random.Generator, fan_in: int, shape: tuple[int, ...]) -> Floats:
    """Normal with variance 2 / fan-in (He et al. 2015, eq. 10)."""
    return np.asarray(chance.standard_normal(shape) * np.sqrt(2.0 / fan_in), np.float32)


def cross_entropy(logits: Floats, y: Integers) -> float:
    """The mean over a batch, in nats."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    return float((log_sums - shifted[np.arange(len(y)), y]).mean())


def loss_delta(logits: Floats, y: Integers, scale: float) -> Floats:
    """`scale` times the gradient of `cross_entropy` by the logits, which are overwritten."""
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    factor = scale / len(y)
    logits *= factor / logits.sum(axis=1, keepdims=True)
    logits[np.arange(len(y)), y] -= factor
    return logits


class Mlp:
    """Dense layers with ReLU between them.

    Args:
        sizes: features, hidden units of each layer, classes.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self._sizes = sizes

    def initial(self, seed: int) -> Tensors:
        """Weights `w0, w1, ...` [in, out], He-normal; biases `b0, b1, ...`, zero."""
        chance = np.random.Generator(np.random.Philox(key=seed))
        tensors: Tensors = {}
        for layer, (fan_in, fan_out) in enumerate(pairwise(self._sizes)):
            tensors[f"w{layer}"] = he_normal(chance, fan_in, (fan_in, fan_out))
            tensors[f"b{layer}"] = np.zeros(fan_out, np.float32)
        return tensors

    def logits(self, tensors: Tensors, x: NDArray[np.generic]) -> Floats:
        """Scores, float32[n, classes]."""
        return self._forward(tensors, x)[-1]

    def gradients(
        self, tensors: Tensors, x: NDArray[np.generic], y: Integers, scale: float = 1.0
    ) -> Gradients:
        """`scale` times the gradient of the batch's mean cross-entropy."""
        activations = self._forward(tensors, x)
        delta = loss_delta(activations[-1], y, scale)
        gradients: Tensors = {}
        for layer in reversed(range(len(self._sizes) - 1)):
            gradients[f"w{layer}"] = activations[layer].T @ delta
            gradients[f"b{layer}"] = delta.sum(axis=0)
            if layer:
                delta = (delta @ tensors[f"w{layer}"].T) * (activations[layer] > 0)
        return gradients

    def _forward(self, tensors: Tensors, x: NDArray[np.generic]) -> list[Floats]:
        """Every layer's input, and the logits last."""
        activations = [x.astype(tensors["w0"].dtype, copy=False)]
        last = len(self._sizes) - 2
        for layer in range(last + 1):
            z = activations[-1] @ tensors[f"w{layer}"]
            z += tensors[f"b{layer}"]
            activations.append(z if layer == last else np.maximum(z, 0.0, out=z))
        return activations


class NextToken:
    """The next token of a text from those before it: embeddings, one hidden layer, a softmax.

    This is the neural language model of Bengio et al. (2003) with ReLU and without direct
    connections. A token below zero is unknown and has the embedding of the table's last row.

    Args:
        vocabulary: tokens that can be predicted.
        context: tokens that a prediction sees.
        embedding: numbers per token.
        hidden: units of the hidden layer.
        unknown: whether the table has one more row, for unknown tokens.
    """

    def __init__(
        self, *, vocabulary: int, context: int, embedding: int, hidden: int, unknown: bool = False
    ) -> None:
        self._vocabulary, self._context = vocabulary, context
        self._embedding, self._hidden = embedding, hidden
        self._rows = vocabulary + unknown

    def initial(self, seed: int) -> Tensors:
        """Tables and weights [in, out]: normal; biases: zero."""
        chance = np.random.Generator(np.random.Philox(key=seed))
        fan_in = self._context * self._embedding
        # A third of a standard deviation keeps the hidden layer's inputs small beside its weights.
        table = chance.standard_normal((self._rows, self._embedding)) * 0.3
        output = chance.standard_normal((self._hidden, self._vocabulary)) / np.sqrt(self._hidden)
        return {
            "embedding": table.astype(np.float32),
            "hidden_w": he_normal(chance, fan_in, (fan_in, self._hidden)),
            "hidden_b": np.zeros(self._hidden, np.float32),
            "output_w": output.astype(np.float32),
            "output_b": np.zeros(self._vocabulary, np.float32),
        }

    def logits(self, tensors: Tensors, x: NDArray[np.generic]) -> Floats:
        """Scores, float32[n, vocabulary]."""
        return self._forward(tensors, x)[2]

    def gradients(
        self, tensors: Tensors, x: NDArray[np.generic], y: Integers, scale: float = 1.0
    ) -> Gradients:
        """`scale` times the gradient of the batch's mean cross-entropy; the table's by rows."""
        embedded, hidden, logits = self._forward(tensors, x)
        delta = loss_delta(logits, y, scale)
        back: Floats = delta @ tensors["output_w"].T
        back *= hidden > 0
        return {
            "output_w": hidden.T @ delta,
            "output_b": delta.sum(axis=0),
            "hidden_w": embedded.T @ back,
            "hidden_b": back.sum(axis=0),
            "embedding": self._row_gradient(x, back @ tensors["hidden_w"].T),
        }

    def _forward(self, tensors: Tensors, x: NDArray[np.generic]) -> tuple[Floats, Floats, Floats]:
        """The hidden layer's input and output, and the logits."""
        embedded = tensors["embedding"][x].reshape(len(x), -1)
        hidden = embedded @ tensors["hidden_w"]
        hidden += tensors["hidden_b"]
        np.maximum(hidden, 0.0, out=hidden)
        logits = hidden @ tensors["output_w"]
        logits += tensors["output_b"]
        return embedded, hidden, logits

    def _row_gradient(self, x: NDArray[np.generic], back: Floats) -> RowGradient:
        """Sums over the places where a token stands: sorted, since `np.add.at` is slower."""
        tokens = np.asarray(x, np.int64).ravel() % self._rows
        order = np.argsort(tokens, kind="stable")
        tokens = tokens[order]
        starts = np.flatnonzero(np.diff(tokens, prepend=-1))
        values = back.reshape(len(tokens), self._embedding)[order]
        return RowGradient(tokens[starts], np.add.reduceat(values, starts, axis=0))
