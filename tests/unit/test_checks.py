from bace_bridge.status.health import Check, Checks


def test_each_part_is_asked_under_its_own_names() -> None:
    coming: list[Check] = []
    checks = Checks([Check(ready=lambda: {"store": None})], coming, [Check(degraded=lambda: {"config": "differs"})])
    assert (checks.ready(), checks.degraded(), checks.silent_for()) == ({"store": None}, {"config": "differs"}, {})
    coming.append(Check(silent_for=lambda: {"loop": 3.0}, ready=lambda: {"mqtt:home": "away"}))
    assert checks.ready() == {"store": None, "mqtt:home": "away"}
    assert checks.silent_for() == {"loop": 3.0}


def test_of_several_that_answer_to_a_name_the_first_reason_counts() -> None:
    answers: tuple[dict[str, str | None], ...] = (
        {"store": None},
        {"store": "full"},
        {"store": "busy"},
        {"store": None},
    )
    checks = Checks([Check(ready=one.copy) for one in answers])
    assert checks.ready() == {"store": "full"}
    checks = Checks([Check(degraded=one.copy) for one in answers])
    assert checks.degraded() == {"store": "full"}


def test_what_is_well_is_not_degraded() -> None:
    assert Checks([Check(degraded=lambda: {"datapoints": None})]).degraded() == {}
