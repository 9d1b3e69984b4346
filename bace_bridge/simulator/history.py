from datetime import UTC, datetime

from bace_bridge.simulator.facts import Device, Session

_CREATED_AFTER = 4  # seconds, as in BACE's documented example: the device tells of its session a little late
_UPDATED_AFTER = 317  # seconds after the end in the same example: ingestion goes on that long


def default_label(device: Device, start: int) -> str:
    return f"{device.label} {datetime.fromtimestamp(start, UTC):%Y-%m-%d %H:%M}"


def finished(identifier: str, device: Device, start: float, duration: float, points: int) -> Session:
    """A session as it looks long after its end."""
    end = int(start + duration)
    return Session(
        id_data_session=identifier,
        id_group=device.id_group,
        label=default_label(device, int(start)),
        start=int(start),
        created_at=int(start) + _CREATED_AFTER,
        updated_at=end + _UPDATED_AFTER,
        end=end,
        datapoint_count=points,
        is_ingestion_finished=True,
    )


def samples(start: float, duration: float, points: int) -> list[tuple[float, float]]:
    step = duration / points
    return [(start + number * step, 60.0 + number % 20) for number in range(points)]
