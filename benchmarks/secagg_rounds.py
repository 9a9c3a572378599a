"""Federated averaging under secure aggregation's arithmetic, beside its float32 counterpart.

`python -m benchmarks.secagg_rounds --workload A --bits 6 --keep 0.14 --seeds 3` prints, seed by
seed, what unweighted float32 reaches, what it reaches with clipping alone, and how many points
`SecaggInt`, which needs clipping, loses on the former.

Sums are unweighted either way: a coordinator that sees only sums cannot cap a weight. Masks are
left out; they cancel, and change no bit of what is decoded.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from benchmarks.federated import Run, seed_of
from benchmarks.workloads import LETTERS, Workload, workload
from privacy.clip import clip_l2, l2_norm
from quantization.secagg import SecaggInt
from wire import PotluckError, Tensors

_DRAW: Final = 2**16 - 2
_ROUND: Final = 2**16 - 3
_FLOAT32_BYTES: Final = 4
_BITS_PER_BYTE: Final = 8


@dataclass
class AdaptiveClip:
    """A clip norm that follows a quantile of the norms, from counts alone.

    C <- C exp(-rate (share of norms at most C - quantile)) (Andrew et al. 2021, algorithm 1). The
    share is a sum of one bit a device, so that secure aggregation can carry it as one more word.

    Args:
        clip_norm: of the first round.
        quantile: share of the devices that shall not be clipped.
        rate: learning rate of the logarithm.
    """

    clip_norm: float = 1.0
    quantile: float = 0.8
    rate: float = 0.5

    def follow(self, unclipped: int, devices: int) -> None:
        """After a round in which `unclipped` of `devices` had a norm of at most the clip norm."""
        self.clip_norm *= math.exp(-self.rate * (unclipped / devices - self.quantile))


@dataclass(frozen=True)
class Words:
    """How much of an update travels: see `SecaggInt`."""

    modulus_bits: int
    keep_fraction: float


def secagg_round(
    codec: SecaggInt, updates: Sequence[Tensors], noise_seeds: Sequence[int]
) -> tuple[Tensors, int]:
    """One round over the wire's bytes: clipped updates in, their mean and the payload bytes out."""
    total = codec.zero()
    payload_bytes = 0
    for delta, noise_seed in zip(updates, noise_seeds, strict=True):
        payload = codec.pack(codec.encode(delta, noise_seed=noise_seed))
        payload_bytes += len(payload)
        total = codec.add(total, codec.unpack(payload))
    count = len(updates)
    decoded = codec.decode_sum(total, count)
    return {name: values / np.float32(count) for name, values in decoded.items()}, payload_bytes


def run_unweighted(
    task: Workload,
    words: Words | None = None,
    clip: AdaptiveClip | None = None,
    *,
    seed: int,
    rounds: int | None = None,
) -> Run:
    """Unweighted federated averaging; cohorts and training as in `federated.run` of the same seed.

    Args:
        task: the workload.
        words: None for float32.
        clip: moved by the run; None for no clipping, or with `words` for the default.
        seed: of cohorts, training, rounds and noise.
        rounds: None for the workload's own.
    """
    if words is not None and clip is None:
        clip = AdaptiveClip()
    float32_bytes = _FLOAT32_BYTES * task.schema.parameters
    held = {name: values.copy() for name, values in task.initial.items()}
    accuracy, up_bytes = [], []
    for index in range(task.rounds if rounds is None else rounds):
        chance = np.random.Generator(np.random.Philox(key=seed_of(seed, index, _DRAW)))
        drawn = chance.choice(task.devices, min(task.cohort, task.devices), replace=False)
        devices = sorted(int(device) for device in drawn)
        seeds = [seed_of(seed, index, device) for device in devices]
        trained = task.train_cohort(held, devices, seeds, round_index=index)
        updates = [delta for delta, _examples in trained]
        clip_norm = math.inf if clip is None else clip.clip_norm
        if clip is not None:
            clip.follow(sum(l2_norm(delta) <= clip_norm for delta in updates), len(updates))
            updates = [clip_l2(delta, clip_norm) for delta in updates]
        if words is None:
            mean = _mean(updates)
            up_bytes.append(float32_bytes * len(updates))
        else:
            codec = SecaggInt(
                task.schema,
                round_seed=seed_of(seed, index, _ROUND),
                devices_max=task.cohort,
                clip_norm=clip_norm,
                modulus_bits=words.modulus_bits,
                keep_fraction=words.keep_fraction,
            )
            mean, payload_bytes = secagg_round(codec, updates, seeds)
            up_bytes.append(payload_bytes)
        held = {name: held[name] + mean[name] for name in held}
        accuracy.append(task.accuracy(held))
    return Run(
        np.array(accuracy, np.float64),
        np.array(up_bytes, np.int64),
        np.full(len(accuracy), float32_bytes, np.int64),
        held,
    )


def _mean(updates: Sequence[Tensors]) -> Tensors:
    return {
        name: np.asarray(
            np.mean([delta[name] for delta in updates], axis=0, dtype=np.float64), np.float32
        )
        for name in updates[0]
    }


def _table(name: str, words: Words, seeds: Sequence[int], rounds: int | None) -> None:
    print(f"{name}, unweighted: {words.modulus_bits} bits a word, {words.keep_fraction:g} kept")
    print("seed float32 clipped  secagg    lost bits/parameter  cpu_s")
    losses = []
    for seed in seeds:
        task = workload(name, seed)
        began_s = time.process_time()
        plain = run_unweighted(task, seed=seed, rounds=rounds)
        clipped = run_unweighted(task, None, AdaptiveClip(), seed=seed, rounds=rounds)
        summed = run_unweighted(task, words, seed=seed, rounds=rounds)
        cpu_s = time.process_time() - began_s
        sent = task.schema.parameters * task.cohort * len(summed.uplink_bytes)
        bits = _BITS_PER_BYTE * float(summed.uplink_bytes.sum()) / sent
        losses.append(100 * (plain.final_accuracy - summed.final_accuracy))
        points = [100 * each.final_accuracy for each in (plain, clipped, summed)]
        cells = " ".join(f"{point:7.2f}" for point in (*points, losses[-1]))
        print(f"{seed:>4} {cells} {bits:14.3f} {cpu_s:6.1f}", flush=True)
    print(f"median loss {median(losses):.2f} points")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what secure aggregation's arithmetic loses.

    Returns:
        0, or 2 when a workload cannot be had or the modulus is too small for its cohort.
    """
    parser = argparse.ArgumentParser("benchmarks.secagg_rounds", description="Points lost.")
    parser.add_argument("--workload", choices=sorted(LETTERS), required=True)
    parser.add_argument("--bits", type=int, required=True, help="of a word")
    parser.add_argument("--keep", type=float, required=True, help="share of the coordinates")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--rounds", type=int, default=None, help="instead of the workload's own")
    options = parser.parse_args(arguments)
    words = Words(options.bits, options.keep)
    try:
        _table(LETTERS[options.workload], words, range(options.seeds), options.rounds)
    except PotluckError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
