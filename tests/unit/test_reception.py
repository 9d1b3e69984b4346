from structlog.testing import capture_logs

from bace_bridge.delivery.outlet import SinkWatch

NOW = 1_769_817_600.0


def after(*problems: str | None) -> tuple[SinkWatch, list[tuple[int, str]]]:
    """After attempts a second apart: the watch, and what was logged at which of them."""
    now = [NOW]
    watch = SinkWatch("webhook", "home", clock=lambda: now[0])
    news: list[tuple[int, str]] = []
    for number, problem in enumerate(problems):
        now[0] = NOW + number
        with capture_logs() as logs:
            watch.attempted(None if problem is None else OSError(problem))
        news += [(number, one["event"]) for one in logs]
    return watch, news


def test_an_outage_is_news_at_its_second_failure_and_at_its_end() -> None:
    watch, news = after(None, "HTTP 500", None, "HTTP 500", "HTTP 502", "HTTP 500", None, None)
    assert news == [(4, "webhook.failing"), (6, "webhook.recovered")]
    assert watch.problem is None
    assert watch.state() == {
        "last_success_at": "2026-01-31T00:00:07Z",
        "failures_in_a_row": 0,
        "last_failure": None,
    }


def test_a_failure_keeps_the_last_success_and_the_beginning() -> None:
    watch, _ = after(None, "HTTP 1", "HTTP 2", "HTTP 3")
    assert watch.state() == {
        "last_success_at": "2026-01-31T00:00:00Z",
        "failures_in_a_row": 3,
        "last_failure": "HTTP 3",
    }
    assert watch.problem == "3 failed attempts in a row: HTTP 3"
    with capture_logs() as logs:
        watch.attempted(None)
    assert [(one["after"], one["failures"]) for one in logs] == [(2.0, 3)]
