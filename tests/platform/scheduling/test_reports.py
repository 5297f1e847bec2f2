"""What is still believed of routers that fell silent."""

from msgspec.structs import replace

from cortex.platform.scheduling.reports import REMEMBERED_S, SILENT_S, Reports
from tests.support.factories import a_fleet, a_report, an_instance

ONE = (an_instance("one"),)
BUSY = a_report("r", in_flight={"one": 1})


def silent(reports: Reports, since: float = 0.0) -> float:
    """A router reports a request in flight, goes on for a while with the same words, and vanishes. Return when."""
    reports.take(a_fleet(BUSY), since, instances=ONE)
    reports.take(a_fleet(BUSY), since + SILENT_S, instances=ONE)
    reports.take(a_fleet(), since + SILENT_S, instances=ONE)
    return since + SILENT_S


def test_requests_in_flight_of_a_silent_router_count() -> None:
    reports = Reports()
    silent(reports)

    assert reports.use().in_flight == {"one": 1}
    assert reports.any_silent("one")


def test_a_router_that_took_its_report_away_had_nothing_left() -> None:
    reports = Reports()
    reports.take(a_fleet(BUSY), 0.0, instances=ONE)
    reports.take(a_fleet(replace(BUSY, at=1.0)), SILENT_S, instances=ONE)

    reports.take(a_fleet(), SILENT_S + 1, instances=ONE)

    assert reports.use().in_flight == {}


def test_a_new_report_of_a_silent_router_replaces_its_old_one() -> None:
    reports = Reports()
    now = silent(reports)

    reports.take(a_fleet(a_report("r")), now + 1, instances=ONE)

    assert reports.use().in_flight == {}


def test_a_worker_that_has_nothing_to_do_refutes_a_silent_router() -> None:
    reports = Reports()
    silent(reports)

    reports.forget_silent("one")

    assert reports.use().in_flight == {}
    assert not reports.any_silent("one")


def test_a_silent_router_is_forgotten_with_its_instances_or_after_an_hour() -> None:
    gone, late = Reports(), Reports()
    now = silent(gone)
    silent(late)

    gone.take(a_fleet(), now + 1, instances=())
    late.take(a_fleet(), now + REMEMBERED_S + 1, instances=ONE)

    assert (gone.use().in_flight, late.use().in_flight) == ({}, {})


def test_without_a_reading_usage_is_unknown() -> None:
    reports = Reports()
    silent(reports)

    reports.take(None, 100.0, instances=ONE)

    assert not reports.use().known
