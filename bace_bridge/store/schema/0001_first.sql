-- Facts are JSON where a person may want to read them (sqlite3 file "select known from sessions"),
-- and columns beside it where they are searched for.
create table facts (
  name text primary key,
  value text not null
) without rowid;

create table sessions (
  id text primary key,
  group_id text not null,
  start real not null,
  updated_at real,
  active integer not null,
  unfinished integer not null,
  removed integer not null,
  over_when_found integer not null,
  visit_at real,
  end_waits_since real,
  known text not null
) without rowid;
create index sessions_to_visit on sessions (over_when_found, visit_at) where visit_at is not null;
create index sessions_with_an_end_to_tell on sessions (end_waits_since) where end_waits_since is not null;
create index sessions_of_device on sessions (group_id, removed, active, start);
create index sessions_by_update on sessions (updated_at);
create index sessions_by_start on sessions (start);
create index sessions_unfinished on sessions (id) where unfinished;

-- What was told of each window of a session, so that a changed datapoint is known as one.
create table windows (
  session_id text not null,
  start integer not null,
  "end" integer not null,
  state text not null,
  told blob,
  primary key (session_id, start, "end")
) without rowid;

create table latest (
  device_id text not null,
  source_device text not null,
  datatype integer not null,
  timestamp real not null,
  payload blob not null,
  primary key (device_id, source_device, datatype)
) without rowid;

-- The event log: each event once, in the order in which sinks get it.
create table events (
  seq integer primary key autoincrement,
  id text not null unique,
  type text not null,
  session_id text,
  device_id text,
  time real not null,
  observed_at real not null,
  data blob not null
);
create index events_of_session on events (session_id, seq);

create table sinks (
  name text primary key,
  cursor integer not null,
  target text not null default '',
  retired integer not null default 0,
  disabled_at real,
  disabled_reason text
) without rowid;

create table parked (
  sink text not null,
  key text not null,
  seq integer not null,
  attempts integer not null,
  at real not null,
  reason text not null,
  primary key (sink, key)
) without rowid;

create table dead_letters (
  sink text not null,
  seq integer not null,
  key text not null,
  attempts integer not null,
  reason text not null,
  at real not null,
  primary key (sink, seq)
) without rowid;
