DROP TABLE monitor_sessions;
