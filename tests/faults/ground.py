"""The real process between a simulated cloud, a Mosquitto and a webhook receiver, with a fault proxy before each."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import Complaint, Process, Receiver, configuration, receiver, running, until
from tests.faults.figures import Figures
from tests.faults.load import Load
from tests.faults.oracle import Tally, Verdict, disagreements, judge
from tests.faults.proxy import Fault, FaultProxy, proxy_to
from tests.faults.subscriber import Subscriber, subscribed
from tests.integration.brokers import Mosquitto

MQTT_WINDOW, WEBHOOK_WINDOW = 200, 10
"""The defaults of `max_in_flight`, for a broker and a webhook: what a fault can make come twice at most."""

WEBHOOK_TIMEOUT = 15.0
CLOUD_TIMEOUT = 1.0
RUNS_WITHIN = 60.0
BROKER_AWAY = 0.02
MOST_UNREADY = 150
LOG_LINES_KEPT = 20_000


class ProvingGround:
    """Everything but the faults. `load` goes on until `settle`, which brings all to an end and judges it."""

    def __init__(
        self,
        config: Path,
        load: Load,
        hook: Receiver,
        subscriber: Subscriber,
        mosquitto: Mosquitto,
        proxies: dict[str, FaultProxy],
    ) -> None:
        self.to_cloud, self.to_broker, self.to_hook = proxies["cloud"], proxies["broker"], proxies["hook"]
        self.errors: list[str] = []
        self._log_lines: list[str] = []
        self._config = config
        self._load = load
        self._hook = hook
        self._subscriber = subscriber
        self._mosquitto = mosquitto
        self._tallies = {"mqtt": Tally(subscriber.arrivals), "webhook": Tally(hook.arrivals)}
        load.too_many = lambda: self.unready > MOST_UNREADY
        self._loading = asyncio.create_task(load.run())
        self._began = time.monotonic()

    @property
    def events(self) -> int:
        """How many the slower sink has got."""
        return min(tally.events for tally in self._tallies.values())

    @property
    def unready(self) -> int:
        """How many sessions the slower sink has not got to their end."""
        return len(self._load.expected) - min(len(tally.ready) for tally in self._tallies.values())

    def bridge(self, failpoint: str = "") -> AbstractAsyncContextManager[Process]:
        """The process, which may die in any way but by a fault of its own."""
        return self._bridge(failpoint)

    @asynccontextmanager
    async def _bridge(self, failpoint: str) -> AsyncIterator[Process]:
        log = self._config.parent / "stderr.log"
        log.unlink(missing_ok=True)
        async with running(self._config, failpoint=failpoint) as bridge:
            try:
                yield bridge
            finally:
                lines = bridge.log.splitlines()
                self.errors += [line for line in lines if "internal_error" in line]
                self._log_lines = [*self._log_lines, *lines][-LOG_LINES_KEPT:]

    async def runs(self, bridge: Process) -> None:
        ran = lambda: "bridge.running" in bridge.log or bridge.process.returncode is not None  # noqa: E731
        await until(ran, within=RUNS_WITHIN, what="the bridge runs")

    async def reaches(self, events: int, *, within: float = 60.0) -> None:
        await until(lambda: self.events >= events, within=within, what=f"{events} events")

    async def new_broker(self, *, its_words_too: bool) -> None:
        """Kills the broker and starts another, which the bridge reaches only when the subscriber is there.

        `its_words_too`: as where its machine dies, the acknowledgements that are under way are lost.
        """
        self.to_broker.admits = False
        if its_words_too:
            self.to_broker.switch(Fault.RESET)
        await asyncio.to_thread(self._mosquitto.kill)
        await until(lambda: not self._subscriber.connected, within=60, what="the subscriber sees the broker's end")
        await asyncio.to_thread(self._mosquitto.start)
        await until(lambda: self._subscriber.connected, within=60, what="the subscriber at the new broker")
        self.to_broker.switch(Fault.DELAY, delay=BROKER_AWAY)
        self.to_broker.admits = True

    async def stop_load(self) -> None:
        self._load.stop()
        await self._loading

    async def settle(self, bridge: Process, *, within: float) -> None:
        """No more faults; returns when every session's CSV has arrived on both sides, or when the time is over."""
        for proxy in (self.to_cloud, self.to_broker, self.to_hook):
            proxy.switch(Fault.PASS)
        await self.stop_load()
        sessions = self._load.expected.keys()
        try:
            await until(
                lambda: all(sessions <= tally.ready for tally in self._tallies.values()),
                within=within,
                what="the CSV of every session",
            )
        except AssertionError as error:
            self.errors.append(str(error))
        if (code := await bridge.stop()) != 0:
            self.errors.append(f"exit code {code} at the end")

    def judged(self, run: str, seed: int, faults: int, *, at_most: dict[str, int], note: str = "") -> Figures:
        """The figures of the run. Raises AssertionError where anything is wrong, with the way to see it again."""
        expected = self._load.expected
        arrivals = {"mqtt": self._subscriber.arrivals, "webhook": self._hook.arrivals}
        verdicts: dict[str, Verdict] = {name: judge(found, expected) for name, found in arrivals.items()}
        wrong = [(name, one) for name, verdict in verdicts.items() for one in verdict.complaints]
        wrong += [("both", one) for one in disagreements(arrivals, expected)]
        figures = Figures(
            run=run,
            seed=seed,
            faults=faults,
            sessions=len(expected),
            events=min(verdict.events for verdict in verdicts.values()),
            points=min(verdict.points for verdict in verdicts.values()),
            lost=_count(wrong, "lost"),
            order=_count(wrong, "order"),
            other=_count(wrong, "twice") + _count(wrong, "values") + len(self.errors),
            duplicates={name: verdict.duplicates for name, verdict in verdicts.items()},
            at_most=at_most,
            seconds=time.monotonic() - self._began,
            note=note,
        )
        wrong_lines = [*self.errors, *(f"{name}: {one.kind}: {one.text}" for name, one in wrong)]
        wrong_lines += [
            f"{name}: {count} duplicates, more than {at_most[name]}"
            for name, count in figures.duplicates.items()
            if count > at_most[name]
        ]
        if self._subscriber.retained:
            wrong_lines.append(f"mqtt: {self._subscriber.retained} events were retained")
        again = f'make test-faults FAULT_ARGS="-k {run} --seed {seed}"'
        assert not wrong_lines, "\n".join(
            [f"again: {again}", *wrong_lines[:20], *self._logged_of(wrong_lines), *Figures.table([figures])]
        )
        return figures

    def _logged_of(self, complaints: Sequence[str]) -> list[str]:
        """What the bridge logged of the data sessions that something is wrong with, and at last."""
        sessions = {one for one in self._load.expected if any(one in text for text in complaints)}
        of_them = [line for line in self._log_lines if any(one in line for one in sessions)]
        return ["the bridge's log of these data sessions:", *of_them[-30:], "its last lines:", *self._log_lines[-20:]]


def _count(wrong: Sequence[tuple[str, Complaint]], kind: str) -> int:
    return sum(one.kind == kind for _, one in wrong)


@asynccontextmanager
async def proving_ground(
    folder: Path, mosquitto: Mosquitto, *, seed: int, devices: int, store: Path | None = None
) -> AsyncIterator[ProvingGround]:
    cloud = SimulatedCloud(seed=seed)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(SimulatedServer(cloud))
        hook = await stack.enter_async_context(receiver())
        behind = {"cloud": _port(server.url), "broker": mosquitto.port, "hook": _port(hook.url)}
        proxies = {name: await stack.enter_async_context(proxy_to(port)) for name, port in behind.items()}
        subscriber = await stack.enter_async_context(subscribed(mosquitto.port))
        extra: dict[str, Any] = {"cloud": {"timeout": f"{CLOUD_TIMEOUT:g}s"}}
        if store is not None:
            extra["store"] = {"url": f"sqlite:///{store}"}
        config = configuration(
            folder,
            cloud_url=f"http://127.0.0.1:{proxies['cloud'].port}",
            mqtt_port=proxies["broker"].port,
            hook_url=f"http://127.0.0.1:{proxies['hook'].port}/hook",
            start_from="all",
            hook_timeout=f"{WEBHOOK_TIMEOUT:g}s",
            extra=extra,
        )
        # Requests of one session that are under way together would overtake one another.
        slow = random.Random(seed)
        hook.takes_seconds = lambda: slow.uniform(0.0, 0.03)
        load = Load(cloud, devices=devices, seed=seed)
        # A broker some way off: a fault finds messages in flight.
        proxies["broker"].switch(Fault.DELAY, delay=BROKER_AWAY)
        ground = ProvingGround(config, load, hook, subscriber, mosquitto, proxies)
        try:
            yield ground
        finally:
            await ground.stop_load()


def _port(url: str) -> int:
    return int(url.split(":")[2].split("/", maxsplit=1)[0])
