-- History is not dropped by going back a version.
DROP INDEX IF EXISTS monitor_events_newest;
DROP INDEX IF EXISTS monitor_events_occurrence;
