"""Losses: what an example costs, how that changes with the model's output, and what is right.

Each takes the output z [B, ...], labels y and weights w [B] (0 for padding), and gives a `Cost`.
Closed forms rather than rules of `gradients`: fewer operations, and none that overflows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from litert_author import ops
from litert_author.errors import AuthorError
from litert_author.graph import Dtype, Graph, Shape, Value
from wire.artefact import Loss


@dataclass(frozen=True)
class Cost:
    """Per-example loss [B], per-example share of right answers [B], and d(sum(v l)) / dz.

    `by_output` takes v, what each example weighs [B].
    """

    each: Value
    right: Value
    by_output: Callable[[Value], Value]


@dataclass(frozen=True)
class LossRule:
    """A loss by its name in `ArtefactInfo`."""

    y_dtype: Dtype
    y_shape: Callable[[Shape], Shape]
    cost: Callable[[Value, Value], Cost]


def _per_example(x: Value) -> Value:
    """The mean over all but the batch."""
    return ops.mean(x, range(1, x.rank)) if x.rank > 1 else x


def _weights(v: Value, z: Value, parts: int) -> Value:
    """V / parts, in a shape that broadcasts with z."""
    scaled = v if parts == 1 else v * (1.0 / parts)
    return ops.reshape(scaled, (z.shape[0],) + (1,) * (z.rank - 1))


def _softmax(z: Value, y: Value) -> Cost:
    """L = mean over positions of -log softmax(z)[y]; dl/dz = softmax(z) - one_hot(y)."""
    hot = ops.one_hot(y, z.shape[-1])
    each = -_per_example(ops.total(hot * ops.unary("log_softmax", z), [-1]))
    right = _per_example(ops.to_float(ops.equal(ops.argmax(z), y)))
    positions = z.size // (z.shape[0] * z.shape[-1])
    return Cost(each, right, lambda v: (ops.softmax(z) - hot) * _weights(v, z, positions))


def _sigmoid(z: Value, y: Value) -> Cost:
    """L = mean of max(z, 0) - z y + log(1 + e^-|z|); dl/dz = (1 / (1 + e^-z) - y) / outputs.

    Right is z > 0 where y >= 0.5.
    """
    tail = ops.unary("log", 1.0 + ops.unary("exp", -ops.unary("abs", z)))
    each = _per_example(ops.relu(z) - z * y + tail)
    yes = ops.to_float(ops.greater(z, 0.0))
    no = ops.to_float(ops.greater(y.graph.constant(0.5), y))
    right = _per_example(ops.unary("abs", yes - no))
    outputs = z.size // z.shape[0]
    return Cost(each, right, lambda v: (ops.logistic(z) - y) * _weights(v, z, outputs))


def _squared(z: Value, y: Value) -> Cost:
    """L = mean of (z - y)^2; dl/dz = 2 (z - y) / outputs. Nothing is right or wrong."""
    off = z - y
    each = _per_example(ops.square(off))
    outputs = z.size // z.shape[0]
    return Cost(each, each * 0.0, lambda v: off * _weights(v * 2.0, z, outputs))


LOSSES: Final[dict[Loss, LossRule]] = {
    "softmax": LossRule("int32", lambda shape: shape[:-1], _softmax),
    "sigmoid": LossRule("float32", lambda shape: shape, _sigmoid),
    "squared": LossRule("float32", lambda shape: shape, _squared),
}


def rule(name: Loss) -> LossRule:
    """The loss of this name.

    Raises:
        AuthorError: none is called so.
    """
    if name not in LOSSES:
        raise AuthorError(f"loss is {', '.join(sorted(LOSSES))}, not {name!r}")
    return LOSSES[name]


def label(graph: Graph, name: Loss, output: Value) -> Value:
    """The input `y` for a model with this output."""
    kind = rule(name)
    shape = (output.shape[0], *kind.y_shape(output.shape[1:]))
    return graph.source("input", "y", shape, kind.y_dtype)
