"""Whose line is next, how many at a time, and when a batch ends."""

from cortex.router.batches.fairness import Candidate, Pace, Progress, next_candidate


def candidate(key: str, batch: str = "b", created: float = 0.0, model: str = "m") -> Candidate:
    """Return a model of a batch."""
    return Candidate(key, batch, created, model)


def test_the_key_with_the_fewest_lines_in_flight_is_next_regardless_of_its_batches() -> None:
    many = [candidate("many", f"b{i}", created=i) for i in range(9)]

    chosen = next_candidate([*many, candidate("one", created=99)], {"many": 1, "one": 0}, {"many": 1.0, "one": 2.0})

    assert chosen is not None and chosen.key == "one"


def test_of_equal_keys_the_one_that_waited_longest_is_next() -> None:
    chosen = next_candidate([candidate("a"), candidate("b")], {}, {"a": 2.0, "b": 1.0})

    assert chosen is not None and chosen.key == "b"


def test_within_a_key_the_oldest_batch_is_next() -> None:
    chosen = next_candidate([candidate("a", "new", 2), candidate("a", "old", 1)], {}, {})

    assert chosen is not None and chosen.batch == "old"


def test_without_candidates_there_is_no_next() -> None:
    assert next_candidate([], {}, {}) is None


def test_a_pace_grows_with_each_success_and_shrinks_to_the_lines_in_flight() -> None:
    pace = Pace()
    for _ in range(3):
        pace.succeeded(0.0)
    pace.under_way = 2

    pace.refused(1.0, 60.0)

    assert pace.most == 2
    assert not pace.may_send(1.0)  # one of the two ends first
    pace.under_way = 1
    assert pace.may_send(1.0)


def test_a_refusal_with_nothing_in_flight_causes_a_pause() -> None:
    pace = Pace()

    pace.refused(1.0, 60.0)

    assert not pace.may_send(60.9)
    assert pace.may_send(61.0)


def test_a_pace_does_not_grow_soon_after_a_refusal() -> None:
    pace = Pace()
    pace.under_way = 1
    pace.refused(1.0, 1.0)

    pace.succeeded(2.0)
    before = pace.most
    pace.succeeded(7.0)

    assert (before, pace.most) == (1, 2)


def test_the_end_is_estimated_from_the_last_minutes_with_pauses() -> None:
    progress = Progress()
    for now, done in ((0.0, 0), (10.0, 50), (20.0, 50)):
        progress.note(now, done)

    assert progress.finish_in_s(100) == 20.0


def test_without_progress_there_is_no_estimate() -> None:
    progress = Progress()
    progress.note(0.0, 0)
    progress.note(100.0, 2)

    assert progress.finish_in_s(100) == 0.0
