from bace_bridge.delivery.rules.outbox import Reception, after_attempt

NOW = 1_769_817_600.0


def test_an_outage_is_news_at_its_second_failure_and_at_its_end() -> None:
    reception, told = Reception(), []
    for number, problem in enumerate([None, "HTTP 500", None, "HTTP 500", "HTTP 502", "HTTP 500", None, None]):
        reception, news = after_attempt(reception, problem, now=NOW + number)
        told.append(news)
    assert told == [None, None, None, None, "failing", None, "recovered", None]
    assert reception == Reception(last_success_at=NOW + 7)


def test_a_failure_keeps_the_last_success_and_the_beginning() -> None:
    reception = Reception(last_success_at=NOW)
    for number in (1, 2, 3):
        reception, _ = after_attempt(reception, f"HTTP {number}", now=NOW + number)
    assert reception == Reception(NOW, 3, NOW + 1, "HTTP 3")
    assert reception.failing
