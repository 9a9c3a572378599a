"""A device's process in a world: its driver, disk, link, clocks, battery and day."""

import math
from dataclasses import replace
from typing import Final

from device_profiles import DeviceProfile, conditions_at, training_seconds, training_w_extra
from edge_sdk import Conditions, Policy
from edge_sdk._gatekeeper import Gatekeeper, Moment
from edge_sdk.budget import SPEND_EVERY_S
from edge_sdk.energy import Energy
from edge_sdk.journal import Journal
from edge_sdk.ladder import Means
from edge_sdk.policy import GATE_EVERY_S, SECONDS_PER_DAY
from edge_sdk.quiet import parse_span
from edge_sdk.release_check import CheckWork
from edge_sdk.signals import NOTHING, Spent, TrainingFailed
from edge_sdk.work import TrainingWork, Work, WorkDone, round_of
from fleet.clocks import DRIFT_MAX, Uptime, WallClock
from fleet.device_disk import DeviceDisk, DiskParts, DiskShelf
from fleet.disk import PowerCutError
from fleet.emulated import EmulatedDevice
from fleet.flapping import Flapping, WorkSpan
from fleet.hosts import MICROSECOND_S, Host
from fleet.lived import chance_of, live_before
from fleet.network import Callbacks, Network, VirtualLink
from fleet.power import Power
from fleet.world import World

VirtualDevice = EmulatedDevice[VirtualLink]

# How often a day is looked at: its curves move in hours.
DAY_EVERY_S: Final = 300.0
CHARGE_EVERY_S: Final = 300.0
# A clock that is wrong may keep a device quiet for too long; it is asked again.
_QUIET_EVERY_S: Final = 3_600.0
_MINUTE_S: Final = 60.0
# A phone does not start before its charger has put something into it.
_STARTS_AT_FRACTION: Final = 0.02
_FAILED_TRAINING_S: Final = 1.0
# A check that looks at no example; a budget that does not do for it would keep its app waiting.
_CHECK_S: Final = 0.05
_MBIT_BYTES: Final = 125_000.0
_MB: Final = 1e6
# How long a device is away that has left a round without a word.
_AWAY_S: Final = (60.0, 1_800.0)
_DELAY_S: Final = (0.01, 0.08)
_WALL_OFF_S_MAX: Final = 600.0
# One device in so many has no clock that runs while it is off, and wakes up in 1970.
_WITHOUT_CLOCK: Final = 8


class DeviceHost(Host):
    """A device: what the SDK's own loop does on a real one is done here by events.

    Args:
        world: where it lives.
        network: of the broker.
        name: for the trace.
        profile: what it is like.
        seed: of its days.
        start_unix_s: when the world's time is 0.
        lives_days: whether conditions follow the profile's day; else it is always at its charger.
        policy: what its owner allows.
        clock_is_right: whether its wall clock is, as for runs that are compared: no error of one
            moves a forecast there.
        journal: what its disk keeps; one in memory if None.
        flapping: what its senses say beside its day, if they do.
    """

    def __init__(
        self,
        world: World,
        network: Network,
        *,
        name: str,
        profile: DeviceProfile,
        seed: int,
        start_unix_s: float,
        lives_days: bool,
        policy: Policy,
        clock_is_right: bool = False,
        journal: Journal | None = None,
        flapping: Flapping | None = None,
    ) -> None:
        super().__init__(world, name)
        self.profile = profile
        self.policy = policy
        self.flapping = flapping
        self.spans: list[WorkSpan] = []
        self.disk = DeviceDisk(self.fuse, journal)
        self.shelf = DiskShelf(self.fuse)
        self.parts = DiskParts(self.fuse)
        self.uptime = Uptime(world)
        off_s = round(world.uniform(-_WALL_OFF_S_MAX, _WALL_OFF_S_MAX), 3)
        drift, has_clock = world.uniform(-DRIFT_MAX, DRIFT_MAX), world.below(_WITHOUT_CLOCK)
        self.wall = WallClock(
            world,
            start_unix_s,
            drift=0.0 if clock_is_right else drift,
            offset_s=0.0 if clock_is_right else off_s if has_clock else -start_unix_s,
        )
        self.power = Power(profile)
        self.closed_until_s = 0.0
        self.opted_out = False
        self.device: VirtualDevice
        self._network = network
        self.seed = seed
        self.start_unix_s = start_unix_s
        self._lives_days = lives_days
        # What flaps changes by itself; that alone wakes such a device often enough.
        self._day_every_s = DAY_EVERY_S if flapping is None else 3.0 * DAY_EVERY_S
        self._curve = 1.0
        if lives_days:
            self._curve = conditions_at(profile, seed, start_unix_s).battery_fraction
            self.power.set_fraction(self._curve)
            self.disk.live_through(live_before(profile, seed, start_unix_s, policy))
        self._plugged = True
        self._unplugs = 0
        self._online = True
        self._training_s = 0.0
        self._looked_at_s = 0.0
        self._dark = False
        self._last_look = 0
        self._work: Work | None = None
        self._work_began_s = 0.0
        self._steps_before = 0
        self._new_boot()

    def _new_boot(self) -> None:
        """What is gone with the memory of a process."""
        self._traffic_at_boot = self._traffic() if self.starts else (0, 0)
        profile = self.profile
        self.gatekeeper = Gatekeeper(
            policy=self.policy,
            conditions=self._conditions,
            journal=self.disk,
            energy=Energy(training_w_extra(profile), profile.up_j_per_mb, profile.down_j_per_mb),
            traffic=self._traffic_of_this_boot,
        )
        self._judge_at_s: float | None = None
        self._judged_bytes = -1
        self.gatekeeper.opted_out = self.opted_out
        self._unwritten = False

    def make_link(self, device: VirtualDevice) -> VirtualLink:
        """The device's link, at its profile's rates."""
        low, high = _DELAY_S
        return VirtualLink(
            self._network,
            device.name,
            Callbacks(
                filters=lambda: device.driver.subscriptions,
                will=device.will,
                on_up=lambda size: self.enter(lambda: device.on_link_up(size)),
                on_down=lambda reason: self.enter(lambda: device.on_link_down(reason)),
                on_message=lambda topic, data: self.enter(lambda: device.on_message(topic, data)),
                on_ack=self._acknowledged,
            ),
            self.fuse,
            delay_s=self.world.uniform(low, high),
            up_bytes_per_s=self.profile.up_mbps * _MBIT_BYTES,
            down_bytes_per_s=self.profile.down_mbps * _MBIT_BYTES,
        )

    # -- life and death ----------------------------------------------------------------------

    def clock(self) -> float:
        """Monotonic seconds, a little fast or slow."""
        return self.uptime.now_s()

    def start(self) -> None:
        """Power is on, if there is any."""
        if self.running or self.gone:
            return
        if self._dark:
            self._look()
            if self.power.fraction < _STARTS_AT_FRACTION:
                self.world.after(CHARGE_EVERY_S, f"charge {self.name}", self.start)
                return
            self._dark = False
        super().start()

    def boot(self) -> None:
        """Start from what the disk holds."""
        self._new_boot()
        self.uptime.reboot()
        if self.starts > 1:
            self.device.boot()
        self._judge()
        if self._may_connect:
            self.device.link.allowed = self._online
            self.device.link.connect()

    def end_link(self, *, silent: bool) -> None:
        """The process is gone, its connection and whatever it was training with it."""
        self._stop_training()
        if silent:
            self.parts.lose_unwritten()
        self.device.link.end(silent=silent)

    def next_wake_s(self) -> float | None:
        """When a timer is due, in the world's time."""
        due_s = self.device.driver.next_wake_s
        return None if due_s is None else self.uptime.world_s(due_s)

    def wake(self) -> None:
        """Run the timers that are due."""
        self.device.driver.wake(self.clock())

    def plan_ahead(self) -> None:
        """See to it that neither a timer nor a look at the rules is missed."""
        super().plan_ahead()
        if self._work is not None and self._work.stopped:
            self._stop_training()
        self._mind_budget()

    def _acknowledged(self) -> None:
        if self.device.driver.has_more_to_send:
            self.enter(self.device.send_more)
        else:
            self._mind_budget()

    def _mind_budget(self) -> None:
        """Bytes have passed: the next look at the rules, which on a device are many, sees them."""
        budgets = self.policy.budgets
        counts = budgets.traffic_bytes or budgets.joules
        if self.running and counts and self._bytes != self._judged_bytes:
            self.world.stirred[self.name] = None
            self._judge_by(self.world.now_s + GATE_EVERY_S)

    # -- work --------------------------------------------------------------------------------

    def start_work(self, device: VirtualDevice, work: Work) -> None:
        """Train now, and be done when the profile says."""
        if self._work is not None:
            self._stop_training()
        device.strike(round_of(work))
        if device.gone:
            self.gone = True
            self.crash()
            return
        if device.gate_opens_at_s is not None:
            delay_s = device.gate_opens_at_s - self.clock()
            self.world.after(delay_s, f"gate {self.name}", self.of_this_start(device.open_gate))
            device.gate_opens_at_s = None
        event = work.run()
        seconds = _CHECK_S if isinstance(work, CheckWork) else _FAILED_TRAINING_S
        if work.examples_seen:
            flops = device.driver.manifest.step_flops * work.examples_seen
            seconds = max(training_seconds(self.profile, flops), 0.001)
        self._look_alive()
        self._work = work
        self._work_began_s = self.world.now_s
        self._steps_before = self.wall.steps
        self.power.train(now=True)
        self._plan_empty()
        self.gatekeeper.work_begins(self.clock())
        if self._looks_while_it_works:
            self._judge_by(self._due_s)
        if not isinstance(work, CheckWork):
            self._maybe_vanish(work.order.round, seconds)
        self.world.after(
            seconds,
            f"trained {self.name} {type(event).__name__}",
            self.of_this_start(lambda: self._trained(work, event)),
        )

    def _trained(self, work: Work, event: WorkDone) -> None:
        if self._work is work:
            self._stop_training(finished=not isinstance(event, TrainingFailed))
        if self.power.empty:
            self._look_alive()
        self.device.work_done(work, event)
        if not self._plugged:
            self._judge_by(self.world.now_s + GATE_EVERY_S)

    def _stop_training(self, *, finished: bool = False) -> None:
        work = self._work
        if work is not None:
            self._look()
            self.power.train(now=False)
            now_s, began_s = self.world.now_s, self._work_began_s
            self._training_s += now_s - began_s
            self.device.note_training(round_of(work), now_s - began_s)
            finished = finished and not work.stopped and not isinstance(work, CheckWork)
            self.gatekeeper.work_ends(
                self.clock(),
                trained=isinstance(work, TrainingWork),
                finished=finished,
                head_alone=isinstance(work, TrainingWork) and work.head_alone,
            )
            steps = (self._steps_before, self.wall.steps)
            if self.flapping is not None:
                span = WorkSpan(began_s, now_s, self.wall.now_s(), steps, self.power.fraction)
                self.spans.append(span)
            self._unwritten = True
            self._work = None

    def _maybe_vanish(self, round_number: int, seconds: float) -> None:
        """Leave the round without a word, as often as its class does.

        Drawn from the device and the round, so that it befalls the same ones whoever is chosen.
        """
        leaves, when, away = chance_of(self.seed, "vanish", round_number)
        if not self._lives_days or leaves >= self.profile.vanish_per_round:
            return
        low, high = _AWAY_S

        def vanish() -> None:
            self.crash(down_s=low + away * (high - low), silent=True)
            raise PowerCutError

        self.world.after(when * seconds, f"vanish {self.name}", self.of_this_start(vanish))

    # -- power -------------------------------------------------------------------------------

    def unplug(self, *, for_s: float, battery_fraction: float) -> None:
        """Its charger is pulled, and this is what its battery has; without one, power is lost."""
        if self.profile.on_mains:
            self.crash(down_s=for_s, silent=True)
            return
        self._look()
        self._plugged = False
        self._unplugs += 1
        number = self._unplugs
        self.power.set_fraction(battery_fraction)
        self.world.after(
            for_s,
            f"plug {self.name}",
            lambda: self.plug_in() if number == self._unplugs else None,
        )
        self.enter(lambda: self._judge_by(self.world.now_s + GATE_EVERY_S))
        self._plan_empty()

    def plug_in(self) -> None:
        """Its charger is in again."""
        if not self._plugged:
            self._look()
            self._plugged = True
            self.enter(lambda: self._judge_by(self.world.now_s + GATE_EVERY_S))

    def retire(self) -> None:
        """Its owner lifts every limit and leaves it on its charger for good."""
        self.policy = Policy(cpu_load_max=1.0, check_in_s=self.policy.check_in_s)
        self._lives_days, self._plugged, self._online, self.flapping = False, True, True, None
        self.crash(down_s=1.0)

    def _look(self) -> Conditions:
        """Integrate the battery up to now, and see what the device is like."""
        now_s = self.world.now_s
        passed_s, self._looked_at_s = now_s - self._looked_at_s, now_s
        if self._lives_days:
            return self._look_at_day(now_s)
        self._integrate(charging=self._plugged, owner_j=passed_s * self.profile.idle_w)
        return Conditions(
            battery_fraction=self.power.fraction,
            charging=self._plugged or self.profile.on_mains,
            window_s=86_400.0,
        )

    def _look_at_day(self, now_s: float) -> Conditions:
        now = conditions_at(self.profile, self.seed, self.start_unix_s + now_s)
        # What its owner does with it, idling included, is the curve of its day.
        used, self._curve = max(self._curve - now.battery_fraction, 0.0), now.battery_fraction
        owner_j = used * 3_600.0 * self.profile.battery_wh * self.running
        self._integrate(charging=now.charging, owner_j=owner_j)
        self._online = now.online
        self._hang_up_or_not()
        return Conditions(
            battery_fraction=self.power.fraction,
            charging=now.charging,
            metered=now.metered,
            cpu_load=0.0 if now.idle or self.profile.on_mains else 1.0,
        )

    @property
    def _may_connect(self) -> bool:
        return not (self.gatekeeper.hangs_up or self.opted_out)

    def _hang_up_or_not(self) -> None:
        """The link is for a device that is reached, has bytes left, and whose owner is in."""
        link = self.device.link
        wanted = self._online and self._may_connect
        if wanted and not link.allowed and self.running:
            link.allowed = True
            link.connect()
        elif not wanted:
            link.hang_up()

    def _integrate(self, *, charging: bool, owner_j: float) -> None:
        radio_j = self.device.radio_j
        self.power.look(self.world.now_s, charging=charging, owner_j=owner_j, radio_j=radio_j)
        self.device.counts.training_j = self.power.training_j

    def _look_alive(self) -> Conditions:
        """Look from inside the process, which ends if there is nothing left to run on."""
        now = self._look()
        if self.power.empty and not now.charging:
            self._dark = True
            self.crash(down_s=CHARGE_EVERY_S, silent=True)
            raise PowerCutError
        return now

    def _plan_empty(self) -> None:
        """Be there when the battery of a device off its charger runs out."""
        if not self.running or self._lives_days or self._plugged:
            return
        left_s = self.power.seconds_left(self.profile.idle_w)
        if left_s is not None:
            empty = self.of_this_start(self._notice_empty)
            self.world.after(left_s + MICROSECOND_S, f"empty {self.name}", empty)

    def _notice_empty(self) -> None:
        self._look_alive()

    # -- the rules ---------------------------------------------------------------------------

    def opt_out(self) -> None:
        """Its owner wants nothing to be sent: a line in its journal, whether it runs or not."""
        self.opted_out = self.gatekeeper.opted_out = True
        self.enter(self._judge)
        self.device.link.allowed = False
        self.enter(lambda: self.device.link.broken("opted_out"))

    def opt_in(self) -> None:
        """Its owner has thought better of it."""
        if self.opted_out:
            self.opted_out = self.gatekeeper.opted_out = False
            self.enter(self._come_back)

    def _come_back(self) -> None:
        self._judge()
        self._hang_up_or_not()

    def close_gate(self, for_s: float) -> None:
        """Its owner picks it up: no work for a while."""
        self.closed_until_s = self.world.now_s + for_s
        self.enter(self._judge)

    def step_clock(self, by_s: float) -> None:
        """Somebody sets its clock."""
        self.wall.step(by_s)
        self.enter(lambda: self._judge_by(self.world.now_s + GATE_EVERY_S))

    def _judge_by(self, at_s: float) -> None:
        """Look at the rules at this time, unless somebody does before."""
        if at_s == math.inf or (self._judge_at_s is not None and self._judge_at_s <= at_s):
            return
        self._judge_at_s = at_s

        def act() -> None:
            if self._judge_at_s == at_s:  # else an earlier one has taken its place
                self._judge()

        delay_s = at_s + MICROSECOND_S - self.world.now_s
        self.world.after(delay_s, f"gate {self.name}", self.of_this_start(act))

    def _conditions(self) -> Conditions:
        """What its sensors say, for the SDK's own gatekeeper."""
        now = self._look_alive()
        if self.flapping is not None:
            felt = self.flapping.at(self.world.now_s)
            felt["cpu_load"] = max(felt["cpu_load"], now.cpu_load)
            felt["metered"] = felt["metered"] or now.metered
            now = replace(now, **felt)
        if self.world.now_s < self.closed_until_s:
            # In its owner's hand: any word will do.
            now = replace(now, temperature_c=self.policy.max_temperature_c + 1.0)
        return now

    def _judge(self) -> None:
        self._judge_at_s = None
        self._unwritten |= self._judged_bytes != self._bytes
        self._judged_bytes = self._bytes
        wall_s = self.wall.now_s()
        gate = self.gatekeeper.look(Moment(self.clock(), wall_s, wall_s % SECONDS_PER_DAY))
        if gate is not None:
            self.device.driver.on_gate(gate, self.clock())
            self._hang_up_or_not()
        self._maybe_reboot()
        self._judge_by(self._judge_again_s())

    def _maybe_reboot(self) -> None:
        look = int(self.world.now_s // DAY_EVERY_S)
        if not self._lives_days or look == self._last_look:
            return
        self._last_look = look
        reboots, *_ = chance_of(self.seed, "reboot", look)
        if reboots < self.profile.reboots_per_day * DAY_EVERY_S / SECONDS_PER_DAY:
            self.world.after(1.0, f"reboot {self.name}", self.of_this_start(self._reboot))

    def _reboot(self) -> None:
        raise PowerCutError

    @property
    def _looks_while_it_works(self) -> bool:
        budgets = self.policy.training_s_per_day_max or self.policy.joules_per_day_max
        return bool(budgets) or self.flapping is not None

    @property
    def _due_s(self) -> float:
        """When the gatekeeper wants to look, in the world's time, and not in the past."""
        return max(self.uptime.world_s(self.gatekeeper.due_s), self.world.now_s)

    def _judge_again_s(self) -> float:
        """When something may be another by itself: a device looks every five seconds instead."""
        if self._work is not None and self._looks_while_it_works:
            return self._due_s
        now_s = self.world.now_s
        at_s = now_s + self._day_every_s if self._lives_days else math.inf
        if now_s < self.closed_until_s:
            at_s = min(at_s, self.closed_until_s)
        if self.policy.quiet_hours:
            at_s = min(at_s, now_s + _QUIET_EVERY_S, self._quiet_changes_s())
        if self.policy.budgets != NOTHING:
            tomorrow = self.wall.now_s() // SECONDS_PER_DAY + 1.0
            at_s = min(at_s, self.wall.world_s(tomorrow * SECONDS_PER_DAY))
            if self._unwritten:
                self._unwritten = False
                at_s = min(at_s, now_s + SPEND_EVERY_S + GATE_EVERY_S)
        change_s = None if self.flapping is None else self.flapping.next_change_s(now_s)
        if change_s is not None:
            late, *_ = chance_of(self.seed, "look", int(change_s))
            at_s = min(at_s, change_s + late * GATE_EVERY_S)
        return at_s

    def _quiet_changes_s(self) -> float:
        """When the next of the owner's quiet hours begins or ends."""
        wall_s = self.wall.now_s()
        minutes = (edge for text in self.policy.quiet_hours for edge in parse_span(text))
        wait_s = min((_MINUTE_S * m - wall_s) % SECONDS_PER_DAY or SECONDS_PER_DAY for m in minutes)
        return self.wall.world_s(wall_s + wait_s)

    @property
    def spent(self) -> Spent:
        """What taking part has cost since the world began; the SDK has its own books."""
        working_s = 0.0 if self._work is None else self.world.now_s - self._work_began_s
        training_w = training_w_extra(self.profile)
        training_s = self._training_s + working_s
        sent, received = self._traffic()
        radio_j = self.profile.up_j_per_mb * sent + self.profile.down_j_per_mb * received
        return Spent(sent + received, training_s * training_w + radio_j / _MB, training_s)

    def means(self) -> Means:
        """What is left of the day, as of the last look at the rules."""
        return self.gatekeeper.means()

    def may_send(self, size: int, last_word: bool) -> bool:  # noqa: FBT001 - a callback
        """Whether the day's bytes do for a packet; if not, look at once."""
        if self.gatekeeper.may_send(size, last_word):
            return True
        self._judge_by(self.world.now_s)
        return False

    @property
    def _bytes(self) -> int:
        return sum(self._traffic())

    def _traffic(self) -> tuple[int, int]:
        traffic = self.device.link.traffic
        return traffic.sent_bytes, traffic.received_bytes

    def _traffic_of_this_boot(self) -> tuple[int, int]:
        sent, received = self._traffic()
        return sent - self._traffic_at_boot[0], received - self._traffic_at_boot[1]
