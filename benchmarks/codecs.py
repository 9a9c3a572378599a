"""What codecs cost in accuracy and save in bytes: the table of `potluck bench codec`.

Each cell is one federated run of a workload (`benchmarks.workloads`) with a codec in one direction
and float32 in the other, beside the float32 run of the same seed: same data, same cohorts, same
order of examples. Bytes are payloads, headers included. Runs are spread over processes with one
BLAS thread each.
"""

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from statistics import median
from typing import Final, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from benchmarks.federated import Codec, Run, device_of, run
from benchmarks.secagg_rounds import Words, run_unweighted
from benchmarks.workloads import LETTERS, workload
from quantization import (
    AutoRule,
    check_spec,
    decode,
    encode,
    encode_with_feedback,
    keeps_residual,
    resolve_downlink,
)
from wire import Schema, Tensors
from wire.errors import LocalProtocolError

Direction = Literal["up", "down", "secagg"]

FLOAT32: Final = "float32"
# What `potluck bench codec` runs unless it is told otherwise.
UPLINKS: Final = ("auto", "ecq_sr", "eden", "eden1", "ecq:3.5", "topk_sign")
DOWNLINKS: Final = ("auto",)
# Modulus bits and share of coordinates kept: what each workload's accuracy allows.
SECAGG: Final = {"digits-mlp": Words(6, 0.14), "mnist-cnn": Words(7, 0.25)}
_SMOOTH_ROUNDS: Final = 5
_NEARLY: Final = 0.99
_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Cell(Struct, frozen=True):
    """One run: `codec` is a spec, `float32`, or `BITS:SHARE` for secure aggregation."""

    workload: str
    direction: Direction
    codec: str
    seed: int
    rounds: int | None = None


class Outcome(Struct, frozen=True):
    """What one run came to.

    Attributes:
        accuracy: mean of the last five rounds, 0 to 1.
        curve: accuracy after each round, smoothed over five.
        bits_per_parameter: of a payload, in the cell's direction.
        bytes_by_round: bytes of all payloads to the end of each round, in the cell's direction.
    """

    cell: Cell
    accuracy: float
    curve: tuple[float, ...]
    bits_per_parameter: float
    bytes_by_round: tuple[int, ...]

    def bytes_to(self, accuracy: float) -> float:
        """Bytes until the smoothed accuracy first reaches `accuracy`; infinite if it never does."""
        reached = np.flatnonzero(np.array(self.curve) >= accuracy)
        return float(self.bytes_by_round[reached[0]]) if reached.size else math.inf


class Row(Struct, frozen=True):
    """A codec on a workload: medians over seeds.

    Attributes:
        points_lost: against float32, in points of accuracy (unweighted float32 for secagg).
        ratio: float32 bytes over the codec's.
        bytes_to_99: bytes until 99% of the float32 run's accuracy, as a share of what float32 took.
    """

    workload: str
    direction: Direction
    codec: str
    seeds: int
    accuracy: float
    points_lost: float
    bits_per_parameter: float
    ratio: float
    bytes_to_99: float | None


def cells(
    workloads: Sequence[str],
    uplinks: Sequence[str],
    downlinks: Sequence[str],
    *,
    secagg: bool,
    seeds: int,
    rounds: int | None = None,
) -> list[Cell]:
    """Every run that a table needs, the longest workloads first.

    Raises:
        LocalProtocolError: a codec's name is not known.
    """
    for spec in uplinks:
        check_spec(spec)
    for spec in downlinks:
        resolve_downlink(spec)
    made = []
    for seed in range(seeds):
        for name in workloads:
            wanted: list[tuple[Direction, str]] = [("up", FLOAT32)]
            wanted += [("up", spec) for spec in uplinks] + [("down", spec) for spec in downlinks]
            if secagg and name in SECAGG:
                words = SECAGG[name]
                wanted += [
                    ("secagg", FLOAT32),
                    ("secagg", f"{words.modulus_bits}:{words.keep_fraction:g}"),
                ]
            made += [Cell(name, direction, spec, seed, rounds) for direction, spec in wanted]
    order = {name: place for place, name in enumerate(("next-char", "next-word", "mnist-cnn"))}
    return sorted(made, key=lambda cell: (cell.seed, order.get(cell.workload, len(order))))


def play(cell: Cell) -> Outcome:
    """Run one cell."""
    task = workload(cell.workload, cell.seed)
    if cell.direction == "secagg":
        result = _secagg_run(cell)
    else:
        up = down = None
        if cell.codec != FLOAT32 and cell.direction == "up":
            up = uplink(cell.codec, task.schema, task.cohort)
        elif cell.codec != FLOAT32:
            down = one_way(resolve_downlink(cell.codec), task.schema, AutoRule(chain=True))
        result = run(task, up, down, seed=cell.seed, rounds=cell.rounds)
    if cell.direction == "down":
        spent, payloads = result.downlink_bytes, len(result.downlink_bytes)
    else:
        cohort = min(task.cohort, task.devices)
        spent, payloads = result.uplink_bytes, cohort * len(result.uplink_bytes)
    return Outcome(
        cell=cell,
        accuracy=result.final_accuracy,
        curve=tuple(_smooth(result.accuracy).tolist()),
        bits_per_parameter=8.0 * float(spent.sum()) / payloads / task.schema.parameters,
        bytes_by_round=tuple(np.cumsum(spent).tolist()),
    )


def _secagg_run(cell: Cell) -> Run:
    task = workload(cell.workload, cell.seed)
    words = None
    if cell.codec != FLOAT32:
        bits, share = cell.codec.split(":")
        words = Words(int(bits), float(share))
    return run_unweighted(task, words, seed=cell.seed, rounds=cell.rounds)


def one_way(spec: str, schema: Schema, rule: AutoRule | None = None) -> Codec:
    """A codec as `benchmarks.federated` takes it: no state."""

    def code(change: Tensors, seed: int) -> tuple[bytes, Tensors]:
        payload = encode(spec, change, schema, seed=seed, rule=rule)
        return payload, decode(payload, schema)

    return code


def uplink(spec: str, schema: Schema, cohort: int) -> Codec:
    """What a federation's devices do with `[uplink] codec = spec`, error feedback included."""
    if spec == "auto":
        spec = AutoRule.for_cohort(cohort).spec
    if not keeps_residual(spec):
        return one_way(spec, schema)
    residuals: dict[int, Tensors] = {}

    def code(delta: Tensors, seed: int) -> tuple[bytes, Tensors]:
        device = device_of(seed)
        payload, residuals[device] = encode_with_feedback(
            spec, delta, residuals.get(device, {}), schema, seed=seed
        )
        return payload, decode(payload, schema)

    return code


def play_all(
    wanted: Sequence[Cell], *, jobs: int, tell: Callable[[Outcome], None] = lambda _outcome: None
) -> list[Outcome]:
    """Run all cells, `jobs` at a time, in processes of one BLAS thread each; in the given order."""
    for name in _THREADS:
        os.environ[name] = "1"  # read when NumPy is first imported, in the children
    done: dict[Cell, Outcome] = {}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(play, cell) for cell in wanted]
        try:
            for future in as_completed(waiting):
                outcome = future.result()
                done[outcome.cell] = outcome
                tell(outcome)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [done[cell] for cell in wanted]


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """The table: one row for each workload, direction and codec that is not float32."""
    float32 = {
        (o.cell.workload, o.cell.direction == "secagg", o.cell.seed): o
        for o in outcomes
        if o.cell.codec == FLOAT32
    }
    made = []
    for key in dict.fromkeys((o.cell.workload, o.cell.direction, o.cell.codec) for o in outcomes):
        name, direction, spec = key
        if spec == FLOAT32:
            continue
        pairs = [
            (o, float32[name, direction == "secagg", o.cell.seed])
            for o in outcomes
            if (o.cell.workload, o.cell.direction, o.cell.codec) == key
        ]
        shares = [o.bytes_to(_NEARLY * f.accuracy) / _float32_bytes_to(f) for o, f in pairs]
        share = median(shares)
        bits = median(o.bits_per_parameter for o, _f in pairs)
        made.append(
            Row(
                workload=name,
                direction=direction,
                codec=spec,
                seeds=len(pairs),
                accuracy=median(o.accuracy for o, _f in pairs),
                points_lost=median(100.0 * (f.accuracy - o.accuracy) for o, f in pairs),
                bits_per_parameter=bits,
                ratio=32.0 / bits,
                bytes_to_99=share if math.isfinite(share) and direction == "up" else None,
            )
        )
    return sorted(made, key=lambda row: (row.workload, row.direction != "up", row.direction))


def _float32_bytes_to(outcome: Outcome) -> float:
    """What float32 needs to 99% of its own final accuracy."""
    return outcome.bytes_to(_NEARLY * outcome.accuracy)


def _smooth(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of up to five rounds to each."""
    sums = np.cumsum(np.concatenate([[0.0], accuracy]))
    ends = np.arange(1, len(accuracy) + 1)
    starts = np.maximum(ends - _SMOOTH_ROUNDS, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def table(made: Sequence[Row]) -> Iterator[str]:
    """The rows as lines of text."""
    head = f"{'workload':<11} {'way':<6} {'codec':<10} {'accuracy':>8} {'lost':>6}"
    yield f"{head} {'bits':>6} {'ratio':>7} {'to 99%':>7}"
    for row in made:
        to_99 = "-" if row.bytes_to_99 is None else f"1/{1.0 / row.bytes_to_99:.0f}"
        yield (
            f"{row.workload:<11} {row.direction:<6} {row.codec:<10} {100.0 * row.accuracy:>8.2f}"
            f" {row.points_lost:>+6.2f} {row.bits_per_parameter:>6.3f} {row.ratio:>6.1f}x"
            f" {to_99:>7}"
        )


def workload_of(name: str) -> str:
    """A workload's name, from it or its letter.

    Raises:
        LocalProtocolError: there is no such workload.
    """
    found = LETTERS.get(name, name)
    if found not in LETTERS.values():
        choices = ", ".join(f"{letter} ({full})" for letter, full in LETTERS.items())
        raise LocalProtocolError(f"workload {name!r} is not one of {choices}")
    return found
