"""The integer codec of secure aggregation: words whose masked sum can be decoded.

Under secure aggregation (Bonawitz et al. 2017, section 4) the coordinator sees sum(x_i + mask_i)
mod M and nothing else. So what devices send must be integers modulo M that add up, and everything
that shapes them (rotation, kept coordinates, step, M) must be the same for all and known before any
update is: `SecaggInt` is just these parameters.

An update becomes words in six steps:

1. The shared tensors, flat, in the schema's order: x, of d values, ||x|| <= C (the clip norm).
2. Rotated as a whole by the round's seed (Suresh et al. 2017, section 3; Kairouz et al. 2021,
   section 4): whatever x is, each coordinate is now about N(0, ||x||**2 / d), so that one step
   can fit all.
3. k coordinates are kept, the same random ones for all devices, and count d / k times (subsampling
   of Konecny et al. 2016, section 3). Masked words cannot be compressed; this can. The factor is
   common to all, so that it is applied once, to the sum.
4. One step, t C / (sqrt(d) Q), and stochastic rounding, floor(y / step + u) with u uniform on
   [0, 1) (Suresh et al. 2017, section 2.2): unbiased.
5. Clamped to -Q..Q.
6. Modulo M, a power of two, at least 2 Q N + 1: the sum of N devices cannot wrap (Bonawitz et al.
   2017, section 4; Kairouz et al. 2021, section 4, who let it wrap rarely). Uniform masks are
   then uniform bits. Q is the largest that M has room for.

**Clamping is the one bias.** For an update right at the clip norm a coordinate is clamped with
probability p = P(|N(0, 1)| > t), and the expected decoded update is (1 - p) x (Bussgang 1952: the
mean slope of the clamp); one of half the norm has P(|N(0, 1)| > 2t), next to nothing. A larger t
clamps less and rounds coarser. Rounding noise is averaged over N devices and clamping is not, so t
minimises, per coordinate of unit variance and device,

    t**2 / (6 Q**2)  +  N E[max(|N(0, 1)| - t, 0)**2]

| Q at N = 10 | 1      | 3      | 6      | 12     | 25     | 51     |
|-------------|--------|--------|--------|--------|--------|--------|
| M           | 2**5   | 2**6   | 2**7   | 2**8   | 2**9   | 2**10  |
| t           | 1.78   | 2.46   | 2.84   | 3.20   | 3.55   | 3.87   |
| p           | 0.074  | 0.014  | 0.0045 | 0.0014 | 4e-4   | 1e-4   |

Masks hide it if a device's words are not -Q to Q: one device can move a coordinate of the sum by
more than its clip norm allows. That is for the protocol around this to bound.
"""

import functools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantization import chance
from quantization.chance import Purpose
from quantization.spread import gather, spread
from quantization.words import pack_words, packed_bytes, unpack_words
from wire import Schema, Tensors, limits
from wire.errors import LocalProtocolError, RemoteProtocolError

Flat = NDArray[np.float32]
Words = NDArray[np.uint32]

# A level beyond float32's 24 bits would say nothing.
MODULUS_BITS_MAX: Final = 24
# float32 rounding after a clip may lift a norm by this share of it.
_NORM_TOLERANCE: Final = 1e-3
_CLAMP_BOUND: Final = 40.0
_BISECTIONS: Final = 64


@functools.lru_cache(maxsize=256)
def clamp_deviations(levels: int, devices: int) -> float:
    """How many standard deviations the largest level is worth: t.

    Where the derivative of the error (see the module) is zero, found by bisection:
    t / (3 Q**2) = 4 N (phi(t) - t Phi(-t)), with phi and Phi of the normal distribution, and
    t**2 / (6 Q**2) for the mean variance of stochastic rounding, u(1 - u) step**2 over all u.

    Args:
        levels: Q.
        devices: N.
    """
    low, high = 0.0, _CLAMP_BOUND
    for _ in range(_BISECTIONS):
        t = (low + high) / 2
        density = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
        excess = density - t * math.erfc(t / math.sqrt(2)) / 2
        if t / (3 * levels**2) < 4 * devices * excess:
            low = t
        else:
            high = t
    return high


@dataclass(frozen=True, slots=True)
class SecaggInt:
    """What all devices of a round share; every size follows from it.

    Args:
        schema: of the model; its shared part travels.
        round_seed: public, 64 bits: of the rotation and of the kept coordinates.
        devices_max: N, how many devices a sum may have.
        clip_norm: C, the largest L2 norm of an update. Clipping is the caller's.
        modulus_bits: width of a word; M is 2**modulus_bits.
        keep_fraction: share of the coordinates that are kept, above 0 and at most 1.

    Raises:
        LocalProtocolError: a parameter is out of bounds, or M has no room for N devices.
    """

    schema: Schema
    round_seed: int
    devices_max: int
    clip_norm: float
    modulus_bits: int
    keep_fraction: float

    def __post_init__(self) -> None:
        if not 1 <= self.devices_max <= limits.UPDATES_PER_ROUND_MAX:
            raise LocalProtocolError(f"secure aggregation of {self.devices_max} devices")
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0.0):
            raise LocalProtocolError(f"a clip norm of {self.clip_norm}")
        if not 0.0 < self.keep_fraction <= 1.0:
            raise LocalProtocolError(f"a kept fraction of {self.keep_fraction}")
        if not 1 <= self.modulus_bits <= MODULUS_BITS_MAX:
            raise LocalProtocolError(
                f"a modulus of {self.modulus_bits} bits, not 1 to {MODULUS_BITS_MAX}"
            )
        if self.levels < 1:
            raise LocalProtocolError(
                f"{self.modulus_bits} bits have no room for {self.devices_max} devices, "
                f"which need {(2 * self.devices_max).bit_length()}"
            )

    @property
    def parameters(self) -> int:
        """d, the number of shared parameters."""
        return self.schema.shared.parameters

    @property
    def words(self) -> int:
        """k, the number of kept coordinates: at least 1 if there are any."""
        return min(self.parameters, math.ceil(self.keep_fraction * self.parameters))

    @property
    def modulus(self) -> int:
        """M, a power of two."""
        return 1 << self.modulus_bits

    @property
    def levels(self) -> int:
        """Q, the largest with 2 Q N + 1 <= M: a device's words are -Q to Q, modulo M."""
        return int((self.modulus - 1) // (2 * self.devices_max))

    @property
    def payload_bytes(self) -> int:
        """Size of a device's packed words."""
        return packed_bytes(self.words, self.modulus_bits)

    @property
    def step(self) -> float:
        """What one level is worth in a rotated coordinate: t C / (sqrt(d) Q)."""
        t = clamp_deviations(self.levels, self.devices_max)
        return t * self.clip_norm / (math.sqrt(max(1, self.parameters)) * self.levels)

    @property
    def clamp_probability(self) -> float:
        """P(|N(0, 1)| > t), of a coordinate of an update whose norm is the clip norm."""
        return math.erfc(clamp_deviations(self.levels, self.devices_max) / math.sqrt(2))

    def encode(self, delta: Tensors, *, noise_seed: int) -> Words:
        """An update to words that may be masked: uint32[words], each below the modulus.

        Args:
            delta: the shared tensors, exactly; clipped.
            noise_seed: of the rounding; another for each device and round.

        Raises:
            SchemaMismatchError: a name, shape or dtype differs.
            NotFiniteError: a value is NaN or infinite.
            LocalProtocolError: the norm is above the clip norm.
        """
        kept = spread(self._flatten(delta), self.round_seed)[self._subset()]
        noise = chance.uniform(chance.stream(noise_seed, Purpose.ROUNDING), kept.size)
        # In float64: in float32 a level just below an integer, plus noise, rounds up to it.
        rounded = np.floor(kept / np.float64(self.step) + noise)
        levels = np.clip(rounded, -self.levels, self.levels).astype(np.int64)
        return (levels & (self.modulus - 1)).astype(np.uint32)

    def add(self, total: Words, words: Words) -> Words:
        """The sum modulo M, of words masked or not: the same in any order; fresh uint32[words].

        Raises:
            LocalProtocolError: not words of these parameters.
        """
        self._check(total)
        self._check(words)
        # 2**32 is a multiple of M: that uint32 wraps does not matter.
        return (total + words) & np.uint32(self.modulus - 1)

    def zero(self) -> Words:
        """The sum of no devices: uint32[words]."""
        return np.zeros(self.words, np.uint32)

    def pack(self, words: Words) -> bytes:
        """Words to `payload_bytes` bytes; the layout is in `quantization.words`.

        Raises:
            LocalProtocolError: not words of these parameters.
        """
        self._check(words)
        return pack_words(words, self.modulus_bits)

    def unpack(self, data: bytes) -> Words:
        """The inverse of `pack`: fresh uint32[words].

        Raises:
            TruncatedError: too few bytes.
            TrailingBytesError: too many.
            RemoteProtocolError: padding bits that are not 0.
        """
        return unpack_words(data, self.words, self.modulus_bits)

    def decode_sum(self, total: Words, count: int) -> Tensors:
        """The unweighted sum of the updates of `count` devices, unbiased but for clamping.

        Args:
            total: the sum of their words modulo M, without masks.
            count: of devices in it; to have the mean, divide by it.

        Returns:
            Fresh float32 tensors, the schema's shared part.

        Raises:
            LocalProtocolError: `count` is not 1 to `devices_max`, or these are not words.
            RemoteProtocolError: `count` devices cannot have this sum: masks were left in it.
        """
        if not 1 <= count <= self.devices_max:
            raise LocalProtocolError(f"a sum of {count} devices, not 1 to {self.devices_max}")
        self._check(total)
        signed = total.astype(np.int64)
        signed[signed >= self.modulus // 2] -= self.modulus
        if int(np.abs(signed).max(initial=0)) > count * self.levels:
            raise RemoteProtocolError(f"{count} devices cannot have this sum: masks are left in it")
        rotated = np.zeros(self.parameters, np.float32)
        rotated[self._subset()] = signed * (self.step * self.parameters / max(1, self.words))
        return self._split(gather(rotated, self.round_seed))

    def _subset(self) -> NDArray[np.int64]:
        bits = chance.stream(self.round_seed, Purpose.SUBSET)
        return chance.subset(bits, self.parameters, self.words)

    def _flatten(self, delta: Tensors) -> Flat:
        shared = self.schema.shared
        shared.check(delta)
        flat = np.concatenate(
            [np.zeros(0, np.float32), *(np.ravel(delta[spec.name]) for spec in shared.tensors)]
        )
        norm = math.sqrt(float(np.sum(np.square(flat, dtype=np.float64))))
        if norm > self.clip_norm * (1.0 + _NORM_TOLERANCE):
            raise LocalProtocolError(f"an update of norm {norm:g}, clipped at {self.clip_norm:g}")
        return flat

    def _split(self, flat: Flat) -> Tensors:
        tensors: Tensors = {}
        start = 0
        for spec in self.schema.shared.tensors:
            tensors[spec.name] = flat[start : start + spec.size].reshape(spec.shape).copy()
            start += spec.size
        return tensors

    def _check(self, words: Words) -> None:
        if words.dtype != np.uint32 or words.shape != (self.words,):
            raise LocalProtocolError(
                f"{words.dtype}{list(words.shape)}, not uint32[{self.words}] words"
            )
        if int(words.max(initial=0)) >= self.modulus:
            raise LocalProtocolError(f"a word of {int(words.max())}, modulo {self.modulus}")
