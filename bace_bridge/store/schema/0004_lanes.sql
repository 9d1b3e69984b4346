-- A lane that still has something to deliver is a row; a sink has no cursor any more.
-- `seq` is the place of its next event. A lane that failed or was asked for is `behind`: it does not hold up the others.
-- `version` is another one whenever anybody but the sink's dispatcher moves the row.
create table lanes (
  sink text not null,
  lane text not null,
  seq integer not null,
  attempts integer not null default 0,
  due_at real not null default 0,
  reason text not null default '',
  replay_through integer not null default 0,
  behind integer not null default 0,
  version integer not null,
  primary key (sink, lane)
) without rowid;
create index lanes_by_turn on lanes (sink, behind, due_at, seq);

-- Lanes with something after the cursor; a disabled or retired sink gets them when it comes back.
insert into lanes (sink, lane, seq, version)
select name, coalesce(session_id, ':bridge'), min(seq), min(seq)
from sinks join events on seq > cursor
where disabled_at is null and not retired
group by name, session_id;

-- A parked lane has a place of its own, which its sink's cursor has passed.
insert into lanes (sink, lane, seq, attempts, due_at, reason, replay_through, behind, version)
select sink, key, seq, attempts, at, iif(reason = 'under way', '', reason), replay_upto, reason <> 'under way', seq
from parked where true
on conflict (sink, lane) do update set seq = excluded.seq, attempts = excluded.attempts, due_at = excluded.due_at,
  reason = excluded.reason, replay_through = excluded.replay_through, behind = excluded.behind;

-- What was asked for: a replay, also for a sink that has never run.
insert or ignore into sinks (name, cursor, target, retired)
select distinct sink, (select coalesce(max(seq), 0) from sqlite_sequence where name = 'events'), '', 1 from asked;
insert into lanes (sink, lane, seq, reason, replay_through, behind, version)
select sink, key, asked.seq, 'asked for', iif(key glob 'letter:*', 0, cursor), 1, asked.seq
from asked join sinks on name = sink where key glob 'letter:*' or asked.seq <= cursor
on conflict (sink, lane) do update set
  due_at = 0,
  behind = 1,
  attempts = iif(excluded.seq < seq, 0, attempts),
  reason = iif(excluded.seq < seq, excluded.reason, reason),
  replay_through = iif(excluded.seq < seq, max(replay_through, seq - 1), replay_through),
  seq = min(seq, excluded.seq);

drop table parked;
drop table asked;

-- While `routed_through` is set no rows are made for the sink: it is disabled, or not configured any more.
create table new_sinks (
  name text primary key,
  target text not null default '',
  wish text not null default '{}',
  routed_through integer,
  disabled_reason text
) without rowid;
insert into new_sinks (name, target, routed_through, disabled_reason)
select name, target, iif(disabled_at is not null or retired, cursor, null), disabled_reason from sinks;
drop table sinks;
alter table new_sinks rename to sinks;
