"""The mean over seeds of what is read is what was sent, for every codec that says so.

A thousand independent encodings of one tensor, with fixed seeds, and three tests of their mean:

- *together*: the errors' projection on the tensor, on its signs and on 1 has a mean within 4 sigma
  of 0, sigma of the mean from the sample; within 5 on each chunk, of which the cases have 300;
- *one by one*: no value's mean error is larger than what Bernstein's inequality allows an unbiased
  one with probability 1e-4 over all values (Bonferroni): |error| has a known bound, and its
  variance is known (stochastic rounding: p (1 - p) step^2) or pooled over the chunk (rotations
  treat its values alike);
- *chi-square*: the sum over values of squared mean errors in units of their variances is as large
  as it should be, within 4 sigma: many small biases would add up.

Where the variance is 0 or nearly (a symbol that almost never moves), float32's rounding is allowed.
"""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from quantization import AutoRule, Payload
from quantization.auto import choose
from quantization.codecs import CODECS, codec_for
from quantization.payload import _encode, decode
from quantization.rotation import chunks_of
from tests.quantization.forge import Flat, flat_schema

Floats = NDArray[np.float64]

RUNS = 1_000
COPIES = 250
SIGMAS = 4.0
CHANCE = 1e-4
SIZE = 1_300


def tensors() -> Iterator[tuple[str, Flat]]:
    """What updates look like, and what they had better not."""
    chance = np.random.Generator(np.random.Philox(17))
    gauss = chance.standard_normal(SIZE)
    yield "gaussian", gauss.astype(np.float32)
    # Student's t with two degrees of freedom: no variance.
    tail = chance.standard_normal(SIZE) / np.sqrt(chance.standard_exponential(SIZE))
    yield "heavy_tailed", tail.astype(np.float32)
    yield "sparse", (gauss * (chance.random(SIZE) < 0.05)).astype(np.float32)
    single = gauss * 1e-2
    single[777] = 10.0
    yield "one_huge_outlier", single.astype(np.float32)
    rows = np.repeat(2.0 ** np.linspace(-3, 3, 5), 260)
    yield "rows_of_other_energy", (gauss * rows).astype(np.float32)


CASES = dict(tensors())
UNBIASED = [name for name, codec in CODECS.items() if codec.unbiased and name not in ("raw", "f16")]


def many(spec: str, values: Flat) -> tuple[list[float], Floats]:
    """What a tensor is read as, a thousand times; and its codec's parameters."""
    made = flat_schema(values.size, COPIES)
    if spec == "auto":
        # What it takes does not depend on the seed: choose once.
        (codec,) = next(choose([values], AutoRule()))
    else:
        codec = codec_for(spec)
    read: list[Floats] = []
    own: tuple[float, ...] = ()
    for seed in range(RUNS // COPIES):
        payload = _encode(codec.number, [codec] * COPIES, [values] * COPIES, made, seed)
        own = Payload(payload, made)._parameters[0]
        read += [tensor.astype(np.float64) for tensor in decode(payload, made).values()]
    return [codec.number, *own], np.array(read)


def variances(number: float, own: list[float], values: Flat, errors: Floats) -> Floats:
    """Of each value's error."""
    if number in (3, 4, 6):
        part = np.abs(values.astype(np.float64)) / own[0] % 1.0
        return np.asarray(part * (1.0 - part) * own[0] ** 2, np.float64)
    cut = chunks_of(values.size)
    edges = [*range(0, cut.edge, cut.width), *([cut.edge] if cut.rest else [])]
    sizes = np.diff([*edges, values.size])
    pooled = np.add.reduceat(errors.var(axis=0), edges) / sizes
    return np.asarray(np.repeat(pooled, sizes), np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("spec", [*UNBIASED, "ecq_sr:1", "eden:4", "auto"])
def test_the_mean_of_a_thousand_decodes_is_what_was_sent(spec: str, case: str) -> None:
    values = CASES[case]
    (number, *own), read = many(spec, values)
    exact = values.astype(np.float64)
    errors = read - exact
    means, rounding = errors.mean(axis=0), 4e-7 * np.abs(exact).max()

    cut = chunks_of(values.size)
    directions = [exact, np.sign(exact), np.ones(values.size)]
    for start in range(0, values.size, 256):
        directions.append(np.zeros(values.size))
        directions[-1][start : start + 256] = exact[start : start + 256]
    for number_of, direction in enumerate(directions):
        along = errors @ direction
        sigmas = SIGMAS + (number_of >= 3)
        sigma = along.std() / math.sqrt(RUNS)
        assert abs(along.mean()) <= sigmas * sigma + rounding * np.abs(direction).sum()

    each = variances(number, own, values, errors)
    # A rotation's error is a sum of many: past eight sigma there is nothing.
    bound = own[0] if number in (3, 4, 6) else 8.0 * np.sqrt(each)
    log = math.log(2.0 * values.size / CHANCE) / RUNS
    allowed = np.sqrt(2.0 * each * log) + 2.0 / 3.0 * bound * log
    assert (np.abs(means) <= allowed + rounding).all()
    assert cut.count == 5

    counted = each > 1e-3 * (own[0] ** 2 if number in (3, 4, 6) else each.max())
    squares = RUNS * np.square(means[counted]) / each[counted]
    # Var z^2 = 2 + (kurtosis - 3) / runs.
    fourth = np.mean((errors[:, counted] - means[counted]) ** 4, axis=0) / each[counted] ** 2
    sigma = math.sqrt(float(np.sum(2.0 + np.maximum(fourth - 3.0, 0.0) / RUNS)))
    assert abs(float(np.sum(squares - 1.0))) <= SIGMAS * sigma * (1.2 if number > 6 else 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "error"), [("eden1", 0.5708), ("eden", 1.0), ("ecq_sr", 5.38)])
def test_the_error_of_a_gaussian_is_what_theory_says(spec: str, error: float) -> None:
    """|x' - x|^2 / |x|^2: pi / 2 - 1 for a sign (DRIVE, theorem 2), 8 E|x| - 1 for 8 rms."""
    values = CASES["gaussian"]
    _own, read = many(spec, values)
    energy = float(np.sum(np.square(values, dtype=np.float64)))
    found = float(np.sum(np.mean(np.square(read - values), axis=0))) / energy
    assert math.isclose(found, error, rel_tol=0.03)
