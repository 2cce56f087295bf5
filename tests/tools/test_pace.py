"""Rows go when they are due, by a clock that the test turns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ringmain.tools.pace import Pace

SECOND_NS = 1_000_000_000


class Clock:
    """Time that passes only in sleep, and then a little too long."""

    def __init__(self, late_ns: int = 0) -> None:
        self.now_ns, self.late_ns = 5 * SECOND_NS, late_ns

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_ns += round(seconds * 1e9) + self.late_ns


def pace_with(clock: Clock, rate: float | None = None, speed: float | None = None) -> Pace:
    return Pace(rate, speed, clock=clock, sleep=clock.sleep)


def departures_ns(pace: Pace, clock: Clock, count: int, batch: int, times_ns: list[int] | None = None) -> list[int]:
    """Send `count` rows in batches; return how long after the first row each one went."""
    start_ns, gone = clock.now_ns, list[int]()
    for first in range(0, count, batch):
        size = min(batch, count - first)
        times = None if times_ns is None else np.array(times_ns[first : first + size], "i8")
        expected = 0
        for part in pace.slices(size, times):
            assert part.start == expected < part.stop
            expected = part.stop
            gone += [clock.now_ns - start_ns] * (part.stop - part.start)
        assert expected == size
    return gone


def test_without_a_pace_everything_goes_at_once() -> None:
    clock = Clock()
    assert departures_ns(pace_with(clock), clock, 100, 30) == [0] * 100


@pytest.mark.parametrize(
    ("rate", "late_ns"), [(1000, 0), (1000, 700_000), (3, 50_000_000), (0.5, 0), (100_000, 60_000)]
)
def test_a_rate_never_drifts_however_late_the_sleep_returns(rate: float, late_ns: int) -> None:
    clock = Clock(late_ns)
    for index, gone_ns in enumerate(departures_ns(pace_with(clock, rate=rate), clock, 5000, 512)):
        due_ns = index * SECOND_NS / rate
        assert due_ns <= gone_ns + 1
        assert gone_ns <= due_ns + late_ns + 200_001


def test_a_rate_that_is_no_binary_number_is_exact_over_a_year() -> None:
    clock = Clock()
    pace = pace_with(clock, rate=49_999)
    assert pace.take(1) == 1
    clock.now_ns += 365 * 86_400 * SECOND_NS
    assert pace.take(10**15) == 365 * 86_400 * 49_999


def test_what_was_late_is_caught_up() -> None:
    clock = Clock()
    pace = pace_with(clock, rate=10)
    assert pace.take(100) == 1
    clock.now_ns += 2 * SECOND_NS  # the publisher was held up
    assert pace.take(100) == 20
    assert pace.take(100) == 0
    assert pace.due_in_ns() == SECOND_NS // 10


@given(
    st.lists(st.integers(0, 30_000_000), min_size=1, max_size=60),
    st.sampled_from([0.5, 1.0, 3.0, 7.3]),
    st.integers(1, 20),
    st.integers(0, 1_000_000),
)
def test_recorded_times_are_kept_to_at_any_speed(steps_ns: list[int], speed: float, batch: int, late_ns: int) -> None:
    times_ns = (1_675_214_100_000_000_000 + np.cumsum(steps_ns)).tolist()
    clock = Clock(late_ns)
    gone_ns = departures_ns(pace_with(clock, speed=speed), clock, len(times_ns), batch, times_ns)
    for gone, recorded in zip(gone_ns, times_ns, strict=True):
        due_ns = (recorded - times_ns[0]) / speed
        assert due_ns - 1 <= gone <= due_ns + late_ns + 200_001


def test_a_time_that_steps_back_is_due_with_the_latest_before_it() -> None:
    clock = Clock()
    times_ns = [100, 100 + SECOND_NS, 50, 100 + SECOND_NS // 2, 100 + 2 * SECOND_NS]
    gone_ns = departures_ns(pace_with(clock, speed=1), clock, 5, 2, times_ns)
    assert gone_ns == pytest.approx([0, SECOND_NS, SECOND_NS, SECOND_NS, 2 * SECOND_NS], abs=2)


def test_rows_without_a_time_do_not_wait_and_do_not_start_the_clock() -> None:
    clock = Clock()
    pace = pace_with(clock, speed=1)
    assert pace.take(2, np.array([0, 0])) == 2
    clock.now_ns += SECOND_NS
    assert pace.take(3, np.array([10**18, 0, 10**18 + SECOND_NS])) == 2
    assert pace.due_in_ns(np.array([10**18 + SECOND_NS])) == SECOND_NS


def test_a_pace_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        Pace(1, 1)
    for value in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="above 0"):
            Pace(rate=value)
        with pytest.raises(ValueError, match="above 0"):
            Pace(speed=value)
    with pytest.raises(ValueError, match="time of every row"):
        Pace(speed=1).take(2, np.array([1]))
