"""The adversary: what goes wrong, when and to whom, as data that follows from a seed.

*Safety*: anything may fail at any time; afterwards everything heals, and the federation must come
to its end with every promise kept. *Liveness*: a core of devices, the gateway and the broker are
healthy, everything else breaks and stays broken; rounds must still end by their deadlines. Either
is played with synchronous and with asynchronous rounds.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Literal

from msgspec import Struct

from coordinator.config import Federation, FederationConfig, Fleet, Rounds
from fleet.checkers import (
    FINAL_CHECKERS,
    LIVENESS_CHECKERS,
    Evidence,
    ViolationError,
    Witness,
)
from fleet.crypto import StubCrypto
from fleet.deeds import unleash
from fleet.described import describe
from fleet.faults import GATEWAY, Event, EventKind
from fleet.network import Weather
from fleet.record import FleetRun
from fleet.toy import ToyTask
from fleet.virtual import VirtualFleet
from fleet.world import World

Mode = Literal["safety", "liveness", "async_safety", "async_liveness"]
MODES: Final[tuple[Mode, ...]] = ("safety", "liveness", "async_safety", "async_liveness")
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
_TRAINING_S: Final = (0.5, 15.0)
_BUDGET_SHARE: Final = 0.3
_BUDGET_BYTES: Final = (4_000, 6_000)
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
    events = []
    for _ in range(3 + chance.below(20)):
        gateway = chance.uniform() < 0.3  # noqa: PLR2004 - a third of all trouble
        kinds = _GATEWAY_KINDS if gateway else _DEVICE_KINDS
        kind = kinds[chance.below(len(kinds))]
        events.append(
            Event(
                kind=kind,
                at_s=round(chance.uniform(0.0, FAULTS_UNTIL_S), 3),
                device=GATEWAY if gateway else chance.below(devices),
                for_s=round(chance.uniform(0.5, 200.0), 3),
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


# -- one seed --------------------------------------------------------------------------------------


class Trial(Struct, frozen=True):
    """One world, from its seed to its end.

    `effects` is how many writes and messages there were, the gateway's first. `violation` is None,
    or the promise that was broken and how.
    """

    seed: int
    mode: Mode
    devices: int
    rounds: int
    events: tuple[Event, ...]
    trace_digest: str
    virtual_s: float
    happened: int
    effects: tuple[int, ...]
    violation: str | None = None
    promise: str | None = None


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
    cohort = max(2, devices * 2 // 5)
    core = cohort + 1
    if events is None:
        events = schedule(seed, mode, devices, core)
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
        fleet=Fleet(partition="iid", start=START, check_in_s=_CHECK_IN_S[seed % len(_CHECK_IN_S)]),
    )
    run = FleetRun(
        config=config,
        task=ToyTask(flops_per_example=2.5e8),
        count=devices,
        seed=seed,
        crypto=StubCrypto(),
    )
    allowed = budgets(seed, devices) if mode not in _LIVENESS else (0,) * devices
    trains_s = training_budgets(seed, devices) if mode not in _LIVENESS else (0.0,) * devices
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
        )
    )
    fleet, evidence = witness.fleet, witness.evidence
    evidence.core = core if mode in _LIVENESS else None
    fleet.world.tell = tell
    if described:
        describe(fleet)
    violation = None
    try:
        unleash(fleet, events)
        fleet.start()
        fleet.world.run(FAULTS_UNTIL_S + 200.0)
        if mode not in _LIVENESS:
            _heal(fleet)
        fleet.world.run(fleet.world.now_s + CALM_S)
        finals = LIVENESS_CHECKERS if mode in _LIVENESS else FINAL_CHECKERS
        for _hour in range(NEXT_DAY_H if any(allowed) else 0):
            if _hold(finals, evidence):
                break
            fleet.world.run(fleet.world.now_s + 3_600.0)
        for checker in finals:
            checker(evidence)
    except ViolationError as error:
        violation = error
    finally:
        fleet.close()
    return Trial(
        seed=seed,
        mode=mode,
        devices=devices,
        rounds=rounds,
        events=tuple(events),
        trace_digest=fleet.world.trace_digest,
        virtual_s=fleet.world.now_s,
        happened=fleet.world.events,
        effects=tuple(host.fuse.effects for host in (fleet.gateway, *fleet.hosts)),
        violation=None if violation is None else str(violation),
        promise=None if violation is None else violation.promise,
    )


def _hold(promises: Sequence[Callable[[Evidence], None]], evidence: Evidence) -> bool:
    try:
        for promise in promises:
            promise(evidence)
    except ViolationError:
        return False
    return True


def _heal(fleet: VirtualFleet) -> None:
    """Everything works again; clocks are right again."""
    fleet.network.weather = Weather()
    for host in (fleet.gateway, *fleet.hosts):
        host.free_disk()
        host.fuse.blows_at = None
        if host.wall.stepped_s:
            host.step_clock(-host.wall.stepped_s)
    for device in fleet.hosts:
        device.plug_in()


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
