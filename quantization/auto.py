"""`auto`: few bytes for each tensor, at an error that federated averaging does not feel.

What an average forgives depends on how a tensor's energy is spread. Its *density* is
|x|_1^2 / (n |x|_2^2) (Bernstein et al. 2018, signSGD, section 3.2): 0.64 of a Gaussian, 1 / n of
one value. `potluck bench codec` has the runs behind the two cases:

- *Sparse*, up to 0.5, which is a Laplacian's: a few values carry the update. Rounding by chance
  keeps those and blurs the rest, without a bias, and the cohort's mean loses nothing at errors of
  several times the update's own energy. `ecq_sr`, with the largest step whose error is within the
  bound. The sparser, the less is forgiven, as the root of the density: steps of as many rms are
  felt alike.
- *Dense*: every value says a little, noise as strong as the signal costs points, and no unbiased
  code is small. But an error that is fed back is only late: `ecq`, with the largest step whose
  error is within its own bound. It has to stay well below 1, or residuals grow. Where the device
  keeps no residual (its update is clipped, say): `eden`, unbiased, at that bound. Where most
  values of a model are in dense tensors, noise in the others costs points too: all count as dense.
- Tensors of less than 256 values, biases mostly: `ecq_sr` at half their energy. They cost little.

Errors are E|q(x) - x|^2 / |x|^2, known before anything is sent:

- stochastic rounding to steps of s: sum p (1 - p) s^2 / |x|^2, p the fraction of |x| / s (the
  variance of a Bernoulli draw for each value; Alistarh et al. 2017, lemma 3.1);
- nearest levels, 1 read as the mean of its cell: 1 - (what the levels keep), from the definition;
- EDEN: |y|^2 |q(y)|^2 / <y, q(y)>^2 - 1, the tangent squared of the angle between the rotated
  vector and its levels (Vargaftik et al. 2022, section 3).

The mean of n updates has an n-th of the error, but also less energy than one update where devices
disagree: the bound falls with a small cohort, and grows with the root of a large one. Errors and
bits are estimated on a sample of neighbouring values, unless it misses most of the energy.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from quantization import chunks
from quantization.codecs import (
    AUTO,
    CODECS,
    EDEN_DEAD_ZONE,
    Codec,
    bytes_in,
    ecq,
    ecq_sr,
    eden,
    number_in,
)
from quantization.rotation import CHUNK, rotate
from quantization.stages import Flat, rms
from wire.errors import LocalProtocolError

ERROR_MAX_DEFAULT: Final = 3.0
COHORT_DEFAULT: Final = 10
DENSE_ERROR_MAX: Final = 0.65
CHAIN_ERROR_MAX: Final = 0.65
CHAIN_SMALL_ERROR_MAX: Final = 0.1
FEW_ERROR_MAX: Final = 0.5
DENSITY_MAX: Final = 0.5
DENSE_SHARE_MIN: Final = 0.5
# Past this a residual grows from round to round: a run with 0.98 fell apart.
_FED_BACK_ERROR_MAX: Final = 0.85
_SAMPLE_RUNS: Final = 64
_SAMPLE: Final = _SAMPLE_RUNS * CHUNK
# Of the energy that its share of the values would have; a fair sample misses this next to never.
_SAMPLE_ENERGY_MIN: Final = 0.25
_STEPS_SR: Final = tuple(2.0 ** (quarter / 4.0) for quarter in range(-4, 29))
_STEPS_ECQ: Final = tuple(2.0 ** (eighth / 8.0) for eighth in range(-8, 57))
_STEPS_CHAIN: Final = tuple(2.0 ** (eighth / 8.0) for eighth in range(-16, 57))
_STEPS_EDEN: Final = tuple(quarter / 4.0 for quarter in range(2, 19))
_ERROR_GROWTH: Final = 2.0**0.25
_ERROR_CEILING: Final = 1e6
# A tensor this small costs less as floats than the numbers of a codec do.
_SMALL: Final = 4
# Biases and the like: to send them well costs next to nothing.
_FEW: Final = 256
# Below this no tensor is worth a residual, whatever its density.
_DENSE_SIZE_MIN: Final = 1_024


class PayloadBudgetError(LocalProtocolError):
    """An update does not fit the bytes that it may take, whatever the codec."""


@dataclass(frozen=True, slots=True)
class AutoRule:
    """What `auto` aims at.

    Attributes:
        error_max: |q(x) - x|^2 / |x|^2 that a sparse tensor of density 1 / 4 may have in the mean;
            a dense one at most this and `DENSE_ERROR_MAX`, one of few values `FEW_ERROR_MAX`.
        payload_bytes_max: what a payload may have at the most, whatever the error; 0 for no bound.
        chain: whether it is a step of the chain on the way down, which nothing averages: then the
            nearest levels for every tensor, within `CHAIN_ERROR_MAX`, small tensors much closer.
    """

    error_max: float = ERROR_MAX_DEFAULT
    payload_bytes_max: int = 0
    chain: bool = False

    @classmethod
    def for_cohort(cls, cohort: int, *, payload_bytes_max: int = 0) -> "AutoRule":
        """The rule for an update that is averaged with `cohort` - 1 others."""
        share = max(cohort, 1) / COHORT_DEFAULT
        return cls(ERROR_MAX_DEFAULT * min(share, math.sqrt(share)), payload_bytes_max)

    def for_link(self, bytes_per_s: float, seconds: float) -> "AutoRule":
        """The same, for a link that has to carry the payload in so many seconds."""
        budget = max(int(bytes_per_s * seconds), 1)
        bound = min(budget, self.payload_bytes_max or budget)
        return replace(self, payload_bytes_max=bound)

    def with_setting(self, spec: str) -> "AutoRule":
        """The same, with what `auto:ERROR` or `auto:ERROR:BYTES` says.

        Raises:
            LocalProtocolError: a number is out of its bounds.
        """
        _name, *texts = spec.split(":")
        if not texts:
            return self
        error, *rest = texts
        budget = bytes_in(spec, rest[0]) if rest else self.payload_bytes_max
        return AutoRule(number_in(spec, error), budget)

    @property
    def spec(self) -> str:
        """The rule as the name of a codec, which is what an invitation carries."""
        budget = f":{self.payload_bytes_max}" if self.payload_bytes_max else ""
        return f"{AUTO}:{self.error_max:.4g}{budget}"

    def fits(self, size: int) -> bool:
        """Whether a payload of `size` bytes is within the budget."""
        return not self.payload_bytes_max or size <= self.payload_bytes_max


def narrowed(spec: str, payload_bytes_max: int) -> str:
    """The codec that an update takes which must not have more bytes: `auto`, at that bound.

    Args:
        spec: what was asked for; the error of an `auto` is kept, and a smaller bound.
        payload_bytes_max: the bound, in bytes, 1 or more.
    """
    rule = AutoRule()
    if spec.partition(":")[0] == AUTO:
        rule = rule.with_setting(spec)
    bound = min(payload_bytes_max, rule.payload_bytes_max or payload_bytes_max)
    return replace(rule, payload_bytes_max=bound).spec


@dataclass(frozen=True, slots=True)
class _Option:
    """A codec for a tensor, its error, and its bits, which are only counted when asked for."""

    codec: Codec
    error: float
    count_bits: Callable[[], float]

    @property
    def bits(self) -> float:
        return self.count_bits()


@dataclass(frozen=True, slots=True)
class _Family:
    """One codec with its steps, from fine to coarse; each is measured when it is asked for.

    Attributes:
        steps: in rms.
        measure: the option at a step.
        error_max: past it a step is never taken.
    """

    steps: Sequence[float]
    measure: Callable[[float], _Option]
    error_max: float = _ERROR_CEILING
    _known: dict[int, _Option] = field(default_factory=dict)

    def largest_within(self, error: float) -> _Option | None:
        """The coarsest step whose error is within the bound: errors grow with the step."""
        low, high = 0, len(self.steps)
        while low < high:
            middle = (low + high) // 2
            if self._at(middle).error <= min(error, self.error_max):
                low = middle + 1
            else:
                high = middle
        return self._at(low - 1) if low else None

    def _at(self, index: int) -> _Option:
        if index not in self._known:
            self._known[index] = self.measure(self.steps[index])
        return self._known[index]


@dataclass(frozen=True, slots=True)
class _Tensor:
    """What a tensor can be sent as.

    Attributes:
        exact: when nothing else is good enough.
        families: the codecs that suit it.
        lenience: of the bound on errors, 1 at a density of 1 / 4, and where it does not matter.
        error_max: a bound of its own.
        coarse: for a budget that no error within reason meets.
    """

    exact: _Option
    families: tuple[_Family, ...] = ()
    lenience: float = 1.0
    error_max: float = math.inf
    coarse: tuple[_Family, ...] = ()

    def cheapest(self, error: float, growth: float) -> _Option:
        """The fewest bits at an error; `growth` is how far a budget has raised it."""
        bound = min(error * self.lenience, self.error_max) * growth
        families = self.families + (self.coarse if growth > 1.0 and bound > 1.0 else ())
        found = [family.largest_within(bound) for family in families]
        return min(
            (option for option in found if option is not None),
            key=lambda option: option.bits,
            default=self.exact,
        )


def choose(
    flats: Sequence[Flat], rule: AutoRule, *, feedback: bool = False
) -> Iterator[list[Codec]]:
    """Codecs for the tensors of a model, one each; then again with more error and fewer bytes.

    The first is within `rule.error_max`. Whoever has a budget takes the first that fits it.

    Args:
        flats: the tensors, float32, flat.
        rule: what is aimed at.
        feedback: whether what a biased codec leaves out is put into the next update.
    """
    if rule.chain:
        yield [_link(flat) for flat in flats]
        return
    looks = [_look(flat) for flat in flats]
    in_dense = sum(look.size for look in looks if look.is_dense)
    mostly = in_dense >= DENSE_SHARE_MIN * sum(look.size for look in looks)
    tensors = [_tensor(look, dense=look.is_dense or mostly, feedback=feedback) for look in looks]
    growth, last, untried = 1.0, None, False
    # Dense tensors begin at a bound of their own, which has as far to grow.
    while min(rule.error_max, DENSE_ERROR_MAX) * growth <= _ERROR_CEILING:
        chosen = [tensor.cheapest(rule.error_max, growth) for tensor in tensors]
        if chosen != last:
            untried = last is not None and not rule.fits(_bytes(chosen))
            if not untried:
                yield [option.codec for option in chosen]
        last = chosen
        growth *= _ERROR_GROWTH
    if last is not None and untried:
        # Estimated, not even this fits; zstd has the last word.
        yield [option.codec for option in last]


@dataclass(frozen=True, slots=True)
class _Look:
    """What is known of a tensor before a codec is chosen: all in units of its rms, as steps are.

    Attributes:
        size: in values.
        sample: some of them; see `_sample`.
        density: see the module; 0 of a tensor too small for it to matter.
    """

    size: int
    sample: Flat
    density: float

    @property
    def is_dense(self) -> bool:
        """Whether its own values say so."""
        return self.size >= _DENSE_SIZE_MIN and self.density > DENSITY_MAX


def _look(values: Flat) -> _Look:
    unit = np.float32(rms(values))
    if unit == 0.0:
        return _Look(values.size, np.empty(0, np.float32), 0.0)
    sample = _sample(values, unit)
    return _Look(values.size, sample, float(np.mean(np.abs(sample), dtype=np.float64)) ** 2)


def _tensor(look: _Look, *, dense: bool, feedback: bool) -> _Tensor:
    size = look.size
    exact = _Option(CODECS["f16"], 0.0, lambda: 16.0 * size)
    if look.sample.size == 0:
        return _Tensor(_Option(ecq_sr(), 0.0, lambda: 0.0))
    if size <= _SMALL:
        return _Tensor(exact)
    magnitudes = np.abs(look.sample)
    stochastic = _Family(_STEPS_SR, lambda step: _stochastic(magnitudes, step, size))
    if size < _DENSE_SIZE_MIN or not dense:
        few = size < _FEW
        lenience = 2.0 * math.sqrt(look.density)
        return _Tensor(exact, (stochastic,), lenience, FEW_ERROR_MAX if few else math.inf)
    turned = rotate(look.sample, 0)
    unbiased = _Family(_STEPS_EDEN, lambda step: _eden(turned, step, size))
    if not feedback:
        return _Tensor(exact, (unbiased,), error_max=DENSE_ERROR_MAX, coarse=(stochastic,))
    nearest = _Family(
        _STEPS_ECQ, lambda step: _nearest(magnitudes, step, size), _FED_BACK_ERROR_MAX
    )
    return _Tensor(exact, (nearest,), error_max=DENSE_ERROR_MAX, coarse=(unbiased, stochastic))


def _link(values: Flat) -> Codec:
    """What a tensor's change is sent as on the way down."""
    unit = np.float32(rms(values))
    if unit == 0.0:
        return ecq()
    if values.size <= _SMALL:
        return CODECS["f16"]
    magnitudes = np.abs(_sample(values, unit))
    family = _Family(_STEPS_CHAIN, lambda step: _nearest(magnitudes, step, values.size))
    small = values.size < _FEW
    found = family.largest_within(CHAIN_SMALL_ERROR_MAX if small else CHAIN_ERROR_MAX)
    return CODECS["f16"] if found is None else found.codec


def _sample(values: Flat, unit: np.float32) -> Flat:
    """All values over `unit`, their rms, or runs of neighbours from all over the tensor.

    Where few rows change, as of an embedding, runs may miss nearly all that there is, or all: then
    they say nothing of the error, and all values are looked at.
    """
    if values.size > _SAMPLE:
        starts = np.linspace(0, values.size - CHUNK, _SAMPLE_RUNS).astype(np.int64)
        runs = np.concatenate([values[start : start + CHUNK] for start in starts])
        some: Flat = np.divide(runs, unit, dtype=np.float32)
        if float(np.mean(np.square(some), dtype=np.float64)) >= _SAMPLE_ENERGY_MIN:
            return some
    return np.divide(values, unit, dtype=np.float32)


def _stochastic(scaled: Flat, step: float, size: int) -> _Option:
    """`ecq_sr` of |x| / rms at a step in rms."""
    levels = scaled / np.float32(step)
    whole = np.floor(levels)
    part = levels - whole
    error = float(np.sum(part * (np.float32(1.0) - part), dtype=np.float64)) / scaled.size

    def bits() -> float:
        zero = float(np.mean(np.where(whole == 0.0, 1.0 - part, 0.0), dtype=np.float64))
        large = float(np.mean(np.where(whole >= 1.0, np.where(whole == 1.0, part, 1.0), 0.0)))
        return _bits(1.0 - zero, large) * size

    return _Option(ecq_sr(step), error * step * step, bits)


def _nearest(scaled: Flat, step: float, size: int) -> _Option:
    """`ecq` of |x| / rms at a step in rms."""
    levels = np.rint(scaled / np.float32(step))
    ones = levels == 1.0
    count = int(np.count_nonzero(ones))
    level = float(np.sum(scaled, where=ones, dtype=np.float64)) / count if count else step
    read = np.where(ones, np.float32(level), levels * np.float32(step))
    error = float(np.sum(np.square(scaled - read), dtype=np.float64))
    error /= float(np.sum(np.square(scaled), dtype=np.float64))
    share = float(np.count_nonzero(levels)) / scaled.size
    return _Option(ecq(step), error, lambda: _bits(share, share - count / scaled.size) * size)


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
    return _Option(eden(step), error, lambda: bits * size)


def _bytes(chosen: Sequence[_Option]) -> int:
    return int(sum(option.bits for option in chosen) / 8.0)


def _bits(share: float, large: float) -> float:
    """Bits a symbol: whether it is 0, else its sign and whether it is larger than 1."""
    if share <= 0.0:
        return 0.0
    return _entropy(share) + share * (1.0 + _entropy(min(large / share, 1.0))) + 4.0 * large


def _entropy(p: float) -> float:
    """Of a coin with probability p, in bits."""
    return -sum(q * math.log2(q) for q in (p, 1.0 - p) if q > 0.0)
