"""A sink that is disabled, removed, renamed, narrowed or widened, and comes back: what it gets, exactly."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import Receiver, receiver, running, until
from tests.integration.whole_bridge import SOON, Times, bridge_file, whole_bridge

STARTS, ENDS = "session.started", "session.ended"

Hooks = Mapping[str, Mapping[str, Any]]


class Lives:
    """One store and one cloud, over which bridges of different configurations run; `witness` is a sink of each."""

    def __init__(self, folder: Path, server: SimulatedServer, witness: Receiver) -> None:
        self.folder, self.server, self.witness = folder, server, witness
        self.times = Times()
        self.device = server.cloud.add_device("BaceGo-1").id_group
        self.sessions: list[str] = []

    def configuration(self, hooks: Hooks) -> Path:
        wants = {name: {"events": [STARTS, ENDS], **keys} for name, keys in hooks.items()}
        everyone = {"witness": {"url": self.witness.url, "events": [STARTS, ENDS]}, **wants}
        return bridge_file(self.folder, cloud_url=self.server.url, hooks=everyone)

    @asynccontextmanager
    async def life(self, hooks: Hooks) -> AsyncIterator[None]:
        """A bridge with these sinks, in which a data session begins."""
        asked = len(self.server.requests)
        async with whole_bridge(self.configuration(hooks), times=self.times):
            await until(lambda: len(self.server.requests) > asked + 4, within=SOON, what="the first polls")
            await self.begins()
            yield

    async def begins(self) -> None:
        session = self.server.cloud.open_session(self.device)
        self.sessions.append(session)
        await self.seen((len(self.sessions) - 1, STARTS))

    async def ends(self, number: int) -> None:
        self.server.cloud.end_session(self.sessions[number])
        await self.seen((number, ENDS))

    async def seen(self, event: tuple[int, str]) -> None:
        await until(lambda: event in self.of(self.witness), within=SOON, what=f"{event} at the other sink")

    def of(self, one: Receiver) -> list[tuple[int, str]]:
        """What came, in its order: the number of the session, and the type."""
        return [(self.sessions.index(arrival.session or ""), arrival.type) for arrival in one.arrivals]

    async def gets(self, one: Receiver, expected: Sequence[tuple[int, str]]) -> None:
        await until(lambda: len(one.arrivals) >= len(expected), within=SOON, what=f"{expected} at the sink")
        assert sorted(self.of(one)) == sorted(expected)
        assert not any(arrival.body.get("replay") for arrival in one.arrivals)


@pytest.fixture
async def lives(tmp_path: Path) -> AsyncIterator[Lives]:
    async with SimulatedServer(SimulatedCloud()) as server, receiver() as witness:
        yield Lives(tmp_path, server, witness)


@pytest.fixture
async def hook() -> AsyncIterator[Receiver]:
    async with receiver() as one:
        yield one


async def test_one_that_was_removed_gets_what_came_meanwhile(lives: Lives, hook: Receiver) -> None:
    async with lives.life({"a": {"url": hook.url}}):
        await lives.gets(hook, [(0, STARTS)])
    async with lives.life({}):
        await lives.ends(0)
    assert lives.of(hook) == [(0, STARTS)]
    async with lives.life({"a": {"url": hook.url}}):
        await lives.gets(hook, [(0, STARTS), (0, ENDS), (1, STARTS), (2, STARTS)])


async def test_one_that_had_a_backlog_when_it_was_removed_gets_that_as_well(lives: Lives, hook: Receiver) -> None:
    hook.refuse_with = 500
    async with lives.life({"a": {"url": hook.url}}):
        pass
    async with lives.life({}):
        await lives.ends(0)
    hook.refuse_with = None
    lives.times.forward(60.0)  # past its next attempt
    async with lives.life({"a": {"url": hook.url}}):
        await lives.gets(hook, [(0, STARTS), (0, ENDS), (1, STARTS), (2, STARTS)])
    assert [one for one in lives.of(hook) if one[0] == 0] == [(0, STARTS), (0, ENDS)], "in order"


async def test_one_that_is_disabled_gets_all_of_it_at_another_address(lives: Lives, hook: Receiver) -> None:
    async with receiver() as elsewhere:
        async with lives.life({"a": {"url": hook.url}}):
            await lives.gets(hook, [(0, STARTS)])
            hook.refuse_with = 410
            await lives.begins()
            await lives.begins()
        hook.refuse_with = None
        async with lives.life({"a": {"url": hook.url}}):  # it is not called at the same address
            pass
        async with lives.life({}):
            pass
        assert lives.of(hook) == [(0, STARTS)]
        async with lives.life({"a": {"url": elsewhere.url}}):
            await lives.gets(elsewhere, [(number, STARTS) for number in range(1, 6)])


async def test_one_that_is_renamed_is_a_new_one_and_the_old_one_is_gone(lives: Lives, hook: Receiver) -> None:
    async with lives.life({"a": {"url": hook.url}}):
        await lives.gets(hook, [(0, STARTS)])
        hook.refuse_with = 500
        await lives.ends(0)
    hook.refuse_with = None
    lives.times.forward(60.0)
    async with lives.life({"b": {"url": hook.url}}):
        await lives.gets(hook, [(0, STARTS), (1, STARTS)])
    async with lives.life({"a": {"url": hook.url}}):  # by its old name it goes on where it was: the second one again
        await lives.gets(hook, [(0, STARTS), (0, ENDS), (1, STARTS), (1, STARTS), (2, STARTS)])


async def test_one_that_is_narrowed_does_not_get_what_waits(lives: Lives, hook: Receiver) -> None:
    hook.refuse_with = 500
    async with lives.life({"a": {"url": hook.url}}):
        pass
    hook.refuse_with = None
    lives.times.forward(60.0)
    async with lives.life({"a": {"url": hook.url, "events": [ENDS]}}):
        await lives.ends(0)
        await lives.ends(1)
        await lives.gets(hook, [(0, ENDS), (1, ENDS)])


async def test_one_that_is_widened_gets_what_comes_later(lives: Lives, hook: Receiver) -> None:
    async with lives.life({"a": {"url": hook.url, "events": [ENDS]}}):
        pass
    async with lives.life({"a": {"url": hook.url}}):
        await lives.ends(0)
        await lives.gets(hook, [(0, ENDS), (1, STARTS)])


async def test_one_that_is_widened_while_it_is_away_gets_all_that_came_meanwhile(lives: Lives, hook: Receiver) -> None:
    async with lives.life({"a": {"url": hook.url, "events": [ENDS]}}):
        pass
    async with lives.life({}):
        await lives.ends(0)
    async with lives.life({"a": {"url": hook.url}}):
        await lives.gets(hook, [(0, ENDS), (1, STARTS), (2, STARTS)])


async def test_one_that_is_narrowed_while_it_is_away_gets_what_it_wants_now(lives: Lives, hook: Receiver) -> None:
    async with lives.life({"a": {"url": hook.url}}):
        await lives.gets(hook, [(0, STARTS)])
    async with lives.life({}):
        await lives.ends(0)
    async with lives.life({"a": {"url": hook.url, "events": [ENDS]}}):
        await lives.ends(1)
        await lives.gets(hook, [(0, STARTS), (0, ENDS), (1, ENDS)])


async def test_a_new_one_gets_what_comes_later(lives: Lives, hook: Receiver) -> None:
    async with lives.life({}):
        pass
    async with lives.life({"a": {"url": hook.url}}):
        await lives.ends(0)
        await lives.gets(hook, [(0, ENDS), (1, STARTS)])


async def test_the_real_process_whose_sink_leaves_and_comes_back(lives: Lives, hook: Receiver) -> None:
    for hooks in ({"a": {"url": hook.url}}, {}, {"a": {"url": hook.url}}):
        asked = len(lives.server.requests)
        async with running(lives.configuration(hooks)) as process:
            await until(lambda at=asked: len(lives.server.requests) > at + 4, within=SOON, what="the first polls")  # type: ignore[misc]  # binds now
            await lives.begins()
            if hooks:
                await until(lambda: len(hook.arrivals) == len(lives.sessions), within=SOON, what="all at the sink")
            assert await process.stop() == 0
    assert sorted(lives.of(hook)) == [(0, STARTS), (1, STARTS), (2, STARTS)]
