"""Synchronous federated averaging of a workload, with a codec in either direction.

`python -m benchmarks.federated --workload A --seeds 3` prints what float32 reaches, seed by seed.
The matrices are small: set OPENBLAS_NUM_THREADS=1 and use other cores for other runs.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.workloads import LETTERS, WORKLOADS, Workload, workload
from wire import PotluckError, Tensors

# From a change of all tensors and a seed: the payload, and what its receiver decodes.
Codec: TypeAlias = Callable[[Tensors, int], tuple[bytes, Tensors]]

_DEVICES_MAX: Final = 2**16
_ROUNDS_MAX: Final = 2**16
_DOWNLINK: Final = _DEVICES_MAX - 1
_DRAW: Final = _DEVICES_MAX - 2
_FLOAT32_BYTES: Final = 4
_CURVE_POINTS: Final = 8
_SMOOTH_ROUNDS: Final = 5


@dataclass(frozen=True)
class Run:
    """What a run cost and reached, round by round.

    Args:
        accuracy: of the model that devices hold after the round, on the test set, 0 to 1; NaN where
            it was not evaluated.
        uplink_bytes: payloads of the whole cohort.
        downlink_bytes: the payload that brings one device from round to round.
        tensors: the model that devices hold at the end.
    """

    accuracy: NDArray[np.float64]
    uplink_bytes: NDArray[np.int64]
    downlink_bytes: NDArray[np.int64]
    tensors: Tensors

    @property
    def final_accuracy(self) -> float:
        """The mean of the last five rounds: one round is a noisy figure."""
        return float(self.accuracy[-_SMOOTH_ROUNDS:].mean())

    @property
    def last_quarter_rise(self) -> float:
        """How much the accuracy, smoothed over five rounds, rose in the last quarter."""
        cut = len(self.accuracy) * 3 // 4
        before = self.accuracy[max(0, cut - _SMOOTH_ROUNDS) : max(1, cut)]
        return self.final_accuracy - float(np.nanmean(before))


def seed_of(seed: int, round_index: int, device: int) -> int:
    """One seed per run, round and device, none of them shared."""
    return (seed * _ROUNDS_MAX + round_index) * _DEVICES_MAX + device


def device_of(seed: int) -> int:
    """Whose update a codec's seed belongs to: what a codec with a state per device goes by."""
    return seed % _DEVICES_MAX


def run(
    task: Workload,
    uplink: Codec | None = None,
    downlink: Codec | None = None,
    *,
    seed: int,
    rounds: int | None = None,
    evaluate_every: int = 1,
) -> Run:
    """Federated averaging, weighted by examples, summed in float64 in the order of devices.

    The cohort of a round and the order of examples follow from the seed alone, so that runs of one
    seed are pairs whatever the codec. With a downlink codec, devices hold a *chain* of decoded
    changes: what is encoded is the new model less what they hold, so that an error of one round is
    part of the next round's change (implicit error feedback).

    Args:
        task: the workload.
        uplink: None for float32, 4 bytes a parameter.
        downlink: None for float32.
        seed: of the cohorts, the training and the codecs.
        rounds: None for the workload's own.
        evaluate_every: rounds from one evaluation to the next; the last five are always evaluated.
    """
    float32_bytes = _FLOAT32_BYTES * task.schema.parameters
    count = task.rounds if rounds is None else rounds
    held = {name: values.copy() for name, values in task.initial.items()}
    served = held
    accuracy, up_bytes, down_bytes = [], [], []
    for index in range(count):
        chance = np.random.Generator(np.random.Philox(key=seed_of(seed, index, _DRAW)))
        drawn = chance.choice(task.devices, min(task.cohort, task.devices), replace=False)
        devices = sorted(int(device) for device in drawn)
        seeds = [seed_of(seed, index, device) for device in devices]
        updates = task.train_cohort(held, devices, seeds, round_index=index)
        total = sum(examples for _delta, examples in updates)
        sums = {name: np.zeros(values.shape) for name, values in held.items()}
        up_bytes.append(0)
        for (delta, examples), update_seed in zip(updates, seeds, strict=True):
            decoded = delta
            if uplink is None:
                up_bytes[-1] += float32_bytes
            else:
                payload, decoded = uplink(delta, update_seed)
                up_bytes[-1] += len(payload)
            for name, values in decoded.items():
                sums[name] += values * np.float64(examples / total)
        served = {name: (served[name] + sums[name]).astype(np.float32) for name in held}
        if downlink is None:
            held = served
            down_bytes.append(float32_bytes)
        else:
            change = {name: served[name] - held[name] for name in held}
            payload, decoded = downlink(change, seed_of(seed, index, _DOWNLINK))
            held = {name: held[name] + decoded[name] for name in held}
            down_bytes.append(len(payload))
        due = (index + 1) % evaluate_every == 0 or index >= count - _SMOOTH_ROUNDS
        accuracy.append(task.accuracy(held) if due else math.nan)
    return Run(
        np.array(accuracy, np.float64),
        np.array(up_bytes, np.int64),
        np.array(down_bytes, np.int64),
        held,
    )


def _table(name: str, seeds: Sequence[int], rounds: int | None) -> None:
    """Print the float32 curve of each seed, in points of accuracy."""
    count = workload(name, seeds[0]).rounds if rounds is None else rounds
    points = np.unique(np.ceil(np.linspace(0, count, _CURVE_POINTS + 1)[1:]).astype(int))
    heads = [f"r{point}" for point in points] + ["final", "rise", "cpu_s"]
    print(f"{name}, float32: accuracy in points, mean of the {_SMOOTH_ROUNDS} rounds to each")
    print("seed " + " ".join(f"{head:>6}" for head in heads))
    for seed in seeds:
        task = workload(name, seed)
        began_s = time.process_time()
        result = run(task, seed=seed, rounds=rounds)
        cpu_s = time.process_time() - began_s
        curve = [result.accuracy[max(0, point - _SMOOTH_ROUNDS) : point].mean() for point in points]
        shares = [*curve, result.final_accuracy, result.last_quarter_rise]
        cells = [f"{100 * share:6.2f}" for share in shares]
        print(f"{seed:>4} " + " ".join(cells) + f" {cpu_s:6.1f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what float32 reaches.

    Returns:
        0, or 2 when a workload cannot be had.
    """
    parser = argparse.ArgumentParser("benchmarks.federated", description="Float32 accuracy curves.")
    names = sorted((*LETTERS, *WORKLOADS))
    parser.add_argument("--workload", choices=names, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--rounds", type=int, default=None, help="instead of the workload's own")
    options = parser.parse_args(arguments)
    name = LETTERS.get(options.workload, options.workload)
    try:
        _table(name, range(options.seeds), options.rounds)
    except PotluckError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
