"""A convolutional network in NumPy: two convolutions of 5 x 5 with max-pooling, two dense layers.

Images lie as [height, width, image, channel]. A step over rows or columns of an image is then a
long contiguous run over the batch, which is what makes NumPy's slices fast: most of a training
step is spent in matrix products. Bias and ReLU come after
the pooling, which is the same and a quarter of the work.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import Gradients, Integers, he_normal, loss_delta
from wire import Tensors

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]

_KERNEL: Final = 5


class Cnn:
    """Conv, pool, conv, pool, dense, dense; ReLU between them, no padding.

    Args:
        side: of the square images in pixels, of one grey channel: a multiple of 4, at least 16.
        channels: of the two convolutions.
        hidden: units of the hidden dense layer.
        classes: that are told apart.
    """

    def __init__(self, side: int, channels: tuple[int, int], hidden: int, classes: int) -> None:
        self._channels, self._hidden, self._classes = channels, hidden, classes
        self._edge = ((side - _KERNEL + 1) // 2 - _KERNEL + 1) // 2

    def initial(self, seed: int) -> Tensors:
        """Kernels [high, wide, in, out] and weights [in, out], He-normal; biases, zero."""
        chance = np.random.Generator(np.random.Philox(key=seed))
        first, second = self._channels
        area, flat = _KERNEL * _KERNEL, self._edge * self._edge * second
        kernel = (_KERNEL, _KERNEL)
        return {
            "conv0_w": he_normal(chance, area, (*kernel, 1, first)),
            "conv0_b": np.zeros(first, np.float32),
            "conv1_w": he_normal(chance, area * first, (*kernel, first, second)),
            "conv1_b": np.zeros(second, np.float32),
            "dense0_w": he_normal(chance, flat, (flat, self._hidden)),
            "dense0_b": np.zeros(self._hidden, np.float32),
            "dense1_w": he_normal(chance, self._hidden, (self._hidden, self._classes)),
            "dense1_b": np.zeros(self._classes, np.float32),
        }

    def logits(self, tensors: Tensors, x: NDArray[np.generic]) -> Floats:
        """Scores of the classes, float32[n, classes], for images float32[n, side, side]."""
        grid = _grid(tensors, x)
        for layer, columns in enumerate((_columns_of_one, _columns_of_many)):
            name = f"conv{layer}"
            grid = _pool(_convolve(columns(grid), tensors[f"{name}_w"], len(grid), len(x)))[0]
            _shift_and_cut(grid, tensors[f"{name}_b"])
        hidden: Floats = np.matmul(_flat(grid), tensors["dense0_w"])
        _shift_and_cut(hidden, tensors["dense0_b"])
        scores: Floats = np.matmul(hidden, tensors["dense1_w"]) + tensors["dense1_b"]
        return scores

    def gradients(
        self, tensors: Tensors, x: NDArray[np.generic], y: Integers, scale: float = 1.0
    ) -> Gradients:
        """`scale` times the gradient of the batch's mean cross-entropy."""
        images = len(x)
        first, second = self._channels
        grid = _grid(tensors, x)
        columns0 = _columns_of_one(grid)
        pooled0, *kept0 = _pool(_convolve(columns0, tensors["conv0_w"], len(grid), images))
        _shift_and_cut(pooled0, tensors["conv0_b"])
        columns1 = _columns_of_many(pooled0)
        pooled1, *kept1 = _pool(_convolve(columns1, tensors["conv1_w"], len(pooled0), images))
        _shift_and_cut(pooled1, tensors["conv1_b"])
        flat = _flat(pooled1)
        hidden: Floats = np.matmul(flat, tensors["dense0_w"])
        _shift_and_cut(hidden, tensors["dense0_b"])
        logits: Floats = np.matmul(hidden, tensors["dense1_w"])
        logits += tensors["dense1_b"]

        delta = loss_delta(logits, y, scale)
        back = delta @ tensors["dense1_w"].T
        back *= hidden > 0
        back_flat: Floats = np.matmul(back, tensors["dense0_w"].T)
        back1 = back_flat.reshape(images, self._edge, self._edge, second).transpose(1, 2, 0, 3)
        back1 = np.multiply(back1, pooled1 > 0)
        spread1 = _unpool(back1, *kept1).reshape(-1, second)
        back0 = _back_through(spread1, tensors["conv1_w"], pooled0.shape)
        back0 *= pooled0 > 0
        spread0 = _unpool(back0, *kept0).reshape(-1, first)
        return {
            "conv0_w": (columns0.T @ spread0).reshape(tensors["conv0_w"].shape),
            "conv0_b": back0.sum(axis=(0, 1, 2)),
            "conv1_w": (columns1.T @ spread1).reshape(tensors["conv1_w"].shape),
            "conv1_b": back1.sum(axis=(0, 1, 2)),
            "dense0_w": flat.T @ back,
            "dense0_b": back.sum(axis=0),
            "dense1_w": hidden.T @ delta,
            "dense1_b": delta.sum(axis=0),
        }


def _grid(tensors: Tensors, x: NDArray[np.generic]) -> Floats:
    """Images [n, high, wide] as [high, wide, n], in the precision of the tensors."""
    return np.ascontiguousarray(x.transpose(1, 2, 0), tensors["conv0_w"].dtype)


def _shift_and_cut(values: Floats, bias: Floats) -> None:
    """Bias and ReLU, in place."""
    values += bias
    np.maximum(values, 0.0, out=values)


def _columns_of_one(grid: Floats) -> Floats:
    """The patches of images of one channel, float32[places, 25], Fortran order.

    It is gathered kernel place by kernel place, each a run over columns and images.
    """
    high, _wide, images = grid.shape
    row, column, _image = grid.strides
    edge = high - _KERNEL + 1
    patches = np.lib.stride_tricks.as_strided(
        grid,
        (_KERNEL, _KERNEL, edge, edge * images),
        (row, column, row, grid.itemsize),
        writeable=False,
    )
    return patches.reshape(_KERNEL * _KERNEL, -1).T


def _columns_of_many(grid: Floats) -> Floats:
    """The patches of images of several channels, float32[places, 25 * channels]."""
    high, wide, images, channels = grid.shape
    row, column, image, channel = grid.strides
    patches = np.lib.stride_tricks.as_strided(
        grid,
        (high - _KERNEL + 1, wide - _KERNEL + 1, images, _KERNEL, _KERNEL, channels),
        (row, column, image, row, column, channel),
        writeable=False,
    )
    return patches.reshape(-1, _KERNEL * _KERNEL * channels)


def _convolve(columns: Floats, kernel: Floats, side: int, images: int) -> Floats:
    """Every patch times the kernel: float32[side - 4, side - 4, images, out]."""
    edge, out = side - _KERNEL + 1, kernel.shape[-1]
    return (columns @ kernel.reshape(-1, out)).reshape(edge, edge, images, out)


def _back_through(spread: Floats, kernel: Floats, shape: tuple[int, ...]) -> Floats:
    """The gradient by a convolution's input, from that by its output, [places, out]."""
    high, wide, images, channels = shape
    edge_high, edge_wide = high - _KERNEL + 1, wide - _KERNEL + 1
    by_place = kernel.reshape(_KERNEL * _KERNEL, channels, -1).transpose(0, 2, 1)
    # One product per kernel place, so that what is added below is contiguous.
    parts = np.matmul(spread, np.ascontiguousarray(by_place))
    parts = parts.reshape(_KERNEL, _KERNEL, edge_high, edge_wide, images, channels)
    back = np.zeros(shape, spread.dtype)
    for down in range(_KERNEL):
        for right in range(_KERNEL):
            back[down : down + edge_high, right : right + edge_wide] += parts[down, right]
    return back


def _pool(values: Floats) -> tuple[Floats, Flags, Flags]:
    """The largest of each 2 x 2, and what is needed to send a gradient back to it.

    Rows first, then columns; of equal values (the background of an image) the upper or left one
    wins.
    """
    upper, lower = values[::2], values[1::2]
    tall = np.maximum(upper, lower)
    left, right = tall[:, ::2], tall[:, 1::2]
    return np.maximum(left, right), upper >= lower, left >= right


def _unpool(back: Floats, upper_won: Flags, left_won: Flags) -> Floats:
    """Each gradient at the place that won, zero at the three others."""
    high, wide, images, channels = back.shape
    tall = np.empty((high, 2 * wide, images, channels), back.dtype)
    np.multiply(back, left_won, out=tall[:, ::2])
    np.subtract(back, tall[:, ::2], out=tall[:, 1::2])
    spread = np.empty((2 * high, 2 * wide, images, channels), back.dtype)
    np.multiply(tall, upper_won, out=spread[::2])
    np.subtract(tall, spread[::2], out=spread[1::2])
    return spread


def _flat(grid: Floats) -> Floats:
    """One row per image."""
    return grid.transpose(2, 0, 1, 3).reshape(grid.shape[2], -1)
