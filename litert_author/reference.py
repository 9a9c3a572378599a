"""What each operation means, in NumPy.

Constants are folded with it, a file's probe is computed with it, and tests hold the runtimes to it.
In float64 it is the yardstick; it knows nothing of how operations are written to the file.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from litert_author.graph import Array, Value, needed
from litert_author.ops import Padding, edges

Meaning: TypeAlias = Callable[[Mapping[str, Any], list[Array], tuple[int, ...]], Array]


def evaluate(
    results: Sequence[Value],
    given: Mapping[str, Array],
    dtype: type[np.floating[Any]] = np.float64,
) -> list[Array]:
    """The values of `results`.

    Args:
        results: what is asked for.
        given: arrays for the inputs and parameters, by name.
        dtype: what real numbers are computed in.
    """
    order = needed(results)
    last = {i.number: value.number for value in order for i in value.inputs}
    keep = {value.number for value in results}
    found: dict[int, Array] = {}
    for value in order:
        if value.op == "constant":
            array = value.data
        elif value.op in {"input", "parameter"}:
            array = np.asarray(given[value.name])
        else:
            array = compute(
                value.op,
                value.attributes,
                [found[i.number] for i in value.inputs],
                value.shape,
            )
        assert array is not None  # noqa: S101 - a constant has data
        found[value.number] = array.astype(dtype) if value.dtype == "float32" else array
        for given_to in value.inputs:
            if last[given_to.number] == value.number and given_to.number not in keep:
                found.pop(given_to.number, None)
    return [found[value.number] for value in results]


def compute(
    op: str, attributes: Mapping[str, Any], inputs: list[Array], shape: tuple[int, ...]
) -> Array:
    """One operation on arrays."""
    return MEANINGS[op](attributes, inputs, shape)


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _logistic(x: Array) -> Array:
    return np.asarray(0.5 * (np.tanh(0.5 * x) + 1.0))


def _swap(x: Array) -> Array:
    return np.swapaxes(x, -1, -2)


def _matmul(how: Mapping[str, Any], i: list[Array], _shape: tuple[int, ...]) -> Array:
    a, b = i
    return np.asarray((_swap(a) if how["ta"] else a) @ (_swap(b) if how["tb"] else b))


def _padded(x: Array, kernel: tuple[int, int], stride: int, padding: Padding) -> Array:
    around = [(0, 0)] * 4
    for axis in (1, 2):
        _, before, after = edges(x.shape[axis], kernel[axis - 1], stride, padding)
        around[axis] = (before, max(after, 0))
    return np.pad(x, around)


def _conv(how: Mapping[str, Any], i: list[Array], shape: tuple[int, ...]) -> Array:
    x, kernel = i
    stride, dilation = how["stride"], how["dilation"]
    span = tuple((n - 1) * dilation + 1 for n in kernel.shape[1:3])
    x = _padded(x, (span[0], span[1]), stride, how["padding"])
    windows = sliding_window_view(x, span, axis=(1, 2))[
        :, ::stride, ::stride, :, ::dilation, ::dilation
    ]
    found = np.tensordot(windows, kernel, axes=((4, 5, 3), (1, 2, 3)))
    return np.asarray(found[:, : shape[1], : shape[2]])


def _conv_transpose(how: Mapping[str, Any], i: list[Array], shape: tuple[int, ...]) -> Array:
    """Each point of dy adds the kernel, weighted, where the convolution looked."""
    dy, kernel = i
    stride = how["stride"]
    _, kh, kw, _ = kernel.shape
    (oh, top, bottom), (ow, left, right) = (
        edges(shape[axis], kernel.shape[axis], stride, how["padding"]) for axis in (1, 2)
    )
    out = np.zeros(
        (shape[0], shape[1] + top + max(bottom, 0), shape[2] + left + max(right, 0), shape[3]),
        dy.dtype,
    )
    for row in range(kh):
        for column in range(kw):
            out[
                :,
                row : row + (oh - 1) * stride + 1 : stride,
                column : column + (ow - 1) * stride + 1 : stride,
            ] += dy @ kernel[:, row, column, :].T
    return np.asarray(out[:, top : top + shape[1], left : left + shape[2]])


def _windows(how: Mapping[str, Any], x: Array) -> Array:
    b, h, w, c = x.shape
    n = how["window"]
    return x.reshape(b, h // n, n, w // n, n, c)


def _upsample(how: Mapping[str, Any], i: list[Array], _shape: tuple[int, ...]) -> Array:
    return np.asarray(i[0].repeat(how["factor"], axis=1).repeat(how["factor"], axis=2))


def _slice(how: Mapping[str, Any], i: list[Array], shape: tuple[int, ...]) -> Array:
    where = tuple(slice(b, b + n) for b, n in zip(how["begin"], shape, strict=True))
    return np.asarray(i[0][where])


def _pad(how: Mapping[str, Any], i: list[Array], _shape: tuple[int, ...]) -> Array:
    around = list(zip(how["before"], how["after"], strict=True))
    return np.asarray(np.pad(i[0], around))


def _one_hot(how: Mapping[str, Any], i: list[Array], _shape: tuple[int, ...]) -> Array:
    return np.asarray(i[0][..., None] == np.arange(how["depth"]), np.float64)


def _reduce(function: Callable[..., Any]) -> Meaning:
    def meaning(how: Mapping[str, Any], i: list[Array], _shape: tuple[int, ...]) -> Array:
        return np.asarray(function(i[0], axis=how["axes"], keepdims=how["keep"]))

    return meaning


def _plain(function: Callable[..., Any]) -> Meaning:
    return lambda _how, i, _shape: np.asarray(function(*i))


MEANINGS: Final[dict[str, Meaning]] = {
    "abs": _plain(np.abs),
    "add": _plain(np.add),
    "argmax": _plain(lambda x: x.argmax(-1).astype(np.int32)),
    "avg_pool": lambda how, i, _shape: np.asarray(_windows(how, i[0]).mean(axis=(2, 4))),
    "backbone": lambda how, i, _shape: np.asarray(how["model"].run(i[0])),
    "broadcast": lambda _how, i, shape: np.broadcast_to(i[0], shape),
    "concat": lambda how, i, _shape: np.concatenate(i, axis=how["axis"]),
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "div": _plain(np.divide),
    "equal": _plain(np.equal),
    "exp": _plain(np.exp),
    "gather": _plain(lambda table, ids: table[ids]),
    "greater": _plain(np.greater),
    "log": _plain(np.log),
    "log_softmax": _plain(_log_softmax),
    "logistic": _plain(_logistic),
    "matmul": _matmul,
    "max_pool": lambda how, i, _shape: np.asarray(_windows(how, i[0]).max(axis=(2, 4))),
    "maximum": _plain(np.maximum),
    "mean": _reduce(np.mean),
    "minimum": _plain(np.minimum),
    "mul": _plain(np.multiply),
    "neg": _plain(np.negative),
    "one_hot": _one_hot,
    "pad": _pad,
    "relu": _plain(lambda x: np.maximum(x, 0)),
    "reshape": lambda _how, i, shape: i[0].reshape(shape),
    "rsqrt": _plain(lambda x: 1.0 / np.sqrt(x)),
    "slice": _slice,
    "softmax": _plain(_softmax),
    "sqrt": _plain(np.sqrt),
    "square": _plain(np.square),
    "sub": _plain(np.subtract),
    "sum": _reduce(np.sum),
    "tanh": _plain(np.tanh),
    "to_float": _plain(lambda x: x.astype(np.float64)),
    "transpose": lambda how, i, _shape: i[0].transpose(how["order"]),
    "upsample": _upsample,
    "where": _plain(np.where),
}
