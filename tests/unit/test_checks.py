from collections.abc import Iterable

from bace_bridge.status.health import Check, Status


def status_of(*parts: Iterable[Check]) -> Status:
    return Status(parts, [], [], store=dict, oldest_view=float, version="1", installation="here", started_at=0.0)


def test_each_part_is_asked_under_its_own_names() -> None:
    coming: list[Check] = []
    status = status_of([Check(ready=lambda: {"store": None})], coming, [Check(degraded=lambda: {"config": "differs"})])
    assert (status.ready(), status.degraded(), status.alive()) == ({"store": None}, {"config": "differs"}, {})
    coming.append(Check(silent_for=lambda: {"loop": 3.0, "other": 300.0}, ready=lambda: {"mqtt:home": "away"}))
    assert status.ready() == {"store": None, "mqtt:home": "away"}
    assert status.alive() == {"loop": None, "other": "no progress for 300 s"}


def test_of_several_that_answer_to_a_name_the_first_reason_counts() -> None:
    answers: tuple[dict[str, str | None], ...] = (
        {"store": None},
        {"store": "full"},
        {"store": "busy"},
        {"store": None},
    )
    status = status_of([Check(ready=one.copy) for one in answers])
    assert status.ready() == {"store": "full"}
    status = status_of([Check(degraded=one.copy) for one in answers])
    assert status.degraded() == {"store": "full"}


def test_what_is_well_is_not_degraded() -> None:
    assert status_of([Check(degraded=lambda: {"datapoints": None})]).degraded() == {}
