"""Many active data sessions in the simulated cloud, and what was published of them."""

from collections import defaultdict
from collections.abc import Sequence

from bace_bridge.events.types import LoggedEvent
from bace_bridge.formats import iso_utc
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import RequestSeen
from bace_bridge.simulator.samples import buckets
from tests.integration.polling_line import Clock, Watching, data

POINTS = "/api/v2/data-downsampled"
IN = "filter[id_data_session][in][]"
INTERVAL = 15.0


class Fleet:
    """Active data sessions, each on a device of its own, each with as many series, and what was published of them."""

    def __init__(self, cloud: SimulatedCloud, clock: Clock, sessions: int, *, series: int = 3) -> None:
        self.cloud, self.clock = cloud, clock
        self.devices = [
            cloud.add_device(f"BaceGo-{one}", datatypes=range(6000, 6000 + series)) for one in range(sessions)
        ]
        self.sessions = [cloud.open_session(device.id_group) for device in self.devices]
        self.values = 0

    def measure(self, session: str, *, at: float | None = None) -> None:
        """A sample of each of the session's series."""
        device = self.devices[self.sessions.index(session)]
        for one in device.series:
            self.values += 1
            stamp = self.clock.now - 1 if at is None else at
            self.cloud.add_points(session, one.id_container_data_latest, [(stamp, float(self.values))])

    async def goes_on(self, watch: Watching, rounds: int, *, quiet: Sequence[str] = ()) -> None:
        """A sample of each series an interval, but of those that are quiet; a poll and a round of fetches after it."""
        for _ in range(rounds):
            self.clock.forward(INTERVAL)
            for session in self.sessions:
                if session not in quiet:
                    self.measure(session)
            await watch.list_poll.poll()
            await watch.fetch_round()

    async def ends(self, watch: Watching) -> None:
        for session in self.sessions:
            self.cloud.end_session(session)
            self.cloud.finish_ingestion(session)
        for _ in range(3):
            self.clock.forward(INTERVAL)
            await watch.poll()


Key = tuple[str | None, str, str]


def published(events: Sequence[LoggedEvent]) -> dict[Key, list[tuple[int, float, int]]]:
    """By session, series and time: the revisions in their order, each with its value and count."""
    found: dict[Key, list[tuple[int, float, int]]] = defaultdict(list)
    for logged in events:
        if logged.event.type == "session.datapoints":
            for point in data(logged)["datapoints"]:
                key = (logged.event.session_id, point["series_id"], point["timestamp"])
                found[key].append((point["revision"], point["avg"], point["count"]))
    return found


def served(cloud: SimulatedCloud, session: str, *, width: float = 0.0) -> dict[Key, tuple[float, int]]:
    return {
        (session, series, iso_utc(row.timestamp)): (row.avg_val, row.count_val)
        for series, track in cloud.samples.of(session).items()
        for row in buckets(track.times, track.values, width)
    }


async def check(watch: Watching, cloud: SimulatedCloud, sessions: Sequence[str], *, width: float = 0.0) -> None:
    """Everything that the cloud has was published under its session, each revision once, and nothing else was.

    A bucket of `width` seconds was a lone sample, the first one, before it was one.
    """
    found = published(await watch.all_events())
    assert all([revision for revision, _, _ in chain] == list(range(len(chain))) for chain in found.values())
    last = {key: chain[-1][1:] for key, chain in found.items()}
    expected = {key: value for one in sessions for key, value in served(cloud, one, width=width).items()}
    assert {key: last.get(key) for key in expected} == expected
    assert {*last} - {*expected} <= {key for one in sessions if width for key in firsts(cloud, one, width=width)}


def firsts(cloud: SimulatedCloud, session: str, *, width: float) -> set[Key]:
    return {
        (session, series, iso_utc(min(at for at in track.times if at // width == time // width)))
        for series, track in cloud.samples.of(session).items()
        for time in track.times
    }


def fetches(watch: Watching, since: int = 0) -> list[RequestSeen]:
    return [one for one in watch.server.requests[since:] if one.path == POINTS]


def ids(request: RequestSeen) -> list[str]:
    return [value for name, value in request.query if name == IN]


def batches(watch: Watching, since: int = 0) -> list[RequestSeen]:
    return [one for one in fetches(watch, since) if len(ids(one)) > 1]


def alone(watch: Watching, session: str, since: int = 0) -> int:
    """The requests for this session alone."""
    return sum(("filter[id_data_session]", session) in one.query for one in fetches(watch, since))


def fetched_alone(watch: Watching, sessions: Sequence[str], since: int = 0) -> set[tuple[str, float]]:
    """These sessions, each with the times at which it was fetched on its own, in however many requests."""
    singles = ((dict(one.query).get("filter[id_data_session]", ""), one.at) for one in fetches(watch, since))
    return {(session, at) for session, at in singles if session in sessions}
