"""The operations that models are composed of: shapes in, shapes out.

Each has its gradient in `gradients`, its meaning in NumPy in `reference` and its built-in operators
in `lowering`. Pictures are [B, H, W, C] (batch, height, width, channels), kernels of convolutions
[out, height, width, in].
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from litert_author.errors import AuthorError
from litert_author.graph import Shape, Value

Padding: TypeAlias = Literal["same", "valid"]

# More dimensions than this are broadcast or transposed wrongly, or not at all, by older runtimes.
_RANK_MAX = 4


def unary(op: str, x: Value) -> Value:
    """An operation on each element, or softmax and log_softmax over the last dimension."""
    return x.graph.node(op, (x,), x.shape)


def relu(x: Value) -> Value:
    """max(x, 0)."""
    return unary("relu", x)


def tanh(x: Value) -> Value:
    """The hyperbolic tangent."""
    return unary("tanh", x)


def logistic(x: Value) -> Value:
    """1 / (1 + e^-x)."""
    return unary("logistic", x)


def square(x: Value) -> Value:
    """X * x."""
    return unary("square", x)


def sqrt(x: Value) -> Value:
    """The square root."""
    return unary("sqrt", x)


def rsqrt(x: Value) -> Value:
    """1 / sqrt(x)."""
    return unary("rsqrt", x)


def softmax(x: Value) -> Value:
    """e^x / sum(e^x) over the last dimension."""
    return unary("softmax", x)


def maximum(a: Value, b: Value | float) -> Value:
    """The larger of two."""
    return a.graph.binary("maximum", a, b)


def minimum(a: Value, b: Value | float) -> Value:
    """The smaller of two."""
    return a.graph.binary("minimum", a, b)


def greater(a: Value, b: Value | float) -> Value:
    """A > b, as bool."""
    return a.graph.binary("greater", a, b, "bool")


def equal(a: Value, b: Value) -> Value:
    """A == b, as bool."""
    return a.graph.binary("equal", a, b, "bool")


def where(condition: Value, a: Value, b: Value) -> Value:
    """A where the condition holds, else b; all broadcast."""
    shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
    return a.graph.node("where", (condition, a, b), shape)


def to_float(x: Value) -> Value:
    """0 and 1 of a bool, as float32."""
    return x if x.dtype == "float32" else x.graph.node("to_float", (x,), x.shape)


def total(x: Value, axes: Sequence[int] | None = None, *, keep: bool = False) -> Value:
    """The sum over `axes`, all if None; `keep` leaves them as dimensions of 1."""
    return _reduce("sum", x, axes, keep=keep)


def mean(x: Value, axes: Sequence[int] | None = None, *, keep: bool = False) -> Value:
    """The mean over `axes`."""
    return _reduce("mean", x, axes, keep=keep)


def _reduce(op: str, x: Value, axes: Sequence[int] | None, *, keep: bool) -> Value:
    along = tuple(range(x.rank)) if axes is None else tuple(sorted(a % x.rank for a in axes))
    if not along:
        return x
    shape = tuple(1 if i in along else n for i, n in enumerate(x.shape) if keep or i not in along)
    return x.graph.node(op, (x,), shape, axes=along, keep=keep)


def broadcast(x: Value, shape: Shape) -> Value:
    """X repeated until it has `shape`."""
    return x if x.shape == shape else x.graph.node("broadcast", (x,), shape)


def argmax(x: Value) -> Value:
    """The index of the largest along the last dimension, int32; the first of equals."""
    return x.graph.node("argmax", (x,), x.shape[:-1], "int32")


def reshape(x: Value, shape: Shape) -> Value:
    """The same elements in another shape.

    Raises:
        AuthorError: another number of elements.
    """
    if shape == x.shape:
        return x
    if math.prod(shape) != x.size:
        raise AuthorError(f"{list(x.shape)} does not reshape to {list(shape)}")
    while x.op == "reshape":
        x = x.inputs[0]
    return x if x.shape == shape else x.graph.node("reshape", (x,), shape, x.dtype)


def transpose(x: Value, order: Sequence[int]) -> Value:
    """Dimensions in another order; at most four."""
    if tuple(order) == tuple(range(x.rank)):
        return x
    if x.rank > _RANK_MAX:
        raise AuthorError(f"no more than {_RANK_MAX} dimensions can be transposed, not {x.rank}")
    return x.graph.node("transpose", (x,), tuple(x.shape[i] for i in order), order=tuple(order))


def block(x: Value, begin: Sequence[int], size: Sequence[int]) -> Value:
    """The block of `size` that begins at `begin`."""
    if tuple(size) == x.shape:
        return x
    return x.graph.node("slice", (x,), tuple(size), x.dtype, begin=tuple(begin))


def pad(x: Value, before: Sequence[int], after: Sequence[int]) -> Value:
    """Zeros around x."""
    if not any(before) and not any(after):
        return x
    shape = tuple(b + n + a for b, n, a in zip(before, x.shape, after, strict=True))
    return x.graph.node("pad", (x,), shape, before=tuple(before), after=tuple(after))


def concat(parts: Sequence[Value], axis: int) -> Value:
    """Values one after the other along `axis`."""
    if len(parts) == 1:
        return parts[0]
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return parts[0].graph.node("concat", parts, tuple(shape), axis=axis)


def matmul(a: Value, b: Value, *, ta: bool = False, tb: bool = False) -> Value:
    """A product of matrices, the last two dimensions; `ta` and `tb` transpose an operand first.

    Shapes: [..., M, K] x [..., K, N] -> [..., M, N]; leading dimensions are equal.

    Raises:
        AuthorError: shapes that do not go together.
    """
    m, inner = a.shape[-2:][::-1] if ta else a.shape[-2:]
    other, n = b.shape[-2:][::-1] if tb else b.shape[-2:]
    if inner != other or a.shape[:-2] != b.shape[:-2]:
        raise AuthorError(f"matmul: {list(a.shape)} and {list(b.shape)} do not go together")
    return a.graph.node("matmul", (a, b), (*a.shape[:-2], m, n), ta=ta, tb=tb)


def one_hot(ids: Value, depth: int) -> Value:
    """1 at each id, else 0: int32 [...] -> [..., depth]."""
    return ids.graph.node("one_hot", (ids,), (*ids.shape, depth), depth=depth)


def gather(table: Value, ids: Value) -> Value:
    """Rows of a table: [N, D] and int32 [...] -> [..., D]."""
    return table.graph.node("gather", (table, ids), (*ids.shape, table.shape[1]))


def upsample(x: Value, factor: int) -> Value:
    """Each point of [B, H, W, C] as a square of factor x factor."""
    b, h, w, c = x.shape
    return x.graph.node("upsample", (x,), (b, h * factor, w * factor, c), factor=factor)


def pool(op: Literal["max_pool", "avg_pool"], x: Value, window: int) -> Value:
    """The largest or the mean of each window x window square of [B, H, W, C]; they do not overlap.

    H and W are multiples of the window: crop first.
    """
    b, h, w, c = x.shape
    return x.graph.node(op, (x,), (b, h // window, w // window, c), window=window)


def edges(size: int, kernel: int, stride: int, padding: Padding) -> tuple[int, int, int]:
    """What a convolution makes of one dimension: points out, zeros before, zeros after.

    `same`: ceil(size / stride) points, the odd zero after; `valid`: no zeros. Zeros after are
    negative where the last points are not looked at.

    Raises:
        AuthorError: the kernel does not fit.
    """
    if padding == "same":
        out = -(-size // stride)
        zeros = max((out - 1) * stride + kernel - size, 0)
        before = zeros // 2
    else:
        out, before = (size - kernel) // stride + 1, 0
        if size < kernel:
            raise AuthorError(f"a kernel of {kernel} does not fit in {size}: use padding='same'")
    return out, before, (out - 1) * stride + kernel - size - before


def conv(x: Value, kernel: Value, stride: int, padding: Padding, *, dilation: int = 1) -> Value:
    """A convolution: [B, H, W, I] and [O, h, w, I] -> [B, H', W', O].

    Raises:
        AuthorError: shapes that do not go together.
    """
    b, h, w, channels = x.shape
    o, kh, kw, inner = kernel.shape
    if channels != inner:
        raise AuthorError(f"conv: {channels} channels, and a kernel for {inner}")
    oh, _, _ = edges(h, (kh - 1) * dilation + 1, stride, padding)
    ow, _, _ = edges(w, (kw - 1) * dilation + 1, stride, padding)
    return x.graph.node(
        "conv", (x, kernel), (b, oh, ow, o), stride=stride, padding=padding, dilation=dilation
    )


def conv_transpose(dy: Value, kernel: Value, shape: Shape, stride: int, padding: Padding) -> Value:
    """The convolution's transpose: [B, H', W', O] and the kernel as [I, h, w, O] -> `shape`."""
    return dy.graph.node("conv_transpose", (dy, kernel), shape, stride=stride, padding=padding)
