DROP TABLE monitor_alert_leader;
DROP TABLE monitor_silences;
DROP TABLE monitor_alert_outbox;
DROP TABLE monitor_alerts;
