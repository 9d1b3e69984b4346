-- Of a discovery topic the components that Home Assistant may know, as JSON: one that is to go must be named once more,
-- also after a restart.
alter table retained add column announced text;
