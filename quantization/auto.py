"""`auto`: the fewest bytes for each tensor at an error that federated averaging does not feel.

The error of an unbiased codec is E|q(x) - x|^2 / |x|^2. It is known before anything is sent:

- stochastic rounding to steps of s: sum p (1 - p) s^2 / |x|^2, p the fraction of |x| / s (the
  variance of a Bernoulli draw for each value; Alistarh et al. 2017, lemma 3.1);
- EDEN: |y|^2 |q(y)|^2 / <y, q(y)>^2 - 1, the tangent squared of the angle between the rotated
  vector and its levels (Vargaftik et al. 2022, section 3).

The mean of n updates has an n-th of the error, but also less energy than one update where devices
disagree, so the bound grows with the cohort slowly. Bits follow from the entropy of the symbols.
Both are estimated on a sample of neighbouring values, and of all steps tried the one with the
fewest bits is taken whose error is within the bound: sparse, heavy-tailed tensors get `ecq_sr`,
dense ones `eden`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from quantization import chunks
from quantization.codecs import AUTO, CODECS, EDEN_DEAD_ZONE, Codec, ecq_sr, eden, positive
from quantization.rotation import CHUNK, rotate
from quantization.stages import Flat, rms
from wire.errors import LocalProtocolError

ERROR_MAX_DEFAULT: Final = 0.7
COHORT_DEFAULT: Final = 10
_SAMPLE_RUNS: Final = 24
_SAMPLE: Final = _SAMPLE_RUNS * CHUNK
_STEPS_SR: Final = tuple(2.0 ** (half / 2.0) for half in range(-2, 14))
_STEPS_EDEN: Final = tuple(quarter / 4.0 for quarter in range(2, 19))
_ERROR_GROWTH: Final = 2.0**0.25
_ERROR_CEILING: Final = 1e6
# A tensor this small costs less as floats than the numbers of a codec do.
_SMALL: Final = 4


class PayloadBudgetError(LocalProtocolError):
    """An update does not fit the bytes that it may take, whatever the codec."""


@dataclass(frozen=True, slots=True)
class AutoRule:
    """What `auto` aims at.

    Attributes:
        error_max: |q(x) - x|^2 / |x|^2 that a tensor may have in the mean.
        payload_bytes_max: what a payload may have at the most, whatever the error; 0 for no bound.
    """

    error_max: float = ERROR_MAX_DEFAULT
    payload_bytes_max: int = 0

    @classmethod
    def for_cohort(cls, cohort: int, *, payload_bytes_max: int = 0) -> "AutoRule":
        """The rule for an update that is averaged with `cohort` - 1 others."""
        grown = ERROR_MAX_DEFAULT * math.sqrt(max(cohort, 1) / COHORT_DEFAULT)
        return cls(grown, payload_bytes_max)

    def for_link(self, bytes_per_s: float, seconds: float) -> "AutoRule":
        """The same, for a link that has to carry the payload in so many seconds."""
        budget = max(int(bytes_per_s * seconds), 1)
        bound = min(budget, self.payload_bytes_max or budget)
        return replace(self, payload_bytes_max=bound)

    def with_setting(self, spec: str) -> "AutoRule":
        """The same, with what `auto:ERROR` or `auto:ERROR:BYTES` says."""
        _name, *texts = spec.split(":")
        if not texts:
            return self
        error, *rest = (positive(spec, text) for text in texts)
        budget = max(int(rest[0]), 1) if rest else self.payload_bytes_max
        return AutoRule(error, budget)

    @property
    def spec(self) -> str:
        """The rule as the name of a codec, which is what an invitation carries."""
        budget = f":{self.payload_bytes_max}" if self.payload_bytes_max else ""
        return f"{AUTO}:{self.error_max:.4g}{budget}"

    def fits(self, size: int) -> bool:
        """Whether a payload of `size` bytes is within the budget."""
        return not self.payload_bytes_max or size <= self.payload_bytes_max


@dataclass(frozen=True, slots=True)
class _Option:
    codec: Codec
    error: float
    bits: float


def choose(flats: Sequence[Flat], rule: AutoRule) -> Iterator[list[Codec]]:
    """Codecs for the tensors of a model, one each; then again with more error and fewer bytes.

    The first is within `rule.error_max`. Whoever has a budget takes the first that fits it.
    """
    options = [_options(flat) for flat in flats]
    error, last = rule.error_max, None
    while error <= _ERROR_CEILING:
        chosen = [_cheapest(each, error) for each in options]
        bits = sum(option.bits for option in chosen)
        if chosen != last and (rule.fits(int(bits / 8.0)) or last is None):
            yield [option.codec for option in chosen]
        last = chosen
        error *= _ERROR_GROWTH


def _cheapest(options: Sequence[_Option], error_max: float) -> _Option:
    within = [option for option in options if option.error <= error_max]
    return min(within, key=lambda option: option.bits) if within else options[0]


def _options(values: Flat) -> list[_Option]:
    """What a tensor can be sent as; the most exact first."""
    exact = _Option(CODECS["f16"], 0.0, 16.0 * values.size)
    unit = np.float32(rms(values))
    if unit == 0.0:
        return [_Option(ecq_sr(), 0.0, 0.0)]
    if values.size <= _SMALL:
        return [exact]
    # In units of the whole tensor's rms, as steps are: a sample may miss the outliers.
    sample = _sample(values) / unit
    magnitudes = np.abs(sample)
    made = [_stochastic(magnitudes, step, values.size) for step in _STEPS_SR]
    turned = rotate(sample, 0)
    made += [_eden(turned, step, values.size) for step in _STEPS_EDEN]
    return [exact, *(option for option in made if math.isfinite(option.error))]


def _sample(values: Flat) -> Flat:
    """All values, or runs of neighbours from all over the tensor."""
    if values.size <= _SAMPLE:
        return values
    starts = np.linspace(0, values.size - CHUNK, _SAMPLE_RUNS).astype(np.int64)
    return np.concatenate([values[start : start + CHUNK] for start in starts])


def _stochastic(scaled: Flat, step: float, size: int) -> _Option:
    """`ecq_sr` of |x| / rms at a step in rms."""
    levels = scaled / np.float32(step)
    whole = np.floor(levels)
    part = levels - whole
    error = float(np.mean(part * (1.0 - part), dtype=np.float64)) * step * step
    zero = float(np.mean(np.where(whole == 0.0, 1.0 - part, 0.0), dtype=np.float64))
    large = float(np.mean(np.where(whole >= 1.0, np.where(whole == 1.0, part, 1.0), 0.0)))
    return _Option(ecq_sr(step), error, _bits(1.0 - zero, large) * size)


def _eden(turned: Flat, step: float, size: int) -> _Option:
    """`eden` of y / rms at a step in rms."""
    found = chunks.quantize(turned, step, 1.0, EDEN_DEAD_ZONE)
    ones = np.abs(found.levels) == 1.0
    count = int(np.count_nonzero(ones))
    share = float(np.count_nonzero(found.levels)) / turned.size
    level = float(np.sum(found.ones / found.steps)) / count if count else 1.0
    squares = np.square(np.where(ones, np.float32(level), found.levels))
    inner = level * found.ones + found.rest
    known = inner > 0.0
    # |y|^2 tan^2 of each chunk.
    read = np.square(found.energy) * chunks.sums(squares, found.cut)
    read = np.divide(read, np.square(inner), out=np.zeros(read.size), where=known)
    error = float(np.sum(read - found.energy, where=known)) / float(np.sum(found.energy))
    bits = _bits(share, share - count / turned.size) + 8.0 * found.cut.count / turned.size
    return _Option(eden(step), error, bits * size)


def _bits(share: float, large: float) -> float:
    """Bits a symbol: whether it is 0, else its sign and whether it is larger than 1."""
    if share <= 0.0:
        return 0.0
    return _entropy(share) + share * (1.0 + _entropy(min(large / share, 1.0))) + 4.0 * large


def _entropy(p: float) -> float:
    """Of a coin with probability p, in bits."""
    return -sum(q * math.log2(q) for q in (p, 1.0 - p) if q > 0.0)
