-- A sink has a filter; a window holds what was emitted of it.
alter table sinks rename column wish to filter;
alter table windows rename column told to emitted;

-- Of the lanes that are behind: the first place that is still needed, and the number of those that failed.
create index lanes_behind on lanes (sink, seq) where behind = 1;
create index lanes_failed on lanes (sink) where attempts > 0;
