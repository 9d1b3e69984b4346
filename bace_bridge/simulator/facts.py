from dataclasses import dataclass

DEFAULT_TOKEN_LIFETIME = 86400.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """What an account needs for a token; the defaults are what the simulator prints for its user."""

    client_id: str = "simulator"
    client_secret: str = "simulator-secret"  # noqa: S105 - no secret: the simulator tells it to everyone
    username: str = "demo@example.org"
    password: str = "demo"  # noqa: S105 - as above


@dataclass(frozen=True, slots=True)
class Series:
    """One stream of values: a group, a physical device and a datatype."""

    id_container_data_latest: str
    id_group: str
    source_device: str
    datatype: int


@dataclass(frozen=True, slots=True)
class Device:
    """A BACE Go: the group that it has in the cloud, and the physical devices that report through it."""

    id: int
    id_group: str
    label: str
    sources: tuple[str, ...]
    series: tuple[Series, ...]
    created_at: int


@dataclass(frozen=True, slots=True)
class Session:
    """A data session as the cloud stores it; times are epoch seconds."""

    id_data_session: str
    id_group: str
    label: str
    start: int
    created_at: int
    updated_at: int | None
    end: int | None = None
    id_person: str | None = None
    created_by: str | None = None
    updated_by: str | None = None
    archived_at: int | None = None
    datapoint_count: int = 0
    is_ingestion_finished: bool = False
    is_archived: bool = False


@dataclass(frozen=True, slots=True)
class RequestSeen:
    """One request as it was answered; `status` 0: the connection was cut instead."""

    at: float
    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    grant_type: str = ""
