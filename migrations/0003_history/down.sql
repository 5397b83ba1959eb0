-- Back to plain rows, as the older monitor reads them: nothing recorded is lost.
INSERT INTO monitor_metrics
    SELECT sample.ts, day.metric, sample.columns[1]
    FROM monitor_metric_days day CROSS JOIN LATERAL monitor_unpack(day.packed) sample
    ON CONFLICT DO NOTHING;
INSERT INTO monitor_task_latency (ts, stream, count, mean_ms, p50_ms, p90_ms, p95_ms, p99_ms, min_ms, max_ms)
    SELECT row.ts, day.stream, row.columns[1]::int, nullif(row.columns[2], 'NaN'), nullif(row.columns[3], 'NaN'),
        nullif(row.columns[4], 'NaN'), nullif(row.columns[5], 'NaN'), nullif(row.columns[6], 'NaN'),
        nullif(row.columns[7], 'NaN'), nullif(row.columns[8], 'NaN')
    FROM monitor_latency_days day CROSS JOIN LATERAL monitor_unpack(day.packed) row
    ON CONFLICT DO NOTHING;
INSERT INTO monitor_metrics SELECT ts, metric, value FROM monitor_metrics_before ON CONFLICT DO NOTHING;
INSERT INTO monitor_task_latency (ts, stream, count, mean_ms, p50_ms, p90_ms, p95_ms, p99_ms, min_ms, max_ms)
    SELECT ts, stream, count, mean_ms, p50_ms, p90_ms, p95_ms, p99_ms, min_ms, max_ms
    FROM monitor_task_latency_before ON CONFLICT DO NOTHING;
DROP VIEW monitor_metrics_all;
DROP TABLE monitor_metrics_before, monitor_task_latency_before, monitor_metric_days, monitor_latency_days, monitor_query_counts, monitor_latency_batches, monitor_takeover;
DROP FUNCTION monitor_unpack(bytea);
ALTER TABLE monitor_task_latency DROP COLUMN sketch;
ALTER TABLE monitor_metrics RENAME CONSTRAINT monitor_metrics_key TO monitor_metrics_pkey;
ALTER TABLE monitor_task_latency RENAME CONSTRAINT monitor_task_latency_key TO monitor_task_latency_pkey;
CREATE INDEX monitor_metrics_ts ON monitor_metrics (ts);
CREATE INDEX monitor_task_latency_ts ON monitor_task_latency (ts);
