-- The audit log is append-only. Each fact in it (the request of a change, its outcome, a recorded event, a removal by
-- retention) is a link of a hash chain. src/access/audit_chain.rs defines what a hash covers.
CREATE TABLE monitor_audit_chain (
    seq bigint PRIMARY KEY,
    -- Time of the fact.
    ts timestamptz NOT NULL,
    -- start, begun, ended, recorded or retention
    kind text NOT NULL,
    -- Row of monitor_audit; null for facts about the log itself.
    row_id bigint,
    -- JSON: of `start`, the rows that are older than the chain; of `retention`, the last link that was removed.
    detail text NOT NULL DEFAULT '',
    -- SHA-256 over the hash of the previous link and this fact; empty for `start`.
    hash bytea NOT NULL
);
CREATE UNIQUE INDEX monitor_audit_chain_row ON monitor_audit_chain (row_id, kind);

INSERT INTO monitor_audit_chain (seq, ts, kind, detail, hash)
    SELECT 0, now(), 'start', format('{"last_id":%s,"rows":%s}', coalesce(max(id), 0), count(*)), '' FROM monitor_audit;

-- Refuses everything except the completion of a change and removals by monitor_audit_retain.
CREATE FUNCTION monitor_audit_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('shepherd_monitor.audit_retention', true) = 'on'
        AND current_user = (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = TG_RELID) THEN
        RETURN OLD;
    END IF;
    IF TG_OP = 'UPDATE' AND TG_TABLE_NAME = 'monitor_audit' THEN
        IF OLD.outcome = 'begun' AND NEW.outcome IN ('done', 'refused', 'failed')
            AND (NEW.id, NEW.ts, NEW.who, NEW.role, NEW.address, NEW.action, NEW.parameters)
                IS NOT DISTINCT FROM (OLD.id, OLD.ts, OLD.who, OLD.role, OLD.address, OLD.action, OLD.parameters) THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'the audit log is append-only: % on % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;

-- Removes the links up to `through` with their rows, and old rows without a link; records that as the link `seq`.
-- Runs as the owner of the tables, so that the monitor's role needs no privilege to delete. Returns the number of rows.
CREATE FUNCTION monitor_audit_retain(
    through bigint, before timestamptz, most int, link_seq bigint, link_ts timestamptz, link_detail text, link_hash bytea
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    ids bigint[];
    linked bigint;
    unlinked bigint;
BEGIN
    IF before > now() - interval '1 day'
        OR EXISTS (SELECT FROM monitor_audit_chain WHERE seq BETWEEN 1 AND through AND ts >= before) THEN
        RAISE EXCEPTION 'the audit log is append-only: its rows are retained for at least one day'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- Not as a setting of the function, which only a superuser may declare.
    PERFORM set_config('shepherd_monitor.audit_retention', 'on', true);
    INSERT INTO monitor_audit_chain (seq, ts, kind, detail, hash)
        VALUES (link_seq, link_ts, 'retention', link_detail, link_hash);
    SELECT array_agg(DISTINCT row_id) INTO ids FROM monitor_audit_chain WHERE seq BETWEEN 1 AND through;
    DELETE FROM monitor_audit_chain WHERE seq BETWEEN 1 AND through;
    DELETE FROM monitor_audit a
        WHERE a.id = ANY (ids) AND NOT EXISTS (SELECT FROM monitor_audit_chain c WHERE c.row_id = a.id);
    GET DIAGNOSTICS linked = ROW_COUNT;
    DELETE FROM monitor_audit WHERE id = ANY (ARRAY(
        SELECT id FROM monitor_audit a
        WHERE a.ts < before AND NOT EXISTS (SELECT FROM monitor_audit_chain c WHERE c.row_id = a.id)
        ORDER BY a.ts LIMIT most));
    GET DIAGNOSTICS unlinked = ROW_COUNT;
    PERFORM set_config('shepherd_monitor.audit_retention', '', true);
    RETURN linked + unlinked;
END
$$;

-- Their names are those of this schema whatever the search path of the caller.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION monitor_audit_guard() SET search_path = %I, pg_temp', current_schema());
    EXECUTE format(
        'ALTER FUNCTION monitor_audit_retain(bigint, timestamptz, int, bigint, timestamptz, text, bytea) '
        'SET search_path = %I, pg_temp', current_schema());
END
$$;
REVOKE ALL ON FUNCTION monitor_audit_retain(bigint, timestamptz, int, bigint, timestamptz, text, bytea) FROM PUBLIC;

CREATE TRIGGER monitor_audit_append_only BEFORE UPDATE OR DELETE ON monitor_audit
    FOR EACH ROW EXECUTE PROCEDURE monitor_audit_guard();
CREATE TRIGGER monitor_audit_not_truncated BEFORE TRUNCATE ON monitor_audit
    FOR EACH STATEMENT EXECUTE PROCEDURE monitor_audit_guard();
CREATE TRIGGER monitor_audit_append_only BEFORE UPDATE OR DELETE ON monitor_audit_chain
    FOR EACH ROW EXECUTE PROCEDURE monitor_audit_guard();
CREATE TRIGGER monitor_audit_not_truncated BEFORE TRUNCATE ON monitor_audit_chain
    FOR EACH STATEMENT EXECUTE PROCEDURE monitor_audit_guard();
