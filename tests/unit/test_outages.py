import msgspec
import pytest

from bace_bridge.polling.rules.changes import CloudOutage, Kind, after_failure, after_success

NOON = 1_764_590_400.0

Step = Kind | None
"""A failure of some kind, or a poll that went well."""


def reported(steps: list[Step]) -> list[list[str]]:
    """What each of these polls, ten seconds apart, makes of it."""
    outage, found = CloudOutage(), []
    for number, step in enumerate(steps):
        now = NOON + 10 * number
        if step is None:
            outage, events = after_success(outage, now=now)
        else:
            outage, events = after_failure(outage, step, "refused", now=now)
        found.append([event.type.removeprefix("cloud.") for event in events])
    return found


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([None, None], [[], []]),
        (["unreachable", None], [[], []]),
        (["unreachable", None, "unreachable"], [[], [], []]),
        (["unreachable", "unreachable", "unreachable", None, None], [[], ["unreachable"], [], ["recovered"], []]),
        (["auth_failed", "auth_failed", None], [["auth_failed"], [], ["recovered"]]),
        (["unreachable", "auth_failed", None], [[], ["auth_failed"], ["recovered"]]),
        (["unreachable", "unreachable", "auth_failed", None], [[], ["unreachable"], ["auth_failed"], ["recovered"]]),
        (
            ["unreachable", "unreachable", None, "unreachable", "unreachable"],
            [[], ["unreachable"], ["recovered"], [], ["unreachable"]],
        ),
    ],
    ids=[
        "all is well",
        "a hiccup",
        "two hiccups",
        "away and back",
        "a refused login is reported at once",
        "away, then refused",
        "reported as away, then refused",
        "away twice",
    ],
)
def test_outage_is_reported_once_and_so_is_its_end(steps: list[Step], expected: list[list[str]]) -> None:
    assert reported(steps) == expected


def test_outage_says_since_when_and_why() -> None:
    outage, _ = after_failure(CloudOutage(), "unreachable", "no route", now=NOON)
    outage, (away,) = after_failure(outage, "unreachable", "still no route", now=NOON + 10)
    assert msgspec.json.decode(away.data) == {
        "reason": "still no route",
        "since": "2025-12-01T12:00:00Z",
        "observed_at": "2025-12-01T12:00:10Z",
    }
    assert (away.time, away.session_id, away.device_id) == (NOON, None, None)
    outage, (back,) = after_success(outage, now=NOON + 70.5)
    assert msgspec.json.decode(back.data) == {
        "since": "2025-12-01T12:00:00Z",
        "seconds": 70.5,
        "observed_at": "2025-12-01T12:01:10.500Z",
    }
    assert outage == CloudOutage()
