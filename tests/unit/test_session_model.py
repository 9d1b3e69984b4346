"""Random histories of one data session through `observe`, `compare` and `conclude`, as polling puts them together."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from bace_bridge.events.types import Event
from bace_bridge.polling.rules.datapoints import Datapoint, Emitted, compare, datapoint_events
from bace_bridge.polling.rules.fetches import Outcome, conclude
from bace_bridge.polling.rules.sessions import DataSession, KnownSession, observe, observe_absence
from bace_bridge.polling.rules.summaries import EMPTY
from tests.models import examples

NOON = 1_764_590_400.0
INTERVAL = 15.0
LABELS = (None, "Night", "Day")


@dataclass
class UnderWay:
    """A visit that has read its points; the row may change before what it found is committed."""

    known: KnownSession
    points: list[Datapoint]
    gone: bool


@dataclass
class Log:
    """What was told, and what may never be told."""

    events: list[Event] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    ended: bool = False
    removed: bool = False
    revision: int = -1
    csv_count: int | None = None
    points_after_csv: bool = False

    def append(self, event: Event) -> None:
        assert event.id not in self.ids, f"{event.type} is told twice with one id"
        assert (event.type == "session.started") == (not self.events), "started comes first, and once"
        data: dict[str, Any] = msgspec.json.decode(event.data)
        match event.type:
            case "session.ended":
                assert not self.ended
                assert data["session"]["state"] != "active"
                self.ended = True
            case "session.reopened":
                assert self.ended or self.removed
                assert data["session"]["ended_at"] is None
                self.ended = self.removed = False
            case "session.removed":
                self.removed = True
            case "session.csv_ready":
                assert self.ended
                assert data["csv"]["revision"] == self.revision + 1
                self.revision += 1
                self.csv_count = data["csv"]["datapoint_count"]
                self.points_after_csv = False
            case "session.datapoints":
                self.points_after_csv = True
        self.events.append(event)
        self.ids.add(event.id)


class OneSession(RuleBasedStateMachine):
    stamped = True
    """False: a cloud that does not say when a session was updated."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOON
        self.row = DataSession("s1", "g1", NOON, created_at=NOON, datapoint_count=0)
        self.points: list[Datapoint] = []
        self.in_cloud = True
        self.seen: list[DataSession] = []
        self.known: KnownSession | None = None
        self.emitted: Emitted = {}
        self.visit: UnderWay | None = None
        self.log = Log()
        self.change()

    # --- what happens in the cloud

    def change(self, **changes: Any) -> None:
        stamp = float(int(self.now)) if self.stamped else None
        self.row = replace(self.row, updated_at=stamp, **changes)

    @rule(count=st.integers(1, 3), back=st.integers(0, 600))
    def points_come(self, count: int, back: int) -> None:
        for number in range(count):
            stamp, value = self.now - back + number / 8, float(len(self.points))
            self.points.append(Datapoint("series", "device", 6000, stamp, value, value, value, 1))
        self.change(datapoint_count=len(self.points))

    @precondition(lambda self: self.points)
    @rule(which=st.integers(0, 50))
    def a_point_changes(self, which: int) -> None:
        point = self.points[which % len(self.points)]
        self.points[which % len(self.points)] = replace(point, count=point.count + 1)
        self.change()

    @rule(label=st.sampled_from(LABELS))
    def rename(self, label: str | None) -> None:
        self.change(label=label)

    @rule(group=st.sampled_from(["g1", "g2"]))
    def move(self, group: str) -> None:
        self.change(group_id=group)

    @precondition(lambda self: self.row.end is None)
    @rule()
    def end(self) -> None:
        self.change(end=float(int(self.now)))

    @precondition(lambda self: self.row.end is not None)
    @rule(later=st.integers(1, 100))
    def correct_the_end(self, later: int) -> None:
        assert self.row.end is not None
        self.change(end=self.row.end + later)

    @precondition(lambda self: self.row.end is not None)
    @rule(still_ingested=st.booleans())
    def reopen(self, still_ingested: bool) -> None:
        self.change(end=None, ingestion_finished=still_ingested and self.row.ingestion_finished)

    @precondition(lambda self: self.row.end is not None)
    @rule()
    def ingest(self) -> None:
        self.change(ingestion_finished=True)

    @precondition(lambda self: self.row.ingestion_finished)
    @rule()
    def ingest_again(self) -> None:
        self.change(ingestion_finished=False)

    @rule(silently=st.booleans())
    def remove_or_restore(self, silently: bool) -> None:
        """Silently: a permission was taken or given, and the row itself did not change."""
        self.in_cloud = not self.in_cloud
        if not silently:
            self.change()

    @rule(seconds=st.sampled_from([0.25, 1.0, 10.0, 31.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # --- what the watcher does

    @rule()
    def poll(self) -> None:
        if self.in_cloud:
            self.show(self.row)
        elif self.known is not None and (gone := observe_absence(self.known, now=self.now)) is not None:
            self.keep(gone.known, gone.events)
            assert observe_absence(gone.known, now=self.now + 1) is None

    @precondition(lambda self: self.stamped and self.seen)
    @rule(which=st.integers(0, 50))
    def a_page_shows_an_old_row(self, which: int) -> None:
        old = self.seen[which % len(self.seen)]
        if self.known is not None and old.updated_at != self.known.session.updated_at:
            assert observe(self.known, old, device_label="D", start_from=0.0, now=self.now) is None

    def show(self, row: DataSession) -> None:
        found = observe(self.known, row, device_label="D", start_from=0.0, now=self.now)
        if found is not None:
            self.keep(found.known, found.events)
        self.seen.append(row)
        again = observe(self.known, row, device_label="D", start_from=0.0, now=self.now + 1)
        assert again is None, "the same snapshot twice tells something"

    @precondition(
        lambda self: (
            self.visit is None
            and self.known is not None
            and self.known.fetch_at is not None
            and self.known.fetch_at <= self.now
        )
    )
    @rule()
    def a_visit_reads(self) -> None:
        assert self.known is not None
        points = list(self.points) if self.in_cloud else []
        self.visit = UnderWay(self.known, points, gone=not self.in_cloud)

    @precondition(lambda self: self.visit is not None)
    @rule()
    def a_visit_commits_midway(self) -> None:
        self.commit(None)

    @precondition(lambda self: self.visit is not None)
    @rule(outcome=st.sampled_from(["read", "read", "failed", "unavailable"]))
    def a_visit_ends(self, outcome: Outcome) -> None:
        assert self.visit is not None
        self.commit("failed" if self.visit.gone and outcome == "read" else outcome)
        self.visit = None

    @rule()
    def restart(self) -> None:
        self.visit = None
        if self.known is not None:
            stored = msgspec.json.encode(self.known)
            assert msgspec.json.decode(stored, type=KnownSession) == self.known

    def commit(self, outcome: Outcome | None) -> None:
        assert self.visit is not None
        assert self.known is not None
        self.emitted, changed = compare(self.emitted, self.visit.points if outcome in {"read", None} else [])
        pending = datapoint_events(self.visit.known, changed, {}, now=self.now)
        fresh = replace(self.known, points_since_csv=self.known.points_since_csv or bool(pending))
        begun = self.visit.known
        if outcome == "read" and (fresh.reading, fresh.session.end) != (begun.reading, begun.session.end):
            outcome = "more"
        concluded = conclude(fresh, outcome, summary=EMPTY, csv_url="url", interval=INTERVAL, now=self.now)
        self.keep(concluded.known, (*pending, *concluded.events))
        again = conclude(concluded.known, outcome, summary=EMPTY, csv_url="url", interval=INTERVAL, now=self.now + 1)
        assert not again.events, "the same visit twice tells something"

    def keep(self, known: KnownSession, told: tuple[Event, ...]) -> None:
        self.known = known
        for event in told:
            self.log.append(event)

    # --- what always holds

    @invariant()
    def what_is_known_agrees_with_what_was_told(self) -> None:
        if self.known is None:
            assert not self.log.events
            return
        assert (self.known.end_emitted is not None) == self.log.ended
        assert (-1 if self.known.csv_revision is None else self.known.csv_revision) == self.log.revision
        if self.known.unfinished:
            assert self.known.fetch_at is not None, "nobody would ever visit it again"

    def teardown(self) -> None:
        """When the cloud is at rest, everything that is true of it gets told."""
        self.in_cloud, self.visit = True, None
        self.now += 1
        self.poll()
        for _ in range(12):
            assert self.known is not None
            if self.known.fetch_at is None:
                break
            self.now = max(self.now, self.known.fetch_at)
            self.a_visit_reads()
            self.a_visit_ends("read")
            self.poll()
        assert self.log.ended == (self.row.end is not None)
        if self.row.state == "ingested":
            assert self.known is not None
            assert self.known.fetch_at is None
            assert self.log.revision >= 0
            assert self.log.csv_count == self.row.datapoint_count
            assert not self.log.points_after_csv


class UnstampedSession(OneSession):
    stamped = False


@pytest.mark.hypothesis
def test_whatever_happens_to_a_session_its_events_keep_the_order_of_the_contract() -> None:
    run_state_machine_as_test(OneSession, settings=settings(max_examples=examples(400), stateful_step_count=40))


@pytest.mark.hypothesis
def test_the_same_holds_where_the_cloud_does_not_say_when_a_session_was_updated() -> None:
    run_state_machine_as_test(UnstampedSession, settings=settings(max_examples=examples(150), stateful_step_count=30))
