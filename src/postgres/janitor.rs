//! `monitor_janitor_passes`: results of cleanup runs; and the changes of a run to the fleet's queries and callbacks, in bounded
//! batches.
//!
//! Times in `shepherd_brain` have no time zone. A query is too old if it is so both by the server's naive clock and by its start in
//! the server's time zone, so that a change to or from daylight saving time does not add an hour to its age.

use std::collections::BTreeMap;
use std::time::Duration;

use diesel::sql_types::{BigInt, Bool, Double, Integer, Jsonb, Nullable, Text, Uuid as SqlUuid};
use diesel::{QueryableByName, sql_query};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use serde_json::Value;
use uuid::Uuid;

use super::connection::{PgPool, checkout, checkout_fleet, trouble};
use crate::failpoint;
use crate::fleet::cleanup::{ABANDONED_LISTED, ABANDONED_STATUS, AbandonedQuery, Outcome, PassRecord, QueriesPreview};
use crate::fleet::reading::{SourceTrouble, TroubleKind};

/// Maximum number of rows changed per statement.
const BATCH: i64 = 500;
/// Number of stored runs.
const PASSES: i64 = 500;

/// Condition for queries without a result; a partial index has the same condition.
pub(super) const UNFINISHED: &str = "state IS DISTINCT FROM 'COMPLETED' AND state IS DISTINCT FROM 'ABANDONED'";
const TOO_OLD: &str = "start_time < LOCALTIMESTAMP - make_interval(secs => $1) \
     AND start_time::timestamptz < now() - make_interval(secs => $1)";

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

#[derive(QueryableByName)]
struct Exists {
    #[diesel(sql_type = Bool)]
    exists: bool,
}

/// Returns whether the fleet's query tables exist.
///
/// # Errors
/// If Postgres fails.
pub async fn has_queries(pool: &PgPool) -> Result<bool, SourceTrouble> {
    let mut connection = checkout_fleet(pool).await?;
    let row: Exists = sql_query(
        "SELECT to_regclass('shepherd_brain') IS NOT NULL AND to_regclass('callbacks') IS NOT NULL AS exists",
    )
    .get_result(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    Ok(row.exists)
}

/// Starts a run, or resumes an interrupted one. Returns its ID.
///
/// # Errors
/// If Postgres fails.
pub async fn begin(pool: &PgPool, asked_by: Option<&str>) -> Result<Uuid, SourceTrouble> {
    #[derive(QueryableByName)]
    struct Id {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    let mut connection = checkout(pool).await?;
    let rows: Vec<Id> = sql_query(
        "WITH cut_off AS (
             UPDATE monitor_janitor_passes SET resumed = resumed + 1, asked_by = coalesce($2, asked_by)
             WHERE id = (SELECT id FROM monitor_janitor_passes WHERE ended IS NULL ORDER BY began DESC LIMIT 1)
             RETURNING id),
         new AS (
             INSERT INTO monitor_janitor_passes (id, asked_by)
             SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM cut_off) RETURNING id)
         SELECT id FROM cut_off UNION ALL SELECT id FROM new",
    )
    .bind::<SqlUuid, _>(Uuid::new_v4())
    .bind::<Nullable<Text>, _>(asked_by.map(|by| by.replace('\0', "\u{fffd}")))
    .load(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    rows.into_iter()
        .next()
        .map(|row| row.id)
        .ok_or_else(|| SourceTrouble::new(TroubleKind::Failed, "Postgres recorded no cleanup run"))
}

/// Deletes a batch of callbacks of completed queries. Returns their number.
///
/// # Errors
/// If Postgres fails.
pub async fn delete_callbacks(pool: &PgPool) -> Result<u64, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let deleted = sql_query(
        "DELETE FROM callbacks WHERE ctid = ANY(ARRAY(
             SELECT c.ctid FROM callbacks c JOIN shepherd_brain b ON b.qid = c.query_id
             WHERE b.state IN ('COMPLETED', 'ABANDONED') LIMIT $1 FOR UPDATE OF c SKIP LOCKED))",
    )
    .bind::<BigInt, _>(BATCH)
    .execute(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    Ok(deleted as u64)
}

/// Result of marking queries as abandoned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abandoned {
    /// Marked queries.
    pub queries: u64,
    /// Their deleted callbacks.
    pub callbacks: u64,
}

/// Marks a batch of queries without a result that are older than `budget` as abandoned, and deletes their callbacks. The row of the
/// run counts them in the same transaction, so that the alert about them cannot be lost.
///
/// Queries that are being completed concurrently are locked and skipped. A query that is completed while this commits is completed
/// afterwards, and stays completed.
///
/// # Errors
/// If Postgres fails; nothing is changed then.
pub async fn abandon(pool: &PgPool, pass: Uuid, budget: Duration) -> Result<Abandoned, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let abandoning =
        connection.transaction(async |connection| abandon_some(connection, pass, budget.as_secs_f64()).await);
    abandoning.await.map_err(|e: diesel::result::Error| trouble(&e))
}

async fn abandon_some(
    connection: &mut AsyncPgConnection,
    pass: Uuid,
    budget: f64,
) -> Result<Abandoned, diesel::result::Error> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        qid: String,
        #[diesel(sql_type = Text)]
        domain: String,
        #[diesel(sql_type = Double)]
        age_sec: f64,
        #[diesel(sql_type = BigInt)]
        callbacks: i64,
    }
    let rows: Vec<Row> = sql_query(format!(
        "WITH old AS (
             SELECT qid FROM shepherd_brain WHERE {UNFINISHED} AND {TOO_OLD}
             ORDER BY start_time LIMIT $2 FOR UPDATE SKIP LOCKED),
         flipped AS (
             UPDATE shepherd_brain b SET state = 'ABANDONED', status = $3, stop_time = LOCALTIMESTAMP
             FROM old WHERE b.qid = old.qid AND {UNFINISHED}
             RETURNING b.qid, left(coalesce(b.domain, 'none'), 500) AS domain, b.start_time),
         deleted AS (
             DELETE FROM callbacks c USING flipped f WHERE c.query_id = f.qid RETURNING c.query_id),
         outstanding AS (SELECT query_id, count(*) AS callbacks FROM deleted GROUP BY query_id)
         SELECT f.qid::text, f.domain, extract(epoch FROM now() - f.start_time::timestamptz)::float8 AS age_sec,
             coalesce(o.callbacks, 0) AS callbacks
         FROM flipped f LEFT JOIN outstanding o ON o.query_id = f.qid ORDER BY f.start_time, f.qid"
    ))
    .bind::<Double, _>(budget)
    .bind::<BigInt, _>(BATCH)
    .bind::<Text, _>(ABANDONED_STATUS)
    .load(connection)
    .await?;
    let mut abandoned = Abandoned::default();
    let mut by_ara: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    let mut listed = Vec::with_capacity(rows.len());
    for row in rows {
        let callbacks = u64::try_from(row.callbacks).unwrap_or(0);
        abandoned.queries += 1;
        abandoned.callbacks += callbacks;
        let (queries, of_ara) = by_ara.entry(row.domain.clone()).or_default();
        *queries += 1;
        *of_ara += row.callbacks;
        listed.push(AbandonedQuery {
            qid: row.qid,
            ara: row.domain,
            age_sec: row.age_sec.round(),
            callbacks_deleted: callbacks,
            last_stream: None,
        });
    }
    for (ara, (queries, callbacks)) in by_ara {
        sql_query(
            "UPDATE monitor_janitor_passes SET callbacks_deleted = callbacks_deleted + $4, abandoned = abandoned ||
                 jsonb_build_object($2, coalesce((abandoned->>$2)::bigint, 0) + $3) WHERE id = $1",
        )
        .bind::<SqlUuid, _>(pass)
        .bind::<Text, _>(ara)
        .bind::<BigInt, _>(queries)
        .bind::<BigInt, _>(callbacks)
        .execute(connection)
        .await?;
    }
    if !listed.is_empty() {
        sql_query(
            "UPDATE monitor_janitor_passes SET abandoned_queries = abandoned_queries || $2
             WHERE id = $1 AND jsonb_array_length(abandoned_queries) < $3",
        )
        .bind::<SqlUuid, _>(pass)
        .bind::<Jsonb, _>(json_list(&listed))
        .bind::<Integer, _>(i32::try_from(ABANDONED_LISTED).unwrap_or(i32::MAX))
        .execute(connection)
        .await?;
    }
    failpoint::reached("janitor.abandoning");
    Ok(abandoned)
}

/// Condition for rows `b` that may be deleted: a fleet may mark rows with a column `retain`. Accessed through JSON, so that the
/// statement is valid without that column.
const NOT_RETAINED: &str = "NOT coalesce((to_jsonb(b)->>'retain')::boolean, false)";

/// Deletes a batch of final queries that ended (or, if unknown, started) more than `days` ago, with their callbacks. Returns their
/// number.
///
/// # Errors
/// If Postgres fails.
pub async fn delete_old_queries(pool: &PgPool, days: u32) -> Result<u64, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    // A query ends after its start; the condition on the start allows an index scan.
    let deleted: Count = sql_query(format!(
        "WITH age AS (SELECT LOCALTIMESTAMP - $1 * interval '1 day' AS cutoff),
         old AS (
             SELECT qid FROM shepherd_brain b
             WHERE (start_time < (SELECT cutoff FROM age) OR start_time IS NULL)
                 AND coalesce(stop_time, start_time) < (SELECT cutoff FROM age)
                 AND state IN ('COMPLETED', 'ABANDONED') AND {NOT_RETAINED}
             LIMIT $2 FOR UPDATE SKIP LOCKED),
         answers AS (DELETE FROM callbacks c USING old WHERE c.query_id = old.qid),
         deleted AS (DELETE FROM shepherd_brain b USING old WHERE b.qid = old.qid RETURNING 1)
         SELECT count(*) AS count FROM deleted"
    ))
    .bind::<Integer, _>(i32::try_from(days).unwrap_or(i32::MAX))
    .bind::<BigInt, _>(BATCH)
    .get_result(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    Ok(u64::try_from(deleted.count).unwrap_or(0))
}

/// Abandoned queries and callbacks counted in the row of a run, including interrupted attempts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counted {
    /// Abandoned queries by product.
    pub abandoned: BTreeMap<String, u64>,
    /// Their callbacks.
    pub callbacks: u64,
    /// Details of the first ones.
    pub queries: Vec<AbandonedQuery>,
}

fn json_list(queries: &[AbandonedQuery]) -> Value {
    serde_json::to_value(queries).unwrap_or_else(|_| Value::Array(Vec::new()))
}

/// Stores the streams that the abandoned queries of a run reached last.
///
/// # Errors
/// If Postgres fails.
pub async fn describe_abandoned(pool: &PgPool, pass: Uuid, queries: &[AbandonedQuery]) -> Result<(), SourceTrouble> {
    let text = json_list(queries).to_string().replace("\\u0000", "\\ufffd");
    let queries: Value = serde_json::from_str(&text).unwrap_or_default();
    let mut connection = checkout(pool).await?;
    sql_query("UPDATE monitor_janitor_passes SET abandoned_queries = $2 WHERE id = $1")
        .bind::<SqlUuid, _>(pass)
        .bind::<Jsonb, _>(queries)
        .execute(&mut connection)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(())
}

/// Returns the counts of a run.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn counted(pool: &PgPool, pass: Uuid) -> Result<Counted, SourceTrouble> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Jsonb)]
        abandoned: Value,
        #[diesel(sql_type = BigInt)]
        callbacks_deleted: i64,
        #[diesel(sql_type = Jsonb)]
        abandoned_queries: Value,
    }
    let mut connection = checkout(pool).await?;
    let rows: Vec<Row> =
        sql_query("SELECT abandoned, callbacks_deleted, abandoned_queries FROM monitor_janitor_passes WHERE id = $1")
            .bind::<SqlUuid, _>(pass)
            .load(&mut connection)
            .await
            .map_err(|e| trouble(&e))?;
    Ok(rows.into_iter().next().map_or_else(Counted::default, |row| Counted {
        abandoned: serde_json::from_value(row.abandoned).unwrap_or_default(),
        callbacks: u64::try_from(row.callbacks_deleted).unwrap_or(0),
        queries: serde_json::from_value(row.abandoned_queries).unwrap_or_default(),
    }))
}

/// Stores the result of a run, and deletes old runs.
///
/// # Errors
/// If Postgres fails.
pub async fn end(pool: &PgPool, pass: Uuid, outcome: &Outcome) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let text = serde_json::to_string(outcome).unwrap_or_default().replace("\\u0000", "\\ufffd");
    let outcome: Value = serde_json::from_str(&text).unwrap_or_default();
    sql_query("UPDATE monitor_janitor_passes SET ended = now(), outcome = $2 WHERE id = $1")
        .bind::<SqlUuid, _>(pass)
        .bind::<Jsonb, _>(outcome)
        .execute(&mut connection)
        .await
        .map_err(|e| trouble(&e))?;
    // Runs that have no alert yet are not deleted.
    sql_query(
        "DELETE FROM monitor_janitor_passes WHERE (abandoned = '{}' OR alerted IS NOT NULL) AND began <
             (SELECT began FROM monitor_janitor_passes ORDER BY began DESC OFFSET $1 LIMIT 1)",
    )
    .bind::<BigInt, _>(PASSES)
    .execute(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    Ok(())
}

/// Returns the newest runs.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn newest(pool: &PgPool, limit: u32) -> Result<Vec<PassRecord>, SourceTrouble> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
        #[diesel(sql_type = Double)]
        began: f64,
        #[diesel(sql_type = Nullable<Double>)]
        ended: Option<f64>,
        #[diesel(sql_type = Nullable<Text>)]
        asked_by: Option<String>,
        #[diesel(sql_type = Integer)]
        resumed: i32,
        #[diesel(sql_type = Nullable<Jsonb>)]
        outcome: Option<Value>,
        #[diesel(sql_type = Jsonb)]
        abandoned_queries: Value,
    }
    let mut connection = checkout(pool).await?;
    let rows: Vec<Row> = sql_query(
        "SELECT id, extract(epoch FROM began)::float8 AS began, extract(epoch FROM ended)::float8 AS ended,
             asked_by, resumed, outcome, abandoned_queries
         FROM monitor_janitor_passes ORDER BY began DESC LIMIT $1",
    )
    .bind::<BigInt, _>(i64::from(limit))
    .load(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    let record = |row: Row| PassRecord {
        id: row.id.to_string(),
        began: row.began,
        ended: row.ended,
        asked_by: row.asked_by,
        resumed: u32::try_from(row.resumed).unwrap_or(0),
        outcome: row.outcome.and_then(|outcome| serde_json::from_value(outcome).ok()),
        abandoned_queries: serde_json::from_value(row.abandoned_queries).unwrap_or_default(),
    };
    Ok(rows.into_iter().map(record).collect())
}

/// Completed runs that marked queries as abandoned and have no alert yet, oldest first, as a JSON list.
pub(super) const UNTOLD: &str = "coalesce((SELECT jsonb_agg(jsonb_build_object('pass', id, 'abandoned', abandoned,
    'queries', abandoned_queries) ORDER BY began) FROM (SELECT id, abandoned, abandoned_queries, began FROM monitor_janitor_passes
    WHERE alerted IS NULL AND abandoned <> '{}' AND ended IS NOT NULL ORDER BY began LIMIT 50) AS untold), '[]')";

/// Marks these runs as having an alert.
///
/// # Errors
/// If Postgres fails; the alert is then requested again, under the same key.
pub async fn told(pool: &PgPool, passes: &[String]) -> Result<(), SourceTrouble> {
    let ids: Vec<Uuid> = passes.iter().filter_map(|id| Uuid::parse_str(id).ok()).collect();
    let mut connection = checkout(pool).await?;
    sql_query("UPDATE monitor_janitor_passes SET alerted = now() WHERE id = ANY($1) AND alerted IS NULL")
        .bind::<diesel::sql_types::Array<SqlUuid>, _>(ids)
        .execute(&mut connection)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(())
}

/// Counts what a run would change, up to `most` rows each.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn preview(pool: &PgPool, budget: Duration, most: u32) -> Result<QueriesPreview, SourceTrouble> {
    let mut connection = checkout_fleet(pool).await?;
    let callbacks: Count = sql_query(
        "SELECT count(*) AS count FROM (SELECT FROM callbacks c JOIN shepherd_brain b ON b.qid = c.query_id
             WHERE b.state IN ('COMPLETED', 'ABANDONED') LIMIT $1) AS found",
    )
    .bind::<BigInt, _>(i64::from(most))
    .get_result(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    let abandoned: Count = sql_query(format!(
        "SELECT count(*) AS count FROM (SELECT FROM shepherd_brain WHERE {UNFINISHED} AND {TOO_OLD} LIMIT $2) AS found"
    ))
    .bind::<Double, _>(budget.as_secs_f64())
    .bind::<BigInt, _>(i64::from(most))
    .get_result(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    let number = |count: Count| u64::try_from(count.count).unwrap_or(0);
    Ok(QueriesPreview { callbacks: number(callbacks), abandoned: number(abandoned) })
}
