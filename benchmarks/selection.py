"""Whom to invite: the policies on the diurnal fleet, where both know only who has checked in.

Data and training are real (digits); how long a training takes is the profile's word, for a model as
heavy as `FLOPS_PER_EXAMPLE` says. Device-seconds are those of training and transfer; wasted are
those of devices whose update was not counted.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

import msgspec

from coordinator import FederationConfig, load_config
from fleet import FleetRun, StubCrypto, run_virtual
from insight import RunRecord
from pilots.digits import Digits
from wire import Manifest

FILE: Final = Path(__file__).parent / "federations" / "diurnal.toml"
DEVICES: Final = 300
SEEDS: Final = (1, 2, 3)
QUICK_ROUNDS: Final = 24
# Of the mean over five rounds: accuracy on the test set moves by two points from round to round.
TARGETS: Final = (0.80, 0.85, 0.88)
SMOOTH_ROUNDS: Final = 5
# A device has some five digits, and goes through them five times. Let each stand for some forty
# pictures of a network of 0.06 GFLOP forward (a MobileNetV2 at 96 pixels), tripled for training.
FLOPS_PER_EXAMPLE: Final = 7.5e9
# Policy, and whether over-selection follows the drop-out; the first is the baseline.
VARIANTS: Final = (
    ("random", "random", False),
    ("random, adaptive", "random", True),
    ("availability", "availability", True),
    ("prioritised", "prioritised", True),
)


class HeavyDigits(Digits):
    """Digits, said to cost as much as a small image network."""

    def model(self) -> Manifest:
        """The same parameters."""
        return Manifest(super().model().tensors, flops_per_example=FLOPS_PER_EXAMPLE)


task = HeavyDigits()


class SelectionRow(msgspec.Struct, frozen=True):
    """One policy, over all seeds.

    `wasted_device_s` and `device_s` are of a whole run, in the mean. `to_target_s` is virtual time
    to an accuracy, by target: from the first round to the end of the one at which the mean over
    five rounds reached it, in the mean over seeds; None when a seed did not. `accuracy` is of the
    last version, `mean_accuracy` over all rounds. `least_share` is the smallest part of its share
    that a class had, over all seeds and over classes whose share is at least one update of each
    cohort.
    """

    policy: str
    seeds: int
    rounds: int
    committed: float
    device_s: float
    wasted_device_s: float
    wasted_share: float
    wasted_by_baseline: float
    accuracy: float
    mean_accuracy: float
    to_target_s: Mapping[str, float | None]
    invited: float
    counted: float
    least_share: float
    least_class: str
    shares: Mapping[str, float]


def config_for(policy: str, *, adapt: bool, rounds: int | None = None) -> FederationConfig:
    """The diurnal file with another policy."""
    config = load_config(FILE)
    selection = msgspec.structs.replace(config.selection, policy=policy, adapt_over_select=adapt)
    config = msgspec.structs.replace(config, selection=selection)
    if rounds is None:
        return config
    shorter = msgspec.structs.replace(config.rounds, count=rounds)
    return msgspec.structs.replace(config, rounds=shorter)


def play(
    policy: str, seed: int, *, adapt: bool, rounds: int | None = None, devices: int = DEVICES
) -> RunRecord:
    """One run in virtual time."""
    config = config_for(policy, adapt=adapt, rounds=rounds)
    return run_virtual(
        FleetRun(config=config, task=task, count=devices, seed=seed, crypto=StubCrypto())
    )


def to_target_s(run: RunRecord, every_s: float, target: float) -> float | None:
    """Virtual time to an accuracy: rounds open every `every_s`, or when the one before is over."""
    opened_s, measured = 0.0, list[float]()
    for record in run.rounds:
        if record.accuracy is not None:
            measured = [*measured[1 - SMOOTH_ROUNDS :], record.accuracy]
        if len(measured) == SMOOTH_ROUNDS and fmean(measured) >= target:
            return opened_s + record.duration_s
        opened_s += max(every_s, record.duration_s)
    return None


def summary(name: str, runs: Sequence[RunRecord], baseline_s: float | None) -> SelectionRow:
    """A policy's line from its runs."""
    config = load_config(FILE)
    wasted_s = fmean(run.totals.wasted_device_s or 0.0 for run in runs)
    device_s = fmean(run.totals.device_s or 0.0 for run in runs)
    due = 1.0 / config.rounds.cohort
    ratios = {
        (share.device_class, number): share.ratio
        for number, run in enumerate(runs)
        for share in run.participation
        if share.ratio is not None and share.there >= due
    }
    least = min(ratios, key=lambda key: ratios[key], default=("-", 0))
    classes = sorted({name for name, _number in ratios})
    return SelectionRow(
        policy=name,
        seeds=len(runs),
        rounds=len(runs[0].rounds),
        committed=fmean(sum(r.status == "committed" for r in run.rounds) for run in runs),
        device_s=device_s,
        wasted_device_s=wasted_s,
        wasted_share=wasted_s / device_s if device_s else 0.0,
        wasted_by_baseline=(baseline_s or wasted_s) / wasted_s if wasted_s else 0.0,
        accuracy=fmean(run.totals.accuracy or 0.0 for run in runs),
        mean_accuracy=fmean(r.accuracy or 0.0 for run in runs for r in run.rounds),
        to_target_s={
            f"{target:g}": _mean_or_none(
                [to_target_s(run, config.rounds.every_s, target) for run in runs]
            )
            for target in TARGETS
        },
        invited=fmean(r.invited for run in runs for r in run.rounds),
        counted=fmean(r.accepted for run in runs for r in run.rounds),
        least_share=ratios.get(least, 0.0),
        least_class=least[0],
        shares={
            each: fmean(ratio for (name, _n), ratio in ratios.items() if name == each)
            for each in classes
        },
    )


def _mean_or_none(times_s: Sequence[float | None]) -> float | None:
    reached = [each for each in times_s if each is not None]
    return fmean(reached) if len(reached) == len(times_s) else None


def selection_table(*, quick: bool) -> list[SelectionRow]:
    """Every policy on the diurnal fleet; quick is one seed and a quarter of the rounds."""
    rounds = QUICK_ROUNDS if quick else None
    rows: list[SelectionRow] = []
    for name, policy, adapt in VARIANTS:
        runs = [
            play(policy, seed, adapt=adapt, rounds=rounds)
            for seed in (SEEDS[:1] if quick else SEEDS)
        ]
        rows.append(summary(name, runs, rows[0].wasted_device_s if rows else None))
    return rows


def table(rows: Sequence[SelectionRow]) -> str:
    """The rows as a Markdown table."""
    aims = " | ".join(f"h to {target:.0%}" for target in TARGETS)
    head = "| policy | wasted device-s | of all | fewer by | "
    lines = [
        f"{head}{aims} | mean accuracy | invited | counted | least class |",
        "|---|" + "---:|" * (len(TARGETS) + 6) + "---|",
    ]
    for row in rows:
        hours = " | ".join(
            "-" if each is None else f"{each / 3_600.0:.2f}" for each in row.to_target_s.values()
        )
        lines.append(
            f"| {row.policy} | {row.wasted_device_s:,.0f} | {row.wasted_share:.1%}"
            f" | {row.wasted_by_baseline:.2f} | {hours} | {row.mean_accuracy:.1%}"
            f" | {row.invited:.1f} | {row.counted:.1f}"
            f" | {row.least_class} {row.least_share:.2f} of its share |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m benchmarks.selection [--quick]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, a quarter of the rounds")
    rows = selection_table(quick=parser.parse_args(arguments).quick)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
