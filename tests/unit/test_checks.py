from types import SimpleNamespace

from bace_bridge.status.health import Check, Status


def status_of(checks: list[Check]) -> Status:
    return Status(checks, [], [], dict, SimpleNamespace(oldest_view=0.0), "1", "here", 0.0)


def test_each_part_is_asked_under_its_own_names() -> None:
    checks = [Check(ready=lambda: {"store": None}), Check(degraded=lambda: {"config": "differs"})]
    status = status_of(checks)
    assert (status.ready(), status.degraded(), status.alive()) == ({"store": None}, {"config": "differs"}, {})
    checks.append(Check(silent_for=lambda: {"loop": 3.0, "other": 300.0}, ready=lambda: {"mqtt:home": "away"}))
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
