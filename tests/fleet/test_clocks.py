from hypothesis import given
from hypothesis import strategies as st

from fleet.clocks import DRIFT_MAX, Uptime, WallClock
from fleet.world import World


@given(
    st.floats(-DRIFT_MAX, DRIFT_MAX),
    st.floats(-2e9, 2e9),
    st.floats(-4e7, 4e7),
    st.floats(0.0, 1e6),
)
def test_a_clock_says_when_it_will_show_a_time(
    drift: float, offset_s: float, step_s: float, at_s: float
) -> None:
    world = World(1)
    clock = WallClock(world, 1.77e9, drift=drift, offset_s=offset_s)
    clock.step(step_s)
    world.now_s = at_s
    assert abs(clock.world_s(clock.now_s()) - at_s) < 1e-5


def test_a_clock_drifts_and_is_set() -> None:
    world = World(1)
    clock = WallClock(world, 1_000.0, drift=1e-4, offset_s=5.0)
    assert clock.now_s() == 1_005.0
    world.now_s = 10_000.0
    assert clock.now_s() == 11_006.0
    clock.step(-86_400.0)
    assert clock.now_s() == 11_006.0 - 86_400.0
    assert clock.stepped_s == -86_400.0


def test_a_monotonic_clock_starts_anew_with_every_boot_and_runs_on_within_one() -> None:
    world = World(1)
    uptime = Uptime(world)
    uptime.reboot()
    first = uptime.now_s()
    due = world.now_s + 50.0
    assert abs(uptime.world_s(first + 50.0) - due) < 50.0 * DRIFT_MAX
    world.now_s = 50.0
    assert abs(uptime.now_s() - first - 50.0) <= 50.0 * DRIFT_MAX
    uptime.reboot()
    assert abs(uptime.now_s() - first - 50.0) > 1.0
