-- What was called a visit is a fetch of datapoints. In JSON a quote inside a text is escaped, so only names match.
alter table sessions rename column visit_at to fetch_at;
update sessions set known = replace(replace(replace(replace(known,
  '"visit_at":', '"fetch_at":'),
  '"end_told":', '"end_emitted":'),
  '"failed_visits":', '"failed_fetches":'),
  '"count_visited":', '"count_fetched":');
