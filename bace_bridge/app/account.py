"""One BACE account: the login, its HTTP and its request budget, the polling of what it sees, and how that goes."""

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import NamedTuple

from bace_bridge.app.running import Clocks, Signal
from bace_bridge.app.storage import Storage
from bace_bridge.cloud.api import BaceCloud, csv_url
from bace_bridge.cloud.budget import RequestBudget
from bace_bridge.cloud.http import CloudHttp, Download, TokenSource
from bace_bridge.cloud.tokens import Credentials, FixedToken, RequestToken, Tokens, TokenStore
from bace_bridge.config.datatypes import DatatypeConfig
from bace_bridge.config.models import CloudConfig, WatchConfig
from bace_bridge.polling.batch_fetch import BatchFetch
from bace_bridge.polling.datapoint_fetch import DatapointFetch, FetchSettings
from bace_bridge.polling.list_poll import ListPoll
from bace_bridge.polling.loops import DatapointLoop, SessionLoop
from bace_bridge.polling.points import PointEndpoint
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules.changes import Urgency
from bace_bridge.polling.rules.datapoints import Datatype
from bace_bridge.polling.rules.session_list import FirstStart
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.polling.session_lists import PollSettings
from bace_bridge.redaction import Redaction
from bace_bridge.status.health import Polling


class AccountConfig(NamedTuple):
    """What the configuration says of an account; while it stays the same, so does the account."""

    cloud: CloudConfig
    watch: WatchConfig
    datatypes: Mapping[int, DatatypeConfig]


@dataclass(eq=False)
class Account:
    """Polls until it is stopped, and answers for it. `interval` is the session list's, in seconds."""

    http: CloudHttp
    poll: ListPoll
    sessions: SessionLoop
    datapoints: DatapointLoop
    _: KW_ONLY
    interval: float
    monotonic: Callable[[], float]

    async def run(self, stop: asyncio.Event) -> None:
        # The connections are closed last: a loop that is cancelled amid a request needs them until it has ended.
        async with self.http, asyncio.TaskGroup() as group:
            loops = [group.create_task(self.sessions.run()), group.create_task(self.datapoints.run())]
            await stop.wait()
            for loop in loops:
                loop.cancel()

    @property
    def usable(self) -> bool:
        """False while the cloud is away or refuses the login; a first poll, which may be long, goes on."""
        # To begin anew costs the memory of what was asked; where nothing works, there is nothing to lose.
        return not self.sessions.outage.failures

    def csv(self, session_id: str) -> AbstractAsyncContextManager[Download]:
        """Over this account's connections, with its token, and within its request budget. Raises CloudError."""
        return BaceCloud(self.http).csv(session_id)

    def clock_stepped(self, seconds: float) -> None:
        self.sessions.clock_stepped(seconds)
        self.http.clock_stepped(seconds)

    def silent_for(self) -> dict[str, float]:
        """Seconds since each loop made progress; negative while there need not be any."""
        # An answer counts as progress of both: a poll of thousands of pages within the budget may take many minutes.
        now, answered = self.monotonic(), self.http.active_at
        return {
            # A long answer is progress, too: a first poll of a large account may take minutes.
            "sessions": now - max(self.sessions.beat_at, self.sessions.next_beat_at, answered),
            "datapoints": now - max(self.datapoints.beat_at, answered),
        }

    def ready(self) -> dict[str, str | None]:
        """Why the cloud cannot be used, and why the last poll could not be kept; None where they can."""
        return {"cloud": self._cloud_problem, "store": self.sessions.store_problem}

    def degraded(self) -> dict[str, str | None]:
        """What does not work while the account as a whole does."""
        unread = self.poll.unreadable
        return {
            "sessions": f"{len(unread)} unreadable records: {'; '.join(unread[:3])}" if unread else None,
            "groups": self.poll.selection_problem,
            # With the cloud away every fetch fails, and that is said once, by `ready`.
            "datapoints": self.datapoints.problem if self._cloud_problem is None else None,
        }

    @property
    def view_is_current(self) -> bool:
        """True while the last poll of the session list went well; a device's datapoints may be old all the same."""
        return self._cloud_problem is None and self.sessions.store_problem is None

    def polling(self) -> Polling:
        sessions = self.sessions
        return Polling(
            self.poll.strategy, self.interval, sessions.last_success_at, sessions.next_poll_at, self.http.clock_ahead
        )

    @property
    def _cloud_problem(self) -> str | None:
        if self.sessions.outage.failures:
            return self.sessions.outage.reason
        return None if self.sessions.last_success_at is not None else "not asked yet"


class AccountBuilder(NamedTuple):
    """Builds accounts over one store.

    `deciding` is held from reading what is known to the commit; `polled` is called after each poll of a session list.
    """

    store: Storage
    deciding: asyncio.Lock
    polled: Callable[[], None]
    redaction: Redaction
    clocks: Clocks
    version: str

    def build(self, config: AccountConfig) -> Account:
        clock, monotonic = self.clocks.steady, self.clocks.monotonic
        http = cloud_http(
            config.cloud, self.store.facts, self.redaction, version=self.version, clock=clock, monotonic=monotonic
        )
        cloud = BaceCloud(http)
        poll = self._list_poll(config, cloud)
        datapoints = self._datapoint_loop(config, cloud)
        # Datapoints follow at once: a poll that finds a session changed is the only sign that it has new ones.
        polled: Signal[[]] = Signal()
        # A session that has just started is fetched at once, not at the next interval.
        polled.listen(datapoints.poll_now)
        polled.listen(self.polled)
        interval = config.watch.session_interval
        sessions = SessionLoop(
            poll.poll,
            self.store.journal,
            interval=interval,
            clock=clock,
            monotonic=monotonic,
            jitter=random.random,
            after_poll=polled,
        )
        return Account(http, poll, sessions, datapoints, interval=interval, monotonic=monotonic)

    def _list_poll(self, config: AccountConfig, cloud: BaceCloud) -> ListPoll:
        watch, groups = config.watch, config.cloud.groups
        return ListPoll(
            cloud,
            SessionRecorder(cloud, self.store.journal, groups=groups, deciding=self.deciding, clock=self.clocks.steady),
            PollSettings(
                first_start=FirstStart(watch.start_from.kind, watch.start_from.seconds),
                session_interval=watch.session_interval,
                recheck_interval=watch.recheck_interval,
                backfill_interval=watch.backfill_interval,
                requests_per_minute=config.cloud.requests_per_minute,
            ),
        )

    def _datapoint_loop(self, config: AccountConfig, cloud: BaceCloud) -> DatapointLoop:
        journal, deciding, clock = self.store.journal, self.deciding, self.clocks.steady
        endpoint = PointEndpoint(cloud, clock=clock)
        settings = FetchSettings(
            interval=config.watch.datapoint_interval,
            resolution=config.watch.resolution,
            datatypes={number: Datatype(one.name, one.unit) for number, one in config.datatypes.items()},
            csv_url=partial(csv_url, config.cloud.url),
        )
        batches = BatchFetch(cloud, endpoint, journal, settings, deciding=deciding, clock=clock)

        def of(known: KnownSession, urgency: Urgency = Urgency.LIVE) -> DatapointFetch:
            return DatapointFetch(
                known, cloud, endpoint, journal, settings, urgency=urgency, deciding=deciding, clock=clock
            )

        return DatapointLoop(
            journal,
            lambda known, urgency: batches.alone(of(known, urgency)),
            lambda known: of(known).emit_end(),
            endpoint,
            batches,
            interval=config.watch.datapoint_interval,
            clock=clock,
            monotonic=self.clocks.monotonic,
            jitter=random.random,
        )


def cloud_http(
    cloud: CloudConfig,
    store: TokenStore,
    redaction: Redaction,
    *,
    version: str,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> CloudHttp:
    """The HTTP of an account, with its tokens and its budget.

    `store` is where its tokens come from and go; `redaction` learns them.
    """

    # A function, since the tokens are requested over the very HTTP that they are for.
    def tokens(request_token: RequestToken) -> TokenSource:
        if cloud.access_token is not None:
            return FixedToken(cloud.access_token.get_secret_value())
        # `mistakes_between` refuses a login that is incomplete.
        assert cloud.client_id is not None
        assert cloud.client_secret is not None
        assert cloud.username is not None
        assert cloud.password is not None
        client_secret, password = cloud.client_secret.get_secret_value(), cloud.password.get_secret_value()
        login = Credentials(cloud.client_id, client_secret, cloud.username, password)
        # Tokens are kept by account: another password does not make them somebody else's.
        name = fingerprint(cloud.url, cloud.client_id, cloud.username)
        return Tokens(name, login, store, request_token, clock=clock, monotonic=monotonic)

    budget = RequestBudget(cloud.requests_per_minute, clock=monotonic)
    return CloudHttp(
        cloud.url,
        budget,
        tokens,
        timeout=cloud.timeout,
        version=version,
        redaction=redaction,
        clock=clock,
        monotonic=monotonic,
    )


def fingerprint(*parts: str) -> str:
    """Distinguishes targets and accounts in the store without holding the credential that a URL may be."""
    # One way: a webhook's URL is a credential, and the store may be copied to whom asks for help.
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=12).hexdigest()
