-- History that stays small: what is recorded stands in plain rows for an hour or two, then in one
-- row per series and day. Packed columns are read with monitor_unpack; the view
-- monitor_metrics_all has everything as plain rows.

-- A series over one day (UTC). `packed` holds all its samples, `hours` what they come to per hour.
CREATE TABLE monitor_metric_days (
    metric text NOT NULL,
    day date NOT NULL,
    samples int NOT NULL,
    packed bytea NOT NULL,
    hours bytea NOT NULL,
    PRIMARY KEY (metric, day)
);

-- The task latencies of a stream over one day (UTC). `packed` holds the rows' columns (count, mean,
-- p50, p90, p95, p99, min, max, exact), `fine` a sketch per five minutes, `hours` one per hour.
CREATE TABLE monitor_latency_days (
    stream text NOT NULL,
    day date NOT NULL,
    tasks bigint NOT NULL,
    packed bytea NOT NULL,
    fine bytea NOT NULL,
    hours bytea NOT NULL,
    PRIMARY KEY (stream, day)
);

-- Queries started per five minutes: counted once the hour is over, so that history outlives the
-- queries.
CREATE TABLE monitor_query_counts (
    since timestamptz NOT NULL,
    domain text NOT NULL,
    started bigint NOT NULL,
    PRIMARY KEY (since, domain)
);

-- Batches of task durations that are stored: one that is found again is not counted again.
CREATE TABLE monitor_latency_batches (
    id uuid PRIMARY KEY,
    stored_at timestamptz NOT NULL DEFAULT now()
);

-- What an older monitor filled is set aside in tables named …_before and taken over from there day
-- by day, the newest first: what is older than `before` stands there and nowhere else. When all is
-- taken over, the row is gone and the table empty.
CREATE TABLE monitor_takeover (
    taken_over text PRIMARY KEY,
    before timestamptz NOT NULL
);

DO $$
DECLARE
    kept text;
BEGIN
    FOREACH kept IN ARRAY ARRAY['monitor_metrics', 'monitor_task_latency'] LOOP
        EXECUTE format('INSERT INTO monitor_takeover SELECT %L, ''infinity'' WHERE EXISTS (SELECT FROM %I)', kept, kept);
        EXECUTE format('ALTER TABLE %I RENAME TO %I', kept, kept || '_before');
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS)', kept, kept || '_before');
    END LOOP;
END
$$;
-- Under names of their own: the keys of the tables set aside keep theirs.
ALTER TABLE monitor_metrics ADD CONSTRAINT monitor_metrics_key PRIMARY KEY (metric, ts);
ALTER TABLE monitor_task_latency ADD CONSTRAINT monitor_task_latency_key PRIMARY KEY (stream, ts);
-- A mergeable sketch of the row's tasks; rows of an older monitor have none.
ALTER TABLE monitor_task_latency ADD COLUMN sketch bytea;

-- Packed columns as rows: see src/history/columns.rs for the form.
CREATE FUNCTION monitor_unpack(packed bytea) RETURNS TABLE (ts timestamptz, columns double precision[])
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    at int := 0;
    byte int;
    shift int;
    unit bigint;
    width int;
    decimals int[];
    height int;
    times bigint[];
    cells double precision[];
    step bigint := 0;
    last bigint := 0;
    bits bigint;
    fraction bigint;
    exponent int;
BEGIN
    IF get_byte(packed, 0) <> 1 THEN
        RAISE EXCEPTION 'packed columns of an unknown version %', get_byte(packed, 0);
    END IF;
    unit := (ARRAY[1, 1000, 1000000])[get_byte(packed, 1) + 1];
    width := get_byte(packed, 2);
    FOR c IN 1..width LOOP
        decimals[c] := get_byte(packed, 2 + c);
    END LOOP;
    at := 3 + width;
    bits := 0; shift := 0;
    LOOP
        byte := get_byte(packed, at); at := at + 1;
        bits := bits | ((byte & 127)::bigint << shift); shift := shift + 7;
        EXIT WHEN byte < 128;
    END LOOP;
    height := bits;
    FOR r IN 1..height LOOP
        bits := 0; shift := 0;
        LOOP
            byte := get_byte(packed, at); at := at + 1;
            bits := bits | ((byte & 127)::bigint << shift); shift := shift + 7;
            EXIT WHEN byte < 128;
        END LOOP;
        step := step + (((bits >> 1) & 9223372036854775807) # -(bits & 1));
        last := last + step;
        times[r] := last * unit;
    END LOOP;
    cells := array_fill(NULL::double precision, ARRAY[width * height]);
    FOR c IN 1..width LOOP
        last := 0;
        FOR r IN 1..height LOOP
            IF decimals[c] = 255 THEN
                bits := 0;
                FOR b IN 0..7 LOOP
                    bits := (bits << 8) | get_byte(packed, at + b);
                END LOOP;
                at := at + 8;
                -- An IEEE double: sign, eleven bits of exponent, fifty-two of fraction. Its power of
                -- two is multiplied in by halves, since Postgres refuses what is too small in one.
                exponent := (bits >> 52) & 2047;
                fraction := bits & 4503599627370495;
                IF exponent = 2047 THEN
                    cells[(c - 1) * height + r] := CASE WHEN fraction <> 0 THEN 'NaN'
                        WHEN bits < 0 THEN '-Infinity' ELSE 'Infinity' END;
                ELSE
                    IF exponent > 0 THEN
                        fraction := fraction | 4503599627370496;
                    END IF;
                    exponent := greatest(exponent, 1) - 1075;
                    cells[(c - 1) * height + r] := (CASE WHEN bits < 0 THEN -1 ELSE 1 END) * fraction::double precision
                        * 2::double precision ^ (exponent / 2) * 2::double precision ^ (exponent - exponent / 2);
                END IF;
            ELSE
                bits := 0; shift := 0;
                LOOP
                    byte := get_byte(packed, at); at := at + 1;
                    bits := bits | ((byte & 127)::bigint << shift); shift := shift + 7;
                    EXIT WHEN byte < 128;
                END LOOP;
                last := last + (((bits >> 1) & 9223372036854775807) # -(bits & 1));
                cells[(c - 1) * height + r] := last::double precision / (10 ^ decimals[c])::double precision;
            END IF;
        END LOOP;
    END LOOP;
    FOR r IN 1..height LOOP
        ts := 'epoch'::timestamptz + times[r] * interval '1 microsecond';
        columns := ARRAY(SELECT cells[(c - 1) * height + r] FROM generate_series(1, width) c);
        RETURN NEXT;
    END LOOP;
END
$$;

-- Everything that is known of every series, as plain rows. Ask for one metric: a day is unpacked at
-- a time.
CREATE VIEW monitor_metrics_all AS
    SELECT ts, metric, value FROM monitor_metrics
    UNION ALL
    SELECT ts, metric, value FROM monitor_metrics_before
    WHERE ts < (SELECT before FROM monitor_takeover WHERE taken_over = 'monitor_metrics')
    UNION ALL
    SELECT sample.ts, day.metric, sample.columns[1]
    FROM monitor_metric_days day CROSS JOIN LATERAL monitor_unpack(day.packed) sample;
