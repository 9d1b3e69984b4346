"""Which data sessions are fetched in one request, how much of them, and whose rows are whose."""

from collections.abc import Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any

import pytest
from msgspec.structs import replace

from bace_bridge.polling.rules.batches import (
    BACK,
    FAILURE_COUNTS_FOR,
    FIRST_SIZE,
    FURTHER_BACK,
    GOOD_BEFORE_GROWTH,
    LEAST_IDS,
    MOST_BACK,
    MOST_IDS,
    MOST_SERIES,
    WAITING,
    BatchSize,
    Member,
    Plan,
    absorb_batch,
    as_partial,
    attribute,
    not_proven,
    plan,
    windows_due,
)
from bace_bridge.polling.rules.datapoints import Datapoint, Emitted, EmittedPoint
from bace_bridge.polling.rules.followed import (
    SILENT_ROUNDS,
    Followed,
    Read,
    after_batch,
    conclude_batch,
    follow,
    own_group,
)
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.polling.rules.windows import LATE_EVERY, SETTLING, Window, WindowState, window_at

NOON = 1_764_590_400
HOUR = Window(NOON, NOON + 3600)
BEFORE = Window(NOON - 3600, NOON)
NOW = NOON + 1800.0
INTERVAL = 15.0


def session(number: int, *, group: str | None = None, fetch_at: float | None = NOW, **more: Any) -> KnownSession:
    found = DataSession(f"s{number}", group or f"g{number}", NOON - 7200.0, datapoint_count=100)
    return replace(KnownSession(session=found, fetch_at=fetch_at), **more)


def well(known: KnownSession, *, series: int = 3, **more: Any) -> Followed:
    made = Followed(
        group_id=known.session.group_id,
        reading=0,
        series=frozenset(f"{known.session.id}-{one}" for one in range(series)),
        raw=True,
        windows={HOUR: WindowState(*HOUR, 0, samples=100)},
        newest={HOUR: NOW - 10},
        count=100,
        at=NOW,
    )
    return replace(made, **more)


def row(known: KnownSession, *, series: int = 0, at: float = NOW - 1, group: str | None = "its own") -> Datapoint:
    name = known.session.group_id if group == "its own" else group
    return Datapoint(f"{known.session.id}-{series}", "device", 6000, at, 1.0, 1.0, 1.0, 1, name)


def planned(
    sessions: Sequence[KnownSession],
    followed: dict[str, Followed] | None = None,
    *,
    alone: Sequence[str] = (),
    size: int = MOST_IDS,
    rows: int = 1000,
    checks: int = 0,
    now: float = NOW,
) -> Plan:
    known_well = {one.session.id: well(one) for one in sessions} if followed is None else followed
    return plan(
        sessions,
        known_well,
        alone=alone,
        size=size,
        rows=rows,
        checks=checks,
        now=now,
        cloud_now=now,
        interval=INTERVAL,
    )


def members(found: Plan) -> list[list[str]]:
    return [[member.id for member in batch.members] for batch in found.batches]


def ids(sessions: Sequence[KnownSession]) -> list[str]:
    return [one.session.id for one in sessions]


def test_sessions_go_together_as_many_as_the_size_allows() -> None:
    sessions = [session(one) for one in range(25)]
    found = planned(sessions, size=10)
    assert list(map(len, members(found))) == [10, 10, 5]
    assert list(chain(*members(found))) == ids(sessions)
    assert found.singles == found.checks == ()


def test_no_batch_is_of_more_than_the_series_that_are_served() -> None:
    sessions = [session(one) for one in range(40)]
    found = planned(sessions, {one.session.id: well(one, series=25) for one in sessions})
    assert {len(batch) for batch in members(found)} == {MOST_SERIES // 25} | {40 % (MOST_SERIES // 25) or 3}


@pytest.mark.parametrize(
    "odd",
    [
        {"session": DataSession("s0", "g0", NOON, end=NOW)},
        {"session": DataSession("s0", "moved", NOON)},
        {"reading": 1},
        {"csv_due": True},
        {"unread": True},
        {"removed": True},
        {"failed_fetches": 1},
    ],
)
def test_what_is_no_plain_active_session_is_fetched_alone(odd: dict[str, Any]) -> None:
    sessions = [session(one) for one in range(10)]
    followed = {one.session.id: well(one) for one in sessions}
    sessions[0] = replace(sessions[0], **odd)
    found = planned(sessions, followed)
    assert ids(found.singles) == ["s0"]
    assert members(found) == [ids(sessions[1:])]


def test_what_is_not_known_well_is_fetched_alone() -> None:
    sessions = [session(one) for one in range(10)]
    followed = {one.session.id: well(one) for one in sessions}
    del followed["s1"]
    followed["s2"] = replace(followed["s2"], alone=True)
    found = planned(sessions, followed, alone=["s3"])
    assert ids(found.singles) == ["s1", "s2", "s3"]


@pytest.mark.parametrize("both_known_well", [True, False])
def test_two_sessions_of_a_group_are_fetched_alone(both_known_well: bool) -> None:
    sessions = [session(one, group="shared" if one in {3, 7} else None) for one in range(12)]
    followed = {one.session.id: well(one) for one in sessions}
    if not both_known_well:
        del followed["s7"]
    assert ids(planned(sessions, followed).singles) == ["s3", "s7"]


def test_one_that_is_not_due_counts_as_another_one_of_its_group() -> None:
    sessions = [session(one, group="shared" if one in {3, 7} else None) for one in range(12)]
    followed = {one.session.id: well(one) for one in sessions}
    assert ids(planned(sessions[:7], followed).singles) == ["s3"]


def test_few_sessions_are_fetched_alone() -> None:
    sessions = [session(one) for one in range(LEAST_IDS)]
    assert members(planned(sessions)) == [ids(sessions)]
    few = planned(sessions[1:])
    assert (few.batches, ids(few.singles)) == ((), ids(sessions[1:]))


def test_what_is_due_soon_fills_up_the_batches_of_what_is_due() -> None:
    sessions = [session(one, fetch_at=NOW + (0 if one < 11 else 5)) for one in range(30)]
    assert list(map(len, members(planned(sessions, size=10)))) == [10, 10]
    later = [session(one, fetch_at=NOW + 5) for one in range(30)]
    assert planned(later) == Plan()


def test_samples_are_read_on_from_a_little_before_they_ended() -> None:
    sessions = [session(one) for one in range(6)]
    followed = {one.session.id: well(one, newest={HOUR: NOW - 20 * number}) for number, one in enumerate(sessions)}
    batch = planned(sessions, followed, size=5, rows=1).batches[0]
    query = batch.query(HOUR)
    assert (query.start, query.end) == (int(NOW) - 80 - BACK, HOUR.end)
    assert query.params[-1] == ("sort", "timestamp_seconds")
    assert [value for name, value in query.params if "[in]" in name] == ids(sessions)[:5]


@pytest.mark.parametrize("unlike", [{"raw": False}, {"newest": {}}])
def test_what_may_be_aggregates_is_read_as_a_whole(unlike: dict[str, Any]) -> None:
    known = session(1)
    assert Member(known, well(known, **unlike)).since(HOUR) == HOUR.start
    assert Member(known, well(known)).since(HOUR) > HOUR.start


def test_what_has_to_be_read_from_long_ago_is_in_batches_of_its_own() -> None:
    sessions = [session(one) for one in range(12)]
    followed = {one.session.id: well(one, raw=one.session.id not in {"s4", "s5"}) for one in sessions}
    found = planned(sessions, followed)
    assert sorted(map(sorted, members(found)))[1] == ["s4", "s5"]


def test_what_misses_something_is_read_further_back_at_once_and_in_every_fourth_round() -> None:
    sessions = [session(one) for one in range(12)]
    for lacking in range(1, 10):
        followed = {
            one.session.id: well(one, lacking=lacking if one.session.id in {"s2", "s7"} else 0) for one in sessions
        }
        found = planned(sessions, followed, rows=1).batches
        backs = sorted((batch.back, len(batch.members)) for batch in found)
        further = lacking in {1, 5, 9}
        assert backs == ([(BACK, 10), (FURTHER_BACK, 2)] if further else [(BACK, 12)])


def test_samples_are_read_again_as_far_as_the_rows_fit() -> None:
    sessions = [session(one) for one in range(6)]
    followed = {one.session.id: well(one, windows={HOUR: WindowState(*HOUR, 0, samples=358)}) for one in sessions}
    backs = [planned(sessions, followed, rows=rows).batches[0].back for rows in (1000, 240, 10)]
    assert backs == [MOST_BACK, 200 - 10 - WAITING, BACK]
    later = [planned(sessions, followed, rows=240, now=NOW + wait).batches[0].back for wait in (50, 170)]
    assert later == [200 - 60 - WAITING, BACK], "what is new since its last turn has to fit, too"
    (batch,) = planned(sessions, followed, rows=240).batches
    assert batch.query(HOUR).start == int(NOW) - 10 - (200 - 10 - WAITING)
    assert batch._replace(members=batch.members[:2]).query(HOUR).start == int(NOW) - 10 - (200 - 10 - WAITING)


def test_a_window_that_is_over_is_read_for_a_minute_then_now_and_then_and_never_for_the_last_time() -> None:
    known = session(1, newest_point_at=NOON - 1.0)
    member = Member(known, well(known, windows={BEFORE: WindowState(*BEFORE, 0), HOUR: WindowState(*HOUR, 0)}))

    def due(after: float, *, over: bool) -> tuple[Window, ...]:
        return windows_due(member, cloud_now=NOON + after, over=over)

    assert due(30, over=False) == due(300, over=True) == due(SETTLING - 1, over=True) == (BEFORE, HOUR)
    assert due(300, over=False) == due(SETTLING, over=True) == (HOUR,)


def test_it_is_the_same_round_for_all_in_which_a_window_that_is_over_is_read() -> None:
    sessions = [session(one, fetch_at=NOON) for one in range(6)]
    windows = {BEFORE: WindowState(*BEFORE, 0), HOUR: WindowState(*HOUR, 0)}
    followed = {one.session.id: well(one, windows=windows) for one in sessions}
    times = [NOON + 300 + INTERVAL * one for one in range(LATE_EVERY)]
    found = [len(planned(sessions, followed, size=5, now=now).batches[0].windows) for now in times]
    assert sorted(found) == [1] * (LATE_EVERY - 1) + [2]


def test_the_windows_of_a_device_whose_clock_is_ahead_are_read() -> None:
    known = session(1, newest_point_at=HOUR.end - 30.0)
    assert windows_due(Member(known, well(known)), cloud_now=NOW, over=False) == (HOUR, window_at(HOUR.end))
    behind = session(1, newest_point_at=NOW - 30.0)
    assert windows_due(Member(behind, well(behind)), cloud_now=HOUR.end - 5.0, over=True) == (HOUR,)


@pytest.mark.parametrize(
    "odd",
    [
        {"windows": {BEFORE: WindowState(*BEFORE, 0)}},
        {"silent": SILENT_ROUNDS},
        {"silent": 1, "count": 99},
        {"lacking": 4, "patience": 4},
    ],
)
def test_only_a_fetch_of_its_own_proves_that_there_is_no_more(odd: dict[str, Any]) -> None:
    sessions = [session(one) for one in range(10)]
    followed = {one.session.id: well(one) for one in sessions}
    followed["s2"] = replace(followed["s2"], **odd)
    found = planned(sessions, followed, checks=2)
    assert ids(found.checks) == ["s2"]
    assert members(found) == [[one for one in ids(sessions) if one != "s2"]]


@pytest.mark.parametrize("fine", [{"silent": 1}, {"lacking": 3, "patience": 4}])
def test_silence_of_a_round_or_a_count_that_never_fits_is_no_reason(fine: dict[str, Any]) -> None:
    sessions = [session(one) for one in range(10)]
    followed = {one.session.id: well(one, **fine) for one in sessions}
    assert planned(sessions, followed, checks=5).checks == ()


def test_what_finds_no_place_for_a_check_stays_in_its_batch() -> None:
    sessions = [session(one) for one in range(10)]
    followed = {one.session.id: well(one, silent=SILENT_ROUNDS) for one in sessions}
    found = planned(sessions, followed, checks=2)
    assert ids(found.checks) == ["s0", "s1"]
    assert members(found) == [ids(sessions[2:])]
    assert planned(sessions, followed, checks=0).checks == ()


def test_rows_are_attributed_by_their_group() -> None:
    one, other, quiet = (session(number) for number in range(3))
    asked = [Member(known, well(known)) for known in (one, other, quiet)]
    rows = [row(one), row(other, series=1), row(other)]
    assert attribute(rows, asked) == {"s0": rows[:1], "s1": rows[1:], "s2": []}


@pytest.mark.parametrize("group", ["another", None])
def test_a_row_of_another_group_or_of_none_discards_the_answer(group: str | None) -> None:
    one, other = session(0), session(1)
    asked = [Member(known, well(known)) for known in (one, other)]
    assert attribute([row(one), row(other, group=group)], asked) is None


def test_of_sessions_that_were_never_fetched_the_batch_has_to_show_all_that_they_count() -> None:
    """Else a row may be that of another one, which was moved out of this group before it was seen."""
    members = [Member(known, well(known, proven=False)) for known in (session(one) for one in range(4))]
    members[3] = Member(members[3].known, well(members[3].known))
    bucket = replace(row(members[0].known), count=100)
    shown = {"s0": [bucket], "s1": [replace(bucket, count=99)], "s2": [], "s3": []}
    reads = {one: [Read(HOUR, rows, True)] for one, rows in shown.items()}
    assert [one.id for one in not_proven(members, reads)] == ["s1", "s2"]


def published(*stamps: float, series: str = "s1-0", count: int = 1) -> Emitted:
    return {series: {stamp: EmittedPoint(1.0, 1.0, 1.0, count, 0) for stamp in stamps}}


ROWS = {HOUR: published(NOW - 1, NOW - 16)}
STATES = {HOUR: WindowState(*HOUR, 0, samples=30)}


def fetched(**more: Any) -> KnownSession:
    """One that began in this hour and has shown rows in a fetch of its own."""
    known = session(1, own_group="g1", newest_point_at=NOW - 1, count_fetched=100)
    return replace(known, session=replace(known.session, start=NOON + 700.0), **more)


def known_well(known: KnownSession, rows: Mapping[Window, Emitted] = ROWS, *, at: float = NOW) -> Followed | None:
    return follow(known, STATES, rows, None, now=at, cloud_now=at)


def test_what_was_published_of_a_session_is_what_batches_go_by() -> None:
    states = {**STATES, BEFORE: WindowState(*BEFORE, 0, settled=True, samples=60)}
    found = follow(fetched(), states, ROWS, None, now=NOW, cloud_now=NOW)
    assert found is not None
    assert (found.windows, found.elsewhere, found.proven) == (STATES, 70, True)
    assert (found.series, found.newest, found.raw) == (frozenset({"s1-0"}), {HOUR: NOW - 1}, True)
    aggregates = known_well(fetched(), {HOUR: published(NOW - 1, NOW - 16, count=2)})
    assert aggregates is not None
    assert not aggregates.raw


def test_hours_that_were_never_read_are_fetched_alone_while_batches_go_on() -> None:
    later = HOUR.end + 3700.0
    found = known_well(fetched(), at=later)
    assert found is not None
    assert found.is_to_be_checked(fetched(), cloud_now=later)
    assert {HOUR, window_at(HOUR.end), window_at(later)} <= {*found.windows}


def test_a_count_that_never_fits_is_looked_into_ever_more_rarely() -> None:
    found, patience = known_well(fetched()), []
    for samples, lacking in ((20, 8), (10, 15), (10, 16), (0, 32), (100, 64)):
        assert found is not None
        states = {HOUR: WindowState(*HOUR, 0, samples=samples)}
        found = follow(fetched(), states, ROWS, replace(found, lacking=lacking), now=NOW, cloud_now=NOW)
        patience.append(found and found.patience)
    assert patience == [16, 16, 32, 64, 8]


@pytest.mark.parametrize("odd", [{"own_group": None}, {"own_group": "g2"}, {"unread": True}, {"failed_fetches": 1}])
def test_what_cannot_be_in_a_batch(odd: dict[str, Any]) -> None:
    assert known_well(fetched()) is not None
    assert known_well(fetched(**odd)) is None


def test_windows_that_are_no_hours_are_in_no_batch() -> None:
    half = Window(NOON, NOON + 1800)
    states = {HOUR: WindowState(*HOUR, 0, settled=True, split=True), half: WindowState(*half, 0)}
    assert follow(fetched(), states, {}, None, now=NOW, cloud_now=NOW) is None


def test_one_that_was_never_fetched_begins_in_a_batch_where_that_can_show_everything() -> None:
    new = fetched(own_group=None, newest_point_at=None)

    def begins(known: KnownSession, states: Mapping[Window, WindowState] = MappingProxyType({})) -> bool:
        found = follow(known, states, {}, None, now=NOW, cloud_now=NOW)
        assert found is None or not found.proven
        return found is not None

    assert begins(new)
    assert not begins(new, STATES), "it has shown no row of its group"
    assert not begins(replace(new, updates=1)), "it may have been moved"
    assert not begins(replace(new, reopenings=1))
    assert not begins(replace(new, own_group="g2"))
    assert not begins(replace(new, session=replace(new.session, start=NOON - 7200.0))), "it has hours before this one"


@pytest.mark.parametrize("changed", [{}, {"updates": 1}, {"reopenings": 1}, {"own_group": "g2"}])
@pytest.mark.parametrize("count", [None, 0, 100])
def test_one_of_which_nothing_was_seen_is_in_batches_that_publish_nothing(
    count: int | None, changed: dict[str, Any]
) -> None:
    known = fetched(**{"own_group": None, "newest_point_at": None, "count_fetched": count} | changed)
    known = replace(known, session=replace(known.session, datapoint_count=count))
    found = follow(known, {HOUR: WindowState(*HOUR, 0)}, {}, None, now=NOW, cloud_now=NOW)
    assert found is not None
    assert (found.is_unseen, found.is_new, found.proven) == (True, False, False)
    silent = [Read(HOUR, (), whole=True)]
    later = after_batch(found, silent, [WindowState(*HOUR, 0)], session=known.session, now=NOW)
    assert (later.is_unseen, later.lacking) == (True, 0)
    concluded = conclude_batch(known, later, newest=None, interval=INTERVAL, now=NOW)
    assert (concluded.own_group, concluded.fetch_at) == (known.own_group, NOW + INTERVAL)
    rows = [Read(HOUR, (row(known),), whole=True)]
    assert absorb_batch(Member(known, found), rows, {HOUR: {}}, {}, now=NOW, cloud_now=NOW) is None
    assert follow(known, {HOUR: WindowState(*HOUR, 0, samples=1)}, {}, None, now=NOW, cloud_now=NOW) is None


def test_those_of_which_nothing_was_seen_are_in_batches_of_their_own() -> None:
    sessions = [session(one) for one in range(40)]
    followed = {one.session.id: well(one) for one in sessions}
    for one in sessions[::2]:
        followed[one.session.id] = well(one, proven=False, silent=1, series=0, windows={}, newest={}, raw=False)
    assert sorted(members(planned(sessions, followed))) == sorted([ids(sessions[::2]), ids(sessions[1::2])])


@pytest.mark.parametrize(
    ("groups", "own", "found"),
    [
        (["g1"], True, "g1"),
        (["g1", "g2"], True, None),
        ([None], True, None),
        (["g1"], False, None),
        ([], True, "before"),
    ],
)
def test_the_group_that_is_kept_is_that_of_all_rows(groups: list[str | None], own: bool, found: str | None) -> None:
    assert own_group(session(1, own_group="before"), groups, own=own) == found


def after(before: Followed, *rows: Datapoint, samples: int = 0, whole: bool = True, count: int = 100) -> Followed:
    state = WindowState(*HOUR, 0, samples=samples)
    row_of_it = DataSession("s1", "g1", NOON, datapoint_count=count, updated_at=NOW)
    return after_batch(before, [Read(HOUR, rows, whole)], [state], session=row_of_it, now=NOW + 15)


@pytest.mark.parametrize(
    ("stamps", "whole", "raw"),
    [((1, 16), True, True), ((1, 61), True, False), ((1, 16), False, False), ((0, 0), True, True)],
)
def test_two_rows_in_a_minute_of_a_whole_hour_are_samples(stamps: Sequence[int], whole: bool, raw: bool) -> None:
    known = session(1)
    rows = [row(known, at=NOON + 120 + stamp + one / 10) for one, stamp in enumerate(stamps)]
    assert after(well(known, raw=False), *rows, whole=whole).raw is raw
    aggregate = replace(rows[0], count=2)
    assert not after(well(known, raw=False), *rows, aggregate, whole=whole).raw


def test_a_batch_settles_no_window_and_takes_no_samples_away() -> None:
    state = WindowState(*HOUR, 0, settled=True, samples=7, raw_until=NOW)
    before = WindowState(*HOUR, 0, samples=9)
    assert as_partial(state, before, whole=True) == before
    assert as_partial(state, before, whole=False) == WindowState(*HOUR, 0, samples=7)
    assert as_partial(state, None, whole=True) == WindowState(*HOUR, 0, samples=7)


def test_silence_is_counted_until_a_row_comes() -> None:
    known = session(1)
    once = after(well(known, elsewhere=1), samples=100, count=103)
    twice = after(once, samples=100, count=106)
    assert (twice.silent, twice.lacking, twice.count) == (2, 2, 100)
    spoken = after(twice, row(known), samples=105, count=106)
    assert (spoken.silent, spoken.lacking, spoken.count) == (0, 0, 106)
    newer = after(spoken, row(known), row(known, at=NOW + 5), samples=106, count=107)
    assert newer.lacking == 1, "the sample after its row's last update is none that the row counts"


def test_a_session_is_due_again_after_a_batch() -> None:
    known = session(1, newest_point_at=NOW - 100)
    after = conclude_batch(known, well(known), newest=NOW - 5, interval=INTERVAL, now=NOW)
    assert (after.fetch_at, after.fetched_at, after.newest_point_at) == (NOW + INTERVAL, NOW, NOW - 5)
    assert (after.count_fetched, after.points_since_csv) == (100, True)
    silent = conclude_batch(known, well(known, lacking=1), newest=None, interval=INTERVAL, now=NOW)
    assert (silent.newest_point_at, silent.count_fetched, silent.points_since_csv) == (NOW - 100, None, False)


def test_a_long_silence_is_no_view() -> None:
    known = session(1, fetched_at=NOW - 90)
    silent = well(known, silent=SILENT_ROUNDS + 1)
    assert conclude_batch(known, silent, newest=None, interval=INTERVAL, now=NOW).fetched_at == NOW - 90


def test_one_that_ended_meanwhile_keeps_the_fetch_that_was_called_for() -> None:
    known = session(1, fetch_at=NOW - 3)
    over = replace(known, session=replace(known.session, end=NOW - 4))
    after = conclude_batch(over, well(known), newest=NOW - 5, interval=INTERVAL, now=NOW)
    assert after == replace(over, newest_point_at=NOW - 5, points_since_csv=True)


def passes(size: BatchSize, times: int, *, now: float = NOW) -> BatchSize:
    for _ in range(times):
        size = size.after_success(size.ids, now=now)
    return size


def test_the_size_grows_by_half_after_some_full_batches() -> None:
    assert passes(BatchSize(), GOOD_BEFORE_GROWTH - 1).ids == FIRST_SIZE
    assert passes(BatchSize(), GOOD_BEFORE_GROWTH).ids == FIRST_SIZE + FIRST_SIZE // 2
    assert passes(BatchSize(), 3 * GOOD_BEFORE_GROWTH).ids == MOST_IDS
    assert passes(BatchSize(ids=1), GOOD_BEFORE_GROWTH).ids == 2
    few = BatchSize()
    for _ in range(100):
        few = few.after_success(FIRST_SIZE - 1, now=NOW)
    assert few.ids == FIRST_SIZE


def test_the_size_goes_back_to_what_passed_and_then_up_by_one_to_below_what_failed() -> None:
    ten = passes(BatchSize(), GOOD_BEFORE_GROWTH)
    seven = ten.after_failure(10, now=NOW)
    assert seven.ids == 7
    assert passes(seven, GOOD_BEFORE_GROWTH, now=NOW).ids == 8
    nine = passes(seven, 100, now=NOW + 1800)
    assert nine.ids == 9
    assert passes(nine, GOOD_BEFORE_GROWTH, now=NOW + FAILURE_COUNTS_FOR).ids == 13


def test_what_never_passed_is_halved() -> None:
    size = BatchSize().after_failure(7, now=NOW)
    assert size.ids == 3
    assert size.after_failure(3, now=NOW).ids == size.after_failure(1, now=NOW).ids == 1
    passed_once = passes(size, 1)
    assert passed_once.after_failure(3, now=NOW).ids == 2, "what passed before has failed now"
    assert size.after_failure(7, now=NOW).ids == 3, "a second one that was under way"
