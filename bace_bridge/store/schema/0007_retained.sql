-- The retained topics that a sink's broker may keep of this bridge: written before a topic is published first, deleted
-- after the broker has acknowledged that it is cleared.
create table retained (
  broker text not null,
  sink text not null,
  topic text not null,
  primary key (broker, sink, topic)
) without rowid;
-- Whose newest point it is, so that it goes with a removed data session; null where an earlier version wrote it.
alter table latest add column session_id text;
