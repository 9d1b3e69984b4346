-- Up to this place a parked lane's deliveries are replays.
alter table parked add column replay_upto integer not null default 0;

-- The bridge's own lane has a name that no data session can have.
update or ignore parked set key = ':bridge' where key = 'bridge';
update dead_letters set key = ':bridge' where key = 'bridge';

-- Lanes that somebody asked for. The running bridge, which has its sinks' places in memory, takes them from here.
create table asked (
  sink text not null,
  key text not null,
  seq integer not null,
  primary key (sink, key)
) without rowid;

-- The last attempts that failed.
create table attempts (
  id integer primary key autoincrement,
  sink text not null,
  seq integer not null,
  number integer not null,
  at real not null,
  seconds real not null,
  status integer,
  reason text not null,
  answer text not null
);
create index attempts_of_delivery on attempts (sink, seq);
create index attempts_of_sink on attempts (sink, id);
