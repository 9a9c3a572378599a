"""How long codecs take, and what adding up updates costs: one process, one thread, medians.

The update is one million values like those of a real one: heavy-tailed, a third of them exactly 0,
rows of different strength. What a plain NumPy sum of decoded arrays takes in the same run stands
beside what decoding and adding payloads takes, so that the figures can be read on any machine.
"""

import time
import tracemalloc
from collections.abc import Callable
from statistics import median
from typing import Final

import numpy as np
from msgspec import Struct

from quantization import Accumulator, decode, encode
from wire import Schema, Tensors, TensorSpec

UPDATES: Final = 100
_DISTINCT: Final = 10
_REPEATS: Final = 7
_ROWS, _COLUMNS = 1_000, 600
_MIB: Final = 2.0**20
SCHEMA: Final = Schema(
    (
        TensorSpec("w0", (_ROWS, _COLUMNS)),
        TensorSpec("b0", (_COLUMNS,)),
        TensorSpec("w1", (_COLUMNS, 665)),
        TensorSpec("b1", (400,)),
    )
)


class Speed(Struct, frozen=True):
    """One codec on an update of a million values.

    Attributes:
        encode_ms, decode_ms: for one update, the median.
        add_ms: to decode an update and add it to an `Accumulator`, the mean over 100 streamed ones.
        add_peak_mib: what that allocated beyond the accumulator, at the most, for 100 updates.
        add_peak_few_mib: the same for 10.
        float32_sum_ms: a NumPy sum of an update that is already decoded, in the same run.
    """

    codec: str
    bits_per_parameter: float
    encode_ms: float
    decode_ms: float
    add_ms: float
    add_peak_mib: float
    add_peak_few_mib: float
    float32_sum_ms: float


def update_like(seed: int, schema: Schema = SCHEMA) -> Tensors:
    """An update with the statistics of a real one (kurtosis about 30, a third zeros)."""
    chance = np.random.Generator(np.random.Philox(key=seed))
    tensors = {}
    for spec in schema.tensors:
        values = chance.standard_t(3, spec.shape) * 1e-3
        if len(spec.shape) > 1:
            values *= chance.lognormal(0.0, 0.8, (spec.shape[0], 1))
            values *= chance.random((1, spec.shape[1])) > 1.0 / 3.0
        tensors[spec.name] = values.astype(np.float32)
    return tensors


def measure(spec: str, *, clock: Callable[[], float] = time.perf_counter) -> Speed:
    """Time one codec."""
    updates = [update_like(seed) for seed in range(_DISTINCT)]
    payloads = [encode(spec, update, SCHEMA, seed=seed) for seed, update in enumerate(updates)]

    def add(count: int) -> None:
        total = Accumulator(SCHEMA, weight_cap=1_000, updates_max=UPDATES)
        for number in range(count):
            total.add(payloads[number % _DISTINCT], 1 + number)

    flat = np.concatenate([values.ravel() for values in updates[0].values()])
    plain = np.zeros_like(flat)
    return Speed(
        codec=spec,
        bits_per_parameter=8.0 * median(map(len, payloads)) / SCHEMA.parameters,
        encode_ms=_median_ms(lambda: encode(spec, updates[0], SCHEMA, seed=1), clock),
        decode_ms=_median_ms(lambda: decode(payloads[0], SCHEMA), clock),
        add_ms=_median_ms(lambda: add(UPDATES), clock, repeats=3) / UPDATES,
        add_peak_mib=_peak_mib(lambda: add(UPDATES)),
        add_peak_few_mib=_peak_mib(lambda: add(UPDATES // 10)),
        float32_sum_ms=_median_ms(lambda: np.add(plain, flat, out=plain), clock),
    )


def _median_ms(
    act: Callable[[], object], clock: Callable[[], float], *, repeats: int = _REPEATS
) -> float:
    act()
    times = []
    for _ in range(repeats):
        began_s = clock()
        act()
        times.append(1e3 * (clock() - began_s))
    return median(times)


def _peak_mib(act: Callable[[], object]) -> float:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1] / _MIB
    finally:
        tracemalloc.stop()


def lines(speeds: list[Speed]) -> list[str]:
    """The measurements as text."""
    head = f"{'1M values':<10} {'bits':>6} {'encode':>9} {'decode':>9} {'add':>9} {'sum':>9}"
    made = [f"{head}  peak of 100, 10"]
    made += [
        f"{s.codec:<10} {s.bits_per_parameter:>6.3f} {s.encode_ms:>6.2f} ms {s.decode_ms:>6.2f} ms"
        f" {s.add_ms:>6.2f} ms {s.float32_sum_ms:>6.2f} ms"
        f"  {s.add_peak_mib:.1f}, {s.add_peak_few_mib:.1f} MiB"
        for s in speeds
    ]
    return made
