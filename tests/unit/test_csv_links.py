"""What a link says cannot be changed, and how long it and its key are good."""

from collections.abc import Collection

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from bace_bridge.config.sections import link_url
from bace_bridge.csv.links import Link, Links, RetiredKey, SigningKeys, expiry, minted, rotated, with_link
from bace_bridge.csv.serving import CsvServer
from bace_bridge.events.types import Attempt, Event, LoggedEvent
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.status.listener import Answer, parse_head

NOW, LIFE = 1_800_000_000.0, 1000.0
KEYS = SigningKeys(b"k" * 32)
SESSION = "86d70a1b-0000-4000-8000-000000000001"
BASE = "https://bridge.example.org"
GOOD = Link(SESSION, 3, int(NOW + LIFE))


def asked(url: str, keys: SigningKeys = KEYS, *, now: float = NOW) -> Link | str:
    path, _, query = url.removeprefix(BASE).partition("?")
    return Links(BASE, LIFE, clock=lambda: now, keys=keys).verified(path, query)


def test_a_link_says_what_it_was_made_of() -> None:
    assert asked(minted(BASE, KEYS.current, GOOD)) == GOOD


@given(
    link=st.builds(
        Link, st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True), st.integers(0, 10**9 - 1), st.just(2**31)
    ),
    at=st.integers(0, 400),
    character=st.characters(min_codepoint=33, max_codepoint=126),
)
def test_whatever_is_changed_about_it_is_refused(link: Link, at: int, character: str) -> None:
    target = minted("", KEYS.current, link)
    assert asked(target) == link
    changed = target[: at % len(target)] + character + target[at % len(target) + 1 :]
    assert changed == target or asked(changed) in {"changed", "unknown"}


@pytest.mark.parametrize(
    ("what", "by"),
    [
        ("revision=3", "revision=4"), ("revision=3", "revision=03"), ("revision=3", "revision=+3"),
        ("revision=3", "revision=\u0663"), ("revision=3", "revision=%33"), ("revision=3", "Revision=3"),
        ("revision=3", "revision=3&revision=3"), ("revision=3", "revision=2&revision=3"), ("revision=3&", ""),
        ("expires=1", "expires=9"), ("expires=", "expires=0"), ("expires=", "expires= "), ("signature=", "signature=="),
        ("&signature=", "&signature=&signature="), ("&signature=", "&x=1&signature="), ("&", "&amp;"), ("&", ";"),
        (SESSION, SESSION.upper()), (SESSION, SESSION[:-1] + "2"), ("revision=3&", "revision=3&&"),
        ("0001?", "0001?&"), ("0001?", "0001?0"), ("0001?", "0001/?"), ("0001?", "0001%00?"), ("0001?", "0001%2F?"),
        ("/csv/", "//csv/"), ("/csv/", "/csv//"), ("/csv/", "/csv/./"), ("/csv/", "/csv/../csv/"), ("/csv/", "/CSV/"),
        ("/csv/", "/%63sv/"), ("86d7", "%386d7"),
    ],
)  # fmt: skip
def test_tricks(what: str, by: str) -> None:
    url = minted(BASE, KEYS.current, GOOD)
    assert what in url
    assert asked(url.replace(what, by)) in {"changed", "unknown"}
    assert asked(url + "0") == asked(url + "&") == asked(url[:-1]) == "changed"


def test_it_expires() -> None:
    url = minted(BASE, KEYS.current, GOOD)
    assert asked(url, now=GOOD.expires - 0.001) == GOOD
    assert asked(url, now=float(GOOD.expires)) == "expired"
    assert asked(url.replace("revision=3", "revision=4"), now=float(GOOD.expires)) == "changed", "it says no more"


def test_a_key_that_was_replaced_is_honoured_for_the_life_of_a_link() -> None:
    long_lived = Link(SESSION, 3, int(NOW + 10 * LIFE))
    url, keys = minted(BASE, KEYS.current, long_lived), KEYS
    for number in range(3):
        keys = rotated(keys, bytes([number]) * 32, now=NOW + number, life=LIFE)
        assert asked(url, keys) == long_lived
        assert asked(minted(BASE, keys.current, long_lived), keys) == long_lived
    assert asked(url, keys, now=NOW + LIFE - 1) == long_lived
    assert asked(url, keys, now=NOW + LIFE) == "changed"
    assert rotated(keys, b"n" * 32, now=NOW + LIFE + 1.5, life=LIFE).retired == (
        RetiredKey(b"\1" * 32, NOW + 2), RetiredKey(b"\2" * 32, NOW + LIFE + 1.5),
    )  # fmt: skip
    assert asked(url, rotated(keys, b"n" * 32, now=NOW, life=LIFE, revoke=True)) == "changed"
    assert asked(url, rotated(None, b"n" * 32, now=NOW, life=LIFE)) == "changed"


@given(now=st.floats(0, 4e9), life=st.floats(1, 1e9), later=st.floats(0, 1))
def test_a_retained_link_has_half_of_its_life_left_whenever_it_is_renewed(
    now: float, life: float, later: float
) -> None:
    expires = expiry(now, life, steady=True)
    assert now + life / 2 * 0.999 <= expires <= now + life * 1.001 + 1
    then = now + later * life / 2
    assert expiry(then, life, steady=True) >= expires
    assert now + life <= expiry(now, life, steady=False) <= now + life + 1


def test_it_is_renewed_when_it_is_another_one() -> None:
    times = [NOW]
    links = Links(BASE, LIFE, clock=lambda: times[0])
    links.keys = KEYS
    seen = set()
    for second in range(2001):
        times[0] = NOW + second
        seen.add((links.period(), links.link(SESSION, 3, steady=True)))
    assert len(seen) == len({period for period, _ in seen}) == len({link for _, link in seen}) == 5
    before = links.period()
    links.keys = rotated(KEYS, b"n" * 32, now=NOW, life=LIFE)
    assert links.period() != before


def test_the_path_of_the_base_may_be_there_or_taken_away() -> None:
    links = Links(f"{BASE}/bace", LIFE, clock=lambda: NOW)
    links.keys = KEYS
    link = links.link(SESSION, 3)
    assert link is not None
    path, _, query = link.removeprefix(BASE).partition("?")
    assert links.verified(path, query) == links.verified(path.removeprefix("/bace"), query) == GOOD
    assert links.verified("/other" + path, query) == links.verified("/bace" + path, query) == "unknown"


@pytest.mark.parametrize(
    "base",
    [
        "https://x.org", "https://x.org/", "https://x.org/b/", "https://x.org/csv", "https://x.org/csv/csv/",
        "https://x.org/my%20dir", "https://x.org/caf\u00e9", "https://x.org/a/../b", "https://b\u00fccher.example/x",
    ],
)  # fmt: skip
def test_links_open_below_any_base(base: str) -> None:
    links = Links(link_url(base), LIFE, clock=lambda: NOW)
    links.keys = KEYS
    server = CsvServer(links, known=no_session, cloud=lambda: None)
    link = links.link(SESSION, 3)
    assert link is not None
    sent = URL(link)
    for target in (sent.raw_path_qs, sent.raw_path_qs[-len(minted("", KEYS.current, GOOD)) :]):
        answer = server.answer(parse_head(f"GET {target} HTTP/1.1\r\nHost: {sent.raw_host}\r\n".encode()))
        assert not isinstance(answer, Answer | None), (target, answer)


async def no_session(_: Collection[str]) -> dict[str, KnownSession]:
    return {}


def attempt(data: bytes, type_: str = "session.csv_ready") -> Attempt:
    return Attempt(LoggedEvent(7, Event("evt_1", type_, SESSION, "group", 1.0, 2.0, data)), 1)


def test_an_event_gets_its_link_when_it_is_sent() -> None:
    stored = attempt(b'{"session":{},"csv":{"url":"https://x","revision":3,"datapoint_count":5},"summary":{"a":1.5}}')
    sent = with_link(stored, lambda session, revision: f"{session} {revision}")
    data = msgspec.json.decode(sent.logged.event.data)
    assert data.pop("csv") == {"url": "https://x", "revision": 3, "datapoint_count": 5, "link": f"{SESSION} 3"}
    assert data == {"session": {}, "summary": {"a": 1.5}}
    assert sent.logged.event.id == stored.logged.event.id
    assert b"link" not in stored.logged.event.data
    assert with_link(stored, lambda *_: None) is stored


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"csv":null}', b'{"csv":{}}', b'{"csv":{"revision":'])
def test_broken_data_is_the_sinks_business(data: bytes) -> None:
    assert with_link(attempt(data), lambda *_: "link").logged.event.data == data
    assert with_link(attempt(data, "session.ended"), lambda *_: "link").logged.event.data == data
