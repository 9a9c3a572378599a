"""Seven days of a few devices whose owners allow little: does anything pass its budget, or leak?

Every device lives its profile's days, with a battery that its owner drains, and beside that a gate
that flaps (`fleet.flapping`), reboots, roaming, clocks that are set, disks that fill up and a
gateway that is restarted. Rounds go on all the time. Journals are real files. What each device
spends is counted in books of the world's own (`fleet.spending`).
"""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import Final, Literal

from coordinator.config import Federation, FederationConfig, Fleet, Rounds
from edge_sdk import Policy
from edge_sdk.forecast import SPELLS_MAX
from edge_sdk.journal import DAYS_KEPT, HISTORY_LINES_MAX, SqliteJournal
from edge_sdk.quiet import covers, parse_span
from fleet.checkers import FINAL_CHECKERS, Evidence, ViolationError, Witness
from fleet.crypto import StubCrypto
from fleet.deeds import unleash
from fleet.device_host import DeviceHost
from fleet.devices import device_seed
from fleet.faults import GATEWAY, Event, EventKind
from fleet.flapping import Flapping, WorkSpan
from fleet.lived import as_sensed
from fleet.record import FleetRun
from fleet.spending import DayBook
from fleet.toy import ToyTask
from fleet.trial import Trial, heal, hold, trial_of
from fleet.virtual import VirtualFleet
from fleet.world import World

DAY_S: Final = 86_400.0
WEEK_S: Final = 7 * DAY_S
ROUNDS: Final = 48
# Two and three quarter hours each, and a last round that has to end.
EVERY_S: Final = 3.0 * 3_600.0
DEADLINE_S: Final = 1_200.0
START: Final = "2026-01-05T06:00:00Z"
# Then every limit is lifted, and what is left of the rounds is played to the end.
CALM_S_MAX: Final = 7 * DAY_S
# What others may send to a device that has said its last word: a model that was on its way and
# the answers to what it had said before.
RECEIVED_OVER_MAX: Final = 2_048
# Of a journal: its pages stay, its log is folded in when it has `WAL_PAGES_MAX`.
JOURNAL_GROWTH_MAX: Final = 32 * 1024
JOURNAL_BYTES_MAX: Final = 384 * 1024
_SEEDS: Final = 5 * 10**12
_MIX: Final = {
    "phone-mid": 0.3,
    "phone-low": 0.2,
    "pi-4": 0.2,
    "pi-zero-2w": 0.15,
    "sensor-lte": 0.15,
}
_ROUNDS_MODE: Final[tuple[Literal["sync", "async"], ...]] = ("sync", "sync", "async")
_STOPS_WITHIN_S: Final = 1.0
_BATTERY_SLACK: Final = 0.002
_YEAR_S: Final = 365.25 * DAY_S
_STEPS_S: Final = (_YEAR_S, -_YEAR_S, DAY_S, -DAY_S, 3_600.0, -3_600.0, 30.0)
_DEVICE_KINDS: Final[tuple[EventKind, ...]] = (
    *("crash", "power_loss", "crash_at_effect") * 3,
    *("roam", "link_break") * 6,
    "partition",
    "clog",
    "disk_full",
    "clock_step",
    "unplug",
    "gate_close",
)
_GATEWAY_KINDS: Final[tuple[EventKind, ...]] = (
    *("crash", "crash_at_effect") * 3,
    "broker_kill",
    "disk_full",
    "link_break",
    "weather",
    "clock_step",
)


def owners(seed: int, number: int, usual: Policy) -> Policy:
    """What a seed's owner of a device allows: little enough to be felt."""
    chance = World(_SEEDS + 64 * seed + number)

    def maybe(share: float, low: float, high: float) -> float:
        drawn = chance.uniform(low, high)
        return round(drawn, 3) if chance.uniform() < share else 0.0

    quiet = (), ("22:30-06:15",), ("12:00-13:30", "23:00-01:00"), ("07:05-07:06",)
    return changed(
        usual,
        min_battery=round(chance.uniform(0.05, 0.4), 2),
        allow_metered=chance.below(2) == 0,
        bytes_per_day_max=int(maybe(0.7, 5_000, 14_000)),
        joules_per_day_max=maybe(0.5, 5.0, 150.0),
        training_s_per_day_max=maybe(0.5, 3.0, 120.0),
        cpu_load_max=(0.5, 0.75)[chance.below(2)],
        max_temperature_c=float(45 + chance.below(35)),
        quiet_hours=quiet[chance.below(len(quiet))],
    )


def week_schedule(seed: int, devices: int) -> tuple[Event, ...]:
    """What goes wrong in a seed's week."""
    chance = World(_SEEDS + 64 * seed + 63)
    events = []
    for _ in range(20 * devices + chance.below(40 * devices)):
        gateway = chance.uniform() < 0.12  # noqa: PLR2004 - an eighth of all trouble
        kinds = _GATEWAY_KINDS if gateway else _DEVICE_KINDS
        kind = kinds[chance.below(len(kinds))]
        amount = {
            "crash_at_effect": float(1 + chance.below(60)),
            "clock_step": _STEPS_S[chance.below(len(_STEPS_S))],
            "unplug": round(chance.uniform(0.01, 0.9), 3),
            "clog": float(10 + chance.below(1_000)),
            "roam": round(chance.uniform(0.005, 0.9), 3),
        }.get(kind, round(chance.uniform(0.02, 0.3), 3))
        # Mostly minutes, sometimes hours.
        longest_s = (60.0, 600.0, 7_200.0)[chance.below(3)]
        events.append(
            Event(
                kind=kind,
                at_s=round(chance.uniform(0.0, WEEK_S), 3),
                device=GATEWAY if gateway else chance.below(devices),
                for_s=round(chance.uniform(0.5, longest_s), 3),
                amount=amount,
            )
        )
    return tuple(sorted(events, key=lambda event: event.at_s))


# -- promises --------------------------------------------------------------------------------------


@dataclass
class Week:
    """What the promises of a week look at, beside the evidence.

    Attributes:
        sizes: of each device's database after the second day, in bytes, without its log.
    """

    sizes: dict[str, int] = field(default_factory=dict)

    def no_budget_is_exceeded(self, evidence: Evidence) -> None:
        """No packet leaves and no work goes on beyond the day's bytes, joules or seconds."""
        for host in evidence.stirred:
            book = evidence.day_books.get(host.device.name)
            if book is None:
                continue
            book.note()
            what = book.over
            if book.sent_over > 0.0:
                what = f"sent {book.sent_over:.0f} bytes too many"
            if book.received_over > RECEIVED_OVER_MAX:
                what = f"received {book.received_over:.0f} bytes too many"
            if what:
                raise ViolationError("no_budget_is_exceeded", f"{host.name}: {what}")

    def nothing_works_while_the_gate_is_closed(self, evidence: Evidence) -> None:
        """Work ends within a second of what forbids it, and is not begun in spite of it."""
        for host in evidence.stirred:
            while host.spans:
                why = self._forbidden(host, host.spans.pop())
                if why:
                    raise ViolationError(
                        "nothing_works_while_the_gate_is_closed", f"{host.name}: {why}"
                    )

    def _forbidden(self, host: DeviceHost, span: WorkSpan) -> str:
        if host.flapping is not None:
            bad_s, sense = host.flapping.forbidden_s(span.began_s, span.ended_s)
            if bad_s > _STOPS_WITHIN_S:
                return f"{sense} for {bad_s:.3f} s"
        if span.ended_s - span.began_s <= _STOPS_WITHIN_S:
            return ""
        policy, before_s = host.policy, span.ended_s - _STOPS_WITHIN_S
        days = [
            as_sensed(host.profile, host.seed, host.start_unix_s + at_s)[0]
            for at_s in (before_s, before_s + 0.5, span.ended_s)
        ]
        low = span.fraction < policy.min_battery - _BATTERY_SLACK
        if low and not any(day.charging for day in days):
            return f"battery at {span.fraction:.4f}"
        if all(day.metered for day in days) and not policy.allow_metered:
            return "metered"
        if all(day.cpu_load > policy.cpu_load_max for day in days):
            return "in use"
        quiet = tuple(parse_span(text) for text in policy.quiet_hours)
        minutes = [int((span.wall_s - ago_s) // 60) % 1_440 for ago_s in (_STOPS_WITHIN_S, 0.0)]
        # A clock that was set may have kept it quiet for long enough: then the hours do not hold.
        if quiet and not span.steps[1] and all(covers(quiet, minute) for minute in minutes):
            return f"quiet at minute {minutes[1]}"
        return ""

    def note_sizes(self, files: Sequence[SqliteJournal], fleet: VirtualFleet) -> None:
        """After two days: what a journal should be like for good."""
        for host, file in zip(fleet.hosts, files, strict=True):
            self.sizes[host.name] = file.path.stat().st_size

    def journals_are_bounded(self, files: Sequence[SqliteJournal], fleet: VirtualFleet) -> None:
        """What a journal holds does not grow with the days."""
        for host, file in zip(fleet.hosts, files, strict=True):
            rows = (
                (len(file.history()), HISTORY_LINES_MAX),
                (len(file.spent_by_day()), DAYS_KEPT),
                (len(file.spells().spells), SPELLS_MAX),
                (file.path.stat().st_size - self.sizes[host.name], JOURNAL_GROWTH_MAX),
                (size_of(file), JOURNAL_BYTES_MAX),
            )
            if any(found > most for found, most in rows):
                raise ViolationError("journals_are_bounded", f"{host.name}: {rows}")


def _scratch() -> str | None:
    """Where files are memory, if there is such a place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a directory of our own


def size_of(file: SqliteJournal) -> int:
    """Bytes of a journal's files: the database and its write-ahead log."""
    return sum(path.stat().st_size for path in file.path.parent.glob(f"{file.path.name}*"))


# -- one seed --------------------------------------------------------------------------------------


def play_week(
    seed: int,
    *,
    events: Sequence[Event] | None = None,
    tell: Callable[[World, str], None] | None = None,
) -> Trial:
    """Play one week; never raises for a broken promise, but says which it was.

    Args:
        seed: of everything.
        events: a schedule instead of the seed's own.
        tell: told of every event before it happens.
    """
    devices = 3 + seed % 4
    events = week_schedule(seed, devices) if events is None else events
    config = FederationConfig(
        federation=Federation(name="week", task="fleet.toy:task"),
        rounds=Rounds(
            mode=_ROUNDS_MODE[seed % len(_ROUNDS_MODE)],
            count=ROUNDS,
            cohort=2,
            quorum=0.5,
            deadline_s=DEADLINE_S,
            every_s=EVERY_S,
            evaluate_every=seed % 2,
            evaluate_cohort=1,
        ),
        fleet=Fleet(mix=_MIX, partition="iid", start=START, check_in_s=600.0),
    )
    run = FleetRun(
        config=config,
        task=ToyTask(flops_per_example=(2.5e8, 1e9)[seed % 2]),
        count=devices,
        seed=seed,
        crypto=StubCrypto(),
    )
    violation = None
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=_scratch())))
        files = [SqliteJournal(directory / str(number)) for number in range(devices)]
        for file in files:
            stack.callback(file.close)
            # Power that goes is the fuse's; the machine's own stays on.
            file._db.execute("PRAGMA synchronous=OFF")  # noqa: SLF001 - nobody else wants this
        week = Week()
        witness = Witness(
            lambda told: VirtualFleet(
                run,
                policy_of=lambda number, usual: owners(seed, number, usual),
                on_publish=told,
                journal_of=lambda number: files[number],
                flapping_of=lambda number, policy: Flapping(
                    device_seed(seed, number), policy, WEEK_S
                ),
            ),
            (week.no_budget_is_exceeded, week.nothing_works_while_the_gate_is_closed),
        )
        fleet, evidence = witness.fleet, witness.evidence
        stack.callback(fleet.close)
        evidence.day_books = {host.device.name: DayBook(host) for host in fleet.hosts}
        fleet.world.tell = tell
        try:
            unleash(fleet, events)
            fleet.start()
            fleet.world.run(2 * DAY_S)
            week.note_sizes(files, fleet)
            fleet.world.run(WEEK_S)
            week.journals_are_bounded(files, fleet)
            for books in (evidence.day_books, evidence.books, evidence.work_books):
                books.clear()
            heal(fleet)
            for host in fleet.hosts:
                host.retire()
            while fleet.world.now_s < WEEK_S + CALM_S_MAX and not hold(FINAL_CHECKERS, evidence):
                fleet.world.run(fleet.world.now_s + EVERY_S)
            for checker in FINAL_CHECKERS:
                checker(evidence)
        except ViolationError as error:
            violation = error
        return trial_of(fleet, "week", events, violation)
