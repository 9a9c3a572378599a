import pytest

from coordinator.clock import Clock


class Clocks:
    """A wall clock and a monotonic one."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_000.0, 5.0
        self.steps: list[float] = []
        self.clock = Clock(self.steps.append, wall=lambda: self.wall, steady=lambda: self.steady)

    def passes(self, seconds: float, *, ahead: float = 0.0) -> float:
        self.steady += seconds
        self.wall += seconds + ahead
        return self.clock.now_s()


def test_time_that_passes_is_no_step() -> None:
    clocks = Clocks()
    assert clocks.passes(3_600.0) == 4_600.0
    assert clocks.steps == []


@pytest.mark.parametrize("by_s", [3.2e7, -3.2e7, 60.0, -60.0])
def test_a_clock_that_is_set_says_by_how_much_once(by_s: float) -> None:
    clocks = Clocks()
    assert clocks.passes(1.0, ahead=by_s) == 1_001.0 + by_s
    clocks.passes(1.0)
    assert clocks.steps == pytest.approx([by_s])


def test_a_clock_that_is_slewed_is_not_set() -> None:
    clocks = Clocks()
    for _ in range(10_000):
        clocks.passes(1.0, ahead=0.0005)
    assert clocks.steps == []
