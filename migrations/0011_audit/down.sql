DROP TABLE monitor_audit;
