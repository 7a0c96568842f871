"""Tests of server/timeline.py: packets in media time, without growing delay."""

import pytest

from server.timeline import MAX_PENDING, Placed, Timeline

pytestmark = pytest.mark.unit

PACKET = 960
JITTER = 2880


def make() -> Timeline:
    return Timeline(jitter_samples=JITTER, tolerance_samples=480, resync_samples=24_000)


def play(
    timeline: Timeline,
    packets: list[tuple[int, int]],
    *,
    first_timestamp: int = 0,
    is_quiet: bool = False,
) -> list[Placed | None]:
    """Place packets of (index, arrival position); timestamps wrap like those of RTP."""
    placed = []
    for index, arrival in packets:
        timeline.advance(arrival)
        timestamp = (first_timestamp + index * PACKET) % 2**32
        placed.append(timeline.place(timestamp, PACKET, clock_position=arrival, is_quiet=is_quiet))
        timeline.advance(arrival)
    return placed


def positions(placed: list[Placed | None]) -> list[int | None]:
    return [None if p is None else p.position for p in placed]


def steady(first: int, last: int, *, late: int = 0) -> list[tuple[int, int]]:
    return [(i, (i + 1) * PACKET + late) for i in range(first, last)]


def test_packets_in_order_are_final_as_they_arrive() -> None:
    timeline = make()
    placed = play(timeline, steady(0, 10))
    assert positions(placed) == [i * PACKET for i in range(10)]
    assert timeline.final == 10 * PACKET
    assert (timeline.gap_samples, timeline.late_samples, timeline.silence_samples) == (0, 0, 0)


def test_the_first_packet_ends_at_the_moment_it_arrives() -> None:
    timeline = make()
    assert positions(play(timeline, [(0, 5000)], first_timestamp=777)) == [5000 - PACKET]


def test_timestamps_may_wrap_around() -> None:
    placed = play(make(), steady(0, 6), first_timestamp=2**32 - 2 * PACKET)
    assert positions(placed) == [i * PACKET for i in range(6)]


def test_a_lost_packet_leaves_a_gap_of_its_own_length_and_no_delay() -> None:
    timeline = make()
    play(timeline, steady(0, 5) + steady(6, 20))
    assert timeline.gap_samples == PACKET
    assert timeline.final == 20 * PACKET


def test_a_gap_holds_sound_back_no_longer_than_the_jitter() -> None:
    timeline = make()
    play(timeline, steady(0, 5) + steady(6, 8))
    assert timeline.final == 5 * PACKET
    assert timeline.advance(8 * PACKET + 480) == 8 * PACKET + 480 - JITTER
    assert timeline.advance(6 * PACKET + JITTER) == 8 * PACKET


def test_reordered_packets_fall_into_their_place() -> None:
    timeline = make()
    placed = play(timeline, [(0, 960), (2, 1920 + 900), (1, 1920 + 910), (3, 3840)])
    assert positions(placed) == [0, 2 * PACKET, PACKET, 3 * PACKET]
    assert timeline.final == 4 * PACKET
    assert timeline.gap_samples == 0


def test_a_packet_that_comes_after_its_place_is_final_is_dropped_and_counted() -> None:
    timeline = make()
    placed = play(timeline, steady(0, 5) + steady(6, 12) + [(5, 12 * PACKET + 10)])
    assert placed[-1] is None
    assert timeline.late_samples == PACKET


def test_a_packet_that_is_partly_too_late_is_cut() -> None:
    timeline = make()
    play(timeline, steady(0, 5))
    timeline.advance(5 * PACKET + JITTER + 100)
    placed = timeline.place(5 * PACKET, PACKET, clock_position=5 * PACKET + JITTER + 100, is_quiet=False)
    assert placed == Placed(position=5 * PACKET + 100, skip=100)


def test_silence_becomes_final_by_the_clock_when_nothing_arrives() -> None:
    timeline = make()
    assert timeline.advance(10_000) == 10_000 - JITTER
    assert timeline.advance(9_000) == 10_000 - JITTER
    assert timeline.silence_samples == 10_000 - JITTER


def test_time_before_the_first_packet_counts_as_silence_and_not_as_a_gap() -> None:
    timeline = make()
    play(timeline, steady(0, 3, late=2000))
    assert (timeline.silence_samples, timeline.gap_samples) == (2000, 0)


def test_after_a_stall_the_burst_is_late_and_later_packets_are_in_their_place() -> None:
    timeline = make()
    play(timeline, steady(0, 10))
    stalled = [(i, 50 * PACKET + i) for i in range(10, 50)]
    play(timeline, stalled)
    placed = play(timeline, steady(50, 60))
    assert positions(placed) == [i * PACKET for i in range(50, 60)]
    assert timeline.final == 60 * PACKET


def test_a_sender_that_paused_its_timestamps_is_found_again_at_the_second_packet() -> None:
    timeline = make()
    play(timeline, steady(0, 10))
    resumed = [(10 + i, (100 + i) * PACKET) for i in range(5)]
    placed = play(timeline, resumed)
    assert positions(placed) == [None] + [(99 + i) * PACKET for i in range(1, 5)]
    assert timeline.gap_samples == 0


def test_a_sender_whose_first_packets_were_late_is_moved_after_half_a_second() -> None:
    timeline = make()
    late_start = [(0, PACKET + 2000)] + steady(1, 40)
    play(timeline, late_start)
    assert timeline.place(40 * PACKET, PACKET, clock_position=41 * PACKET, is_quiet=False) == Placed(
        position=40 * PACKET, skip=0
    )


def test_a_small_error_is_corrected_in_a_quiet_moment_only() -> None:
    timeline = make()
    play(timeline, [(0, PACKET + 700)] + steady(1, 40))
    loud = timeline.place(40 * PACKET, PACKET, clock_position=41 * PACKET, is_quiet=False)
    timeline.advance(41 * PACKET)
    quiet = timeline.place(41 * PACKET, PACKET, clock_position=42 * PACKET, is_quiet=True)
    assert loud == Placed(position=40 * PACKET + 700, skip=0)
    assert quiet == Placed(position=41 * PACKET + 700, skip=700)


def test_an_error_within_the_tolerance_is_left_alone() -> None:
    timeline = make()
    placed = play(timeline, [(0, PACKET + 400)] + steady(1, 300), is_quiet=True)
    assert positions(placed) == [i * PACKET + 400 for i in range(300)]


@pytest.mark.parametrize("ppm", [-300, 300])
def test_a_sender_with_another_clock_rate_stays_within_the_jitter_for_an_hour(ppm: int) -> None:
    timeline = make()
    errors = []
    for i in range(0, 180_000):
        arrival = round((i + 1) * PACKET * (1 + ppm * 1e-6))
        timeline.advance(arrival)
        placed = timeline.place(i * PACKET % 2**32, PACKET, clock_position=arrival, is_quiet=i % 100 == 0)
        final = timeline.advance(arrival)
        errors.append(arrival - final)
        assert placed is not None
    assert max(map(abs, errors)) <= JITTER
    assert timeline.late_samples + timeline.gap_samples < 60 * 48_000


@pytest.mark.parametrize("ppm", [-200, 200])
def test_a_sender_with_another_clock_rate_that_is_never_quiet_loses_only_the_difference(ppm: int) -> None:
    timeline = make()
    num_packets = 90_000
    for i in range(num_packets):
        arrival = round((i + 1) * PACKET * (1 + ppm * 1e-6))
        timeline.advance(arrival)
        timeline.place(i * PACKET % 2**32, PACKET, clock_position=arrival, is_quiet=False)
        timeline.advance(arrival)
    drift = num_packets * PACKET * abs(ppm) * 1e-6
    assert timeline.late_samples + timeline.gap_samples + timeline.silence_samples < drift + 3 * 480


def test_while_nobody_takes_sound_only_the_newest_is_kept_and_the_rest_becomes_a_gap() -> None:
    timeline = make()
    play(timeline, steady(0, 5))
    for index, arrival in steady(5, 5 + MAX_PENDING + 100):
        assert timeline.place(index * PACKET, PACKET, clock_position=arrival, is_quiet=False) is not None
    end = (5 + MAX_PENDING + 100) * PACKET
    assert timeline.advance(end) == end
    assert timeline.gap_samples == 100 * PACKET
