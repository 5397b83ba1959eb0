//! Generates history for the demonstration: the tables of an older monitor with data of several days, which the monitor
//! imports.
//!
//! Postgres generates everything from random values with a daily rhythm: thirty days of thirty-four types are nineteen
//! million samples, in one or two minutes.

use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};

/// Amount of history to generate.
#[derive(Debug, Clone)]
pub struct Past {
    /// Number of days, up to now.
    pub days: u32,
    /// Worker types, each with six series and its run times.
    pub types: Vec<String>,
    /// Number of queries over all days.
    pub queries: u32,
}

/// Tables as the older monitor created them.
const TABLES: &str = "
    CREATE TABLE monitor_metrics (ts timestamptz NOT NULL, metric text NOT NULL, value double precision);
    CREATE TABLE monitor_events (id bigserial PRIMARY KEY, ts timestamptz NOT NULL DEFAULT now(), type text NOT NULL,
        worker text, severity text, detail text, payload jsonb);
    CREATE TABLE monitor_task_latency (ts timestamptz NOT NULL, stream text NOT NULL, count int NOT NULL,
        mean_ms double precision, p50_ms double precision, p90_ms double precision, p95_ms double precision,
        p99_ms double precision, min_ms double precision, max_ms double precision);";

/// Created after the data, because building an index is faster than updating it.
const INDEXES: &str = "
    ALTER TABLE monitor_metrics ADD PRIMARY KEY (metric, ts);
    CREATE INDEX monitor_metrics_ts_idx ON monitor_metrics (ts);
    ALTER TABLE monitor_task_latency ADD PRIMARY KEY (stream, ts);
    CREATE INDEX monitor_task_latency_ts_idx ON monitor_task_latency (ts);
    CREATE INDEX monitor_events_ts_idx ON monitor_events (ts);
    ANALYZE;";

/// Fills the database at `url`, which contains the fleet's tables and none of a monitor.
///
/// # Errors
/// The error of Postgres.
pub async fn fill(url: &str, past: &Past) -> Result<(), String> {
    let mut database = AsyncPgConnection::establish(url).await.map_err(|e| e.to_string())?;
    let types: Vec<String> = past.types.iter().map(|name| format!("'{}'", name.replace('\'', "''"))).collect();
    let (types, days, queries) = (types.join(","), past.days, past.queries);
    // All samples of a poll share one time, with a slight delay like real polls. `busy` ranges from 0.2 at night to 1
    // by day, with occasional spikes.
    let moments = format!(
        "SET max_parallel_workers_per_gather = 0;
         CREATE TEMP TABLE tick AS
             SELECT n, now() - n * interval '30 seconds' + random() * interval '40 milliseconds' AS ts,
                 0.6 + 0.4 * sin(extract(epoch FROM now() - n * interval '30 seconds')::float8 / 86400 * 2 * pi())
                     + CASE WHEN n % 2500 < 20 THEN 2 ELSE 0 END AS busy
             FROM generate_series({days} * 2880, 1, -1) n;
         CREATE TEMP TABLE kind AS SELECT name, row_number() OVER () AS k FROM unnest(ARRAY[{types}]) name;"
    );
    let of_types = "
        INSERT INTO monitor_metrics
            SELECT ts, series, value FROM tick CROSS JOIN kind CROSS JOIN LATERAL (
                SELECT floor(random() * (3 + k % 9) * busy * 4) AS backlog, 2 + k % 4 + floor(busy * 2) AS alive) now
            CROSS JOIN LATERAL (VALUES
                ('xlen:' || name, backlog + 20), ('pending:' || name, least(backlog, alive * 10)),
                ('consumers:' || name, alive), ('workers_alive:' || name, alive),
                ('backlog:' || name, backlog), ('capacity:' || name, alive * 10)) sample (series, value)
            ORDER BY n DESC;";
    let of_servers = "
        INSERT INTO monitor_metrics
            SELECT ts, series, value FROM tick CROSS JOIN LATERAL (VALUES
                ('redis:used_memory_bytes', floor(1e8 * (0.8 + 0.2 * busy) + random() * 1e6)),
                ('redis:connected_clients', floor(80 + 20 * random())), ('redis:ops_per_sec', floor(900 * busy + 100 * random())),
                ('pg:connection_count', floor(20 + 10 * busy + 5 * random())), ('pg:db_size_bytes', floor(2e9 - n * 2000)),
                ('pg:wal_size_bytes', 16777216 * floor(20 + 4 * random())), ('pg:disk_capacity_bytes', 107374182400),
                ('pg:disk_used_bytes', floor(2.4e9 - n * 2000)), ('pg:disk_used_pct', round((2.2 - n * 0.000002)::numeric, 1)),
                ('pg:callbacks_pending', floor(30 * busy * random())), ('pg:queries_last_1h', floor(1400 * busy + 50 * random())),
                ('pg:oldest_callback_age_sec', round((300 * random())::numeric, 3)), ('pg:state:COMPLETED', 1000000 - n * 11),
                ('pg:state:QUEUED', floor(40 * busy)), ('pg:state:ABANDONED', 2000 - n / 50), ('pg:state:ERROR', 500 - n / 200)
            ) sample (series, value) ORDER BY n DESC;";
    // Skewed: the slowest tasks take many times as long as most.
    let latencies = "
        INSERT INTO monitor_task_latency
            SELECT ts, name, 20 + floor(60 * random()), p50 * 1.4, p50, p50 * 2.8, p50 * 4.2, p50 * (11 + 4 * random()), p50 / 7, p50 * 28
            FROM tick CROSS JOIN kind CROSS JOIN LATERAL (SELECT (20 + 30 * (k % 7)) * (0.5 + busy * random()) AS p50) now
            WHERE k <= 20 ORDER BY n DESC;";
    let events = format!(
        "INSERT INTO monitor_events (ts, type, worker, severity, detail, payload)
            SELECT ts, type, name, severity, name || ' ' || type || ' 3 -> ' || target || ' (' || kind || ')',
                jsonb_build_object('type', type, 'worker', name, 'from', 3, 'to', target, 'kind', kind)
            FROM (SELECT now() - n * interval '140 seconds' AS ts, n,
                      CASE WHEN n % 97 = 0 THEN 'scale_down' WHEN n % 2 = 0 THEN 'scale_up' ELSE 'scale_down' END AS type,
                      CASE WHEN n % 97 = 0 THEN 'critical' ELSE 'info' END AS severity,
                      CASE WHEN n % 97 = 0 THEN 'crashed' ELSE 'alive' END AS kind,
                      CASE WHEN n % 97 = 0 THEN 0 WHEN n % 2 = 0 THEN 4 ELSE 2 END AS target
                  FROM generate_series({days} * 617, 1, -1) n) event
            JOIN kind ON k = 1 + n % (SELECT count(*) FROM kind);"
    );
    let queries = format!(
        "INSERT INTO shepherd_brain (qid, start_time, stop_time, domain, state, status)
            SELECT 'past-' || n, at, at + interval '40 seconds', (ARRAY['aragorn', 'aragorn', 'arax', 'bte', 'sipr', 'example'])[1 + n % 6],
                'COMPLETED', CASE WHEN n % 50 = 0 THEN 'ERROR' ELSE 'OK' END
            FROM (SELECT n, (now() - n * ({days} * interval '1 day' / {queries}))::timestamp AS at
                  FROM generate_series({queries}, 1, -1) n) query;"
    );
    for statements in [TABLES, &moments, of_types, of_servers, latencies, &events, &queries, INDEXES] {
        database.batch_execute(statements).await.map_err(|e| e.to_string())?;
    }
    Ok(())
}
