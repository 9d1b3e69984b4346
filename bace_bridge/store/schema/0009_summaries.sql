-- What a series is of, for the summaries of data sessions. Of what an earlier version published the newest points say so.
create table series (
  id text primary key,
  source_device text not null,
  datatype integer not null
) without rowid;
insert or ignore into series (id, source_device, datatype)
select id, source_device, datatype from (
  select iif(json_valid(point), json_extract(point, '$.series_id'), null) as id, source_device, datatype, timestamp
  from (select cast(payload as text) as point, source_device, datatype, timestamp from latest)
) where id is not null order by timestamp desc;

-- The last summary of each data session. It goes with the windows, but for that of a device's last session, which is
-- in a retained topic.
create table summaries (
  session_id text primary key,
  summary blob not null
);
create trigger summary_of_windows after delete on windows
when old.session_id is not (
  select last.id from sessions as own join sessions as last on last.group_id = own.group_id
  where own.id = old.session_id and last.removed = 0 order by last.active desc, last.start desc limit 1
) begin
  delete from summaries where session_id = old.session_id;
end;
