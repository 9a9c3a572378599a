"""The adversary: what goes wrong, when and to whom, as data that follows from a seed.

*Safety*: anything may fail at any time; afterwards everything heals, and the federation must come
to its end with every promise kept. *Liveness*: a core of devices, the gateway and the broker are
healthy, everything else breaks and stays broken; rounds must still end by their deadlines. Either
is played with synchronous and with asynchronous rounds. *Transfers* is safety with a model of many
chunks, on links so slow that most of what breaks does so in the middle of a transfer. A *week* is
another world: `fleet.week`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from coordinator.config import (
    Broker,
    Downlink,
    Federation,
    FederationConfig,
    Fleet,
    Rounds,
    Uplink,
)
from fleet.checkers import FINAL_CHECKERS, LIVENESS_CHECKERS, ViolationError, Witness
from fleet.crypto import StubCrypto
from fleet.deeds import unleash
from fleet.described import describe
from fleet.faults import GATEWAY, Event, EventKind
from fleet.record import FleetRun
from fleet.release_checks import checks, promote_now_and_then
from fleet.toy import ToyTask
from fleet.trial import ALL_MODES, MODES, Mode, Trial, heal, hold, trial_of
from fleet.virtual import VirtualFleet
from fleet.week import play_week
from fleet.world import World
from wire import limits

__all__ = ["ALL_MODES", "MODES", "Mode", "Trial", "budgets", "schedule", "shrink", "try_seed"]

_LIVENESS: Final = ("liveness", "async_liveness")
FAULTS_UNTIL_S: Final = 150.0
CALM_S: Final = 4 * 3_600.0
# Midnight comes early in a world. Whose budget is spent then, too, has to wait for the next one.
START: Final = "2026-01-05T23:58:00Z"
NEXT_DAY_H: Final = 30
# With nobody to spare, one device that is lost lets a round wait for its deadline.
_OVER_SELECT: Final = (1.3, 1.0)
_EVERY_S: Final = (0.0, 0.0, 20.0)
_EVALUATE_EVERY: Final = (0, 1, 0, 2)
_STALENESS_MAX: Final = (10, 10, 10, 1, 0)
_CHECK_IN_S: Final = (120.0, 120.0, 120.0, 120.0, 600.0)
_BUDGET_SEEDS: Final = 10**12
_TRAINING_SEEDS: Final = 2 * 10**12
_OPT_OUT_SEEDS: Final = 4 * 10**12
_OPT_OUTS_MAX: Final = 4
_TRAINING_S: Final = (0.5, 15.0)
_BUDGET_SHARE: Final = 0.3
_BUDGET_BYTES: Final = (4_000, 6_000)
# In transfers mode: a model of some 11 chunks each way, each of which takes 0.1 to 1 s.
_HIDDEN: Final = 1_500
_SLOW_BYTES_PER_S: Final = (3_000, 27_000)
_SLOW_SEEDS: Final = 3 * 10**12
_MBIT_BYTES: Final = 125_000.0
_YEAR_S: Final = 365.25 * 86_400.0
_DEVICE_KINDS: Final[tuple[EventKind, ...]] = (
    "crash",
    "power_loss",
    "crash_at_effect",
    "crash_at_effect",
    "disk_full",
    "model_damage",
    "link_break",
    "link_break",
    "partition",
    "partition_up",
    "partition_down",
    "clog",
    "clock_step",
    "gate_close",
    "unplug",
)
# What cuts a transfer, or spoils what has arrived of it.
_TRANSFER_KINDS: Final[tuple[EventKind, ...]] = (
    "crash",
    "power_loss",
    "crash_at_effect",
    "disk_full",
    "model_damage",
    "link_break",
    "partition",
    "partition_up",
    "partition_down",
    "gate_close",
)
_GATEWAY_KINDS: Final[tuple[EventKind, ...]] = (
    "crash",
    "crash_at_effect",
    "crash_at_effect",
    "disk_full",
    "link_break",
    "partition",
    "broker_kill",
    "weather",
    "clock_step",
    "clock_step",
)


def schedule(seed: int, mode: Mode, devices: int, core: int) -> tuple[Event, ...]:
    """What a seed breaks.

    Args:
        seed: of every choice.
        mode: see the module.
        devices: how many there are.
        core: how many of them, the first ones, stay healthy in liveness mode.
    """
    chance = World(seed * 2 + (mode in _LIVENESS))
    if mode in _LIVENESS:
        return tuple(_broken_for_ever(chance, device) for device in range(core, devices))
    transfers = mode == "transfers"
    device_kinds = _TRANSFER_KINDS if transfers else _DEVICE_KINDS
    events = []
    for _ in range(3 + chance.below(60 if transfers else 20)):
        gateway = chance.uniform() < 0.3  # noqa: PLR2004 - a third of all trouble
        kinds = _GATEWAY_KINDS if gateway else device_kinds
        kind = kinds[chance.below(len(kinds))]
        events.append(
            Event(
                kind=kind,
                at_s=round(chance.uniform(0.0, FAULTS_UNTIL_S), 3),
                device=GATEWAY if gateway else chance.below(devices),
                for_s=round(chance.uniform(0.5, 20.0 if transfers else 200.0), 3),
                amount=_amount(kind, chance),
            )
        )
    return tuple(events)


def _amount(kind: EventKind, chance: World) -> float:
    if kind == "crash_at_effect":
        return float(1 + chance.below(40))
    if kind == "clock_step":
        return (_YEAR_S, -_YEAR_S, 3_600.0, -3_600.0, 30.0)[chance.below(5)]
    if kind == "unplug":
        return (1e-4, 1e-3, 0.31, 0.5)[chance.below(4)]
    if kind == "clog":
        return float(10 + chance.below(1_000))
    return round(chance.uniform(0.02, 0.3), 3)


def _broken_for_ever(chance: World, device: int) -> Event:
    kinds: tuple[EventKind, ...] = (
        "vanish",
        "partition",
        "partition_up",
        "partition_down",
        "gate_close",
        "unplug",
    )
    kind = kinds[chance.below(len(kinds))]
    return Event(
        kind=kind,
        at_s=round(chance.uniform(0.0, FAULTS_UNTIL_S), 3),
        device=device,
        for_s=31_536_000.0,
        amount=_amount(kind, chance) if kind == "unplug" else 1.0,
    )


def budgets(seed: int, devices: int) -> tuple[int, ...]:
    """Bytes a day that a seed allows each device; 0 is no bound.

    A federation of `try_seed` costs a device 8 to 15 KB. Some are allowed less, and have to wait
    for midnight.
    """
    chance = World(_BUDGET_SEEDS + seed)
    return tuple(
        0 if chance.uniform() > _BUDGET_SHARE else _BUDGET_BYTES[0] + chance.below(_BUDGET_BYTES[1])
        for _ in range(devices)
    )


def training_budgets(seed: int, devices: int) -> tuple[float, ...]:
    """Seconds of training a day that a seed allows each device; 0 is no bound."""
    chance = World(_TRAINING_SEEDS + seed)
    return tuple(
        0.0 if chance.uniform() > _BUDGET_SHARE else round(chance.uniform(*_TRAINING_S), 3)
        for _ in range(devices)
    )


def opt_outs(seed: int, mode: Mode, devices: int) -> tuple[Event, ...]:
    """Owners who opt out for a while, in safety mode."""
    chance = World(_OPT_OUT_SEEDS + seed)
    count = 0 if mode in _LIVENESS else chance.below(_OPT_OUTS_MAX)
    return tuple(
        Event(
            kind="opt_out",
            at_s=round(chance.uniform(0.0, FAULTS_UNTIL_S), 3),
            device=chance.below(devices),
            for_s=round(chance.uniform(0.5, 200.0), 3),
        )
        for _ in range(count)
    )


# -- one seed --------------------------------------------------------------------------------------


def try_seed(
    seed: int,
    mode: Mode,
    *,
    devices: int = 20,
    rounds: int = 5,
    events: Sequence[Event] | None = None,
    tell: Callable[[World, str], None] | None = None,
    described: bool = False,
) -> Trial:
    """Play one world; never raises for a broken promise, but says which it was.

    Args:
        seed: of everything.
        mode: see the module.
        devices: how many.
        rounds: how many.
        events: a schedule instead of the seed's own, to shrink one or to repeat a shrunk one.
        tell: told of every event before it happens.
        described: whether devices have their model from the coordinator.
    """
    if mode == "week":
        return play_week(seed, events=events, tell=tell)
    cohort = max(2, devices * 2 // 5)
    core = cohort + 1
    if events is None:
        events = (*schedule(seed, mode, devices, core), *opt_outs(seed, mode, devices))
    config = FederationConfig(
        federation=Federation(name="world", task="fleet.toy:task"),
        rounds=Rounds(
            mode="async" if mode.startswith("async") else "sync",
            count=rounds,
            cohort=cohort,
            quorum=0.5,
            over_select=_OVER_SELECT[seed % len(_OVER_SELECT)],
            deadline_s=90.0,
            every_s=_EVERY_S[seed % len(_EVERY_S)],
            staleness_max=_STALENESS_MAX[seed % len(_STALENESS_MAX)],
            evaluate_every=_EVALUATE_EVERY[seed % len(_EVALUATE_EVERY)],
            evaluate_cohort=max(devices // 5, 1),
        ),
        uplink=Uplink(codec="f16" if mode == "transfers" else "auto"),
        downlink=Downlink(codec="f16" if mode == "transfers" else "auto"),
        broker=Broker(
            packet_bytes_max=limits.PACKET_BYTES_MIN
            if mode == "transfers"
            else limits.PACKET_BYTES_MAX_DEFAULT
        ),
        fleet=Fleet(partition="iid", start=START, check_in_s=_CHECK_IN_S[seed % len(_CHECK_IN_S)]),
    )
    run = FleetRun(
        config=config,
        task=ToyTask(flops_per_example=2.5e8, hidden=_HIDDEN if mode == "transfers" else 6),
        count=devices,
        seed=seed,
        crypto=StubCrypto(),
    )
    bounded = mode not in (*_LIVENESS, "transfers")
    allowed = budgets(seed, devices) if bounded else (0,) * devices
    trains_s = training_budgets(seed, devices) if bounded else (0.0,) * devices
    checked = checks(seed, devices)
    witness = Witness(
        lambda told: VirtualFleet(
            run,
            lives_days=False,
            policy_of=lambda number, usual: replace(
                usual,
                bytes_per_day_max=allowed[number],
                training_s_per_day_max=trains_s[number],
            ),
            on_publish=told,
            check_of=lambda number: checked[number],
        )
    )
    fleet, evidence = witness.fleet, witness.evidence
    evidence.core = core if mode in _LIVENESS else None
    fleet.world.tell = tell
    if described:
        describe(fleet)
    violation = None
    if mode == "transfers":
        _slow_down(fleet, seed)
    try:
        unleash(fleet, events)
        promote_now_and_then(fleet)
        fleet.start()
        fleet.world.run(FAULTS_UNTIL_S + 200.0)
        if mode not in _LIVENESS:
            heal(fleet)
        fleet.world.run(fleet.world.now_s + CALM_S)
        finals = LIVENESS_CHECKERS if mode in _LIVENESS else FINAL_CHECKERS
        # A check waits for the gate, and so for the next day's seconds.
        waits = any(allowed) or (any(checked) and any(trains_s))
        for _hour in range(NEXT_DAY_H if waits else 0):
            if hold(finals, evidence):
                break
            fleet.world.run(fleet.world.now_s + 3_600.0)
        for checker in finals:
            checker(evidence)
    except ViolationError as error:
        violation = error
    finally:
        fleet.close()
    return trial_of(fleet, mode, events, violation)


def _slow_down(fleet: VirtualFleet, seed: int) -> None:
    """Every device is on a slow link."""
    chance = World(_SLOW_SEEDS + seed)
    for host in fleet.hosts:
        low, more = _SLOW_BYTES_PER_S
        slow_bytes_per_s = float(low + chance.below(more))
        host.device.link.slowed = host.profile.down_mbps * _MBIT_BYTES / slow_bytes_per_s


def shrink(trial: Trial, *, described: bool = False) -> Trial:
    """The fewest events that still break the same promise, one by one."""
    events = list(trial.events)
    smallest = trial
    at = 0
    while at < len(events):
        fewer = [*events[:at], *events[at + 1 :]]
        again = try_seed(
            trial.seed,
            trial.mode,
            devices=trial.devices,
            rounds=trial.rounds,
            events=fewer,
            described=described,
        )
        if again.promise == trial.promise:
            events, smallest = fewer, again
        else:
            at += 1
    return smallest
