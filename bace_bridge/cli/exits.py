"""Options that several commands share."""

import os
import select
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import click
import structlog

from bace_bridge import logs
from bace_bridge.errors import BridgeError, ConfigError, StoreLocked

config_option = click.option(
    "-c",
    "--config",
    "config",
    default="bridge.yaml",
    show_default=True,
    envvar="BACE_BRIDGE_CONFIG",
    type=click.Path(path_type=Path),
    help="The configuration file (or BACE_BRIDGE_CONFIG).",
)


class Duration(click.ParamType[float]):
    """`--for 20s`, in seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        # Late: pydantic, which comes with it, would delay the first line of every command.
        from bace_bridge.simulator.facts import seconds  # noqa: PLC0415

        try:
            return seconds(value)
        except ValueError as wrong:
            self.fail(str(wrong), param, ctx)


INTERNAL_ERROR = 70
STORE_LOCKED = 75
CONFIG_WRONG = 78
INTERRUPTED = 130


def explain(error: BaseException, *, debug: bool) -> int:
    """Says on stderr what went wrong, and gives the exit code."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, click.ClickException):
            cause.show()
            return cause.exit_code
    if any(isinstance(cause, BrokenPipeError) for cause in causes) and _reader_of_stdout_left():
        return 0
    if any(isinstance(cause, click.Abort | KeyboardInterrupt) for cause in causes):
        return INTERRUPTED
    mistakes = [mistake for cause in causes if isinstance(cause, ConfigError) for mistake in cause.mistakes]
    for mistake in mistakes:
        click.echo(str(mistake), err=True)
    if mistakes:
        return CONFIG_WRONG
    if all(isinstance(cause, BridgeError) for cause in causes):
        for cause in causes:
            click.echo(f"bace-bridge: {cause}", err=True)
        return STORE_LOCKED if any(isinstance(cause, StoreLocked) for cause in causes) else INTERNAL_ERROR
    _log_internal_error(causes[0], debug=debug)
    return INTERNAL_ERROR


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exceptions that a TaskGroup has wrapped, those that nobody expected first."""
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    leaves = [leaf for inner in error.exceptions for leaf in _causes(inner)]
    yield from sorted(leaves, key=lambda leaf: isinstance(leaf, BridgeError))


def _reader_of_stdout_left() -> bool:
    """True where stdout is the broken pipe (`bace-bridge events | head`), and not a connection."""
    stdout = sys.stdout.fileno()
    poll = select.poll()
    poll.register(stdout, 0)
    if not poll.poll(0):
        return False
    # Python flushes once more at its end, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True


def _log_internal_error(error: BaseException, *, debug: bool) -> None:
    if not logs.is_configured():
        logs.configure(fmt=None, level="info")
    # The message of a foreign exception may hold anything; class and place tell where to look.
    fields = {"error": type(error).__name__, "place": _place(error)}
    if debug:
        fields["traceback"] = "".join(traceback.format_exception(error))
    else:
        fields["hint"] = "BACE_BRIDGE_DEBUG=1 shows the traceback"
    structlog.get_logger().error("internal_error", **fields)


def _place(error: BaseException) -> str:
    """The innermost line of bace-bridge itself, else the innermost line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parent.parent)
    frame = next((one for one in reversed(frames) if one.filename.startswith(ours)), frames[-1] if frames else None)
    return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" if frame else "unknown"
