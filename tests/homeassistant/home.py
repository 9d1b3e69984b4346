"""A real Home Assistant in a process of its own, and its API."""

import asyncio
import json
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import yaml

from tests.integration.brokers import free_port

ROOT = Path(__file__).parents[2]
VENV = ROOT / ".venv-homeassistant"
INSTALLED = VENV / ".installed"
START = Path(__file__).with_name("start.py")
PATIENCE = 90.0

# What it says at every such start, whoever announces something.
_ALWAYS = re.compile(r"Skipping pip installation|zlib_ng and isal are not available")
_LINE = re.compile(r"^\S+ \S+ (?:WARNING|ERROR|CRITICAL) \(\w+\) \[(?P<logger>[^\]]+)\] (?P<text>.*)$")

_CONFIGURATION = {
    "homeassistant": {"name": "Home", "time_zone": "UTC", "unit_system": "metric", "currency": "EUR"},
    "api": None,
    "config": None,
    "device_automation": None,
    "history": None,
    "logger": {"default": "info"},
    "recorder": {"commit_interval": 1},
    "websocket_api": None,
}


class Entity(NamedTuple):
    """`name` is that of the entity alone, without its device's; `attributes` are None before there is a state."""

    entity_id: str
    name: str | None
    device: str | None
    disabled: bool
    state: str | None
    attributes: Mapping[str, Any]


class Refused(Exception):
    """Home Assistant answered a command with an error."""


class HomeAssistant:
    """Made before it is started; it may be stopped and started again, with all that it has stored."""

    def __init__(self, folder: Path, broker: int, *, pages: bool, more: Mapping[str, Any]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._pages = pages
        self._process: asyncio.subprocess.Process | None = None
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._listeners: dict[int, Callable[[dict[str, Any]], object]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._number = 0
        self._write(broker, more)

    def _write(self, broker: int, more: Mapping[str, Any]) -> None:
        http = {"server_host": "127.0.0.1", "server_port": self.port}
        settings = yaml.safe_dump({**_CONFIGURATION, "http": http, **more}) + "automation: !include automations.yaml\n"
        (self._folder / ".storage").mkdir(parents=True)
        (self._folder / "configuration.yaml").write_text(settings)
        (self._folder / "automations.yaml").write_text("[]\n")
        entry: dict[str, Any] = {
            "entry_id": "mqtt", "domain": "mqtt", "title": "Mosquitto", "unique_id": None, "source": "user",
            "data": {"broker": "127.0.0.1", "port": broker, "protocol": "5"}, "options": {}, "subentries": [],
            "version": 1, "minor_version": 2, "discovery_keys": {}, "disabled_by": None,
            "pref_disable_new_entities": False, "pref_disable_polling": False,
            "created_at": "2026-01-01T00:00:00+00:00", "modified_at": "2026-01-01T00:00:00+00:00",
        }  # fmt: skip
        store = {"version": 1, "minor_version": 5, "key": "core.config_entries", "data": {"entries": [entry]}}
        (self._folder / ".storage" / "core.config_entries").write_text(json.dumps(store))
        steps = {
            "version": 4,
            "key": "onboarding",
            "data": {"done": ["user", "core_config", "analytics", "integration"]},
        }
        (self._folder / ".storage" / "onboarding").write_text(json.dumps(steps))

    # --- its process

    async def start(self) -> None:
        """Returns when it is up and has been connected to the broker."""
        token = self._folder / "token"
        before = token.stat().st_mtime_ns if token.exists() else 0
        with (self._folder / "output").open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                VENV / "bin" / "python", START, self._folder, *(["--pages"] if self._pages else []),
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        await self.until(lambda: token.exists() and token.stat().st_mtime_ns != before, "it writes its token")
        self._http = aiohttp.ClientSession()
        await self._connect()

    async def _connect(self) -> None:
        assert self._http is not None
        async with asyncio.timeout(PATIENCE):
            while self._socket is None:
                with suppress(aiohttp.ClientError):
                    self._socket = await self._http.ws_connect(f"{self.url}/api/websocket", max_msg_size=0)
                await asyncio.sleep(0.05)
        await self._socket.receive_json()
        await self._socket.send_json({"type": "auth", "access_token": self.token})
        assert (await self._socket.receive_json())["type"] == "auth_ok"
        self._reading = asyncio.create_task(self._read(self._socket))

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._reading is not None:
            self._reading.cancel()
        if self._http is not None:
            await self._http.close()
        self._socket = self._http = self._reading = None
        self._listeners.clear()
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(how)
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    assert self._process is not None
                    assert self._process.returncode is None, f"Home Assistant has ended: {self.output[-2000:]}"
                    await asyncio.sleep(0.05)
                return
        raise AssertionError(f"not within {PATIENCE:g} s: {what}; {self.output[-2000:]}")

    @property
    def token(self) -> str:
        return (self._folder / "token").read_text()

    @property
    def output(self) -> str:
        return (self._folder / "output").read_text(errors="replace")

    @property
    def complaints(self) -> list[str]:
        """The warnings and errors of its log, but those that are there without anybody's fault."""
        lines = map(_LINE.match, self.output.splitlines())
        return [f"{one['logger']}: {one['text']}" for one in lines if one and not _ALWAYS.match(one["text"])]

    # --- its API

    async def ask(self, command: str, **arguments: Any) -> Any:
        """The result of a WebSocket command; raises Refused."""
        return await self._ask(self._next(), command, arguments)

    async def asked(self, command: str, condition: Callable[[Any], bool], what: str) -> Any:
        """The result of a command, asked until it is so."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while not condition(found := await self.ask(command)):
                    await asyncio.sleep(0.1)
                return found
        raise AssertionError(f"not within {PATIENCE:g} s: {what}; {self.complaints}")

    async def on_event(self, event_type: str, listener: Callable[[dict[str, Any]], object]) -> None:
        number = self._next()
        self._listeners[number] = listener
        await self._ask(number, "subscribe_events", {"event_type": event_type})

    def _next(self) -> int:
        self._number += 1
        return self._number

    async def _ask(self, number: int, command: str, arguments: Mapping[str, Any]) -> Any:
        assert self._socket is not None
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "type": command, **arguments})
        async with asyncio.timeout(PATIENCE):
            return await answer

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            found = message.json()
            if found["type"] == "event":
                self._listeners[found["id"]](found["event"])
            elif found["type"] == "result":
                answer = self._answers.pop(found["id"])
                if found["success"]:
                    answer.set_result(found["result"])
                else:
                    answer.set_exception(Refused(str(found["error"])))

    async def post(self, path: str, body: Any) -> Any:
        assert self._http is not None
        headers = {"Authorization": f"Bearer {self.token}"}
        async with self._http.post(f"{self.url}/api/{path}", json=body, headers=headers) as answer:
            if answer.status != 200:
                raise Refused(await answer.text())
            return await answer.json()

    async def call(self, action: str, **data: Any) -> None:
        domain, service = action.split(".")
        await self.ask("call_service", domain=domain, service=service, service_data=data)

    async def entities(self) -> dict[str, Entity]:
        """Those of MQTT by their unique id."""
        states = {one["entity_id"]: one for one in await self.ask("get_states")}
        found = {}
        for one in await self.ask("config/entity_registry/list"):
            if one["platform"] == "mqtt":
                state = states.get(one["entity_id"], {})
                found[one["unique_id"]] = Entity(
                    one["entity_id"],
                    one["name"] or one["original_name"],
                    one["device_id"],
                    one["disabled_by"] is not None,
                    state.get("state"),
                    state.get("attributes", {}),
                )
        return found

    async def devices(self) -> dict[str, dict[str, Any]]:
        """Those of MQTT by their identifier."""
        return {
            one["identifiers"][0][1]: one
            for one in await self.ask("config/device_registry/list")
            if one["identifiers"] and one["identifiers"][0][0] == "mqtt"
        }

    async def automate(self, name: str, **automation: Any) -> None:
        await self.post(f"config/automation/config/{name}", {"alias": name} | automation)

    async def becomes(
        self, condition: Callable[[dict[str, Entity]], bool], what: str, *, within: float = PATIENCE
    ) -> dict[str, Entity]:
        """Waits until its entities are so."""
        found: dict[str, Entity] = {}
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while not condition(found := await self.entities()):
                    await asyncio.sleep(0.1)
                return found
        states = (
            Counter(one.state for one in found.values())
            if len(found) > 100
            else {name: one.state for name, one in found.items()}
        )
        raise AssertionError(f"not within {within:g} s: {what}; {states}; {self.complaints}")


@asynccontextmanager
async def home_assistant(
    folder: Path, broker: int, *, pages: bool = False, more: Mapping[str, Any] | None = None
) -> AsyncIterator[HomeAssistant]:
    """`pages`: with its web pages; `more` goes into its configuration.yaml."""
    one = HomeAssistant(folder / "homeassistant", broker, pages=pages, more=more or {})
    try:
        await one.start()
        yield one
    finally:
        await one.stop()
