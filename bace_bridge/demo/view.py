"""The demo on the screen: a live view on a terminal, otherwise one line per event."""

from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime

from rich.console import ConsoleDimensions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bace_bridge.demo.board import Board, Shown
from bace_bridge.demo.stage import Addresses

PATIENCE = 3.0
"""Seconds for which an event that arrived one way is awaited the other way: a new device's first take one over MQTT."""


class Lines:
    """Writes events in the order of their first arrival."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._waiting: deque[Shown] = deque()

    def add(self, event: Shown) -> None:
        self._waiting.append(event)

    def release(self, *, now: float) -> None:
        """Writes what need not wait any longer; infinity for `now` is the end."""
        while self._waiting and (self._waiting[0].complete or now - self._waiting[0].at >= PATIENCE):
            self._write(line(self._waiting.popleft()))


def line(event: Shown) -> str:
    moment = datetime.fromtimestamp(event.at).astimezone()
    ways = [] if event.topic is None else [f"mqtt {event.topic}"]
    if event.by_webhook:
        ways.append("webhook, signature \N{CHECK MARK}")
    head = f"{moment:%H:%M:%S} {event.type:<18}"
    return "  ".join([head, f"{event.device:<20}", f"{event.detail:<38}", " + ".join(ways)])


MOST_EVENTS = 12
_FEWEST_EVENTS = 3
_WIDEST = 120
_NARROW = 100
"""Columns below which devices are shown by the ends of their labels."""

_SHORT = 10

_STATE_STYLES = {"active": "bold green", "ended": "yellow", "ingested": "cyan"}
_TYPE_STYLES = {
    "session.started": "bold green",
    "session.datapoints": "dim",
    "session.ended": "yellow",
    "session.csv_ready": "bold cyan",
    "session.updated": "magenta",
}


def picture(
    board: Board, addresses: Addresses, notes: Sequence[str], *, now: float, status: str, size: ConsoleDimensions
) -> RenderableType:
    """Everything that is shown on a terminal of this size."""
    width = min(size.width, _WIDEST)
    parts: list[RenderableType] = [_header(board, addresses, status, width), Text()]
    parts += [_devices(board, width), Text()]
    # What is above the events is counted in lines, as rich does not say how high something will be.
    taken = 6 + 1 + sum(max(1, len(one.values)) for one in board.devices.values()) + 2 + len(notes)
    topics = 2 + len(board.topics)
    with_topics = size.height - taken - topics >= 1 + 8
    room = size.height - taken - (topics if with_topics else 0) - 2
    parts += [_events(board.newest(max(_FEWEST_EVENTS, min(MOST_EVENTS, room))), now, width)]
    if with_topics:
        parts += [Text(), _topics(board)]
    parts += [_line(note, "red") for note in notes]
    return Group(*parts)


def _header(board: Board, addresses: Addresses, status: str, width: int) -> RenderableType:
    title = Table.grid()
    title.width = width
    title.add_column(ratio=1)
    title.add_column(justify="right")
    title.add_row(Text("bace-bridge demo", style="bold"), Text(status, style="dim"))
    signatures = f"{board.deliveries} deliveries, signatures checked"
    if board.badly_signed:
        signatures += f", {board.badly_signed} WRONG"
    rows = Table.grid(padding=(0, 3, 0, 0))
    for name, address, about in (
        ("cloud", addresses.cloud, "simulated; the devices below are in it"),
        ("bridge", f"http://{addresses.health}/readyz", f"the real one: {board.bridge_state or 'starting'}"),
        (
            "broker",
            addresses.broker,
            f"{board.topics.total()} messages arrived" + (addresses.mqtt.note and f"; {addresses.mqtt.note}"),
        ),
        ("webhook", addresses.webhook, signatures),
    ):
        rows.add_row(Text(name, style="dim"), Text(address), Text(about, style="dim"))
    try_it = Text.assemble(("in another terminal:  ", "dim"), (addresses.subscribe, "bold"))
    return Group(title, rows, try_it)


def _table(*columns: str, width: int | None = None, elastic: str | None = None) -> Table:
    """With a `width` the columns stay where they are: the `elastic` one takes what the others leave."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", width=width)
    for column in columns:
        is_elastic = column == elastic
        # Only one may give way: where all do, rich moves the columns with each new value.
        table.add_column(column, no_wrap=not is_elastic, overflow="ellipsis", ratio=1 if is_elastic else None)
    return table


def _name(label: str, width: int) -> str:
    """Devices' labels differ in their ends."""
    return f"\N{HORIZONTAL ELLIPSIS}{label[-9:]}" if width < _NARROW and len(label) > _SHORT else label


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _devices(board: Board, width: int) -> RenderableType:
    table = _table("DEVICE", "STATE", "DATA SESSION", "NEWEST VALUES", width=width, elastic="DATA SESSION")
    for device in board.devices.values():
        values = Table.grid(padding=(0, 2, 0, 0))
        for _, (name, value) in sorted(device.values.items()):
            values.add_row(Text(name, style="dim"), Text(value))
        table.add_row(
            _line(_name(device.label, width), "" if device.available else "dim"),
            Text(device.state or "-", style=_STATE_STYLES.get(device.state, "dim")),
            _line(device.session),
            values,
        )
    if not board.devices:
        table.add_row(Text("none yet", style="dim"))
    return table


def _events(events: Sequence[Shown], now: float, width: int) -> RenderableType:
    table = _table("TIME", "EVENT", "DEVICE", "", "ARRIVED BY", width=width, elastic="")
    for event in events:
        missing = ("not yet", "red") if now - event.at > PATIENCE else ("...", "dim")
        mqtt = ("\N{CHECK MARK}", "green") if event.topic is not None else missing
        webhook = ("\N{CHECK MARK} signed", "green") if event.by_webhook else missing
        table.add_row(
            Text(f"{datetime.fromtimestamp(event.at).astimezone():%H:%M:%S}", style="dim"),
            Text(event.type, style=_TYPE_STYLES.get(event.type, "")),
            _line(_name(event.device, width)),
            _line(event.detail, "dim"),
            Text.assemble("MQTT ", mqtt, " webhook ", webhook),
        )
    return table


def _topics(board: Board) -> RenderableType:
    table = _table("MQTT TOPIC", "MESSAGES")
    table.columns[1].justify = "right"
    for topic, count in sorted(board.topics.items()):
        table.add_row(Text(topic), Text(str(count)))
    return table
