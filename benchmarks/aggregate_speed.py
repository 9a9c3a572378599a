"""What aggregation costs: seconds and memory of each rule.

For 100 and 1,000 updates of a million parameters, beside a plain NumPy running sum of the same
updates decoded to float32. Each measurement is a process of its own with one thread, so that its
peak RSS is its own; seconds are of its CPU, which others on the machine change little. Updates are
few distinct ones, heavy-tailed and encoded as devices do; each is spooled to the real store, a
file, and read from there.
"""

import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from coordinator.aggregation import RULES, RoundAggregation
from coordinator.config import Aggregation, FederationConfig
from coordinator.signals import RoundOpened, UpdateStored
from coordinator.store import Store
from quantization import decode, encode
from wire import Plan, Schema, Tensors, TensorSpec

PARAMETERS: Final = 1_000_000
SCHEMA: Final = Schema((TensorSpec("w", (1_000, 900)), TensorSpec("v", (100_000,))))
COUNTS: Final = (100, 1_000)
COUNTS_QUICK: Final = (20,)
PLAIN: Final = "numpy_sum"
RULE_NAMES: Final = tuple(RULES)
_DISTINCT: Final = 10
_KIB: Final = 1_024
_COHORT: Final = 20


class Speed(msgspec.Struct, frozen=True):
    """One rule on so many updates.

    Times are CPU time. `arrive_ms` is what an update costs when it comes: decoded, validated, and
    added where the rule adds up. `close_s` is what closing the round takes, `total_s` all of it.
    `peak_rss_mb` is the process's, Python and NumPy included.
    """

    rule: str
    updates: int
    parameters: int
    codec: str
    payload_bytes: int
    arrive_ms: float
    close_s: float
    total_s: float
    peak_rss_mb: float


def measure(rule: str, updates: int) -> Speed:
    """Measure in a process of its own."""
    done = subprocess.run(  # noqa: S603 - this module, with a rule and a number
        [sys.executable, "-m", "benchmarks.aggregate_speed", rule, str(updates)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    return msgspec.json.decode(done.stdout, type=Speed)


def _measure_here(rule: str, updates: int) -> Speed:
    robust = "none" if rule == PLAIN else rule
    config = FederationConfig(aggregation=Aggregation(robust=robust))  # type: ignore[arg-type] # one of RULES
    codec = config.uplink_spec(_COHORT)
    with tempfile.TemporaryDirectory(prefix="potluck-bench-") as directory:
        store = Store(Path(directory) / "spool.sqlite3")
        ids, size = _spool(store, codec, updates)
        if rule == PLAIN:
            arrive_s, close_s = _plain_sum(store, ids)
        else:
            arrive_s, close_s = _aggregate(store, ids, config)
        store.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Speed(
        rule=rule,
        updates=updates,
        parameters=PARAMETERS,
        codec="decoded" if rule == PLAIN else codec,
        payload_bytes=size,
        arrive_ms=1e3 * arrive_s / updates,
        close_s=close_s,
        total_s=arrive_s + close_s,
        peak_rss_mb=peak * _KIB / 1e6,
    )


def _update(seed: int) -> Tensors:
    """Student's t with three degrees of freedom: kurtosis as real updates have it."""
    chance = np.random.Generator(np.random.Philox(key=seed))
    return {
        spec.name: (1e-3 * chance.standard_t(3, spec.size)).astype(np.float32).reshape(spec.shape)
        for spec in SCHEMA.tensors
    }


def _spool(store: Store, codec: str, updates: int) -> tuple[list[bytes], int]:
    """Spool updates as a round does; one in ten is ten times as long as the others."""
    ids = [number.to_bytes(16, "big") for number in range(updates)]
    size = 0
    for first in range(min(_DISTINCT, updates)):
        tensors = _update(first)
        if first == 0:
            tensors = {name: 10.0 * values for name, values in tensors.items()}
        payload = encode(codec, tensors, SCHEMA, seed=first)
        size = max(size, len(payload))
        with store.transaction():
            for number in range(first, updates, _DISTINCT):
                store.store_update(_stored(ids[number], len(payload)), payload)
    return ids, size


def _stored(update_id: bytes, size: int) -> UpdateStored:
    return UpdateStored(update_id, update_id.hex(), 1, 0, 100, 100, size, b"", {}, 0.0)


def _aggregate(store: Store, ids: Sequence[bytes], config: FederationConfig) -> tuple[float, float]:
    opened = RoundOpened(
        round=1,
        base_version=0,
        base_digest=b"",
        plan=Plan(seed=1),
        codec="",
        cohort=len(ids),
        needed=1,
        invited={update_id.hex(): 1 for update_id in ids},
        opened_at_s=0.0,
        deadline_at_s=1.0,
        chunk_bytes_max=1,
        weight_cap=config.aggregation.weight_cap,
        aggregation=config.aggregation.plan(),
    )
    gathering = RoundAggregation(SCHEMA, opened, b"")
    arrive_s = 0.0
    for update_id in ids:
        payload = store.payload(update_id)  # it came from the network, and is there
        began_s = time.process_time()
        gathering.accept(update_id, update_id.hex(), 100, payload)
        arrive_s += time.process_time() - began_s
    began_s = time.process_time()
    gathering.finish(ids, read=store.payload)
    return arrive_s, time.process_time() - began_s


def _plain_sum(store: Store, ids: Sequence[bytes]) -> tuple[float, float]:
    """What a server does that gets float32 and trusts everybody."""
    decoded = [
        np.concatenate([np.ravel(v) for v in decode(store.payload(key), SCHEMA).values()])
        for key in ids[:_DISTINCT]
    ]
    total = np.zeros(PARAMETERS, np.float32)
    began_s = time.process_time()
    for number in range(len(ids)):
        total += decoded[number % len(decoded)]
    arrive_s = time.process_time() - began_s
    began_s = time.process_time()
    total /= len(ids)
    if not math.isfinite(float(total[0])):
        raise FloatingPointError("the sum is not finite")
    return arrive_s, time.process_time() - began_s


def lines(speeds: Sequence[Speed]) -> list[str]:
    """A table for people."""
    head = (
        f"{'rule':18}{'updates':>8}{'codec':>12}{'payload KB':>11}{'arrive ms':>10}{'close s':>9}"
        f"{'total s':>9}{'peak MB':>9}"
    )
    return [
        f"{PARAMETERS:,} parameters; CPU time; one process each, peak RSS with Python and NumPy",
        head,
        *(
            f"{s.rule:18}{s.updates:>8}{s.codec:>12}{s.payload_bytes / 1e3:>11.1f}"
            f"{s.arrive_ms:>10.2f}{s.close_s:>9.2f}{s.total_s:>9.2f}{s.peak_rss_mb:>9.0f}"
            for s in speeds
        ),
    ]


if __name__ == "__main__":
    print(msgspec.json.encode(_measure_here(sys.argv[1], int(sys.argv[2]))).decode())
