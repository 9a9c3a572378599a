"""The layers that a model is listed in; shapes are without the batch B.

A layer is a value: it says what it is, and builds itself into a graph when the model is written.
Gradients follow from the operations that it is composed of.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from litert_author import ops
from litert_author.errors import AuthorError
from litert_author.graph import Dtype, Value
from litert_author.scope import Scope
from wire.manifest import Part

# Half the width of an embedding's first uniform values; Keras has the same.
EMBEDDING_SPREAD: Final = 0.05
LAYER_NORM_EPSILON: Final = 1e-5
# Added to the scores of what may not be looked at; e to its power is 0 in float32.
_HIDDEN: Final = -1e9


@dataclass(frozen=True)
class Layer:
    """One layer: how it is called, what it takes, and how it is built."""

    kind: str
    build: Callable[[Scope, Value], Value]
    name: str = ""
    part: Part = "shared"
    takes: Dtype = "float32"
    # How many different ids it takes, where it takes ids.
    values: int = 0


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter: x W + (x A) B * alpha / rank, with W frozen and A, B trained.

    Hu et al. 2021, section 4.1. A is [in, rank], B is [rank, out] and begins at zero, so that the
    model is at first what it was. In a frozen layer too, A and B are shared.
    """

    rank: int
    alpha: float


def lora(rank: int, alpha: float | None = None) -> Lora:
    """An adapter of `rank` for `dense` or `attention`; alpha is `rank` if not given.

    Raises:
        AuthorError: a rank below 1.
    """
    _positive("lora", rank=rank)
    return Lora(rank, float(rank if alpha is None else alpha))


def dense(
    units: int,
    *,
    bias: bool = True,
    adapter: Lora | None = None,
    part: Part = "shared",
    name: str = "",
) -> Layer:
    """X W + b over the last dimension: [..., in] -> [..., units]."""
    _positive("dense", units=units)

    def build(scope: Scope, x: Value) -> Value:
        return project(scope, "", x, units, bias=bias, adapter=adapter)

    return Layer("dense", build, name, part)


def project(
    scope: Scope, prefix: str, x: Value, units: int, *, bias: bool, adapter: Lora | None
) -> Value:
    """What `dense` and the projections of `attention` share; the kernel is [in, units]."""
    width = x.shape[-1]
    rows = ops.reshape(x, (x.size // width, width))
    frozen: Part | None = "frozen" if adapter else None
    kernel = scope.weight(f"{prefix}kernel", (width, units), width, units, part=frozen)
    y = ops.matmul(rows, kernel)
    if bias:
        y = y + scope.filled(f"{prefix}bias", (units,), 0.0, part=frozen)
    if adapter is not None:
        if adapter.rank >= min(width, units):
            raise AuthorError(
                f"{scope.name}: an adapter of rank {adapter.rank} for {width} x {units} saves "
                f"nothing: take less than {min(width, units)}"
            )
        # Beside a frozen layer the adapter is what learns.
        part: Part = "personal" if scope.part == "personal" else "shared"
        down = scope.weight(f"{prefix}lora_a", (width, adapter.rank), width, width, part=part)
        up = scope.filled(f"{prefix}lora_b", (adapter.rank, units), 0.0, part=part)
        y = y + ops.matmul(ops.matmul(rows, down), up) * (adapter.alpha / adapter.rank)
    return ops.reshape(y, (*x.shape[:-1], units))


def conv(
    filters: int,
    size: int,
    *,
    stride: int = 1,
    padding: ops.Padding = "valid",
    bias: bool = True,
    part: Part = "shared",
    name: str = "",
) -> Layer:
    """A convolution with size x size kernels: [H, W, in] -> [H', W', filters].

    `valid`: H' = floor((H - size) / stride) + 1. `same`: H' = ceil(H / stride).
    """
    _positive("conv", filters=filters, size=size, stride=stride)
    if padding not in {"same", "valid"}:
        raise AuthorError(f"conv: padding is 'same' or 'valid', not {padding!r}")

    def build(scope: Scope, x: Value) -> Value:
        _rank(scope, x, 3, "[H, W, channels]")
        channels, area = x.shape[-1], size * size
        shape = (filters, size, size, channels)
        kernel = scope.weight("kernel", shape, area * channels, area * filters)
        y = ops.conv(x, kernel, stride, padding)
        return y + scope.filled("bias", (filters,), 0.0) if bias else y

    return Layer("conv", build, name, part)


def max_pool(window: int) -> Layer:
    """The largest of each window x window square: [H, W, C] -> [H // window, W // window, C]."""
    return _pool("max_pool", window)


def average_pool(window: int) -> Layer:
    """The mean of each window x window square: [H, W, C] -> [H // window, W // window, C]."""
    return _pool("avg_pool", window)


def _pool(op: str, window: int) -> Layer:
    _positive(op, window=window)

    def build(scope: Scope, x: Value) -> Value:
        _rank(scope, x, 3, "[H, W, channels]")
        b, h, w, c = x.shape
        if min(h, w) < window:
            raise AuthorError(f"{scope.name}: a window of {window} does not fit in {h} x {w}")
        x = ops.block(x, (0, 0, 0, 0), (b, h - h % window, w - w % window, c))
        return ops.pool("max_pool" if op == "max_pool" else "avg_pool", x, window)

    return Layer(op, build)


def embedding(values: int, width: int, *, part: Part = "shared", name: str = "") -> Layer:
    """A row of a table for each id 0 ... values - 1: ids [...] -> [..., width]."""
    _positive("embedding", values=values, width=width)

    def build(scope: Scope, x: Value) -> Value:
        return ops.gather(scope.uniform("table", (values, width), EMBEDDING_SPREAD), x)

    return Layer("embedding", build, name, part, "int32", values)


def positions(*, part: Part = "shared", name: str = "") -> Layer:
    """A learnt vector added at each position: [T, D] -> [T, D]."""

    def build(scope: Scope, x: Value) -> Value:
        _rank(scope, x, 2, "[T, D]")
        return x + scope.uniform("table", x.shape[1:], EMBEDDING_SPREAD)

    return Layer("positions", build, name, part)


def gru(units: int, *, sequence: bool = False, part: Part = "shared", name: str = "") -> Layer:
    """A gated recurrent unit over time: [T, D] -> [units], or [T, units] if `sequence`.

    z = s(x Wz + h Uz + bz), r = s(x Wr + h Ur + br), n = tanh(x Wn + bn + r (h Un + cn)),
    h' = n + z (h - n), from h = 0: Cho et al. 2014 with the reset after the product, as in
    cuDNN and PyTorch. Time is unrolled: T is fixed, and the file grows with it.
    """
    _positive("gru", units=units)

    def build(scope: Scope, x: Value) -> Value:
        _rank(scope, x, 2, "[T, D]")
        b, steps, width = x.shape
        if steps == 1:
            raise AuthorError(f"{scope.name}: one step of time has nothing to remember: use dense")
        kernel = scope.weight("kernel", (width, 3 * units), width, units)
        recurrent = scope.weight("recurrent", (units, 3 * units), units, units)
        bias = scope.filled("bias", (3 * units,), 0.0)
        recurrent_bias = scope.filled("recurrent_bias", (3 * units,), 0.0)
        rows = ops.matmul(ops.reshape(x, (b * steps, width)), kernel) + bias
        given = ops.reshape(rows, (b, steps, 3 * units))
        h: Value | None = None
        states = []
        for step in range(steps):
            now = ops.reshape(ops.block(given, (0, step, 0), (b, 1, 3 * units)), (b, 3 * units))
            # At first h is 0: what it adds is the bias alone.
            before = ops.reshape(recurrent_bias, (1, 3 * units))
            if h is not None:
                before = ops.matmul(h, recurrent) + recurrent_bias
            gates = ops.logistic(_columns(now, 0, 2 * units) + _columns(before, 0, 2 * units))
            update, reset = _columns(gates, 0, units), _columns(gates, units, units)
            candidate = ops.tanh(
                _columns(now, 2 * units, units) + reset * _columns(before, 2 * units, units)
            )
            h = (
                candidate - update * candidate
                if h is None
                else candidate + update * (h - candidate)
            )
            states.append(h)
        if sequence:
            return ops.concat([ops.reshape(state, (b, 1, units)) for state in states], 1)
        return states[-1]

    return Layer("gru", build, name, part)


def _columns(x: Value, begin: int, width: int) -> Value:
    return ops.block(x, (0, begin), (x.shape[0], width))


def layer_norm(*, part: Part = "shared", name: str = "") -> Layer:
    """(x - mean) / sqrt(variance + 1e-5) * gain + bias over the last dimension (Ba et al. 2016)."""

    def build(scope: Scope, x: Value) -> Value:
        width = x.shape[-1:]
        centred = x - ops.mean(x, [-1], keep=True)
        variance = ops.mean(ops.square(centred), [-1], keep=True)
        unit = centred * ops.rsqrt(variance + LAYER_NORM_EPSILON)
        return unit * scope.filled("gain", width, 1.0) + scope.filled("bias", width, 0.0)

    return Layer("layer_norm", build, name, part)


def attention(
    heads: int = 1,
    *,
    causal: bool = False,
    adapter: Lora | None = None,
    part: Part = "shared",
    name: str = "",
) -> Layer:
    """Self-attention: softmax(Q K' / sqrt(D / heads)) V, then a projection: [T, D] -> [T, D].

    Vaswani et al. 2017, eq. 1; `causal` hides what comes later. The four projections have no bias.
    """
    _positive("attention", heads=heads)

    def build(scope: Scope, x: Value) -> Value:
        _rank(scope, x, 2, "[T, D]")
        b, steps, width = x.shape
        if width % heads:
            raise AuthorError(f"{scope.name}: {heads} heads do not divide a width of {width}")

        def linear(prefix: str, given: Value) -> Value:
            return project(scope, f"{prefix}_", given, width, bias=False, adapter=adapter)

        def split(given: Value) -> Value:
            apart = ops.reshape(given, (b, steps, heads, width // heads))
            return ops.transpose(apart, (0, 2, 1, 3))

        query, key, value = (split(linear(n, x)) for n in ("query", "key", "value"))
        scores = ops.matmul(query, key, tb=True) * (1.0 / math.sqrt(width / heads))
        if causal:
            scores = scores + x.graph.constant(np.triu(np.full((steps, steps), _HIDDEN), 1))
        looked = ops.matmul(ops.softmax(scores), value)
        joined = ops.reshape(ops.transpose(looked, (0, 2, 1, 3)), (b, steps, width))
        return linear("output", joined)

    return Layer("attention", build, name, part)


def residual(*layers: Layer) -> Layer:
    """X + layers(x): the layers keep the shape."""

    def build(scope: Scope, x: Value) -> Value:
        y = x
        for layer in layers:
            y = layer.build(scope.child(layer.kind, layer.name, layer.part), y)
        if y.shape != x.shape:
            raise AuthorError(
                f"residual: its layers make {list(y.shape[1:])} of {list(x.shape[1:])}, "
                "and have to keep the shape"
            )
        return x + y

    return Layer("residual", build)


def transformer_block(
    heads: int,
    hidden: int,
    *,
    causal: bool = False,
    adapter: Lora | None = None,
    part: Part = "shared",
) -> Layer:
    """X + attention(norm(x)), then x + dense(gelu(dense(norm(x)))): [T, D] -> [T, D].

    The order of Xiong et al. 2020, which trains without a warm-up.
    """
    _positive("transformer_block", heads=heads, hidden=hidden)

    def build(scope: Scope, x: Value) -> Value:
        first = residual(
            layer_norm(part=part), attention(heads, causal=causal, adapter=adapter, part=part)
        )
        second = residual(
            layer_norm(part=part),
            dense(hidden, adapter=adapter, part=part),
            gelu(),
            dense(x.shape[-1], adapter=adapter, part=part),
        )
        return second.build(scope, first.build(scope, x))

    return Layer("transformer_block", build)


def relu() -> Layer:
    """max(x, 0)."""
    return Layer("relu", lambda _scope, x: ops.relu(x))


def tanh() -> Layer:
    """The hyperbolic tangent."""
    return Layer("tanh", lambda _scope, x: ops.tanh(x))


def sigmoid() -> Layer:
    """1 / (1 + e^-x)."""
    return Layer("sigmoid", lambda _scope, x: ops.logistic(x))


def gelu() -> Layer:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): Hendrycks and Gimpel 2016, its tanh form."""

    def build(_scope: Scope, x: Value) -> Value:
        inner = x * (1.0 + ops.square(x) * 0.044715) * math.sqrt(2.0 / math.pi)
        return x * (1.0 + ops.tanh(inner)) * 0.5

    return Layer("gelu", build)


def flatten() -> Layer:
    """All dimensions in one: [...] -> [N]."""
    return Layer("flatten", lambda _scope, x: ops.reshape(x, (x.shape[0], x.size // x.shape[0])))


def global_average() -> Layer:
    """The mean over all but the last dimension: [..., C] -> [C]."""
    return Layer("global_average", lambda _scope, x: ops.mean(x, range(1, x.rank - 1)))


def last_step() -> Layer:
    """What stands at the last position: [T, D] -> [D]."""

    def build(scope: Scope, x: Value) -> Value:
        _rank(scope, x, 2, "[T, D]")
        b, steps, width = x.shape
        return ops.reshape(ops.block(x, (0, steps - 1, 0), (b, 1, width)), (b, width))

    return Layer("last_step", build)


def _rank(scope: Scope, x: Value, rank: int, form: str) -> None:
    if x.rank != rank + 1:
        raise AuthorError(f"{scope.name} takes {form}, not {list(x.shape[1:])}")


def whole(size: object) -> bool:
    """Whether a size is a whole number from 1, whatever an author has put there."""
    return isinstance(size, int) and not isinstance(size, bool) and size >= 1


def _positive(kind: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if not whole(size):
            raise AuthorError(f"{kind}: {name} is a whole number from 1, not {size!r}")
