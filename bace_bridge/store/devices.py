"""The devices whose data sessions are known."""

DEVICES = """with recursive devices (device) as (
  select min(group_id) from sessions
  union all
  select (select min(group_id) from sessions where group_id > device) from devices where device is not null
)"""
"""The table `devices` for a query: one step in an index a device, not one a data session. It ends with a null."""
