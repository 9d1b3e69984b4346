"""The kinds of sinks. The only module that knows them all, and by the names of their folders alone."""

from importlib import import_module

from bace_bridge.sinks.kind import SinkConfig

_FOLDERS = (
    "mqtt",
    "webhook",
)
"""In the order in which `check` lists them. A new kind is a folder here, and its name in a line of its own."""


KINDS: tuple[type[SinkConfig], ...] = tuple(
    import_module(f"bace_bridge.sinks.{folder}.config").KIND for folder in _FOLDERS
)
