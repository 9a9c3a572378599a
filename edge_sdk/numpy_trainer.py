"""Training without a framework: softmax regression and multi-layer perceptrons in NumPy.

Layers are dense with ReLU between them, the loss is softmax cross-entropy, the optimiser is
mini-batch SGD, with FedProx's proximal term when the plan has one. One layer is softmax regression.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_sdk.trainer import EvalResult, Model, Stop, TrainingStoppedError, TrainResult
from wire import Manifest, Plan, Tensors

Floats = NDArray[np.float32]
_EVALUATE_BATCH: Final = 4_096
_MASK: Final = 2**64 - 1


def _layers(tensors: Tensors) -> int:
    return len(tensors) // 2


def _forward(tensors: Tensors, x: Floats, first: int = 0, end: int | None = None) -> list[Floats]:
    """The input of every layer from `first` to before `end`, and what the last one makes of it.

    Without an end, that are the logits.
    """
    activations = [x]
    for layer in range(first, _layers(tensors) if end is None else end):
        z = activations[-1] @ tensors[f"w{layer}"] + tensors[f"b{layer}"]
        last = layer == _layers(tensors) - 1
        activations.append(z if last else np.maximum(z, np.float32(0.0)))
    return activations


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), np.float32)


class NumpyTrainer:
    """A dense classifier on one device's data.

    Args:
        x: examples, float32[n, features].
        y: labels, int[n], 0 to classes - 1.
        holdout: examples and labels that are never trained on; None when there are none.
        seed: of the device; with the plan's seed it fixes the order of examples.

    Raises:
        ValueError: x and y do not fit together, or are not finite.
    """

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        holdout: Sequence[ArrayLike] | None = None,
        seed: int = 0,
    ) -> None:
        self._x, self._y = _checked(x, y)
        empty = (self._x[:0], self._y[:0])
        self._holdout = empty if holdout is None else _checked(*holdout)
        self._seed = seed

    @staticmethod
    def manifest(*sizes: int, seed: int = 0) -> Manifest:
        """The model for layers of these sizes: features, hidden ones if any, classes.

        Weights `w0, w1, ...` are uniform with He's variance 2 / fan-in (He et al. 2015, eq. 10), or
        zero for softmax regression; biases `b0, b1, ...` are zero.
        """
        bits = np.random.Philox(key=seed & _MASK)
        tensors: Tensors = {}
        for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            raw = np.asarray(bits.random_raw(fan_in * fan_out), np.uint64)
            uniform = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
            bound = np.sqrt(6.0 / fan_in) if len(sizes) > 2 else 0.0  # noqa: PLR2004 - one layer
            weights = (2.0 * uniform - 1.0) * bound
            tensors[f"w{layer}"] = weights.reshape(fan_in, fan_out).astype(np.float32)
            tensors[f"b{layer}"] = np.zeros(fan_out, np.float32)
        return Manifest(tensors)

    def train(self, model: Model, plan: Plan, *, stop: Stop) -> TrainResult:
        """Mini-batch SGD over the device's examples, `plan.local_epochs` times.

        Below the lowest layer that is trainable nothing changes, and nothing goes backward: what
        those layers make of an example is computed once.

        Raises:
            TrainingStoppedError: `stop()` said so between two batches.
        """
        tensors = {name: values.copy() for name, values in model.tensors.items()}
        first = _lowest(model)
        x = self._features(tensors, first, stop)
        rate = np.float32(plan.learning_rate)
        loss_sum, seen = 0.0, 0
        order_bits = np.random.Philox(key=(plan.seed * 2_654_435_761 + self._seed) & _MASK)
        for _epoch in range(plan.local_epochs):
            order = np.argsort(order_bits.random_raw(len(self._x)), kind="stable")
            for start in range(0, len(order), plan.batch):
                if stop():
                    raise TrainingStoppedError("training was stopped between two batches")
                rows = order[start : start + plan.batch]
                loss, gradients = _gradients(tensors, x[rows], self._y[rows], first)
                for name, gradient in gradients.items():
                    if not model.trains(name):
                        continue
                    if plan.proximal_mu:
                        pull = tensors[name] - model.tensors[name]
                        gradient = gradient + np.float32(plan.proximal_mu) * pull  # noqa: PLW2901 - FedProx, eq. 2
                    tensors[name] -= rate * gradient
                loss_sum += loss * len(rows)
                seen += len(rows)
        metrics = {"train_loss": loss_sum / seen} if seen else {}
        return TrainResult(tensors, len(self._x), metrics)

    def _features(self, tensors: Tensors, first: int, stop: Stop) -> Floats:
        """What the layers below `first` make of all examples."""
        if first == 0:
            return self._x
        made: list[Floats] = []
        for start in range(0, len(self._x), _EVALUATE_BATCH):
            if stop():
                raise TrainingStoppedError("training was stopped between two batches")
            made.append(_forward(tensors, self._x[start : start + _EVALUATE_BATCH], 0, first)[-1])
        return np.concatenate(made) if made else self._x[:0]

    def evaluate(self, model: Model, plan: Plan, *, stop: Stop) -> EvalResult:  # noqa: ARG002 - the Protocol's
        """Mean cross-entropy and accuracy on the hold-out."""
        x, y = self._holdout
        loss, right = 0.0, 0
        for start in range(0, len(x), _EVALUATE_BATCH):
            if stop():
                raise TrainingStoppedError("evaluation was stopped between two batches")
            labels = y[start : start + _EVALUATE_BATCH]
            logits = _forward(model.tensors, x[start : start + _EVALUATE_BATCH])[-1]
            rows = np.arange(len(labels))
            loss -= float(_log_softmax(logits)[rows, labels].sum(dtype=np.float64))
            right += int((logits.argmax(axis=1) == labels).sum())
        if len(x) == 0:
            return EvalResult(0.0, 0)
        return EvalResult(loss / len(x), len(x), {"accuracy": right / len(x)})


def _lowest(model: Model) -> int:
    """The lowest layer of which something is trainable; the number of layers if nothing is."""
    layers = _layers(model.tensors)
    return next(
        (n for n in range(layers) if model.trains(f"w{n}") or model.trains(f"b{n}")), layers
    )


def _gradients(
    tensors: Tensors, x: Floats, y: NDArray[np.int64], first: int = 0
) -> tuple[float, Tensors]:
    """The batch's mean cross-entropy and its gradient, of the layers from `first` on.

    `x` are the inputs of layer `first`.
    """
    activations = _forward(tensors, x, first)
    log_p = _log_softmax(activations[-1])
    rows = np.arange(len(y))
    loss = -float(log_p[rows, y].mean(dtype=np.float64))
    delta = np.exp(log_p)
    delta[rows, y] -= np.float32(1.0)
    delta /= np.float32(len(y))
    gradients: Tensors = {}
    for layer in reversed(range(first, _layers(tensors))):
        inputs = activations[layer - first]
        gradients[f"w{layer}"] = inputs.T @ delta
        gradients[f"b{layer}"] = delta.sum(axis=0)
        if layer > first:
            delta = (delta @ tensors[f"w{layer}"].T) * (inputs > 0.0)
    return loss, gradients


def _checked(x: ArrayLike, y: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
    examples = np.ascontiguousarray(x, np.float32)
    labels = np.ascontiguousarray(y, np.int64)
    if examples.ndim != 2 or labels.shape != (len(examples),):  # noqa: PLR2004 - examples, features
        raise ValueError(
            f"x is {list(examples.shape)} and y {list(labels.shape)}: expected [n, features], [n]"
        )
    if not np.isfinite(examples).all() or (labels < 0).any():
        raise ValueError("x has values that are not finite, or y has negative labels")
    return examples, labels
