"""The dispatcher between a real event log and real receivers: what arrives, in which order, and what is durable."""

import asyncio
import base64
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from aiohttp import web

from bace_bridge.delivery.dispatcher import Dispatcher
from bace_bridge.delivery.outlet import SinkWatch
from bace_bridge.delivery.rules.outbox import BEHIND
from bace_bridge.errors import DeliveryFailed, DeliveryRejected, SinkDisabled, SinkError, SinkUnavailable
from bace_bridge.events.types import Attempt, Event, Filter, Lane, LoggedEvent
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.retry import RETRY_SCHEDULE
from bace_bridge.sinks.mqtt.sink import MqttSink
from bace_bridge.sinks.webhook.config import WebhookConfig
from bace_bridge.sinks.webhook.sink import WebhookSink
from bace_bridge.store.eventlog import DeadLetters, EventLog, Which
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.delivered import lanes_of
from tests.integration.polling_line import Clock

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
SOON = 60.0
"""Real seconds after which a test that waits for something has failed."""


def event(number: int, session: str | None = "s1", kind: str = "session.updated") -> Event:
    return Event(f"evt_{number}", kind, session, "g1" if session else None, 1.0, float(number), b"{}")


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not condition():
            await asyncio.sleep(0)  # at each turn of the loop, since some of it lasts for one


class Arrival(NamedTuple):
    id: str
    session: str
    at: float
    replay: bool = False


@dataclass
class Receiver:
    """A real endpoint: notes every request, and answers each session as it is told to."""

    clock: Clock
    url: str = ""
    arrivals: list[Arrival] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    answers: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    holds: asyncio.Event | None = None
    """Where given, no request is answered before it is set."""

    async def handle(self, request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read())
        session = body.get("subject") or "bridge"
        self.arrivals.append(Arrival(body["id"], session, self.clock.now, body.get("replay", False)))
        if (gate := self.gates.get(body["id"])) is not None:
            await gate.wait()
        if self.holds is not None:
            await self.holds.wait()
        status, headers = self.answers.get(session, (200, {}))
        if status == 200:
            self.taken.append(body["id"])
        return web.Response(status=status, headers=headers)

    def fails(self, session: str, status: int = 500, **headers: str) -> None:
        self.answers[session] = (status, {name.replace("_", "-"): value for name, value in headers.items()})

    def recovers(self, session: str) -> None:
        del self.answers[session]

    def closes_the_gate(self, number: int) -> asyncio.Event:
        return self.gates.setdefault(f"evt_{number}", asyncio.Event())

    def of(self, session: str) -> list[str]:
        return [one.id for one in self.arrivals if one.session == session]

    async def has_taken(self, *numbers: int) -> None:
        await eventually(lambda: {f"evt_{one}" for one in numbers} <= set(self.taken))


@asynccontextmanager
async def serving(clock: Clock) -> AsyncIterator[Receiver]:
    receiver = Receiver(clock)
    app = web.Application()
    app.router.add_post("/", receiver.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    try:
        yield receiver
    finally:
        for gate in (*receiver.gates.values(), receiver.holds):
            if gate is not None:
                gate.set()
        await runner.cleanup()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def receiver(clock: Clock) -> AsyncIterator[Receiver]:
    async with serving(clock) as receiver:
        yield receiver


class ScriptedSink:
    """A transport that keeps the order and acknowledges when a test says so."""

    name = "scripted"
    window = 3
    pipelined = True

    def __init__(self) -> None:
        self.flying: dict[str, Callable[[SinkError | None], None]] = {}
        self.sent: list[str] = []
        self.connected = asyncio.Event()
        self.connected.set()
        self.waited_for = 0

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        self.lose()

    async def ready(self) -> None:
        self.waited_for += 1
        await self.connected.wait()

    def where(self, event: Event) -> str:
        return event.session_id or ""

    def send(self, attempt: Attempt, done: Callable[[SinkError | None], None]) -> None:
        self.sent.append(attempt.logged.event.id)
        self.flying[attempt.logged.event.id] = done

    def answer(self, number: int, error: SinkError | None = None) -> None:
        self.flying.pop(f"evt_{number}")(error)

    def lose(self) -> None:
        self.connected.clear()
        flying, self.flying = self.flying, {}
        for done in flying.values():
            done(SinkUnavailable("gone"))


AnySink = WebhookSink | MqttSink | ScriptedSink


class Line:
    """The store, one sink and its dispatcher, as the bridge puts them together."""

    def __init__(self, file: SqliteFile, sink: AnySink, clock: Clock, filter_: Filter) -> None:
        self.file, self.sink, self.clock = file, sink, clock
        self.log = EventLog(file)
        self.journal = Journal(file, grew=lambda: self.dispatcher.log_grew())  # noqa: PLW0108  # made below
        self.disabled: list[tuple[str, str]] = []
        self.pauses: list[float] = []
        self.emitted: list[int] = []
        self.emptied: list[int] = []
        self.watch = SinkWatch("webhook", sink.name, clock=clock)
        self.dispatcher = Dispatcher(
            sink,
            self.log,
            filter_,
            clock=clock,
            jitter=lambda: 0.0,
            sleep=self._sleep,
            on_disabled=self._on_disabled,
            on_emitted=lambda: self.emitted.append(1),
            on_emptied=lambda: self.emptied.append(1),
            on_attempt=self.watch.attempted,
        )

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    async def _on_disabled(self, name: str, reason: str) -> None:
        told = Event(f"evt_{name}", "sink.disabled", None, None, 1.0, 1.0, msgspec.json.encode({"sink": name}))
        await self.log.disable(name, reason, told)
        self.disabled.append((name, reason))

    async def tell(self, *events: Event) -> None:
        await self.journal.commit(Changes(events=events))

    def forward(self, seconds: float) -> None:
        """Time passes, and the dispatcher looks at its clock."""
        self.clock.forward(seconds)
        self.dispatcher.log_grew()

    async def lanes(self) -> list[Lane]:
        """What the sink has still to deliver, as it stands in the store."""
        return await lanes_of(self.file, self.sink.name)

    async def replay(self, *, session: str | None, since: float | None) -> int:
        count = await self.log.replay(self.sink.name, session=session, since=since)
        self.dispatcher.log_grew()
        return count

    async def parked(self, attempts: int) -> Lane:
        """The only lane that waits, once so many attempts at it are durable."""
        async with asyncio.timeout(SOON):
            while True:
                waiting = [one for one in await self.lanes() if one.attempts]
                if waiting and waiting[0].attempts == attempts:
                    return waiting[0]
                await asyncio.sleep(0.001)

    async def done(self) -> None:
        """Until it is durable that everything is delivered, but for lanes that wait for a later attempt."""
        async with asyncio.timeout(SOON):
            while any(not one.attempts for one in await self.lanes()):
                await asyncio.sleep(0.001)

    async def all_done(self) -> None:
        """Until it is durable that everything is delivered."""
        async with asyncio.timeout(SOON):
            while await self.lanes():
                await asyncio.sleep(0.001)

    async def disabled_reason(self) -> str | None:
        return await DeadLetters(self.file).disabled_reason(self.sink.name)

    async def dead_letters(self) -> list[tuple[int, str, int, str]]:
        query = "select seq, key, attempts, reason from dead_letters order by seq"
        return await self.file.read(lambda connection: connection.execute(query).fetchall())

    async def refuses(self, table: str) -> None:
        """No row of the table can be changed or deleted any more."""
        for what in ("update", "delete"):
            await self.execute(
                f"create trigger no_{what} before {what} on {table} begin select raise(abort, 'refused'); end"
            )

    async def takes(self) -> None:
        for what in ("update", "delete"):
            await self.execute(f"drop trigger no_{what}")

    async def execute(self, statement: str) -> None:
        await self.file.read(lambda connection: connection.execute(statement))


@asynccontextmanager
async def running(
    store: Path,
    clock: Clock,
    sink: AnySink | str,
    *,
    filter_: Filter | None = None,
    kill: bool = False,
    grace: float = 1.0,
    **config: object,
) -> AsyncIterator[Line]:
    """With `kill`, everything ends as a process does that is killed; else in the order of the service."""
    if isinstance(sink, str):
        settings = WebhookConfig.model_validate({"name": "alerts", "url": sink, "secret": SECRET, **config})
        sink = WebhookSink(settings, source="https://cloud.example", version="1", clock=clock, grace=grace)
    filter_ = filter_ or Filter(sink=sink.name)
    async with SqliteFile(store) as file:
        await EventLog(file).open_sink(sink.name, target="t", filter_=filter_)
        line = Line(file, sink, clock, filter_)
        tasks = [asyncio.create_task(sink.run()), asyncio.create_task(line.dispatcher.run())]
        try:
            yield line
        finally:
            tasks[1].cancel()
            await asyncio.gather(tasks[1], return_exceptions=True)
            if not kill:
                await line.dispatcher.finish(grace)
                await sink.close()
                await line.dispatcher.settle()
            tasks[0].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result


async def test_a_session_s_events_arrive_in_order_and_one_at_a_time(
    tmp_path: Path, clock: Clock, receiver: Receiver
) -> None:
    gate = receiver.closes_the_gate(1)
    async with running(tmp_path / "b.db", clock, receiver.url) as line:
        await line.tell(event(1), event(2), event(3, "s2"), event(4), event(5, None, "cloud.recovered"))
        await receiver.has_taken(3, 5)
        assert receiver.of("s1") == ["evt_1"], "the second waits for the first"
        gate.set()
        await receiver.has_taken(1, 2, 4)
        assert receiver.of("s1") == ["evt_1", "evt_2", "evt_4"]
        await line.done()
    assert len(receiver.arrivals) == 5


async def test_a_failing_session_holds_up_no_other_and_keeps_its_order(
    tmp_path: Path, clock: Clock, receiver: Receiver
) -> None:
    receiver.fails("s1")
    async with running(tmp_path / "b.db", clock, receiver.url) as line:
        await line.tell(*(event(number, f"s{1 + number % 3}") for number in range(30)))
        others = [number for number in range(30) if number % 3]
        await receiver.has_taken(*others)
        parked = await line.parked(1)
        assert (parked.key, parked.due_at) == ("s1", clock.now + RETRY_SCHEDULE[0])
        await line.done()
        assert receiver.of("s1") == ["evt_0"], "what follows the failed one waits"
        receiver.recovers("s1")
        await line.tell(event(30, "s1"), event(31, "s2"))
        await receiver.has_taken(31)
        assert receiver.of("s1") == ["evt_0"], "and so does what comes later"
        line.forward(RETRY_SCHEDULE[0])
        await receiver.has_taken(*range(0, 31, 3))
        assert receiver.of("s1") == ["evt_0", *(f"evt_{number}" for number in range(0, 31, 3))]
        assert [one for one in receiver.of("s2") if one != "evt_31"] == [f"evt_{one}" for one in range(1, 30, 3)]
        async with asyncio.timeout(SOON):
            while await line.lanes():
                line.dispatcher.log_grew()
    assert_each_once(receiver)


def assert_each_once(receiver: Receiver) -> None:
    assert len(receiver.taken) == len(set(receiver.taken)), "something was taken twice"


async def test_after_the_end_of_the_schedule_a_delivery_is_a_dead_letter(
    tmp_path: Path, clock: Clock, receiver: Receiver
) -> None:
    receiver.fails("s1", 500)
    begin = clock.now
    async with running(tmp_path / "b.db", clock, receiver.url) as line:
        await line.tell(event(1), event(2))
        for attempt in range(1, len(RETRY_SCHEDULE) + 1):
            parked = await line.parked(attempt)
            line.forward(parked.due_at - clock.now - 0.5)
            await line.tell(event(100 + attempt, "s2"))
            await receiver.has_taken(100 + attempt)
            assert len(receiver.of("s1")) == attempt, "never before its time"
            line.forward(0.5)
            await eventually(lambda tries=attempt + 1: len(receiver.of("s1")) >= tries)  # type: ignore[misc]  # binds now
        await eventually(lambda: "evt_2" in receiver.of("s1"))
        receiver.recovers("s1")
        parked = await line.parked(1)
        assert await line.dead_letters() == [(1, "s1", 10, "gave up after 10 attempts: HTTP 500")]
        line.forward(parked.due_at - clock.now)
        await receiver.has_taken(2)
        await line.tell(event(3))
        await receiver.has_taken(3)
    tries = [one.at - begin for one in receiver.arrivals if one.id == "evt_1"]
    assert tries == [sum(RETRY_SCHEDULE[:number]) for number in range(len(RETRY_SCHEDULE) + 1)]
    assert sum(RETRY_SCHEDULE) > 75 * 3600


async def test_retry_after_is_waited_for(tmp_path: Path, clock: Clock, receiver: Receiver) -> None:
    receiver.fails("s1", 503, Retry_After="120")
    async with running(tmp_path / "b.db", clock, receiver.url) as line:
        await line.tell(event(1))
        assert (await line.parked(1)).due_at == clock.now + 120


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "stopped"])
async def test_a_restart_goes_on_from_the_store(tmp_path: Path, clock: Clock, receiver: Receiver, kill: bool) -> None:
    receiver.fails("s9")
    async with running(tmp_path / "b.db", clock, receiver.url, kill=kill, grace=SOON, max_in_flight=2) as line:
        await line.tell(event(0, "s9"), event(1), event(2), event(3), event(4, "s9"))
        await receiver.has_taken(1, 2, 3)
        await line.parked(1)
        await line.done()
        gate = receiver.closes_the_gate(5)
        await line.tell(event(5), event(6), event(7, "s2"))
        await receiver.has_taken(7)
        if not kill:
            gate.set()
    gate.set()
    receiver.recovers("s9")
    before = list(receiver.taken)
    clock.forward(RETRY_SCHEDULE[0])
    async with running(tmp_path / "b.db", clock, receiver.url) as line:
        await receiver.has_taken(*range(8))
        await line.done()
    again = [one for one in receiver.taken if receiver.taken.count(one) > 1]
    if kill:
        assert set(again) <= {"evt_5", "evt_6", "evt_7"}, "only what was not durable yet comes again"
    else:
        assert {"evt_5", "evt_6", "evt_7"} <= set(before), "what is in the log is delivered in the time of grace"
        assert again == []
    assert list(dict.fromkeys(one for one in receiver.of("s1") if one in receiver.taken)) == [
        f"evt_{number}" for number in (1, 2, 3, 5, 6)
    ]
    assert [one for one in receiver.taken if one in {"evt_0", "evt_4"}] == ["evt_0", "evt_4"]


async def test_nothing_comes_again_after_a_clean_end_that_cut_off_a_record(tmp_path: Path, clock: Clock) -> None:
    sink = ScriptedSink()
    async with running(tmp_path / "b.db", clock, sink) as line:
        await line.tell(event(1), event(2))
        await eventually(lambda: len(sink.flying) == 2)
        sink.answer(1)
        await eventually(lambda: not line.dispatcher._outbox.idle and line.dispatcher._outbox.in_flight == 1)
        asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(sink.answer, 2))
    async with SqliteFile(tmp_path / "b.db") as file:
        assert await file.read(lambda connection: connection.execute("select * from lanes").fetchall()) == []


async def test_what_was_acknowledged_becomes_durable_while_a_sink_is_waited_for(tmp_path: Path, clock: Clock) -> None:
    sink = ScriptedSink()
    async with running(tmp_path / "b.db", clock, sink, kill=True) as line:
        await line.tell(event(1), event(2), event(3))
        await eventually(lambda: len(sink.flying) == 3)
        sink.answer(1)
        sink.lose()
        await eventually(lambda: sink.waited_for == 2)
        async with asyncio.timeout(SOON):
            while [one.seq for one in await line.lanes()] != [2]:
                await asyncio.sleep(0)
        sink.connected.set()
        await eventually(lambda: len(sink.flying) == 2)
        assert sink.sent == ["evt_1", "evt_2", "evt_3", "evt_2", "evt_3"]
        assert [one.attempts for one in await line.lanes()] == [0], "going away is no failed attempt"


async def test_a_sink_s_window_is_refilled_at_every_acknowledgement(tmp_path: Path, clock: Clock) -> None:
    sink = ScriptedSink()
    async with running(tmp_path / "b.db", clock, sink) as line:
        await line.tell(*(event(number) for number in range(1, 10)))
        await eventually(lambda: len(sink.flying) == 3)
        sink.answer(2)
        assert list(sink.flying) == ["evt_1", "evt_3", "evt_4"], "without waiting for the loop"
        for number in (1, 3, 4, 5, 6, 7, 8, 9):
            sink.answer(number)
        await line.done()


async def test_what_is_never_taken_is_not_tried_again(tmp_path: Path, clock: Clock) -> None:
    sink = ScriptedSink()
    async with running(tmp_path / "b.db", clock, sink) as line:
        await line.tell(event(1), event(2))
        await eventually(lambda: len(sink.flying) == 2)
        sink.answer(1, DeliveryRejected("too large"))
        sink.answer(2)
        await line.done()
        assert await line.dead_letters() == [(1, "s1", 1, "rejected: too large")]
        assert sink.sent == ["evt_1", "evt_2"]


async def test_only_what_a_sink_wants_arrives_and_the_rest_is_passed(
    tmp_path: Path, clock: Clock, receiver: Receiver
) -> None:
    filter_ = Filter(events=("session.ended",))
    receiver.fails("s1")
    async with running(tmp_path / "b.db", clock, receiver.url, filter_=filter_) as line:
        await line.tell(event(1), event(2, kind="session.ended"), *(event(number) for number in range(3, 40)))
        await line.parked(1)
        receiver.recovers("s1")
        await line.tell(event(40, kind="session.ended"))
        line.forward(RETRY_SCHEDULE[0])
        await receiver.has_taken(2, 40)
        await line.all_done()
    assert receiver.of("s1") == ["evt_2", "evt_2", "evt_40"]


@pytest.mark.parametrize(
    ("session", "since", "expected"),
    [
        ("s1", None, {"s1": [1, 3, 4]}),
        (None, 3.0, {"s1": [3, 4], "bridge": [5]}),
        (None, None, {"s1": [1, 3, 4], "s2": [2], "bridge": [5]}),
        ("s3", None, {}),
    ],
)
async def test_a_replay_brings_the_same_events_again_in_order(
    tmp_path: Path,
    clock: Clock,
    receiver: Receiver,
    session: str | None,
    since: float | None,
    expected: dict[str, Sequence[int]],
) -> None:
    async with running(tmp_path / "b.db", clock, receiver.url) as line:
        await line.tell(event(1), event(2, "s2"), event(3), event(4), event(5, None, "cloud.recovered"))
        await line.done()
        receiver.arrivals.clear()
        receiver.taken.clear()
        assert await line.replay(session=session, since=since) == sum(map(len, expected.values()))
        await receiver.has_taken(*(number for numbers in expected.values() for number in numbers))
        await line.tell(event(6), event(7, "s2"))
        await receiver.has_taken(6, 7)
    came: dict[str, list[str]] = defaultdict(list)
    for one in receiver.arrivals:
        came[one.session].append(one.id)
    wanted = {key: [f"evt_{number}" for number in numbers] for key, numbers in expected.items()}
    for key, last in (("s1", "evt_6"), ("s2", "evt_7")):
        wanted[key] = [*wanted.get(key, []), last]
    assert came == wanted


async def test_only_what_was_told_before_is_marked_as_a_replay(
    tmp_path: Path, clock: Clock, receiver: Receiver
) -> None:
    async with running(tmp_path / "b.db", clock, receiver.url) as line:
        await line.tell(event(1), event(2))
        await line.done()
        receiver.fails("s1")
        await line.tell(event(3))
        await line.parked(1)
        await line.replay(session="s1", since=None)
        async with asyncio.timeout(SOON):
            while (lane := await line.parked(1)).seq != 1:
                pass
        assert lane.replay_through == 2
        receiver.recovers("s1")
        line.forward(RETRY_SCHEDULE[0])
        await receiver.has_taken(3)
        await line.tell(event(4))
        await receiver.has_taken(4)
    marked = [(one.id, one.replay) for one in receiver.arrivals]
    assert marked == [
        ("evt_1", False), ("evt_2", False), ("evt_3", False),
        ("evt_1", True), ("evt_1", True), ("evt_2", True), ("evt_3", False), ("evt_4", False),
    ]  # fmt: skip


async def test_a_replay_survives_a_restart(tmp_path: Path, clock: Clock, receiver: Receiver) -> None:
    async with running(tmp_path / "b.db", clock, receiver.url) as line:
        await line.tell(event(1), event(2))
        await line.done()
        receiver.fails("s1")
        await line.replay(session="s1", since=None)
        await line.parked(1)
    receiver.recovers("s1")
    clock.forward(RETRY_SCHEDULE[0])
    async with running(tmp_path / "b.db", clock, receiver.url):
        await eventually(lambda: receiver.taken == ["evt_1", "evt_2", "evt_1", "evt_2"])


async def given_up(line: Line, receiver: Receiver, session: str) -> None:
    """Fails a session's next delivery until it is a dead letter."""
    receiver.fails(session)
    before = len(await line.dead_letters())
    for attempts, wait in enumerate(RETRY_SCHEDULE, start=1):
        await line.parked(attempts)
        line.forward(wait)
    async with asyncio.timeout(SOON):
        while len(await line.dead_letters()) == before:
            await asyncio.sleep(0)
    receiver.recovers(session)


async def test_a_dead_letter_is_reported_to_the_other_sinks_and_not_to_its_own(
    tmp_path: Path, clock: Clock, receiver: Receiver
) -> None:
    sink = ScriptedSink()
    async with running(tmp_path / "b.db", clock, receiver.url, filter_=Filter(sink="alerts")) as line:
        filter_ = Filter(events=("sink.*",), sink=sink.name)
        await line.log.open_sink(sink.name, target="t", filter_=filter_)
        other = Line(line.file, sink, clock, filter_)
        task = asyncio.create_task(other.dispatcher.run())
        await line.tell(event(1))
        await given_up(line, receiver, "s1")
        await eventually(lambda: line.emitted == [1])
        other.dispatcher.log_grew()
        await eventually(lambda: len(sink.flying) == 1)
        await line.tell(event(2))
        await receiver.has_taken(2)
        task.cancel()
        (report,) = [one.event for one in await line.log.search(type_glob="sink.*")]
    data = msgspec.json.decode(report.data)
    assert (report.type, data["sink"], data["attempts"]) == ("sink.dead_letter", "alerts", len(RETRY_SCHEDULE) + 1)
    assert (data["event"]["id"], data["event"]["session_id"]) == ("evt_1", "s1")
    assert {one.session for one in receiver.arrivals} == {"s1"}, "not about itself"


async def test_many_dead_letters_of_one_topic_are_reported_once_an_outage(tmp_path: Path, clock: Clock) -> None:
    """A session stands for a topic here."""
    sink = ScriptedSink()

    async def refused(*numbers: int) -> None:
        await eventually(lambda: len(sink.flying) == len(numbers))
        for number in numbers:
            sink.answer(number, DeliveryRejected("not authorised"))
        await line.done()

    async with running(tmp_path / "b.db", clock, sink) as line:
        await line.tell(event(1), event(2), event(3))
        await refused(1, 2, 3)
        await line.tell(event(4))
        await refused(4)
        await line.tell(event(5, "s2"))
        await refused(5)
        await line.tell(event(6))
        await eventually(lambda: len(sink.flying) == 1)
        sink.answer(6)
        await line.tell(event(7), event(8))
        await refused(7, 8)
        assert len(await line.dead_letters()) == 7
        said = [msgspec.json.decode(one.event.data) for one in await line.log.search(type_glob="sink.*")]
    assert [(one["event"]["id"], one["count"]) for one in said] == [("evt_1", 3), ("evt_5", 5), ("evt_7", 7)]


async def test_that_everything_is_delivered_is_noticed_with_the_last_of_it(
    tmp_path: Path, clock: Clock, receiver: Receiver
) -> None:
    receiver.fails("s1")
    async with running(tmp_path / "b.db", clock, receiver.url) as line:
        await eventually(lambda: bool(line.emptied))
        line.emptied.clear()
        await line.tell(event(1), event(2, "s2"))
        await receiver.has_taken(2)
        await line.parked(1)
        await line.done()
        assert not line.emptied, "one waits for a later attempt"
        receiver.recovers("s1")
        line.forward(RETRY_SCHEDULE[0])
        await eventually(lambda: bool(line.emptied))
        assert await line.lanes() == []


async def test_a_dead_letter_about_a_sink_tells_nothing_more(tmp_path: Path, clock: Clock) -> None:
    sink = ScriptedSink()
    about_another = msgspec.structs.replace(event(1, None, "sink.dead_letter"), data=b'{"sink":"other"}')
    async with running(tmp_path / "b.db", clock, sink, filter_=Filter(sink=sink.name)) as line:
        await line.tell(about_another)
        await eventually(lambda: len(sink.flying) == 1)
        sink.answer(1, DeliveryRejected("not authorised"))
        await line.done()
        assert [one.seq for one in await line.log.search()] == [1]
        assert len(await line.dead_letters()) == 1


async def test_a_dead_letter_that_is_tried_again_comes_alone(tmp_path: Path, clock: Clock, receiver: Receiver) -> None:
    async with running(tmp_path / "b.db", clock, receiver.url, filter_=Filter(sink="alerts")) as line:
        await line.tell(event(1))
        await given_up(line, receiver, "s1")
        await line.tell(event(2), event(3))
        await receiver.has_taken(2, 3)
        letters = DeadLetters(line.file)
        assert await letters.retry(Which(sink="alerts")) == 1
        line.dispatcher.log_grew()
        await receiver.has_taken(1)
        async with asyncio.timeout(SOON):
            while await line.lanes():
                await asyncio.sleep(0)
        assert await line.dead_letters() == []
        failed = await letters.attempts("alerts", 1)
    assert receiver.taken == ["evt_2", "evt_3", "evt_1"]
    assert not any(one.replay for one in receiver.arrivals), "it never came"
    assert [(one.number, one.status) for one in failed] == [(number, 500) for number in range(1, 11)]


async def test_a_dead_letter_that_fails_again_is_one_again(tmp_path: Path, clock: Clock, receiver: Receiver) -> None:
    """Meanwhile its data session goes on, and a replay of the whole of it does not disturb it."""
    async with running(tmp_path / "b.db", clock, receiver.url) as line:
        await line.tell(event(1), event(2, "s2"))
        await given_up(line, receiver, "s1")
        gate = receiver.closes_the_gate(1)
        receiver.fails("s1")
        assert await DeadLetters(line.file).retry(Which()) == 1
        line.dispatcher.log_grew()
        await eventually(lambda: len(receiver.of("s1")) == len(RETRY_SCHEDULE) + 2)
        await line.replay(session="s1", since=None)
        await eventually(lambda: len(receiver.of("s1")) == len(RETRY_SCHEDULE) + 3)
        gate.set()
        receiver.recovers("s1")
        await receiver.has_taken(1)
        line.forward(RETRY_SCHEDULE[0])
        async with asyncio.timeout(SOON):
            while await line.lanes():
                await asyncio.sleep(0)
        assert await line.dead_letters() == []


@pytest.mark.parametrize(("status", "headers"), [(410, {}), (200, {"webhook_delivery": "disable"})])
async def test_an_endpoint_that_wants_no_more_is_disabled_and_another_goes_on(
    tmp_path: Path, clock: Clock, receiver: Receiver, status: int, headers: dict[str, str]
) -> None:
    sink = ScriptedSink()
    receiver.fails("s1", status, **headers)
    async with running(tmp_path / "b.db", clock, receiver.url) as line:
        await line.log.open_sink(sink.name, target="t", filter_=Filter())
        other = Line(line.file, sink, clock, Filter())
        task = asyncio.create_task(other.dispatcher.run())
        await line.tell(event(1), event(2))
        await eventually(lambda: bool(line.disabled))
        await line.tell(event(3))
        other.dispatcher.log_grew()
        await eventually(lambda: len(sink.flying) == 3)
        task.cancel()
        assert [name for name, _ in line.disabled] == ["alerts"]
        assert await line.disabled_reason() == line.disabled[0][1]
        assert [one.seq for one in await line.lanes()] == [1], "what was not delivered is kept for another target"
    assert receiver.of("s1") == ["evt_1"]


async def test_what_was_acknowledged_before_an_endpoint_was_disabled_is_durable(tmp_path: Path, clock: Clock) -> None:
    sink = ScriptedSink()
    async with running(tmp_path / "b.db", clock, sink, kill=True) as line:
        await line.tell(event(1), event(2))
        await eventually(lambda: len(sink.flying) == 2)
        sink.answer(1)
        sink.answer(2, SinkDisabled("410 Gone"))
        await eventually(lambda: bool(line.disabled))
        assert [one.seq for one in await line.lanes()] == [2]


async def test_a_store_that_cannot_be_read_for_a_while_ends_nothing(
    tmp_path: Path, clock: Clock, receiver: Receiver
) -> None:
    """Neither the reading of the log nor of a parked session's part of it."""
    receiver.fails("s1")
    async with running(tmp_path / "b.db", clock, receiver.url) as line:
        await line.tell(event(1), event(2))
        await line.parked(1)
        await line.execute("alter table events rename to away")
        receiver.recovers("s1")
        line.forward(RETRY_SCHEDULE[0])
        await eventually(lambda: line.pauses.count(2.0) > 3)
        await line.execute("alter table away rename to events")
        await receiver.has_taken(1, 2)


async def test_progress_that_cannot_be_recorded_is_recorded_later(
    tmp_path: Path, clock: Clock, receiver: Receiver
) -> None:
    async with running(tmp_path / "b.db", clock, receiver.url) as line:
        await line.tell(event(1))
        await line.done()
        await line.refuses("lanes")
        await line.tell(event(2), event(3, "s2"))
        await receiver.has_taken(2, 3)
        await eventually(lambda: line.pauses.count(2.0) > 3)
        await line.takes()
        await line.done()
    assert_each_once(receiver)


async def test_an_endpoint_is_disabled_once_the_store_can_say_so(
    tmp_path: Path, clock: Clock, receiver: Receiver
) -> None:
    receiver.fails("s1", 410)
    async with running(tmp_path / "b.db", clock, receiver.url) as line:
        await line.refuses("sinks")
        await line.tell(event(1))
        await eventually(lambda: line.pauses.count(2.0) > 3)
        await line.takes()
        await eventually(lambda: bool(line.disabled))
        assert await line.disabled_reason() == line.disabled[0][1]


async def test_a_store_that_is_full_does_not_hold_up_the_end(tmp_path: Path, clock: Clock, receiver: Receiver) -> None:
    async with asyncio.timeout(SOON), running(tmp_path / "b.db", clock, receiver.url) as line:
        await line.tell(event(1))
        await line.done()
        await line.refuses("lanes")
        await line.tell(event(2))
        await receiver.has_taken(2)


async def test_many_events_of_many_sessions_in_little_memory(tmp_path: Path, clock: Clock) -> None:
    """More events than are held at once, and one session that has failed from the beginning."""
    count = 6000
    sink = ScriptedSink()
    sink.window = 500  # this one has a larger window
    taken: dict[str, list[int]] = defaultdict(list)
    failed: list[LoggedEvent] = []

    def take(attempt: Attempt, done: Callable[[SinkError | None], None]) -> None:
        logged = attempt.logged
        if logged.event.session_id == "s0" and not failed:
            failed.append(logged)
            asyncio.get_running_loop().call_soon(done, DeliveryRejected("not this one"))
            return
        taken[logged.event.session_id or ""].append(logged.seq)
        asyncio.get_running_loop().call_soon(done, None)

    sink.send = take  # type: ignore[method-assign]
    async with running(tmp_path / "b.db", clock, sink, filter_=Filter(sink=sink.name)) as line:
        await line.tell(*(event(number, f"s{number % 7}") for number in range(count)))
        await line.done()
        await eventually(lambda: line.dispatcher.idle)
    assert sum(map(len, taken.values())) == count - 1
    assert all(seqs == sorted(seqs) for seqs in taken.values())


async def test_slow_sessions_with_thousands_of_events_hold_up_no_alarm(
    tmp_path: Path, clock: Clock, receiver: Receiver
) -> None:
    gates = [receiver.closes_the_gate(number) for number in range(5)]
    async with running(tmp_path / "b.db", clock, receiver.url) as line:
        await line.tell(*(event(number, f"slow{number % 5}") for number in range(4000)))
        await eventually(lambda: len(receiver.arrivals) == 5)
        for number in range(4000, 4010):
            await line.tell(event(number, f"s{number}"))
            await receiver.has_taken(number)
        for gate in gates:
            gate.set()


async def test_one_long_session_is_not_slowed_down_by_the_records(tmp_path: Path, clock: Clock) -> None:
    """It is read in pieces, and between two of them may lie a pause."""
    count, taken, reads = 6000, list[int](), list[str]()
    sink = ScriptedSink()
    sink.pipelined = False  # as a webhook, which takes one event of a session at once

    def take(attempt: Attempt, done: Callable[[SinkError | None], None]) -> None:
        taken.append(attempt.logged.seq)
        asyncio.get_running_loop().call_soon(done, None)

    sink.send = take  # type: ignore[method-assign]
    async with running(tmp_path / "b.db", clock, sink) as line:
        await line.file.read(lambda connection: connection.set_trace_callback(reads.append))
        await line.tell(*(event(number) for number in range(count)))
        await eventually(lambda: len(taken) == count)
        assert 0 < sum("session_id is " in one and "order by seq" in one for one in reads) < 100
    assert taken == sorted(taken)


async def test_large_events_that_nobody_wants_do_not_hide_a_parked_session_s_last_one(
    tmp_path: Path, clock: Clock, receiver: Receiver
) -> None:
    """A reading of a lane is bounded in bytes too, so a short one is not the last one."""
    large = msgspec.json.encode({"filling": "x" * 60_000})
    unwanted = [
        msgspec.structs.replace(event(number, kind="session.datapoints"), data=large) for number in range(2, 12)
    ]
    receiver.fails("s1")
    async with running(tmp_path / "b.db", clock, receiver.url, filter_=Filter(("session.updated",))) as line:
        await line.tell(event(1), *unwanted, event(12))
        await line.parked(1)
        receiver.recovers("s1")
        line.forward(RETRY_SCHEDULE[0])
        await receiver.has_taken(1, 12)


async def test_many_parked_sessions_come_back_a_few_at_a_time(tmp_path: Path, clock: Clock, receiver: Receiver) -> None:
    sessions = [f"s{number}" for number in range(2 * BEHIND.lanes + 7)]
    for session in sessions:
        receiver.fails(session)
    async with running(tmp_path / "b.db", clock, receiver.url) as line:
        told = [event(number, session) for number, session in enumerate(sessions * 2)]
        await line.tell(*told)
        await eventually(lambda: len(receiver.arrivals) == len(sessions))
        async with asyncio.timeout(SOON):
            while sum(one.attempts for one in await line.lanes()) < len(sessions):
                pass
        for session in sessions:
            receiver.recovers(session)
        held: list[int] = []
        line.forward(RETRY_SCHEDULE[0])
        async with asyncio.timeout(SOON):
            while len(receiver.taken) < len(told):
                held.append(sum(1 for one in line.dispatcher._outbox._lanes.values() if one.events))
                await asyncio.sleep(0)
    assert max(held) <= BEHIND.lanes
    assert sorted(receiver.taken) == sorted(one.id for one in told)


async def test_a_lane_whose_first_delivery_was_cut_off_goes_on_in_its_time(tmp_path: Path, clock: Clock) -> None:
    sink = ScriptedSink()
    async with running(tmp_path / "b.db", clock, sink) as line:
        await line.tell(event(1), event(2))
        await eventually(lambda: len(sink.flying) == 2)
        sink.answer(2, DeliveryFailed("quota"))
        sink.lose()
        async with asyncio.timeout(SOON):
            while not any(lane.due_at for lane in await line.lanes()):
                await asyncio.sleep(0.001)
        sink.connected.set()
        await eventually(lambda: line.dispatcher.idle)
        clock.forward(RETRY_SCHEDULE[0])
        line.dispatcher._called.set()
        await eventually(lambda: sink.sent[2:] == ["evt_1", "evt_2"])
