"""What attackers do to a model on real data, rule by rule: the attack table of `bench aggregate`.

Fifty devices share the digits (`pilots.digits`), twenty train in a round, ten of the fifty mean
harm. Each device's work is the SDK's (`TrainingWork`), what attackers make of it the fleet's
(`fleet.attacks`), what the coordinator makes of all the payloads its own: `RoundAggregation`,
`Quarantine` with a store. Only the wire between them is left out.

Each rule is also played with nobody ever quarantined: what it bears by itself.
"""

import math
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from coordinator.aggregation import RoundAggregation
from coordinator.config import Aggregation, FederationConfig, Fleet, Rounds
from coordinator.quarantine import Quarantine
from coordinator.signals import RoundOpened
from coordinator.store import Store
from edge_sdk import DeviceInfo, Model, NumpyTrainer
from edge_sdk.signals import Train, Trained
from edge_sdk.work import TrainingWork
from fleet.attacks import spoil
from pilots.digits import task
from quantization import encode
from wire import Manifest, Plan, Tensors, update_id
from wire.errors import RemoteProtocolError

DEVICES: Final = 50
ATTACKERS: Final = 10
COHORT: Final = 20
ROUNDS: Final = 60
ROUNDS_QUICK: Final = 12
_SMOOTH_ROUNDS: Final = 5
_CHUNK_BYTES: Final = 130_000
_FEDERATION: Final = "attacked"
_MASK: Final = 2**53 - 1

# kind, how strong; None is nobody.
ATTACKS: Final[tuple[tuple[str | None, float], ...]] = (
    (None, 1.0),
    ("sign_flip", 1.0),
    ("sign_flip", 10.0),
    ("scale", 10.0),
    ("scale", 100.0),
    ("nan", 1.0),
    ("lie_samples", 1.0),
)
ATTACKS_QUICK: Final = (ATTACKS[0], ATTACKS[2])
RULES: Final = ("norm_clip", "median", "trimmed_mean", "multi_krum", "geometric_median")


class Cell(msgspec.Struct, frozen=True):
    """One federation to play; `quarantines` says whether devices may be kept out."""

    robust: str
    attack: str | None
    amount: float
    quarantines: bool
    rounds: int = ROUNDS
    seed: int = 0
    partition: str = "dirichlet:0.5"


class Outcome(msgspec.Struct, frozen=True):
    """What came of it.

    `accuracy` is the mean of the last five rounds, 0 to 1. `attackers_out` and `honest_out` are
    devices that were quarantined, `out_by_round` the round of the last attacker's quarantine.
    """

    cell: Cell
    accuracy: float
    attackers_out: int
    honest_out: int
    out_by_round: int
    rejected: int


def cells(*, quick: bool = False, seed: int = 0) -> list[Cell]:
    """The whole table."""
    attacks = ATTACKS_QUICK if quick else ATTACKS
    rounds = ROUNDS_QUICK if quick else ROUNDS
    rules = RULES[:1] if quick else RULES
    settings = [("none", False), *((rule, True) for rule in rules)]
    settings += [] if quick else [(rule, False) for rule in rules]
    return [
        Cell(rule, kind, amount, out, rounds, seed)
        for rule, out in settings
        for kind, amount in attacks
    ]


def play_all(wanted: Sequence[Cell], jobs: int) -> Iterator[Outcome]:
    """Play cells on some processes, in order."""
    if jobs == 1:
        yield from map(play, wanted)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(play, wanted)


def play(cell: Cell) -> Outcome:
    """One federation, from its first round to its last."""
    return _Federation(cell).play()


class _Federation:
    def __init__(self, cell: Cell) -> None:
        strikes_max = Aggregation().strikes_max if cell.quarantines else 0
        self.cell = cell
        self.config = FederationConfig(
            rounds=Rounds(count=cell.rounds, cohort=COHORT, local_epochs=4),
            aggregation=Aggregation(robust=cell.robust, strikes_max=strikes_max),  # type: ignore[arg-type] # one of RULES
            fleet=Fleet(partition=cell.partition),
        )
        rules = self.config.aggregation
        self.manifest: Manifest = task.model()
        self.model = {name: values.copy() for name, values in self.manifest.tensors.items()}
        self.memory = b""
        self.residuals: dict[int, Tensors] = {}
        self.trainers: dict[int, NumpyTrainer] = {}
        self.store = Store(Path(":memory:"), connect=_in_memory)
        self.quarantine = Quarantine(
            self.store,
            strikes_max=rules.strikes_max,
            quarantine_s=rules.quarantine_s,
            share_max=rules.attackers_max,
        )
        for device in range(DEVICES):
            self.store.admit(_name(device), bytes(32), "digits", 0.0)
        chance = np.random.Generator(np.random.Philox(key=cell.seed))
        drawn = chance.permutation(DEVICES)[:ATTACKERS].tolist()
        self.attackers = frozenset(drawn if cell.attack else ())
        self.out: dict[int, int] = {}
        self.rejected = 0

    def play(self) -> Outcome:
        test = task.test()
        accuracies = []
        with np.errstate(over="ignore", invalid="ignore"):  # a model without a rule may burst
            for number in range(1, self.cell.rounds + 1):
                self._round(number)
                if number > self.cell.rounds - _SMOOTH_ROUNDS:
                    model = Model(number, self.model)
                    result = test.evaluate(model, Plan(), stop=lambda: False)
                    accuracies.append(result.metrics["accuracy"])
        self.store.close()
        bad = [number for device, number in self.out.items() if device in self.attackers]
        return Outcome(
            cell=self.cell,
            accuracy=math.fsum(accuracies) / len(accuracies),
            attackers_out=len(bad),
            honest_out=len(self.out) - len(bad),
            out_by_round=max(bad, default=0),
            rejected=self.rejected,
        )

    def _round(self, number: int) -> None:
        seed = (self.cell.seed * 1_000_003 + number) & _MASK
        chance = np.random.Generator(np.random.Philox(key=seed))
        there = [device for device in range(DEVICES) if device not in self.out]
        drawn = chance.choice(there, min(COHORT, len(there)), replace=False).tolist()
        opened = RoundOpened(
            round=number,
            base_version=number - 1,
            base_digest=b"",
            plan=self.config.plan(seed),
            codec=self.config.uplink_spec(COHORT),
            cohort=COHORT,
            needed=1,
            invited={_name(device): 1 for device in drawn},
            opened_at_s=float(number),
            deadline_at_s=number + 1.0,
            chunk_bytes_max=_CHUNK_BYTES,
            weight_cap=self.config.aggregation.weight_cap,
            aggregation=self.config.aggregation.plan(),
        )
        gathering = RoundAggregation(self.manifest.schema.shared, opened, self.memory)
        spool: dict[bytes, bytes] = {}
        for device in drawn:
            key = update_id(_FEDERATION, number, _name(device))
            payload, examples = self._work(device, opened, key)
            weight = min(examples, opened.weight_cap)
            try:
                gathering.accept(key, _name(device), weight, payload)
            except RemoteProtocolError as error:
                self.rejected += 1
                name = _name(device)
                if self.quarantine.strike(name, number, float(number), reason=error.reason):
                    self.out[device] = number
                continue
            spool[key] = payload
        outcome = gathering.finish(list(spool), read=spool.__getitem__)
        for name, _why in self.quarantine.score(outcome.scores, number, float(number)):
            self.out[int(name.removeprefix("device-"))] = number
        self.memory = outcome.memory
        self.model = {name: values + outcome.change[name] for name, values in self.model.items()}

    def _work(self, device: int, opened: RoundOpened, key: bytes) -> tuple[bytes, int]:
        """A device's update as it leaves it: honest, or what an attacker makes of it."""
        work = TrainingWork(
            order=Train(
                opened.round, opened.base_version, opened.plan, opened.codec, key, _CHUNK_BYTES
            ),
            manifest=self.manifest,
            base=self.model,
            personal={},
            make_trainer=lambda: self._trainer(device),
            residual=self.residuals.get(device, {}),
        )
        done = work.run()
        if not isinstance(done, Trained):
            # Its model has burst, and nothing can be learnt on it: it says that nothing changed.
            return _nothing(self.manifest), 1
        self.residuals[device] = work.new_residual
        examples = done.sealed.num_examples
        if self.cell.attack is None or device not in self.attackers:
            return work.payload, examples
        return spoil(
            self.cell.attack,
            work.payload,
            examples,
            self.manifest.schema.shared,
            codec=opened.codec,
            amount=self.cell.amount,
        )

    def _trainer(self, device: int) -> NumpyTrainer:
        if device not in self.trainers:
            info = DeviceInfo(
                index=device, count=DEVICES, seed=device, partition=self.cell.partition
            )
            self.trainers[device] = task.trainer(info)
        return self.trainers[device]


def _name(device: int) -> str:
    return f"device-{device}"


def _nothing(manifest: Manifest) -> bytes:
    schema = manifest.schema.shared
    return encode("raw", schema.zeros(), schema, seed=0)


def _in_memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)


# -- for people ------------------------------------------------------------------------------------


def head(outcomes: Sequence[Outcome]) -> list[str]:
    """The attacks, in the order of the table."""
    seen = dict.fromkeys((o.cell.attack, o.cell.amount) for o in outcomes)
    return ["clean" if kind is None else _attack(kind, amount) for kind, amount in seen]


def _attack(kind: str, amount: float) -> str:
    return f"{kind} x{amount:g}" if kind in ("sign_flip", "scale") else kind


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each rule: accuracy in points under each attack, and who was kept out."""
    attacks = head(outcomes)
    width = max(len(attack) for attack in attacks)
    lines = [
        f"{ATTACKERS} of {DEVICES} attack: accuracy, and attackers + honest ones in quarantine",
        " ".join([f"{'rule':32}", *(f"{attack:>{width}}" for attack in attacks)]),
    ]
    rows: dict[tuple[str, bool], list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault((outcome.cell.robust, outcome.cell.quarantines), []).append(outcome)
    for (rule, out), row in rows.items():
        name = rule if out or rule == "none" else f"{rule}, no quarantine"
        cells_ = [f"{100 * o.accuracy:.1f} {o.attackers_out}+{o.honest_out}" for o in row]
        lines.append(" ".join([f"{name:32}", *(f"{text:>{width}}" for text in cells_)]))
    return lines
