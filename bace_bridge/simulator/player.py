"""What a scenario makes happen, in order, and the player that does it; endless when something repeats."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from heapq import merge
from itertools import count
from operator import attrgetter

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import Device
from bace_bridge.simulator.samples import value
from bace_bridge.simulator.scenario import Scenario, SessionPlan


class Step(Enum):
    """In the order in which they come when several are due at once."""

    OPEN = "session opened"
    UPLOAD = "session uploaded"
    SAMPLE = "sample"
    RENAME = "session renamed"
    END = "session ended"
    REOPEN = "session reopened"
    RESTART = "ingestion restarted"
    LATE = "late points"
    INGESTED = "ingestion finished"


_RANK = {step: rank for rank, step in enumerate(Step)}


@dataclass(frozen=True, slots=True)
class Run:
    """One playing of a session's plan: the first, or a repetition."""

    plan: SessionPlan
    index: int
    number: int
    begins: float


@dataclass(frozen=True, slots=True)
class Action:
    """`at`: seconds of the scenario, before `speed` is applied."""

    at: float
    step: Step
    run: Run


def timeline(scenario: Scenario) -> Iterator[Action]:
    return merge(*(_plan(plan, index) for index, plan in enumerate(scenario.sessions)), key=attrgetter("at"))


def _plan(plan: SessionPlan, index: int) -> Iterator[Action]:
    if plan.repeat is None:
        yield from _run(Run(plan, index, 0, plan.at))
        return
    # Lazily: one that repeats for ever is read as far as the clock has come.
    for number in count() if plan.repeat.times is None else range(plan.repeat.times):
        yield from _run(Run(plan, index, number, plan.at + number * plan.repeat.every))


def _run(run: Run) -> Iterator[Action]:
    plan = run.plan
    steps = [(0.0, Step.OPEN)] if plan.duration is None else _deeds(plan, plan.duration)
    if plan.rename is not None:
        # A session cannot be renamed before the cloud knows it.
        steps.append((max(plan.rename.at, min(at for at, _ in steps)), Step.RENAME))
    steps.sort(key=lambda step: (step[0], _RANK[step[1]]))
    events = (Action(run.begins + at, step, run) for at, step in steps)
    samples = (Action(run.begins + at, Step.SAMPLE, run) for at in live_samples(plan))
    # `merge` keeps the order of its arguments among equal times: a session is opened before its first sample.
    return merge(events, samples, key=attrgetter("at"))


def _deeds(plan: SessionPlan, duration: float) -> list[tuple[float, Step]]:
    """`duration` is the plan's, which has one. Ingestion ends after whatever reaches the cloud last."""
    if plan.offline_upload is not None:
        uploaded = duration + plan.offline_upload
        steps = [(uploaded, Step.UPLOAD)]
    else:
        uploaded = plan.ends[-1]
        steps = [(0.0, Step.OPEN), *((end, Step.END) for end in plan.ends)]
    if plan.reopen is not None:
        steps.append((duration + plan.reopen.after, Step.REOPEN))
        if plan.ingestion_lag < plan.reopen.after:
            steps.append((duration + plan.ingestion_lag, Step.INGESTED))
    steps.append((uploaded + plan.ingestion_lag, Step.INGESTED))
    if plan.late_points is not None:
        late = uploaded + plan.late_points.after
        steps.append((late, Step.LATE))
        if plan.late_points.after >= plan.ingestion_lag:
            # Ingestion was finished by then: it begins again, and finishes again, which gives the CSV another revision.
            steps += [(late, Step.RESTART), (late + plan.ingestion_lag, Step.INGESTED)]
    return steps


def live_samples(plan: SessionPlan) -> Iterator[float]:
    """When the device measures and uploads at once, counted from the session's beginning."""
    if plan.offline_upload is not None:
        return
    if plan.duration is None:
        yield from (number * plan.sample_every for number in count(1))
        return
    yield from spaced(0.0, plan.duration, plan.sample_every)
    if plan.reopen is not None:
        again = plan.duration + plan.reopen.after
        yield from spaced(again, again + plan.reopen.duration, plan.sample_every)


def spaced(begin: float, end: float, period: float) -> Iterator[float]:
    """One period after the begin, and so on, as long as it is before the end."""
    for number in count(1):
        at = begin + number * period
        if at >= end:
            return
        yield at


async def play(
    cloud: SimulatedCloud,
    scenario: Scenario,
    *,
    speed: float = 1.0,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    report: Callable[[str], object] = lambda _: None,
) -> None:
    """Makes the scenario happen, each line of it to `report`, but none of samples; returns when it is over.

    `speed` shortens the scenario's durations; time stamps are those of the clock when things happen.
    """
    if speed <= 0:
        raise ValueError("speed must be above 0")
    stage = Stage(cloud, scenario, began=clock(), speed=speed)
    for action in timeline(scenario):
        # By the clock and not by a sum of sleeps: what takes long here must not push the rest of the scenario back.
        await sleep(max(0.0, stage.moment(action.at) - clock()))
        line = stage.perform(action)
        if line is not None:
            report(line)


class Stage:
    """The scenario's devices in the cloud, and which of its sessions are which there."""

    def __init__(self, cloud: SimulatedCloud, scenario: Scenario, *, began: float, speed: float) -> None:
        self._cloud = cloud
        self._seed = scenario.seed
        self._began = began
        self._speed = speed
        self._sessions: dict[tuple[int, int], str] = {}
        self._devices: dict[str, Device] = {
            plan.label: cloud.add_device(plan.label, datatypes=plan.datatypes, sources=plan.sources)
            for plan in scenario.devices
        }
        past = scenario.history
        if past.count:
            cloud.add_history(
                past.count,
                groups=[device.id_group for device in self._devices.values()],
                first_start=began - past.count * past.spacing,
                spacing=past.spacing,
                duration=min(past.duration, past.spacing),
                points=past.points,
            )

    def moment(self, at: float) -> float:
        """When the clock shows the scenario's second `at`."""
        return self._began + at / self._speed

    def perform(self, action: Action) -> str | None:
        """The line to print; None: it is not worth one."""
        cloud, run, plan = self._cloud, action.run, action.run.plan
        key = (run.index, run.number)
        match action.step:
            case Step.OPEN:
                self._sessions[key] = cloud.open_session(self._devices[plan.device].id_group, label=plan.label)
            case Step.UPLOAD:
                self._upload(run)
            case Step.SAMPLE:
                self._measure(run, [action.at])
                return None
            case Step.LATE:
                self._measure(run, self._missed(run))
            case Step.RENAME:
                assert plan.rename is not None
                cloud.change(self._sessions[key], label=plan.rename.label)
            case Step.END:
                cloud.end_session(self._sessions[key])
            case Step.REOPEN:
                cloud.change(self._sessions[key], end=None, is_ingestion_finished=False)
            case Step.RESTART:
                cloud.change(self._sessions[key], is_ingestion_finished=False)
            case Step.INGESTED:
                cloud.finish_ingestion(self._sessions[key])
                # Nothing more is due unless late points come, so only the newest run's id is kept.
                self._sessions.pop((run.index, run.number - 1), None)
        session = cloud.session(self._sessions[key])
        named = action.step in {Step.OPEN, Step.RENAME}
        detail = f"“{session.label}”" if named else f"{session.datapoint_count} datapoints"
        return f"{action.step.value:<19} {plan.device}  {session.id_data_session}  {detail}"

    def _upload(self, run: Run) -> None:
        """A device that was out of reach uploads its whole session afterwards."""
        plan, duration = run.plan, run.plan.duration or 0.0
        identifier = self._cloud.open_session(
            self._devices[plan.device].id_group, label=plan.label, start=self.moment(run.begins)
        )
        self._sessions[run.index, run.number] = identifier
        self._measure(run, [run.begins + at for at in spaced(0.0, duration, plan.sample_every)])
        self._cloud.end_session(identifier, end=self.moment(run.begins + duration))

    def _missed(self, run: Run) -> list[float]:
        """Samples between those that came in time, from the last part of the session."""
        plan, late = run.plan, run.plan.late_points
        if late is None or plan.duration is None:
            return []
        end, period = run.begins + plan.duration, plan.sample_every
        # Half a period off, so that they are new samples and correct none.
        times = [end - (number + 0.5) * period for number in range(late.count)]
        return [at for at in reversed(times) if at > run.begins]

    def _measure(self, run: Run, times: list[float]) -> None:
        device = self._devices[run.plan.device]
        for number, series in enumerate(device.series):
            # Another seed for each series: two sensors of a kind do not show the same.
            seed = self._seed * 1000 + run.index * 100 + number
            points = [
                (round(self.moment(at), 3), value(series.datatype, at, seed=seed, since=run.begins)) for at in times
            ]
            self._cloud.add_points(self._sessions[run.index, run.number], series.id_container_data_latest, points)
