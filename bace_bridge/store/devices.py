"""The devices whose data sessions or datapoints are known: one step in an index a device, not one a row."""


def _distinct(name: str, column: str, table: str) -> str:
    return f"""{name} (device) as (
      select min({column}) from {table}
      union all
      select (select min({column}) from {table} where {column} > device) from {name} where device is not null
    )"""  # noqa: S608  # our own names


WITH_DEVICES = f"with recursive {_distinct('devices', 'group_id', 'sessions')}"
"""The table `devices` for a query, those of the sessions. It ends with a null."""

ALL_DEVICES = f"""{WITH_DEVICES}, {_distinct("seen", "device_id", "latest")}
    select device from devices where device is not null union select device from seen
    where device is not null"""  # noqa: S608  # our own text
"""Those of which datapoints are known, too."""
