import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from bace_bridge.retry import RateLimit, http_date, rate_limit, retry_after

NOW = 1_769_817_600.0  # 2026-01-31T00:00:00Z


def headers(**named: str) -> CIMultiDict[str]:
    return CIMultiDict({name.replace("_", "-"): value for name, value in named.items()})


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("20.5", 20.5),
        ("5, 30,7", 30.0),
        ("5, soon", 0.0),
        ("9" * 5000, float("inf")),
        ("Sat, 31 Jan 2026 00:01:30 GMT", 90.0),
        ("Saturday, 31-Jan-26 00:01:30 GMT", 90.0),  # the two obsolete forms of RFC 9110
        ("Sat Jan 31 00:01:30 2026", 90.0),
        ("Sat, 31 Jan 2026 00:01:30", 90.0),
        ("31 Jan 2026 00:01:30", 90.0),
        ("Sat, 31 Jan 2026 00:01:30 -0000", 90.0),
        ("Sat, 31 Jan 2026 01:01:30 +0100", 90.0),
        ("Fri, 30 Jan 2026 00:00:00 GMT", 0.0),
        ("Sat, 31 Jan 99999 00:00:00 GMT", 0.0),
        ("Sat, 31 Jan 2026 00:01:30 +99999999999999", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799.0 - NOW),
        ("soon", 0.0),
        ("-5", 0.0),
        ("1.5.2", 0.0),
        (".", 0.0),
        ("1e99", 0.0),
        ("nan", 0.0),
        ("\u00b2", 0.0),
        ("", 0.0),
    ],
)
def test_forms_of_retry_after(monkeypatch: pytest.MonkeyPatch, value: str, seconds: float) -> None:
    for zone in ("UTC", "Asia/Tokyo", "America/Los_Angeles"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert retry_after(headers(Retry_After=value), now=NOW) == seconds
    monkeypatch.undo()
    time.tzset()


def test_of_several_headers_the_longest_wait_counts() -> None:
    several: CIMultiDict[str] = CIMultiDict()
    for value in ("5", "Sat, 31 Jan 2026 00:01:30 GMT", "soon", "-200"):
        several.add("retry-after", value)
    assert retry_after(several, now=NOW) == 90.0
    assert retry_after(CIMultiDictProxy(several), now=NOW) == 90.0


def test_no_header_asks_for_nothing() -> None:
    assert retry_after({}, now=NOW) == 0.0
    assert rate_limit({}, now=NOW) == RateLimit(None, None, None)


@pytest.mark.parametrize("reset", ["9" * 400, "999999999", "1769817600000", "86401", "-1", "soon"])
def test_a_reset_that_no_limiter_has_says_nothing(reset: str) -> None:
    assert rate_limit(headers(X_Rate_Limit_Remaining="5", X_Rate_Limit_Reset=reset), now=NOW).reset is None


@given(st.text(max_size=60), st.text(max_size=60))
def test_nothing_is_too_odd(value: str, date: str) -> None:
    answered = headers(Retry_After=value, Date=date, X_Rate_Limit_Reset=value, X_Rate_Limit_Limit=value)
    assert retry_after(answered, now=NOW) >= 0.0
    assert (rate_limit(answered, now=NOW).reset or 0.0) >= 0.0


@given(
    st.integers(0, 10 * 365 * 86400), st.integers(-86400 * 365, 86400 * 365), st.sampled_from([" GMT", "", " -0000"])
)
def test_a_date_counts_by_the_clock_that_it_was_made_with(seconds: int, wrong_by: int, zone: str) -> None:
    theirs = NOW + wrong_by
    date, until = (formatdate(at, usegmt=True).removesuffix(" GMT") + zone for at in (theirs, theirs + seconds))
    assert retry_after(headers(Retry_After=until, Date=date), now=NOW) == seconds
    assert retry_after(headers(Retry_After=until), now=theirs) == seconds
    assert retry_after(headers(Retry_After=until, Date="lately"), now=theirs) == seconds


def test_the_headers_of_a_rate_limit() -> None:
    said = headers(X_Rate_Limit_Limit="60", X_Rate_Limit_Remaining="0", X_Rate_Limit_Reset="17")
    assert rate_limit(said, now=NOW) == RateLimit(60.0, 0.0, 17.0)
    assert rate_limit(headers(X_Rate_Limit_Limit="many"), now=NOW) == RateLimit()


@pytest.mark.parametrize(("ahead", "date"), [(0, {}), (3600, {"Date": formatdate(NOW + 3600, usegmt=True)})])
def test_a_reset_that_is_a_moment_is_no_wait_of_fifty_years(ahead: int, date: dict[str, str]) -> None:
    assert rate_limit(headers(X_Rate_Limit_Reset=str(int(NOW) + ahead + 40), **date), now=NOW).reset == 40.0
    assert rate_limit(headers(X_Rate_Limit_Reset=str(int(NOW) + ahead - 40), **date), now=NOW).reset == 0.0


def test_a_date_is_one_that_a_calendar_holds() -> None:
    assert http_date("Sat, 31 Jan 2026 00:00:00 GMT") == NOW
    assert [http_date(text) for text in (None, "", "Sat", "Fri, 31 Dec 9999 23:59:59 GMT", "Jan")] == [None] * 5
