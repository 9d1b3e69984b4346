"""Which devices are watched: by the id of their group, or by its label."""

import re
from collections.abc import Collection, Mapping, Sequence

from msgspec.structs import replace

from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.session_list import backfilled_at_once

_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def is_selected(groups: Collection[str], group_id: str, label: str | None) -> bool:
    """True when `groups` name the device by id or by label; without any, every device is watched."""
    return not groups or group_id in groups or (label is not None and label in groups)


def decides_by_label(groups: Collection[str], group_id: str) -> bool:
    """True when the device's label decides whether it is watched: its id does not, and some entry may be a label."""
    return bool(groups) and group_id not in groups and not are_ids(groups)


def are_ids(groups: Collection[str]) -> bool:
    return all(_ID.fullmatch(one) for one in groups)


def unmatched(groups: Collection[str], devices: Mapping[str, str | None]) -> list[str]:
    """The entries that are neither the id nor the label of one of these devices (labels by id)."""
    labels = set(devices.values())
    return [one for one in groups if one not in devices and one not in labels]


def starts_from(state: PollState, group_id: str, label: str | None) -> float:
    """The time (epoch seconds, the cloud's) from which a device's sessions are reported."""
    names = [name for name in (group_id, label) if name is not None]
    named = [name for name in names if name in (state.groups or ())] or [one for one in names if one in state.joined]
    return min((state.joined.get(name, state.start_from) for name in named), default=state.start_from)


def with_selection(state: PollState, groups: Sequence[str], *, start_from: float) -> PollState:
    """The state with another selection. Devices that it adds are reported from `start_from`, and asked for at once."""
    now, before = tuple(sorted(groups)), state.groups
    state = replace(state, groups=now, groups_checked_at=None)
    if not before or before == now:
        return state
    if now:
        added = dict.fromkeys(set(now) - set(before), start_from)
        state = replace(state, joined={name: since for name, since in state.joined.items() if name in now} | added)
        if not added:
            return state
    else:
        joined = {name: state.joined.get(name, state.start_from) for name in before}
        state = replace(state, start_from=start_from, joined=joined)
    return replace(backfilled_at_once(state), active_found=False)
