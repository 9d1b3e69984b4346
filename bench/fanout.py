"""Many webhooks that get the same events: `python -m bench.fanout URL` is the process that is measured."""

import asyncio
import contextlib
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import structlog

from bench import machinery
from bench.deliveries import Delivered, dispatcher_of, webhook_sink
from bench.outages import peak_mb
from bench.processes import resident_mb
from bench.report import Row

SINKS = 50
EVENTS = 2_000
SESSIONS = 100


def fanout(runs: int) -> list[Row]:
    """50 webhooks with a backlog of 2,000 events each, all at once."""
    rates, growths = [], []
    for _ in range(max(1, runs // 2)):
        port = machinery.free_port()
        with machinery.child("bench.receiver", str(port)) as receiver:
            assert receiver.stdout is not None
            receiver.stdout.readline()
            with machinery.child("bench.fanout", f"http://127.0.0.1:{port}") as bridge:
                assert bridge.stdout is not None
                rate, growth = json.loads(bridge.stdout.readline())
                rates.append(rate)
                growths.append(growth)
    return [
        Row(f"deliveries/s, {SINKS} webhooks x {EVENTS:,} events", rates),
        Row("peak memory meanwhile, over that before", growths, unit=" MB"),
    ]


async def measured(url: str) -> tuple[float, float]:
    """Deliveries a second, and how many MB the process grew by."""
    events = machinery.session_events(EVENTS, sessions=SESSIONS)
    names = [f"hook-{number}" for number in range(SINKS)]
    with tempfile.TemporaryDirectory() as folder:
        async with machinery.filled_log(Path(folder), events, sinks=names) as (log, _), asyncio.TaskGroup() as group:
            del events
            delivered = Delivered(SINKS * EVENTS)
            sinks = [webhook_sink(name, f"{url}/{name}") for name in names]
            dispatchers = [dispatcher_of(sink, log, delivered) for sink in sinks]
            posting = [group.create_task(sink.run()) for sink in sinks]
            await asyncio.gather(*(sink.ready() for sink in sinks))
            before, started = resident_mb(), time.perf_counter()
            running = [group.create_task(dispatcher.run()) for dispatcher in dispatchers]
            await delivered.complete()
            for task in running:
                task.cancel()
            await asyncio.gather(*(dispatcher.settle() for dispatcher in dispatchers))
            seconds = time.perf_counter() - started
            growth = peak_mb() - before
            await asyncio.gather(*(sink.close() for sink in sinks))
            await asyncio.gather(*posting)
            left = sum([await log.backlog(name) for name in await log.sinks()])
            assert left == 0, f"{left} deliveries are not recorded"
    return SINKS * EVENTS / seconds, growth


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(asyncio.run(measured(sys.argv[1]))), flush=True)
