"""What the bridge answers to requests that reach it over MQTT."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from bace_bridge.errors import BridgeError

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
Replay = Callable[..., Awaitable[int]]

_LEVELS = ("debug", "info", "warning", "error")


class BadRequest(BridgeError):
    """The request cannot be done as it stands; the message says what it takes."""


def request_handlers(
    *,
    poll_now: Callable[[], None],
    info: Callable[[], dict[str, Any]],
    set_level: Callable[[str], None],
    replay: Replay,
) -> Mapping[str, Handler]:
    """`poll`, `info`, `log_level` and `replay`. A handler raises BadRequest where the payload is not right."""

    async def poll(_: dict[str, Any]) -> dict[str, Any]:
        poll_now()
        return {}

    async def tell_info(_: dict[str, Any]) -> dict[str, Any]:
        return info()

    async def log_level(payload: dict[str, Any]) -> dict[str, Any]:
        level = payload.get("level")
        if not isinstance(level, str) or level not in _LEVELS:
            raise BadRequest('log_level takes {"level": "debug"}, "info", "warning" or "error"')
        set_level(level)
        return {"level": level}

    async def replay_events(payload: dict[str, Any]) -> dict[str, Any]:
        session, since = payload.get("session"), payload.get("since")
        if isinstance(session, int) and not isinstance(session, bool):
            session = str(session)
        asked_for = session if since is None else since
        if (session is not None and since is not None) or not isinstance(asked_for, str) or not asked_for:
            raise BadRequest('replay takes either {"session": "<id>"} or {"since": "2026-01-31T00:00:00Z"}')
        return {"events": await replay(session=session, since=_epoch(since))}

    return {"poll": poll, "info": tell_info, "log_level": log_level, "replay": replay_events}


def _epoch(since: str | None) -> float | None:
    if since is None:
        return None
    try:
        moment = datetime.fromisoformat(since)
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        raise BadRequest("since takes a time such as 2026-01-31T00:00:00Z") from None
