DROP TABLE monitor_janitor_passes;
