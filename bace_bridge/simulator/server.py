from types import TracebackType
from typing import Self

from aiohttp import web

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import RequestSeen
from bace_bridge.simulator.faults import Faults
from bace_bridge.simulator.gate import Gate
from bace_bridge.simulator.routes import Routes

_GRACE = 1.0  # seconds that answers under way get when the server stops


class SimulatedServer:
    """The cloud behind HTTP: `async with SimulatedServer(cloud) as server: server.url`.

    After `stop`, `start` listens on the same port again, with all that the cloud knew.
    """

    def __init__(self, cloud: SimulatedCloud, host: str = "127.0.0.1", port: int = 0) -> None:
        self.cloud = cloud
        self._host = host
        self._port = port
        self._gate = Gate(cloud)
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def requests(self) -> list[RequestSeen]:
        """What was asked so far, the oldest first."""
        return self._gate.requests

    @property
    def faults(self) -> Faults:
        return self._gate.faults

    async def start(self) -> None:
        """Raises OSError when the port is taken."""
        app = web.Application(middlewares=[web.middleware(self._gate)])
        app.on_response_prepare.append(self._gate.on_prepare)
        app.add_routes(Routes(self.cloud).table())
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_GRACE)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self._port = runner.addresses[0][1]

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
