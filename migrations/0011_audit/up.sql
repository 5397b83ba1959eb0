-- Every change that somebody asked for. The row is written before the change begins; a row whose
-- outcome is still 'begun' is of one that is under way, or whose monitor was killed in it.
CREATE TABLE monitor_audit (
    id bigserial PRIMARY KEY,
    ts timestamptz NOT NULL DEFAULT now(),
    who text NOT NULL,
    -- viewer, operator or admin
    role text NOT NULL,
    -- where the request came from
    address text NOT NULL,
    action text NOT NULL,
    parameters jsonb NOT NULL,
    -- what was answered; null until it is known
    result jsonb,
    -- begun, done, refused (nothing was changed) or failed (something may have been)
    outcome text NOT NULL,
    ended timestamptz
);
CREATE INDEX monitor_audit_ts ON monitor_audit (ts);
