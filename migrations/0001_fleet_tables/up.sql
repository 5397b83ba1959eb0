-- The fleet's own tables, only where the database is empty: an existing fleet made its own,
-- and a fleet without queries needs none.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_tables
        WHERE schemaname NOT IN ('pg_catalog', 'information_schema')
          AND tablename <> '__diesel_schema_migrations'
    ) THEN
        CREATE TABLE shepherd_brain (
            qid varchar(255) PRIMARY KEY,
            start_time timestamp,
            stop_time timestamp,
            submitter text,
            remote_ip text,
            domain text,
            hostname text,
            response_id text,
            callback_url text,
            state text,
            status text,
            description text
        );
        CREATE TABLE callbacks (
            query_id varchar(255) REFERENCES shepherd_brain (qid),
            callback_id varchar(255),
            otel_trace varchar(255)
        );
    END IF;
END
$$;
