from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.player import Step, play, timeline
from bace_bridge.simulator.query import All
from bace_bridge.simulator.scenario import Scenario, ScenarioError, bundled, bundled_names, load, parse

DEVICE = "devices: [{label: go}]\n"
REOPEN = "reopen: {after: 1, duration: 1}"


def scenario(session: str) -> Scenario:
    return parse(f"{DEVICE}sessions:\n  - {{device: go, {session}}}\n")


def deeds(played: Scenario) -> list[tuple[float, str]]:
    first = islice(timeline(played), 500)  # some never end
    return [(action.at, action.step.name) for action in first if action.step is not Step.SAMPLE]


@pytest.mark.parametrize("name", bundled_names())
def test_the_bundled_scenarios_can_be_played(name: str) -> None:
    actions = list(islice(timeline(bundled(name)), 2000))
    assert len(actions) == 2000
    assert all(before.at <= after.at for before, after in pairwise(actions))


def test_the_quick_one_ingests_its_first_session_within_ten_seconds() -> None:
    first = next(at for at, deed in deeds(bundled("quick")) if deed == "INGESTED")
    assert first < 10


@pytest.mark.parametrize(
    ("session", "expected"),
    [
        ("at: 5s, duration: 1m", [(5, "OPEN"), (65, "END"), (95, "INGESTED")]),
        ("at: 5s", [(5, "OPEN")]),
        ("duration: 1m, ingestion_lag: 0s", [(0, "OPEN"), (60, "END"), (60, "INGESTED")]),
        (
            "duration: 1m, rename: {at: 10s, label: x}",
            [(0, "OPEN"), (10, "RENAME"), (60, "END"), (90, "INGESTED")],
        ),
        (
            "duration: 1m, reopen: {after: 10s, duration: 20s}",
            [(0, "OPEN"), (60, "END"), (70, "REOPEN"), (90, "END"), (120, "INGESTED")],
        ),
        (
            "duration: 1m, ingestion_lag: 5s, reopen: {after: 10s, duration: 20s}",
            [(0, "OPEN"), (60, "END"), (65, "INGESTED"), (70, "REOPEN"), (90, "END"), (95, "INGESTED")],
        ),
        (
            "duration: 1m, late_points: {after: 10s}",
            [(0, "OPEN"), (60, "END"), (70, "LATE"), (90, "INGESTED")],
        ),
        (
            "duration: 1m, ingestion_lag: 5s, late_points: {after: 10s}",
            [(0, "OPEN"), (60, "END"), (65, "INGESTED"), (70, "RESTART"), (70, "LATE"), (75, "INGESTED")],
        ),
        ("duration: 1m, offline_upload: 10s", [(70, "UPLOAD"), (100, "INGESTED")]),
        (
            "duration: 1m, offline_upload: 10s, rename: {at: 5s, label: x}",
            [(70, "UPLOAD"), (70, "RENAME"), (100, "INGESTED")],
        ),
        (
            "duration: 10s, ingestion_lag: 5s, repeat: {every: 20s, times: 2}",
            [(0, "OPEN"), (10, "END"), (15, "INGESTED"), (20, "OPEN"), (30, "END"), (35, "INGESTED")],
        ),
    ],
)
def test_a_session_plan_becomes_deeds(session: str, expected: list[tuple[float, str]]) -> None:
    assert deeds(scenario(session)) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a scenario is a mapping"),
        ("a: [", "line 1, column 5: expected the node content"),
        ("sessions: []", "devices: is missing"),
        ("devices: []", "devices: there is none (at least one"),
        ("devices: [{label: go, datatypes: []}]", "devices[0].datatypes: there is none"),
        (f"{DEVICE}spede: 5", "spede: unknown key (known here: name, seed, history, devices, sessions)"),
        (f"{DEVICE}sessions: [{{device: stay}}]", "sessions[0].device: there is no device 'stay'"),
        (f"{DEVICE}sessions: [{{device: go, at: soon}}]", "sessions[0].at: 'soon' is not a duration"),
        (f"{DEVICE}sessions: [{{device: go, dauer: 5}}]", "[0].dauer: unknown key (known here: device, at,"),
        (f"{DEVICE}sessions: [{{device: go, repeat: {{every: 5s}}}}]", "repeat needs a session that ends"),
        (
            f"{DEVICE}sessions: [{{device: go, duration: 10s, repeat: {{every: 5s}}}}]",
            "sessions[0]: repeat.every must be at least the 40s that the session takes",
        ),
        (f"{DEVICE}sessions: [{{device: go, duration: 9, offline_upload: 1, {REOPEN}}}]", "be reopened"),
        (f"{DEVICE}history: {{counts: 5}}", "history.counts: unknown key (known here: count, spacing"),
        ("devices: [{label: go}, {label: go}]", "devices[1].label: there is already a device 'go'"),
        (f"{DEVICE}sessions: [{{device: go, sample_every: 0s}}]", "sessions[0].sample_every: "),
    ],
)  # fmt: skip
def test_a_wrong_scenario_names_the_place_and_the_hint(text: str, says: str) -> None:
    with pytest.raises(ScenarioError) as wrong:
        parse(text)
    assert says in str(wrong.value)


def test_every_mistake_is_reported_at_once() -> None:
    with pytest.raises(ScenarioError) as wrong:
        parse("devices: [{label: ''}]\nsessions: [{device: go, at: soon}, {}]\n")
    assert len(wrong.value.mistakes) == 4  # the three, and a device that the first one takes away


def test_a_scenario_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    with pytest.raises(ScenarioError, match="cannot be read"):
        load(file)
    file.write_text(DEVICE)
    assert load(file).devices[0].label == "go"


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


async def played(text: Scenario, speed: float = 1.0) -> tuple[SimulatedCloud, Clock, list[str]]:
    clock, lines = Clock(), list[str]()
    cloud = SimulatedCloud(clock=clock)
    await play(cloud, text, speed=speed, clock=clock, sleep=clock.sleep, report=lines.append)
    return cloud, clock, lines


async def test_a_session_is_played_in_time() -> None:
    cloud, clock, lines = await played(scenario("at: 10s, duration: 60s, sample_every: 10s, ingestion_lag: 5s"))
    (session,) = cloud.sessions.select(All(), None)
    assert (session.start, session.end, session.is_ingestion_finished) == (1_700_000_010, 1_700_000_070, True)
    assert session.datapoint_count == 5 * 3
    assert clock.now == 1_700_000_075
    assert [line.split("  ")[0].strip() for line in lines] == [
        "session opened",
        "session ended",
        "ingestion finished",
    ]


async def test_speed_shortens_durations_and_keeps_the_clock() -> None:
    cloud, clock, _ = await played(scenario("at: 10m, duration: 10m, sample_every: 1m, ingestion_lag: 1m"), speed=60)
    (session,) = cloud.sessions.select(All(), None)
    assert (session.start, session.end) == (1_700_000_010, 1_700_000_020)
    assert session.datapoint_count == 9 * 3
    assert clock.now == 1_700_000_021
    track = next(iter(cloud.samples.of(session.id_data_session).values()))
    assert track.times == [1_700_000_010.0 + number for number in range(1, 10)]


async def test_an_offline_session_appears_complete_after_its_end() -> None:
    cloud, _, lines = await played(
        scenario("at: 10s, duration: 60s, sample_every: 10s, offline_upload: 30s, ingestion_lag: 5s")
    )
    (session,) = cloud.sessions.select(All(), None)
    assert (session.start, session.end, session.created_at) == (1_700_000_010, 1_700_000_070, 1_700_000_100)
    assert session.datapoint_count == 5 * 3
    assert lines[0].startswith("session uploaded")


async def test_late_points_lie_between_those_that_came_in_time() -> None:
    cloud, _, _ = await played(
        scenario(
            "duration: 60s, sample_every: 10s, ingestion_lag: 5s, late_points: {after: 20s, count: 2},"
            " rename: {at: 5s, label: renamed}, reopen: {after: 10s, duration: 20s}"
        )
    )
    (session,) = cloud.sessions.select(All(), None)
    track = next(iter(cloud.samples.of(session.id_data_session).values()))
    assert [at - 1_700_000_000 for at in track.times] == [10, 20, 30, 40, 45, 50, 55, 80]
    assert (session.label, session.end, session.is_ingestion_finished) == ("renamed", 1_700_000_090, True)


async def test_a_history_lies_before_the_start() -> None:
    cloud, clock, _ = await played(parse(f"{DEVICE}history: {{count: 3, spacing: 1h, duration: 2h}}"))
    ends = [session.end or 0 for session in cloud.sessions.select(All(), None)]
    assert len(ends) == 3
    assert max(ends) <= clock.now


async def test_a_speed_is_above_zero() -> None:
    with pytest.raises(ValueError, match="speed"):
        await play(SimulatedCloud(), scenario("at: 1s"), speed=0)


@given(
    lag=st.integers(0, 60),
    late=st.none() | st.integers(0, 60),
    more=st.sampled_from(["", ", reopen: {after: 0s, duration: 20s}", ", reopen: {after: 50s, duration: 20s}"])
    | st.sampled_from([", offline_upload: 0s", ", offline_upload: 40s"]),
    rename=st.none() | st.integers(0, 200),
)
async def test_whatever_is_planned_a_session_ends_up_ingested(
    lag: int, late: int | None, more: str, rename: int | None
) -> None:
    session = f"duration: 30s, sample_every: 10s, ingestion_lag: {lag}s{more}"
    session += f", late_points: {{after: {late}s, count: 2}}" if late is not None else ""
    session += f", rename: {{at: {rename}s, label: x}}" if rename is not None else ""
    length = scenario(session).sessions[0].length
    cloud, clock, _ = await played(scenario(f"{session}, repeat: {{every: {length}s, times: 3}}"))
    found = cloud.sessions.select(All(), None)
    assert len(found) == 3
    assert all(session.end is not None and session.is_ingestion_finished for session in found)
    assert clock.now - 1_700_000_000 <= 3 * length + 1e-6
