import random

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.leases import Leases
from wire.messages import Available


def available(check_in: int = 1, window_s: float = 60.0) -> Available:
    return Available(check_in, window_s, 3, 2, bytes(32), "pi-5", 0.5, charging=False, metered=True)


def devices(leases: Leases, now_s: float) -> list[str]:
    return [lease.device for lease in leases.valid(now_s)]


def test_a_lease_says_what_the_device_said() -> None:
    leases = Leases()
    lease = leases.check_in("d1", available(), 10.0)
    assert leases.valid(10.0) == [lease]
    assert (lease.device, lease.check_in, lease.until_s, lease.held_version) == ("d1", 1, 70.0, 3)
    assert (lease.battery_fraction, lease.charging, lease.metered) == (0.5, False, True)


def test_a_lease_ends_by_its_own_promise() -> None:
    leases = Leases()
    leases.check_in("d1", available(window_s=60.0), 0.0)
    leases.check_in("d2", available(window_s=0.0), 0.0)
    assert devices(leases, 59.9) == ["d1"]
    assert devices(leases, 60.0) == []
    assert devices(leases, 1.0) == []
    assert leases.heard == 2


def test_the_newest_word_replaces_the_last() -> None:
    leases = Leases()
    leases.check_in("d1", available(1, 60.0), 0.0)
    leases.check_in("d1", available(2, 10.0), 0.0)
    assert devices(leases, 20.0) == []


def test_leases_come_in_order_of_device_whoever_was_first() -> None:
    leases = Leases()
    for device in ("d3", "d1", "d2"):
        leases.check_in(device, available(), 0.0)
    assert devices(leases, 1.0) == ["d1", "d2", "d3"]


def test_a_last_will_of_an_earlier_link_does_not_end_what_was_said_before_it() -> None:
    """`Gone` carries the last check-in before the lost link: only what came after it is void."""
    leases = Leases()
    leases.check_in("d1", available(5), 0.0)
    leases.end_since("d1", 5)
    assert devices(leases, 1.0) == ["d1"]
    leases.check_in("d1", available(6), 0.0)
    leases.end_since("d1", 5)
    assert devices(leases, 1.0) == []


def test_a_last_will_that_is_older_than_the_last_one_is_a_replay() -> None:
    leases = Leases()
    leases.end_since("d1", 4)
    leases.end_since("d1", 6)
    leases.check_in("d1", available(7), 0.0)
    leases.end_since("d1", 4)
    assert devices(leases, 1.0) == ["d1"]
    leases.end_since("d1", 6)
    assert devices(leases, 1.0) == []


def test_a_last_will_without_a_lease_ends_the_waiting_for_it() -> None:
    leases = Leases()
    leases.expect("d1")
    leases.end_since("d1", 9)
    assert leases.expected == 0
    assert leases.heard == 1


def test_a_settled_device_is_expected_until_it_speaks_leaves_or_patience_is_over() -> None:
    leases = Leases()
    for device in ("d1", "d2", "d3"):
        leases.expect(device)
        leases.expect(device)
    assert leases.expected == 3
    leases.check_in("d1", available(), 0.0)
    leases.end("d2")
    assert leases.expected == 1
    leases.stop_expecting()
    assert leases.expected == 0
    assert leases.heard == 2


def test_a_device_with_a_lease_is_not_expected() -> None:
    leases = Leases()
    leases.check_in("d1", available(), 0.0)
    leases.expect("d1")
    assert leases.expected == 0
    leases.end("d1")
    leases.end("d1")
    leases.expect("d1")
    assert leases.expected == 1


@settings(max_examples=50)
@given(st.randoms(use_true_random=False))
def test_a_device_has_one_lease_or_is_expected_but_never_both(chance: random.Random) -> None:
    leases = Leases()
    names = [f"d{n}" for n in range(4)]
    last: dict[str, float] = {}
    for now in range(60):
        device, what = chance.choice(names), chance.choice(["speak", "end", "expect", "since"])
        if what == "speak":
            window_s = float(chance.randrange(20))
            leases.check_in(device, available(now + 1, window_s), float(now))
            last[device] = now + window_s
        elif what == "end":
            leases.end(device)
            last[device] = 0.0
        elif what == "expect":
            leases.expect(device)
        else:
            leases.end_since(device, now + 100)
        running = sorted(name for name, until_s in last.items() if until_s > now)
        assert devices(leases, float(now)) == running
        assert len(running) + leases.expected <= len(names)
