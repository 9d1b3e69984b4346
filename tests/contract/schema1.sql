-- A store as schema 1 left it (0001_first.sql, and rows): deliveries that wait, a parked session, a dead letter,
-- a disabled sink. What it says is fixed: a released schema opens in every later version.
begin;
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

INSERT INTO "dead_letters" VALUES('hook',3,'s3',10,'gave up after 10 attempts: HTTP 500',1764590499.0);
INSERT INTO "events" VALUES(1,'evt_bc28ca6d36b6b2d5a2bd7068001d20ce','session.started','s1','g1',1764590401.0,1764590405.0,cast('{"session":{"id":"s1","group_id":"g1","label":"Walk 1","person_id":null,"state":"ingested","started_at":"2025-12-01T12:00:01Z","ended_at":"2025-12-01T12:01:00Z","duration_seconds":59.0,"datapoint_count":1,"ingestion_finished":true,"archived":false,"updated_at":"2025-12-01T12:01:30Z"},"device":{"id":"g1","label":"BaceGo-1"},"observed_at":"2025-12-01T12:00:05Z"}' as blob));
INSERT INTO "events" VALUES(2,'evt_d24cb17df680a817850f737acfe0ce67','session.started','s2','g1',1764590402.0,1764590405.0,cast('{"session":{"id":"s2","group_id":"g1","label":"Walk 2","person_id":null,"state":"ingested","started_at":"2025-12-01T12:00:02Z","ended_at":"2025-12-01T12:01:00Z","duration_seconds":58.0,"datapoint_count":1,"ingestion_finished":true,"archived":false,"updated_at":"2025-12-01T12:01:30Z"},"device":{"id":"g1","label":"BaceGo-1"},"observed_at":"2025-12-01T12:00:05Z"}' as blob));
INSERT INTO "events" VALUES(3,'evt_4c39339cef61c823a19ea7d061caa18c','session.started','s3','g1',1764590403.0,1764590405.0,cast('{"session":{"id":"s3","group_id":"g1","label":"Walk 3","person_id":null,"state":"ingested","started_at":"2025-12-01T12:00:03Z","ended_at":"2025-12-01T12:01:00Z","duration_seconds":57.0,"datapoint_count":1,"ingestion_finished":true,"archived":false,"updated_at":"2025-12-01T12:01:30Z"},"device":{"id":"g1","label":"BaceGo-1"},"observed_at":"2025-12-01T12:00:05Z"}' as blob));
INSERT INTO "events" VALUES(4,'evt_df083aa0b9f8f268c66dee55c6aa2eab','session.updated','s1','g1',1764590401.0,1764590405.0,cast('{"session":{"id":"s1","group_id":"g1","label":"Walk 1","person_id":null,"state":"ingested","started_at":"2025-12-01T12:00:01Z","ended_at":"2025-12-01T12:01:00Z","duration_seconds":59.0,"datapoint_count":1,"ingestion_finished":true,"archived":false,"updated_at":"2025-12-01T12:01:30Z"},"device":{"id":"g1","label":"BaceGo-1"},"observed_at":"2025-12-01T12:00:05Z","changed":["label"]}' as blob));
INSERT INTO "events" VALUES(5,'evt_6fffe38043c81bb3ba23aab520cb13e5','session.ended','s2','g1',1764590402.0,1764590405.0,cast('{"session":{"id":"s2","group_id":"g1","label":"Walk 2","person_id":null,"state":"ingested","started_at":"2025-12-01T12:00:02Z","ended_at":"2025-12-01T12:01:00Z","duration_seconds":58.0,"datapoint_count":1,"ingestion_finished":true,"archived":false,"updated_at":"2025-12-01T12:01:30Z"},"device":{"id":"g1","label":"BaceGo-1"},"observed_at":"2025-12-01T12:00:05Z"}' as blob));
INSERT INTO "events" VALUES(6,'evt_fa811cc0fabe4de823cd66ad07a8eee0','session.ended','s1','g1',1764590401.0,1764590405.0,cast('{"session":{"id":"s1","group_id":"g1","label":"Walk 1","person_id":null,"state":"ingested","started_at":"2025-12-01T12:00:01Z","ended_at":"2025-12-01T12:01:00Z","duration_seconds":59.0,"datapoint_count":1,"ingestion_finished":true,"archived":false,"updated_at":"2025-12-01T12:01:30Z"},"device":{"id":"g1","label":"BaceGo-1"},"observed_at":"2025-12-01T12:00:05Z"}' as blob));
INSERT INTO "events" VALUES(7,'evt_2ff52a630e24c7ed23d20dd5987ef77d','session.csv_ready','s2','g1',1764590402.0,1764590405.0,cast('{"session":{"id":"s2","group_id":"g1","label":"Walk 2","person_id":null,"state":"ingested","started_at":"2025-12-01T12:00:02Z","ended_at":"2025-12-01T12:01:00Z","duration_seconds":58.0,"datapoint_count":1,"ingestion_finished":true,"archived":false,"updated_at":"2025-12-01T12:01:30Z"},"device":{"id":"g1","label":"BaceGo-1"},"observed_at":"2025-12-01T12:00:05Z","csv":{"url":"https://dashboard.bace-iot.com/api/v2/data-session/s2/download-csv","revision":0,"datapoint_count":1}}' as blob));
INSERT INTO "events" VALUES(8,'evt_187fe915f7fe7e1023142e765f05a5ca','session.csv_ready','s1','g1',1764590401.0,1764590405.0,cast('{"session":{"id":"s1","group_id":"g1","label":"Walk 1","person_id":null,"state":"ingested","started_at":"2025-12-01T12:00:01Z","ended_at":"2025-12-01T12:01:00Z","duration_seconds":59.0,"datapoint_count":1,"ingestion_finished":true,"archived":false,"updated_at":"2025-12-01T12:01:30Z"},"device":{"id":"g1","label":"BaceGo-1"},"observed_at":"2025-12-01T12:00:05Z","csv":{"url":"https://dashboard.bace-iot.com/api/v2/data-session/s1/download-csv","revision":0,"datapoint_count":1}}' as blob));
INSERT INTO "facts" VALUES('installation','0badcafe');
INSERT INTO "facts" VALUES('token:account','{"access":"access","refresh":"refresh","expires_at":1764594000.0}');
INSERT INTO "facts" VALUES('watch','{"start_from":1764590400.0,"watermark":1764590490.0,"quiet_walks":0,"floor":0.0,"active_found":true,"reconcile_page":2,"roll_called_at":0.0,"roll_call_after":"","roll_call_finished_after":""}');
INSERT INTO "latest" VALUES('g1','d1',6000,1764590410.0,cast('{"avg":61.0}' as blob));
INSERT INTO "parked" VALUES('hook','s2',2,3,1764590400.0,'HTTP 500');
INSERT INTO "sessions" VALUES('s1','g1',1764590401.0,1764590490.0,0,0,0,0,NULL,NULL,'{"session":{"id":"s1","group_id":"g1","start":1764590401.0,"end":1764590460.0,"label":"Walk 1","person_id":null,"created_at":null,"updated_at":1764590490.0,"datapoint_count":1,"ingestion_finished":true,"archived":false},"device_label":"BaceGo-1","over_when_found":false,"updates":0,"removals":0,"reopenings":0,"end_told":1764590460.0,"end_seen_at":null,"reading":1,"csv_revision":0,"csv_facts":[1,1764590460.0,0],"csv_due":false,"points_since_csv":false,"newest_point_at":null,"count_visited":null,"probed":{},"removed":false,"visit_at":null,"failed_visits":0}');
INSERT INTO "sessions" VALUES('s2','g1',1764590402.0,1764590490.0,0,0,0,0,NULL,NULL,'{"session":{"id":"s2","group_id":"g1","start":1764590402.0,"end":1764590460.0,"label":"Walk 2","person_id":null,"created_at":null,"updated_at":1764590490.0,"datapoint_count":1,"ingestion_finished":true,"archived":false},"device_label":"BaceGo-1","over_when_found":false,"updates":0,"removals":0,"reopenings":0,"end_told":1764590460.0,"end_seen_at":null,"reading":1,"csv_revision":0,"csv_facts":[1,1764590460.0,0],"csv_due":false,"points_since_csv":false,"newest_point_at":null,"count_visited":null,"probed":{},"removed":false,"visit_at":null,"failed_visits":0}');
INSERT INTO "sessions" VALUES('s3','g1',1764590403.0,1764590490.0,0,0,0,0,NULL,NULL,'{"session":{"id":"s3","group_id":"g1","start":1764590403.0,"end":1764590460.0,"label":"Walk 3","person_id":null,"created_at":null,"updated_at":1764590490.0,"datapoint_count":1,"ingestion_finished":true,"archived":false},"device_label":"BaceGo-1","over_when_found":false,"updates":0,"removals":0,"reopenings":0,"end_told":1764590460.0,"end_seen_at":null,"reading":1,"csv_revision":0,"csv_facts":[1,1764590460.0,0],"csv_due":false,"points_since_csv":false,"newest_point_at":null,"count_visited":null,"probed":{},"removed":false,"visit_at":null,"failed_visits":0}');
INSERT INTO "sinks" VALUES('gone',0,'t',0,1764590499.0,'HTTP 410');
INSERT INTO "sinks" VALUES('hook',3,'t',0,NULL,NULL);
INSERT INTO "windows" VALUES('s1',1764590400,1764594000,'{"start":1764590400,"end":1764594000,"reading":1,"settled":true,"split":false,"samples":1,"pages":1,"raw":false,"newest":1764590410.0,"failures":0}',X'81A673657269657381CB41DA4B60D280000095CB404E000000000000CB404F000000000000CB404E8000000000000100');
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',8);
pragma user_version = 1;
commit;
