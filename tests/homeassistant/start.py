"""Starts a Home Assistant with few parts, in two seconds; runs in its own virtual environment, not in the bridge's.

    python start.py FOLDER [--pages]

FOLDER holds its configuration; `--pages` loads its web pages as well. The token of an administrator is written to
FOLDER/token once Home Assistant is up.
"""

import asyncio
import sys
from datetime import timedelta
from pathlib import Path

from homeassistant import bootstrap, core, runner
from homeassistant.auth.const import GROUP_ID_ADMIN
from homeassistant.auth.models import TOKEN_TYPE_LONG_LIVED_ACCESS_TOKEN

PAGES = "frontend"
LEFT_OUT = {"isal", "network", "zeroconf", "bluetooth", "dhcp", "ssdp", "usb", "cloud"}
DEFAULT = {"automation", "config", "device_automation", "logger", "script", "system_log"}


def reduce_to(parts: set[str]) -> None:
    bootstrap.CRITICAL_INTEGRATIONS = set()
    bootstrap.DEFAULT_INTEGRATIONS = parts
    bootstrap.STAGE_0_INTEGRATIONS = tuple(
        (name, wanted, timeout)
        for name, integrations, timeout in bootstrap.STAGE_0_INTEGRATIONS
        if (wanted := {one for one in integrations if one not in LEFT_OUT and (one != PAGES or PAGES in parts)})
    )
    bootstrap.STAGE_1_INTEGRATIONS = set()


async def token_of(hass: core.HomeAssistant, earlier: str) -> str:
    """The one of an earlier start, if it is still good."""
    if earlier and hass.auth.async_validate_access_token(earlier) is not None:
        return earlier
    user = await hass.auth.async_create_user("Tester", group_ids=[GROUP_ID_ADMIN])
    refresh = await hass.auth.async_create_refresh_token(
        user,
        client_name="tests",
        token_type=TOKEN_TYPE_LONG_LIVED_ACCESS_TOKEN,
        access_token_expiration=timedelta(days=3650),
    )
    return str(hass.auth.async_create_access_token(refresh))


def write_whole(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


async def main(folder: Path, parts: set[str], earlier: str) -> int:
    reduce_to(parts)
    hass = await bootstrap.async_setup_hass(runner.RuntimeConfig(config_dir=str(folder), skip_pip=True))
    if hass is None:
        return 1
    await hass.async_add_executor_job(write_whole, folder / "token", await token_of(hass, earlier))
    return int(await hass.async_run())


if __name__ == "__main__":
    asyncio.set_event_loop_policy(runner.HassEventLoopPolicy(debug=False))
    folder = Path(sys.argv[1])
    token = folder / "token"
    parts = DEFAULT | {PAGES} if "--pages" in sys.argv else DEFAULT
    sys.exit(asyncio.run(main(folder, parts, token.read_text() if token.exists() else "")))
