"""The simulated cloud of a fleet in a process of its own: `python -m bench.fleet_cloud PORT PLAN`, the plan in JSON.

A line on stdin is a command, its answer a line of JSON: `stop` (no more points), `made`, `requests`, `end ID ...`.
"""

import asyncio
import sys
import time

import msgspec

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import RequestSeen
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.server import SimulatedServer
from bench.fleet_points import Fleet, Made, Plan, finished

TICK = 0.05
KINDS = {
    "/api/v2/data-session": "list",
    "/api/v2/data-session/index": "list",
    "/api/v2/data-session/view": "view",
    "/api/v2/data-downsampled": "datapoints",
    "/api/v2/group": "group",
}


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """A request. `names` are the data sessions that it asks for, `is_live` where it is for their newest points."""

    at: float
    kind: str
    status: int
    names: list[str]
    is_live: bool


def asked(seen: RequestSeen, ahead: float) -> Asked:
    kind = KINDS.get(seen.path, "other")
    names = [value for name, value in seen.query if name.startswith("filter[id_data_session]") or name == "id"]
    query = dict(seen.query)
    lower, upper = (_bound(query, *pair) for pair in (("gte", "gt"), ("lt", "lte")))
    is_live = (
        kind == "datapoints"
        and query.get("page", "1") == "1"
        and lower is not None
        and lower <= seen.at
        and (upper is None or seen.at <= upper)
    )
    return Asked(seen.at - ahead, kind, seen.status, names, is_live)


def _bound(query: dict[str, str], *operators: str) -> float | None:
    found = [query.get(f"filter[timestamp_seconds][{operator}]") for operator in operators]
    return next((float(one) for one in found if one is not None), None)


class Serving:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.cloud = SimulatedCloud(clock=lambda: time.time() + plan.ahead, quirks=Quirks.parse(plan.quirks))
        self.fleet = Fleet(self.cloud, plan) if plan.kind == "fleet" else None
        self._once = finished(self.cloud, plan) if self.fleet is None else None
        if self.fleet is not None:
            self.fleet.advance()

    @property
    def sessions(self) -> list[str]:
        return self.fleet.sessions if self.fleet is not None else [self._once[0]] if self._once else []

    @property
    def made(self) -> list[Made]:
        return self.fleet.made if self.fleet is not None else self._once[1] if self._once else []

    async def produce(self) -> None:
        while self.fleet is not None:
            self.fleet.advance()
            await asyncio.sleep(TICK)

    def answer(self, line: str, requests: list[RequestSeen]) -> object:
        command, *names = line.split()
        if command == "made":
            return self.made
        if command == "requests":
            return [asked(one, self._plan.ahead) for one in requests]
        if command == "stop" and self.fleet is not None:
            self.fleet.stop()
        if command == "end":
            for name in names:
                self.cloud.end_session(name)
                self.cloud.finish_ingestion(name)
        return None


async def main(port: int, plan: Plan) -> None:
    serving = Serving(plan)
    async with SimulatedServer(serving.cloud, port=port) as server:
        say({"url": server.url, "sessions": serving.sessions})
        producing = asyncio.create_task(serving.produce())
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        while line := (await commands.readline()).decode().strip():
            say(serving.answer(line, server.requests))
        producing.cancel()


def say(answer: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=Plan)))
