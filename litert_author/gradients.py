"""Reverse-mode gradients: for each operation, what a small change of its inputs does.

A rule takes the value and the gradient of the loss with respect to it, dy, and gives the gradient
with respect to each input, as more operations of the same graph. Only inputs that a trained
parameter stands behind are asked for.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from litert_author import ops
from litert_author.errors import AuthorError
from litert_author.graph import Value, needed

Rule: TypeAlias = Callable[[Value, Value, int], Value]


def gradients(
    loss: Sequence[tuple[Value, Value]], parameters: Sequence[Value]
) -> list[Value | None]:
    """d(loss) / d(parameter), None for one that the loss does not depend on.

    Args:
        loss: values with the gradient of the loss with respect to each.
        parameters: what to differentiate by.

    Raises:
        AuthorError: an operation on the way has no gradient.
    """
    wanted = {parameter.number for parameter in parameters}
    order = needed([value for value, _ in loss])
    depends: set[int] = set()
    for value in order:
        if value.number in wanted or any(i.number in depends for i in value.inputs):
            depends.add(value.number)
    parts: dict[int, list[Value]] = {}
    by: dict[int, Value] = {}
    for value, seed in loss:
        parts.setdefault(value.number, []).append(seed)
    for value in reversed(order):
        if value.number not in depends or value.number not in parts:
            continue
        dy = by[value.number] = _joined(parts.pop(value.number))
        if value.op == "parameter":
            continue
        rule = RULES.get(value.op)
        if rule is None:
            raise AuthorError(f"{value.op} has no gradient, and trained parameters stand before it")
        dy = ops.broadcast(dy, value.shape)
        for index, given in enumerate(value.inputs):
            if given.number in depends:
                parts.setdefault(given.number, []).append(rule(value, dy, index))
    return [by.get(parameter.number) for parameter in parameters]


def _joined(parts: list[Value]) -> Value:
    """The sum of a value's gradients, from all places where it is used.

    Over time there are many: products of matrices become one product of longer ones, sums over
    rows one sum, and slices that lie side by side are put together without adding.
    """
    products = [p for p in parts if _is_product_over_rows(p)]
    sums = [p for p in parts if p.op == "sum" and p.attributes["axes"] == (0,) and p.rank == 1]
    pads = [p for p in parts if p.op == "pad"]
    rest = [p for p in parts if p not in products and p not in sums and p not in pads]
    if products:
        left, right = (ops.concat([p.inputs[i] for p in products], 0) for i in (0, 1))
        rest.append(ops.matmul(left, right, ta=True))
    if sums:
        rest.append(ops.total(ops.concat([p.inputs[0] for p in sums], 0), [0]))
    rest += _side_by_side(pads) if len(pads) > 1 else pads
    return functools.reduce(lambda a, b: a + b, rest)


def _is_product_over_rows(p: Value) -> bool:
    return p.op == "matmul" and p.rank == 2 and p.attributes["ta"] and not p.attributes["tb"]  # noqa: PLR2004


def _side_by_side(pads: list[Value]) -> list[Value]:
    """The slices of one value as one, if they lie side by side along a dimension and fill it."""
    shape = pads[0].shape
    differ = {a for p in pads for a, n in enumerate(p.inputs[0].shape) if n != shape[a]}
    if len(differ) != 1:
        return pads
    axis = differ.pop()
    ordered = sorted(pads, key=lambda p: p.attributes["before"][axis])
    end = 0
    for p in ordered:
        if p.attributes["before"][axis] != end:
            return pads
        end += p.inputs[0].shape[axis]
    return [ops.concat([p.inputs[0] for p in ordered], axis)] if end == shape[axis] else pads


def _fit(gradient: Value, shape: tuple[int, ...]) -> Value:
    """Sum over what broadcasting repeated."""
    if gradient.shape == shape:
        return gradient
    extra = gradient.rank - len(shape)
    ones = [
        i for i in range(gradient.rank) if i < extra or (shape[i - extra] == 1 != gradient.shape[i])
    ]
    return ops.reshape(ops.total(gradient, ones), shape)


def _spread(dy: Value, y: Value) -> Value:
    """What a reduction's dy is in the rank of its input, where it broadcasts."""
    x = y.inputs[0]
    kept = tuple(1 if i in y.attributes["axes"] else n for i, n in enumerate(x.shape))
    return ops.reshape(dy, kept)


def _add(y: Value, dy: Value, i: int) -> Value:
    return _fit(dy, y.inputs[i].shape)


def _sub(y: Value, dy: Value, i: int) -> Value:
    given = _fit(dy, y.inputs[i].shape)
    return -given if i else given


def _mul(y: Value, dy: Value, i: int) -> Value:
    other = y.inputs[1 - i]
    this = y.inputs[i]
    if other.size == 1:  # the smaller product first
        return _fit(dy, this.shape) * ops.reshape(other, (1,) * this.rank)
    return _fit(dy * other, this.shape)


def _div(y: Value, dy: Value, i: int) -> Value:
    a, b = y.inputs
    if i == 0:
        return _fit(dy / b, a.shape)
    return -_fit(dy * y / b, b.shape)


def _maximum(y: Value, dy: Value, i: int) -> Value:
    a, b = y.inputs if i == 0 else y.inputs[::-1]
    return _fit(dy * ops.to_float(ops.greater(a, b)), a.shape)


def _minimum(y: Value, dy: Value, i: int) -> Value:
    a, b = y.inputs if i == 0 else y.inputs[::-1]
    return _fit(dy * ops.to_float(ops.greater(b, a)), a.shape)


def _where(y: Value, dy: Value, i: int) -> Value:
    condition = y.inputs[0]
    zero = y.graph.constant(0.0)
    kept = ops.where(condition, dy, zero) if i == 1 else ops.where(condition, zero, dy)
    return _fit(kept, y.inputs[i].shape)


def _relu(y: Value, dy: Value, _i: int) -> Value:
    return ops.where(ops.greater(y, 0.0), dy, y.graph.constant(0.0))


def _softmax(y: Value, dy: Value, _i: int) -> Value:
    return y * (dy - ops.total(dy * y, [-1], keep=True))


def _log_softmax(y: Value, dy: Value, _i: int) -> Value:
    return dy - ops.unary("exp", y) * ops.total(dy, [-1], keep=True)


def _sum(y: Value, dy: Value, _i: int) -> Value:
    return _spread(dy, y)


def _mean(y: Value, dy: Value, _i: int) -> Value:
    return _spread(dy * (y.size / y.inputs[0].size), y)


def _matmul(y: Value, dy: Value, i: int) -> Value:
    a, b = y.inputs
    ta, tb = y.attributes["ta"], y.attributes["tb"]
    if i == 0:
        return ops.matmul(b, dy, ta=tb, tb=True) if ta else ops.matmul(dy, b, tb=not tb)
    return ops.matmul(dy, a, ta=True, tb=ta) if tb else ops.matmul(a, dy, ta=not ta)


def _reshape(y: Value, dy: Value, _i: int) -> Value:
    return ops.reshape(dy, y.inputs[0].shape)


def _transpose(y: Value, dy: Value, _i: int) -> Value:
    order = y.attributes["order"]
    return ops.transpose(dy, [order.index(i) for i in range(len(order))])


def _slice(y: Value, dy: Value, _i: int) -> Value:
    x, begin = y.inputs[0], y.attributes["begin"]
    after = [n - b - s for n, b, s in zip(x.shape, begin, y.shape, strict=True)]
    return ops.pad(dy, begin, after)


def _pad(y: Value, dy: Value, _i: int) -> Value:
    return ops.block(dy, y.attributes["before"], y.inputs[0].shape)


def _concat(y: Value, dy: Value, i: int) -> Value:
    axis = y.attributes["axis"]
    begin = [0] * y.rank
    begin[axis] = sum(part.shape[axis] for part in y.inputs[:i])
    return ops.block(dy, begin, y.inputs[i].shape)


def _gather(y: Value, dy: Value, _i: int) -> Value:
    """One-hot transposed times dy: a sum over equal ids, without a scatter."""
    table, ids = y.inputs
    hot = ops.one_hot(ops.reshape(ids, (ids.size,)), table.shape[0])
    return ops.matmul(hot, ops.reshape(dy, (ids.size, table.shape[1])), ta=True)


def _max_pool(y: Value, dy: Value, _i: int) -> Value:
    """To the largest; where several are, in equal parts."""
    window = y.attributes["window"]
    largest = ops.to_float(ops.equal(y.inputs[0], ops.upsample(y, window)))
    count = ops.pool("avg_pool", largest, window)
    return largest * ops.upsample(dy / (count * float(window * window)), window)


def _avg_pool(y: Value, dy: Value, _i: int) -> Value:
    window = y.attributes["window"]
    return ops.upsample(dy * (1.0 / (window * window)), window)


def _conv(y: Value, dy: Value, i: int) -> Value:
    """By x: the transposed convolution. By the kernel: a convolution of x with dy as the kernel.

    For that the batch becomes the channel, x's channels become the batch, and what was the stride
    becomes the dilation.
    """
    x, kernel = y.inputs
    stride, padding = y.attributes["stride"], y.attributes["padding"]
    if i == 0:
        flipped = ops.transpose(kernel, (3, 1, 2, 0))
        return ops.conv_transpose(dy, flipped, x.shape, stride, padding)
    _, h, w, _ = x.shape
    _, kh, kw, _ = kernel.shape
    _, top, bottom = ops.edges(h, kh, stride, padding)
    _, left, right = ops.edges(w, kw, stride, padding)
    x = ops.pad(x, (0, top, left, 0), (0, max(bottom, 0), max(right, 0), 0))
    x = ops.block(x, (0, 0, 0, 0), (x.shape[0], h + top + bottom, w + left + right, x.shape[3]))
    swapped = ops.conv(
        ops.transpose(x, (3, 1, 2, 0)),
        ops.transpose(dy, (3, 1, 2, 0)),
        1,
        "valid",
        dilation=stride,
    )
    return ops.transpose(swapped, (3, 1, 2, 0))


RULES: Final[dict[str, Rule]] = {
    "abs": lambda y, dy, _i: ops.where(ops.greater(y.inputs[0], 0.0), dy, -dy),
    "add": _add,
    "avg_pool": _avg_pool,
    "broadcast": lambda y, dy, _i: _fit(dy, y.inputs[0].shape),
    "concat": _concat,
    "conv": _conv,
    "div": _div,
    "exp": lambda y, dy, _i: dy * y,
    "gather": _gather,
    "log": lambda y, dy, _i: dy / y.inputs[0],
    "log_softmax": _log_softmax,
    "logistic": lambda y, dy, _i: dy * (y * (1.0 - y)),
    "matmul": _matmul,
    "max_pool": _max_pool,
    "maximum": _maximum,
    "mean": _mean,
    "minimum": _minimum,
    "mul": _mul,
    "neg": lambda _y, dy, _i: -dy,
    "pad": _pad,
    "relu": _relu,
    "reshape": _reshape,
    "rsqrt": lambda y, dy, _i: dy * (y * ops.square(y)) * -0.5,
    "slice": _slice,
    "softmax": _softmax,
    "sqrt": lambda y, dy, _i: dy * 0.5 / y,
    "square": lambda y, dy, _i: dy * (y.inputs[0] * 2.0),
    "sub": _sub,
    "sum": _sum,
    "tanh": lambda y, dy, _i: dy * (1.0 - ops.square(y)),
    "transpose": _transpose,
    "where": _where,
}
