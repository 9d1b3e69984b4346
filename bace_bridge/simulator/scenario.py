"""A scenario: which devices there are and what happens with them, read from YAML."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bace_bridge.config.document import parse_document
from bace_bridge.config.files import PIPE_PATIENCE, TextProblem, model_at, read_text, spell
from bace_bridge.errors import ConfigError, Mistake
from bace_bridge.simulator.facts import LONGEST, seconds

_MOST_BYTES = 2**20

Duration = Annotated[float, BeforeValidator(seconds)]
Period = Annotated[float, BeforeValidator(seconds), Field(ge=0.05)]


class ScenarioError(ConfigError):
    """The scenario cannot be played; `mistakes` holds everything that is wrong with it."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class History(_Part):
    """Finished sessions from before the scenario began."""

    count: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    spacing: Period = 6 * 3600.0
    duration: Period = 45 * 60.0
    points: Annotated[int, Field(ge=0, le=100_000)] = 0

    @model_validator(mode="after")
    def _in_our_time(self) -> Self:
        # Times before 1970 would be negative, which no cloud has.
        if self.count * self.spacing + self.duration > LONGEST:
            raise ValueError("reaches back more than 18250d: take fewer sessions, or a smaller spacing")
        return self


class DevicePlan(_Part):
    label: Annotated[str, Field(min_length=1)]
    datatypes: tuple[Annotated[int, Field(ge=0)], ...] = (6000, 6002, 5205)
    sources: Annotated[int, Field(ge=1, le=1000)] = 1


class LatePoints(_Part):
    after: Duration
    count: Annotated[int, Field(ge=1)] = 10


class Rename(_Part):
    at: Duration
    label: str


class Reopen(_Part):
    after: Duration
    duration: Period


class Repeat(_Part):
    every: Period
    times: Annotated[int, Field(ge=1)] | None = None


class SessionPlan(_Part):
    """One data session; the times in it are durations of the scenario, before `speed` is applied."""

    device: str
    at: Duration = 0.0
    duration: Period | None = None
    sample_every: Period = 5.0
    label: str | None = None
    ingestion_lag: Duration = 30.0
    late_points: LatePoints | None = None
    offline_upload: Duration | None = None
    rename: Rename | None = None
    reopen: Reopen | None = None
    repeat: Repeat | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "SessionPlan":
        problems = []
        if self.duration is None:
            needing = ("late_points", "offline_upload", "reopen", "repeat")
            problems += [
                f"{name} needs a session that ends, give it a duration"
                for name in needing
                if getattr(self, name) is not None
            ]
        if self.offline_upload is not None and self.reopen is not None:
            problems.append("a session that is uploaded at its end cannot be reopened, drop one of the two")
        if self.repeat is not None and self.repeat.every < self.length:
            problems.append(f"repeat.every must be at least the {self.length:g}s that the session takes")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def ends(self) -> tuple[float, ...]:
        """When it ends, counted from its own beginning: never, once, or again after it was reopened."""
        if self.duration is None:
            return ()
        if self.reopen is None:
            return (self.duration,)
        return (self.duration, self.duration + self.reopen.after + self.reopen.duration)

    @property
    def length(self) -> float:
        """From its beginning until nothing more happens to it (0: it never ends)."""
        if self.duration is None:
            return 0.0
        quiet = (self.offline_upload or 0.0) + (self.late_points.after if self.late_points else 0.0)
        return max(self.ends[-1] + quiet + self.ingestion_lag, self.rename.at if self.rename else 0.0)


class Scenario(_Part):
    name: str = "scenario"
    seed: int = 1
    history: History = History()
    devices: tuple[DevicePlan, ...]
    sessions: tuple[SessionPlan, ...] = ()


def load(path: Path) -> Scenario:
    """Raises ScenarioError: the file cannot be read, or what it says cannot be played."""
    try:
        text = read_text(path, most=_MOST_BYTES, patience=PIPE_PATIENCE)
    except OSError as error:
        raise ScenarioError([Mistake(str(path), f"cannot be read: {error.strerror}")]) from None
    except TextProblem as found:
        raise ScenarioError([Mistake(str(path), found.problem, found.hint)]) from None
    return parse(text)


def bundled(name: str = "default") -> Scenario:
    """One of the scenarios that come with the simulator."""
    return parse(bundled_text(name))


def bundled_text(name: str) -> str:
    return (resources.files(__package__) / "scenarios" / f"{name}.yaml").read_text(encoding="utf-8")


def bundled_names() -> list[str]:
    files = (resources.files(__package__) / "scenarios").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def parse(text: str) -> Scenario:
    """Raises ScenarioError with every mistake that there is."""
    try:
        raw, mistakes = parse_document(text)
    except ConfigError as error:
        raise ScenarioError(error.mistakes) from None
    if mistakes:
        raise ScenarioError(mistakes)
    if not isinstance(raw, dict):
        raise ScenarioError([Mistake("", "a scenario is a mapping", "it starts with devices: and sessions:")])
    # By hand and on the raw text, so that these mistakes are listed even where a key has the wrong type.
    mistakes = _misfits(raw)
    try:
        scenario = Scenario.model_validate(raw)
    except ValidationError as error:
        raise ScenarioError([*map(_mistake, error.errors()), *mistakes]) from error
    if mistakes:
        raise ScenarioError(mistakes)
    return scenario


def _misfits(raw: Mapping[str, Any]) -> list[Mistake]:
    """What is wrong between the keys, as far as they have the shapes that they should have."""
    devices, sessions = (
        [(number, one) for number, one in enumerate(found) if isinstance(one, dict)] if isinstance(found, list) else []
        for found in (raw.get("devices"), raw.get("sessions"))
    )
    labels = [str(device.get("label")) for _, device in devices]
    mistakes = []
    if raw.get("devices") == []:
        mistakes.append(Mistake("devices", "there is none", "at least one, such as {label: BaceGo-1}"))
    for index, (number, device) in enumerate(devices):
        if device.get("datatypes") == []:
            mistakes.append(Mistake(f"devices[{number}].datatypes", "there is none", "such as [6000, 5205]"))
        if labels[index] in labels[:index]:
            mistakes.append(Mistake(f"devices[{number}].label", f"there is already a device {labels[index]!r}"))
    known = f"the devices are: {', '.join(labels)}"
    for number, plan in sessions:
        if "device" in plan and str(plan["device"]) not in labels:
            mistakes.append(Mistake(f"sessions[{number}].device", f"there is no device {plan['device']!r}", known))
    return mistakes


def _mistake(found: Mapping[str, Any]) -> Mistake:
    path = spell(found["loc"])
    if found["type"] == "extra_forbidden":
        return Mistake(path, "unknown key", f"known here: {', '.join(model_at(Scenario, found['loc']).model_fields)}")
    if found["type"] == "missing":
        return Mistake(path, "is missing")
    return Mistake(path, found["msg"].removeprefix("Value error, "))
