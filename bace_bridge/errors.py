"""The exception tree. A class answers one question: try again or not?

Foreign exceptions are translated at the edge that met them; the loops catch these and nothing else.
"""

from dataclasses import dataclass


class BridgeError(Exception):
    """Everything that bace-bridge raises on purpose."""

    def __str__(self) -> str:
        """Text that logs, answers and messages can hold: a path in it may have bytes that are not UTF-8."""
        # Here, once for all: str(error) goes to the log, to health, to MQTT and into the store.
        return super().__str__().encode(errors="backslashreplace").decode()


class ConfigError(BridgeError):
    """The configuration is wrong; `mistakes` holds every one of them. Do not try again."""

    def __init__(self, mistakes: "list[Mistake]") -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.mistakes = mistakes


@dataclass(eq=False)
class Mistake:
    """One mistake in the configuration: where it is, what is wrong, what to do."""

    path: str
    problem: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.path}: " if self.path else ""
        line = f"{place}{self.problem}" + (f" ({self.hint})" if self.hint else "")
        # A key or a path may hold anything: it must not break the line, or steer a terminal.
        return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)


class CloudError(BridgeError):
    """The cloud did not give what was asked for."""


class CloudUnavailable(CloudError):
    """The cloud is away, slow, broken or asks for silence. Try again, not before `retry_after` seconds.

    `status` is that of its answer; None where there was none.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0, status: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status


class CloudBadGateway(CloudUnavailable):
    """A proxy has no answer of the cloud (502). It is away, or its answer's headers were too large: ask for less."""


class CloudRequestTooLarge(CloudError):
    """The request, or the headers of its answer, are larger than the server, a proxy or we take. Ask for less.

    `status` is that of the answer; None where its headers are too large for us.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class CloudLoginFailed(CloudError):
    """The cloud refuses the credentials. Try again rarely: only a person can fix it."""


class CloudRefused(CloudError):
    """The cloud understood and says no (4xx). The same request would be refused again."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class CloudGone(CloudRefused):
    """What was asked for cannot be seen any more: the API itself says 404 or 410."""


class CloudFault(CloudError):
    """The cloud broke on this very request (500). Others may work; try this one again a few times, then narrow it."""


class UnexpectedReply(CloudError):
    """The cloud answered something that cannot be read; the message names what."""


class SinkError(BridgeError):
    """An event was not delivered. `status` and `answer` are what a webhook said, where it said anything."""

    def __init__(self, message: str, *, retry_after: float = 0.0, status: int | None = None, answer: str = "") -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status
        self.answer = answer


class SinkUnavailable(SinkError):
    """The other side is away. Try again, not before `retry_after` seconds; nothing is wrong with the event."""


class DeliveryFailed(SinkError):
    """This delivery failed. Try again on the schedule, not before `retry_after` seconds."""


class DeliveryRejected(SinkError):
    """The other side will never take this event. Do not try again."""


class SinkDisabled(SinkError):
    """The other side asked not to be called any more (410, or `webhook-delivery: disable`)."""


class StoreError(BridgeError):
    """The store cannot be used. Try again: a full disk may have room later."""


class StoreLocked(StoreError):
    """Another running instance holds the store."""


class StoreFull(StoreError):
    """The disk has no room. Try again: there may be some later."""


class StoreAtCap(StoreError):
    """The store is as large as `store.max_size` lets it be. Try again: deliveries make room."""


class StoreBusy(StoreError):
    """Another process holds a lock on the file for longer than is waited for. Try again."""


class StoreReadOnly(StoreError):
    """The file system takes no writes. Try again: it may be mounted for writing later."""


class StoreFault(StoreError):
    """The system failed to read or write the file. Try again."""


class StoreUnusable(StoreError):
    """Do not try again: only a person can fix it."""


class StoreMissing(StoreError):
    """There is no store yet, and who asked may not make one."""


class StoreForeign(StoreUnusable):
    """The file is a database of another program."""


class StoreCorrupt(StoreUnusable):
    """The file is damaged, or is no database."""


class StoreNewer(StoreUnusable):
    """A newer version of bace-bridge wrote the file."""


class StoreOlder(StoreUnusable):
    """An older version wrote the file, and only the service may migrate it: it may be at that."""


class StoreGone(StoreUnusable):
    """The file was moved or deleted under the running bridge: what is written now would be lost."""
