import re
from pathlib import Path

import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import RateLimit, Refresh, seconds
from bace_bridge.simulator.quirks import Quirks, describe
from bace_bridge.simulator.shelf import Lag


def test_no_quirk_is_the_documented_cloud() -> None:
    assert Quirks.parse([]) == Quirks()


def test_quirks_are_read_together() -> None:
    assert Quirks.parse(
        [
            "tie-shuffle",
            "rate-limit 5/20s",
            "refresh-both",
            "no-page-clamp",
            "forbidden group",
            "latency=200ms",
        ]
    ) == Quirks(
        tie_shuffle=True,
        rate_limit=RateLimit(5, 20.0),
        refresh=Refresh.BOTH,
        page_clamp=False,
        forbidden=("/api/v2/group",),
        latency=0.2,
    )


@pytest.mark.parametrize(
    ("written", "said"), [("null", None), ("false", False), ('""', ""), ("never", "never"), ("12", 12)]
)
def test_what_a_token_says_of_its_lifetime(written: str, said: object) -> None:
    assert Quirks.parse([f"expires-in {written}"]).expires_in == (said,)


def test_a_share_of_the_reads_lags() -> None:
    assert Quirks.parse(["replica-lag 5s 30%"]).replica_lag == Lag(5.0, 0.3)


def test_maintenance_comes_again_and_again() -> None:
    ages = iter(range(131))  # it begins at 0
    cloud = SimulatedCloud(clock=lambda: float(next(ages)), quirks=Quirks.parse(["maintenance 12s/60s"]))
    assert [age for age in range(1, 131) if cloud.is_in_maintenance] == [*range(48, 60), *range(108, 120)]


def test_a_path_may_be_forbidden_beside_another() -> None:
    quirks = Quirks.parse(["forbidden /api/v2/group", "forbidden user/*"])
    assert quirks.forbidden == ("/api/v2/group", "/api/v2/user/*")


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("tie-shufle", "unknown quirk 'tie-shufle'; known are: tie-shuffle,"),
        ("", "unknown quirk ''"),
        ("rate-limit", "write it as 'rate-limit 5/20s'"),
        ("rate-limit many", "write it such as 'rate-limit 5/20s'"),
        ("rate-limit 5/0s", "at least 1s"),
        ("rate-limit 0/20s", "not a whole number above 0"),
        ("no-date please", "takes no argument"),
        ("latency soon", "is not a duration"),
        ("token-lifetime 10ms", "at least 1s"),
        ("per-page-max -3", "not a whole number above 0"),
        ("header-limit none", "not a whole number above 0"),
        ("replica-lag 5s", "write it such as 'replica-lag 5s 30%'"),
        ("replica-lag 5s 0%", "not a share from 1% to 100%"),
        ("stale-rows soon 30%", "is not a duration"),
        ("maintenance 60s/12s", "less than the time after which it comes again"),
    ],
)
def test_a_wrong_quirk_says_what_would_be_right(written: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Quirks.parse([written])


@pytest.mark.parametrize("written", [written for written, _ in describe()])
def test_every_quirk_can_be_given_as_it_is_described(written: str) -> None:
    defaults = {"page-clamp", "refresh-rotates"}
    assert (Quirks.parse([written]) == Quirks()) is (written in defaults)


@pytest.mark.parametrize("written", [written for written, _ in describe()])
def test_every_quirk_is_documented(written: str) -> None:
    page = Path(__file__).parents[2] / "docs" / "simulated-cloud.md"
    assert f"`{written.partition(' ')[0]}`" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("written", "found"),
    [("500ms", 0.5), ("10s", 10), ("1.5m", 90), ("2h", 7200), ("1d", 86400), ("7", 7), (3, 3), (0.25, 0.25)],
)
def test_durations(written: object, found: float) -> None:
    assert seconds(written) == found


@pytest.mark.parametrize("written", ["", "soon", "-5s", -1, True, None, float("nan"), float("inf"), "5 weeks"])
def test_what_is_no_duration(written: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        seconds(written)
