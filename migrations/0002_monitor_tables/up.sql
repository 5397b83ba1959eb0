-- The monitor's tables; a database that the older monitor filled has them already.
CREATE TABLE IF NOT EXISTS monitor_metrics (
    ts timestamptz NOT NULL,
    metric text NOT NULL,
    value double precision,
    PRIMARY KEY (metric, ts)
);

CREATE TABLE IF NOT EXISTS monitor_events (
    id bigserial PRIMARY KEY,
    ts timestamptz NOT NULL DEFAULT now(),
    type text NOT NULL,
    worker text,
    severity text,
    detail text,
    payload jsonb
);

CREATE TABLE IF NOT EXISTS monitor_task_latency (
    ts timestamptz NOT NULL,
    stream text NOT NULL,
    count int NOT NULL,
    mean_ms double precision,
    p50_ms double precision,
    p90_ms double precision,
    p95_ms double precision,
    p99_ms double precision,
    min_ms double precision,
    max_ms double precision,
    PRIMARY KEY (stream, ts)
);

-- The same occurrence, found again after a restart or replayed from the spool, is stored once.
CREATE UNIQUE INDEX IF NOT EXISTS monitor_events_occurrence ON monitor_events ((payload ->> 'key'));
CREATE INDEX IF NOT EXISTS monitor_events_newest ON monitor_events (ts DESC, id DESC);
