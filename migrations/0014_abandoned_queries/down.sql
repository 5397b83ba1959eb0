ALTER TABLE monitor_janitor_passes DROP COLUMN abandoned_queries;
