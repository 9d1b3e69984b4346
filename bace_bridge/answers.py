"""What the bridge answers to requests that reach it over MQTT."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from bace_bridge.errors import BridgeError

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
Replay = Callable[..., Awaitable[int]]


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
        if level not in {"debug", "info", "warning", "error"}:
            raise BadRequest('log_level takes {"level": "debug"}, "info", "warning" or "error"')
        set_level(level)
        return {"level": level}

    async def replay_events(payload: dict[str, Any]) -> dict[str, Any]:
        session, since = payload.get("session"), payload.get("since")
        if (session is None) == (since is None):
            raise BadRequest('replay takes either {"session": "<id>"} or {"since": "2026-01-31T00:00:00Z"}')
        count = await replay(session=None if session is None else str(session), since=_epoch(since))
        return {"events": count}

    return {"poll": poll, "info": tell_info, "log_level": log_level, "replay": replay_events}


def _epoch(since: Any) -> float | None:
    if since is None:
        return None
    try:
        moment = datetime.fromisoformat(str(since))
    except ValueError:
        raise BadRequest(f"since: {str(since)[:40]!r} is not a time such as 2026-01-31T00:00:00Z") from None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
