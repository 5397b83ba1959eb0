ALTER TABLE monitor_sessions DROP COLUMN token_id;
DROP TABLE monitor_users;
