-- What was emitted of a window is kept in slices of a minute, so that a fetch writes the newest of them alone.
-- `told` of a window holds what an earlier version wrote, until something is emitted of the window again.
create table slices (
  session_id text not null,
  start integer not null,
  "end" integer not null,
  minute integer not null,
  points blob not null,
  primary key (session_id, start, "end", minute)
);
create trigger slices_of_window after delete on windows begin
  delete from slices where session_id = old.session_id and start = old.start and "end" = old."end";
end;
