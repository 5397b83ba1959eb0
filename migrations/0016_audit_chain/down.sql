DROP TABLE monitor_audit_chain;
DROP TRIGGER monitor_audit_append_only ON monitor_audit;
DROP TRIGGER monitor_audit_not_truncated ON monitor_audit;
DROP FUNCTION monitor_audit_retain(bigint, timestamptz, int, bigint, timestamptz, text, bytea);
DROP FUNCTION monitor_audit_guard();
