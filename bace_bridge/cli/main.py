"""The command `bace-bridge`. A subcommand is imported when it is called: the service needs no tables."""

from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

import click

_GROUPS = {
    "Service": {
        "run": "Poll the cloud and deliver to MQTT and webhooks.",
        "check": "Validate the configuration; contacts nobody.",
    },
    "Look inside": {
        "sessions": "List the data sessions that the bridge knows.",
        "devices": "List the devices: what `groups` in the configuration take.",
        "events": "Show the event log.",
        "dead-letters": "Deliveries that were given up: list, retry, drop.",
        "replay": "Deliver recorded events again.",
        "schema": "Print the JSON Schema of the configuration or the events.",
    },
    "Try it out": {
        "demo": "The whole system on this machine, with a simulated cloud.",
        "simulate": "The simulated BACE cloud alone.",
    },
}

_MODULES = {"dead-letters": "deliveries", "replay": "deliveries"}
"""Where a command's module has another name: one that it shares."""

_EXAMPLES = """\
bace-bridge demo --for 20s               see what it does; nothing is needed
bace-bridge check -c bridge.yaml         every mistake at once, nothing is contacted
bace-bridge run -c bridge.yaml           the service; SIGTERM stops it, SIGHUP re-reads the file
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
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise click.UsageError(f"This installation has no command {cmd_name!r}.", ctx) from None
        assert isinstance(command, click.Command)
        _prepare(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for title, commands in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))
        with formatter.section("Examples"):
            for line in _EXAMPLES.splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def _installed_version() -> str:
    try:
        return metadata.version("bace-bridge")
    except metadata.PackageNotFoundError:
        return "unknown (not installed, run from its sources)"


def _version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"bace-bridge {_installed_version()}")
        ctx.exit()


def _version_option() -> click.Option:
    return click.Option(
        ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
    )


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
        command.params.append(_version_option())
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _prepare(below)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, envvar="BACE_BRIDGE_DEBUG", help="Show the traceback of an internal error.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Tells MQTT and webhooks when a BACE data session starts, ends and what it measured."""
    if debug:
        ctx.ensure_object(Invocation).debug = True
