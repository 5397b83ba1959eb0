//! Start times of queries have no time zone: they are interpreted in the server's, across midnight and changes of daylight saving
//! time.

use std::collections::BTreeMap;

use shepherd_monitor::postgres::history::queries_started;
use shepherd_monitor::postgres::probe;

use super::*;

const HOUR: Micros = 3_600_000_000;

/// Inserts one query every twenty minutes over three days like the fleet: `NOW()` in a column without time zone, on a server in
/// `zone`.
async fn fleet_in(zone: &str, from: Micros) -> (TestDatabase, PgPool, Vec<Micros>) {
    let database = TestDatabase::create();
    let sql = database.connect().await;
    sql.batch_execute(&format!(
        "CREATE TABLE shepherd_brain (qid varchar(255) PRIMARY KEY, start_time timestamp, stop_time timestamp, submitter text,
            remote_ip text, domain text, hostname text, response_id text, callback_url text, state text, status text, description text);
         CREATE TABLE callbacks (query_id varchar(255), callback_id varchar(255), otel_trace varchar(255));
         ALTER DATABASE {} SET timezone = '{zone}'",
        database.name()
    ))
    .await
    .unwrap();
    let sql = database.connect().await;
    let starts: Vec<Micros> = (0..216).map(|n| from + n * HOUR / 3).collect();
    for (n, start) in starts.iter().enumerate() {
        let seconds = *start as f64 / 1e6;
        let insert =
            "INSERT INTO shepherd_brain (qid, domain, start_time) VALUES ($1, 'arax', to_timestamp($2)::timestamp)";
        sql.execute(insert, &[&n.to_string(), &seconds]).await.unwrap();
    }
    let pool = migrated(&database).await;
    (database, pool, starts)
}

fn total(started: Option<queries_started::Started>) -> BTreeMap<Micros, i64> {
    started.unwrap().remove("arax").unwrap_or_default()
}

async fn assert_started(pool: &PgPool, starts: &[Micros], ambiguous: &[Micros], what: &str) {
    let (first, last) = (starts[0], starts[starts.len() - 1] + 1);
    for bucket in [600, 3600, 14_400, 86_400] {
        let window = window(first, last, bucket);
        let got = total(queries_started::read(pool, window).await.unwrap());
        let mut want: BTreeMap<Micros, i64> = BTreeMap::new();
        for start in starts {
            *want.entry(window.bucket_of(*start)).or_default() += 1;
        }
        assert_eq!(got.values().sum::<i64>(), starts.len() as i64, "{what}, {bucket} s: {got:?}");
        for (at, n) in &want {
            // A repeated hour cannot be told from its duplicate.
            let doubtful = ambiguous.iter().any(|hour| *at < hour + HOUR && at + window.bucket > *hour);
            assert!(doubtful || got.get(at) == Some(n), "{what}, {bucket} s at {at}: {:?}, not {n}", got.get(at));
        }
    }
}

#[tokio::test]
async fn queries_are_counted_at_their_start_in_every_time_zone() {
    // 2026-03-07 to 10: daylight saving time in New York starts on the 8th at 7:00 UTC.
    let spring = 1_772_841_600_000_000;
    // 2026-10-31 to 11-03: it ends on the 1st at 6:00 UTC; the hours from 5:00 and 6:00 UTC are indistinguishable.
    let autumn = 1_793_404_800_000_000;
    let twice = [autumn + 29 * HOUR, autumn + 30 * HOUR];
    for (zone, from, ambiguous) in [
        ("UTC", spring, &[][..]),
        ("America/New_York", spring, &[]),
        ("America/New_York", autumn, &twice),
        ("Asia/Kolkata", spring, &[]),
    ] {
        let (_database, pool, starts) = fleet_in(zone, from).await;
        assert_started(&pool, &starts, ambiguous, &format!("{zone}, counted now")).await;
        // Counted in two steps, the second across the change.
        queries_started::count_closed(&pool, from + 20 * HOUR + 5).await.unwrap();
        assert_started(&pool, &starts, ambiguous, &format!("{zone}, partly counted before")).await;
        queries_started::count_closed(&pool, from + 80 * HOUR).await.unwrap();
        queries_started::count_closed(&pool, from + 80 * HOUR).await.unwrap();
        assert_started(&pool, &starts, ambiguous, &format!("{zone}, counted before")).await;
    }
}

#[tokio::test]
async fn monitor_with_a_fast_clock_loses_no_queries() {
    let database = TestDatabase::create();
    let pool = migrated(&database).await;
    let sql = database.connect().await;
    let start = |qids: &'static str, minutes_ago: i64| {
        let sql = &sql;
        async move {
            sql.batch_execute(&format!(
                "INSERT INTO shepherd_brain (qid, start_time, domain, state)
                 SELECT '{qids}' || n, LOCALTIMESTAMP - {minutes_ago} * interval '1 minute', 'arax', 'COMPLETED'
                 FROM generate_series(1, 50) n"
            ))
            .await
            .unwrap();
        }
    };
    start("before", 200).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as Micros;
    let two_days = window(now - 48 * HOUR, now + HOUR, 3600);
    let ahead = now + 48 * HOUR;
    queries_started::count_closed(&pool, ahead - ahead.rem_euclid(HOUR)).await.unwrap();
    // The clock is corrected; these queries follow.
    start("after", 0).await;
    let counted = async || -> i64 {
        let started = queries_started::read(&pool, two_days).await.unwrap().unwrap();
        started.values().flat_map(|buckets| buckets.values()).sum()
    };
    assert_eq!(counted().await, 100);
    queries_started::count_closed(&pool, now - now.rem_euclid(HOUR)).await.unwrap();
    assert_eq!(counted().await, 100);

    // Counts that such a clock made earlier are repeated.
    sql.batch_execute(
        "INSERT INTO monitor_query_counts (since, domain, started) VALUES (now() + interval '2 days', '', 0)",
    )
    .await
    .unwrap();
    assert_eq!(counted().await, 100);
    queries_started::count_closed(&pool, now - now.rem_euclid(HOUR)).await.unwrap();
    let ahead: i64 =
        sql.query_one("SELECT count(*) FROM monitor_query_counts WHERE since > now()", &[]).await.unwrap().get(0);
    assert_eq!((counted().await, ahead), (100, 0));
}

#[tokio::test]
async fn history_survives_deletion_of_queries() {
    let (database, pool, starts) = fleet_in("UTC", DAY_ONE).await;
    queries_started::count_closed(&pool, DAY_ONE + 100 * HOUR).await.unwrap();
    database.connect().await.batch_execute("DELETE FROM shepherd_brain").await.unwrap();
    let all = window(DAY_ONE, DAY_ONE + 72 * HOUR, 3600);
    let started = total(queries_started::read(&pool, all).await.unwrap());
    assert_eq!(started.values().sum::<i64>(), starts.len() as i64);
}

#[tokio::test]
async fn last_hour_and_day_use_the_servers_clock() {
    for zone in ["UTC", "America/New_York", "Asia/Kolkata"] {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as Micros;
        let (_database, pool, _) = fleet_in(zone, now - 72 * HOUR + HOUR / 6).await;
        let volume = probe::query_volume(&pool).await.unwrap();
        assert_eq!((volume.last_1h, volume.last_24h), (3, 72), "{zone}");
    }
}
