-- A sink has a filter; a window holds what was emitted of it.
alter table sinks rename column wish to filter;
alter table windows rename column told to emitted;

-- Of the lanes that are behind: the first place that is still needed, and the number of those that failed.
create index lanes_behind on lanes (sink, seq) where behind = 1;
create index lanes_failed on lanes (sink) where attempts > 0;

-- In the very order in which sessions are fetched: much of a long history may be due at the same time.
drop index sessions_to_visit;
create index sessions_to_fetch on sessions (over_when_found, fetch_at, start desc) where fetch_at is not null;
