"""The command `bace-bridge`, the options that its commands share, and how errors become exit codes."""

import os
import select
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

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
        from bace_bridge.simulator.facts import seconds  # noqa: PLC0415  # two commands alone need it

        try:
            return seconds(value)
        except ValueError as wrong:
            self.fail(str(wrong), param, ctx)


# As sysexits.h names them: EX_SOFTWARE, EX_TEMPFAIL (a service manager tries again) and EX_CONFIG (it does not).
INTERNAL_ERROR = 70
STORE_LOCKED = 75
CONFIG_WRONG = 78
INTERRUPTED = 130


def explain(error: BaseException, *, debug: bool) -> int:
    """Says on stderr what went wrong, and gives the exit code."""
    causes = list(_causes(error))
    # The first that applies: a task group may bring several errors, and one of them is the answer to the person.
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
    """The exceptions that a TaskGroup has wrapped, unexpected ones first."""
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
    # The innermost line of bace-bridge itself, else the innermost line.
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parent.parent)
    frame = next((one for one in reversed(frames) if one.filename.startswith(ours)), frames[-1] if frames else None)
    place = f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" if frame else "unknown"
    # The message of a foreign exception may hold anything; class and line say where it happened.
    fields = {"error": type(error).__name__, "place": place}
    if debug:
        fields["traceback"] = "".join(traceback.format_exception(error))
    else:
        fields["hint"] = "BACE_BRIDGE_DEBUG=1 shows the traceback"
    structlog.get_logger().error("internal_error", **fields)


_GROUPS = {
    "Service": {
        "run": "Poll the cloud and deliver to MQTT and webhooks.",
        "check": "Validate the configuration. Makes no network requests.",
    },
    "Inspect": {
        "sessions": "List the data sessions that the bridge knows.",
        "devices": "List the devices, with ids and labels for `groups`.",
        "datatypes": "List the datatypes with their last values, and YAML for those without a name.",
        "events": "Show the event log.",
        "dead-letters": "List, retry or drop failed deliveries.",
        "replay": "Deliver recorded events again.",
        "csv": "Download a data session's CSV, or renew the key of CSV links.",
        "schema": "Print the JSON Schema of the configuration or the events.",
    },
    "Try it out": {
        "demo": "Run the whole system on this machine with a simulated cloud.",
        "simulate": "Run only the simulated BACE cloud.",
    },
}

_MODULES = {
    "dead-letters": "deliveries",
    "replay": "deliveries",
    "sessions": "listings",
    "devices": "listings",
    "datatypes": "listings",
    "schema": "check",
}
"""Where a command's module has another name: one that it shares."""

_EXAMPLES = """\
bace-bridge demo --for 20s               see what it does, without a device or an account
bace-bridge check -c bridge.yaml         report every mistake at once
bace-bridge run -c bridge.yaml           the service; SIGTERM stops it, SIGHUP reloads the file
"""


@dataclass
class Invocation:
    """What the options before the command say; the entry point reads it after the command has ended."""

    debug: bool = False


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return [name for commands in _GROUPS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        name = cmd_name.replace("-", "_")
        module = f"bace_bridge.cli.{_MODULES.get(cmd_name, name)}"
        try:
            command = getattr(import_module(module), name)
        except ModuleNotFoundError as error:  # a package may leave out the simulator and the demo
            if error.name != module:
                raise
            raise click.UsageError(f"This installation has no command {cmd_name!r}.", ctx) from None
        assert isinstance(command, click.Command)
        _prepare(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's
        for title, commands in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))
        with formatter.section("Examples"):
            for line in _EXAMPLES.splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def _version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    try:
        version = metadata.version("bace-bridge")
    except metadata.PackageNotFoundError:
        version = "unknown (not installed, run from its sources)"
    click.echo(f"bace-bridge {version}")
    ctx.exit()


class _Text(click.types.StringParamType):
    """Text that the store and a terminal can take: bytes that are not UTF-8 come as halves of characters."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = super().convert(value, param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail(f"{text!r} is not UTF-8 text", param, ctx)
        return text


def _prepare(command: click.Command) -> None:
    """What all commands, and those below them, have in common."""
    for param in command.params:
        if isinstance(param.type, click.types.StringParamType):
            param.type = _Text()
    if not any(option.name == "version" for option in command.params):
        # `bace-bridge run --version` is tried by many; click has it for the group alone.
        about = "Show the version."
        command.params.append(
            click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help=about)
        )
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _prepare(below)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, envvar="BACE_BRIDGE_DEBUG", help="Show the traceback of an internal error.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Publish BACE data sessions to MQTT and webhooks: when they start, what they measure, when they end."""
    if debug:
        ctx.ensure_object(Invocation).debug = True
