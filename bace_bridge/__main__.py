"""The entry point: from a command's end to the process' exit code."""

import os
import sys
from collections.abc import Sequence

# structlog imports rich where there is one, for tracebacks that the service never shows: 3 MB and 40 ms.
sys.modules["rich"] = None  # type: ignore[assignment]  # Python's own way to say that a module is not to be had

from click.exceptions import Exit  # noqa: E402  # after rich was shut out

from bace_bridge.cli.main import (  # noqa: E402  # after rich was shut out
    Invocation,
    cli,
    explain,  # after rich was shut out
)
from bace_bridge.cli.streams import guard_stdout  # noqa: E402  # after rich was shut out

del sys.modules["rich"]

_NAME = "bace-bridge"


def run(arguments: Sequence[str]) -> int:
    """Runs a command and gives the exit code."""
    if "_BACE_BRIDGE_COMPLETE" in os.environ:
        cli.main(list(arguments), prog_name=_NAME)
    invocation = Invocation()
    try:
        code = _invoke(arguments, invocation)
        sys.stdout.flush()
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001  # the last line of defence: every end has an exit code
        return explain(error, debug=invocation.debug)
    return code


def _invoke(arguments: Sequence[str], invocation: Invocation) -> int:
    try:
        # click's own main takes any broken connection for a broken stdout, and ends with 1 in silence.
        with cli.make_context(_NAME, list(arguments), obj=invocation) as context:
            cli.invoke(context)
    except Exit as end:
        return end.exit_code
    return 0


def main() -> None:
    guard_stdout()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
