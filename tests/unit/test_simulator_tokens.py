from collections.abc import Mapping

import pytest

from bace_bridge.simulator.facts import REFRESH_LIFETIME, Credentials, RateLimit, Refresh, TokenDesk, Verdict, judge

CLIENT = {"client_id": "simulator", "client_secret": "simulator-secret"}
LOGIN = {**CLIENT, "grant_type": "password", "username": "demo@example.org", "password": "demo"}


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def desk(clock: Clock, refresh: Refresh = Refresh.ROTATES, lifetime: float = 86400.0) -> TokenDesk:
    return TokenDesk(Credentials(), clock=clock, refresh=refresh, lifetime=lifetime)


def asked(token: str) -> Mapping[str, str]:
    return {**CLIENT, "grant_type": "refresh_token", "refresh_token": token}


def test_a_login_gives_what_the_documentation_says() -> None:
    answer = desk(Clock()).answer(LOGIN)
    assert answer.status == 200
    assert set(answer.body) == {"access_token", "expires_in", "token_type", "scope", "refresh_token"}
    assert (answer.body["expires_in"], answer.body["token_type"], answer.body["scope"]) == (
        86400,
        "Bearer",
        None,
    )


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"password": "wrong"}, 401),
        ({"username": "wrong"}, 401),
        ({"client_secret": "wrong"}, 400),
        ({"client_id": "wrong"}, 400),
        ({"grant_type": "wrong"}, 400),
        ({"grant_type": ""}, 400),
        ({"grant_type": "refresh_token", "refresh_token": "wrong"}, 400),
    ],
)
def test_a_wrong_login_is_refused(change: dict[str, str], status: int) -> None:
    assert desk(Clock()).answer(LOGIN | change).status == status


@pytest.mark.parametrize(
    ("refresh", "gives_new", "old_status"),
    [
        (Refresh.ROTATES, True, 400),
        (Refresh.DESTROYS, False, 400),
        (Refresh.BOTH, True, 200),
        (Refresh.SAME, False, 200),
    ],
)
def test_the_four_kinds_of_refresh(refresh: Refresh, gives_new: bool, old_status: int) -> None:
    tokens = desk(Clock(), refresh)
    old = tokens.answer(LOGIN).body["refresh_token"]
    answer = tokens.answer(asked(old))
    assert answer.status == 200
    assert ("refresh_token" in answer.body) is gives_new
    if gives_new:
        assert tokens.answer(asked(answer.body["refresh_token"])).status == 200
    assert tokens.answer(asked(old)).status == old_status


def test_a_refresh_token_expires_14_days_after_its_issue_used_or_not() -> None:
    clock = Clock()
    tokens = desk(clock, Refresh.SAME)
    old = tokens.answer(LOGIN).body["refresh_token"]
    clock.now += REFRESH_LIFETIME - 1
    assert tokens.answer(asked(old)).status == 200
    clock.now += 1
    assert tokens.answer(asked(old)).status == 400


def test_an_access_token_is_accepted_until_it_expires() -> None:
    clock = Clock()
    tokens = desk(clock, lifetime=30)
    token = tokens.answer(LOGIN).body["access_token"]
    assert tokens.accepts(f"Bearer {token}")
    clock.now += 30
    assert not tokens.accepts(f"Bearer {token}")


def test_only_the_exact_word_bearer_is_accepted() -> None:
    tokens = desk(Clock())
    token = tokens.answer(LOGIN).body["access_token"]
    assert not tokens.accepts(f"bearer {token}")
    assert not tokens.accepts(token)
    assert not tokens.accepts(None)


def test_tokens_can_be_revoked() -> None:
    tokens = desk(Clock())
    body = tokens.answer(LOGIN).body
    tokens.access.clear()
    tokens.to_refresh.clear()
    assert not tokens.accepts(f"Bearer {body['access_token']}")
    assert tokens.answer(asked(body["refresh_token"])).status == 400


def verdicts(limit: RateLimit, times: list[float]) -> list[Verdict]:
    found: list[Verdict] = []
    for now in times:
        found.append(judge(limit, found[-1].allowance if found else None, now))
    return found


def test_the_limit_is_reached_and_earned_back() -> None:
    found = verdicts(RateLimit(5, 20), [0, 0, 0, 0, 0, 0, 4, 4])
    assert [verdict.allowed for verdict in found] == [True] * 5 + [False, True, False]
    assert [verdict.remaining for verdict in found[:5]] == [4, 3, 2, 1, 0]
    assert found[5].reset == 20


def test_asking_again_too_soon_never_recovers_and_silence_does() -> None:
    storm = verdicts(RateLimit(5, 20), [0.0] * 6 + [2.0 * number for number in range(1, 50)])
    assert not any(verdict.allowed for verdict in storm[5:])
    assert judge(RateLimit(5, 20), storm[-1].allowance, 98.0 + 5).allowed
