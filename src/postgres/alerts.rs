//! `monitor_alerts`, `monitor_alert_outbox`, `monitor_silences`: alert states, notifications, and silences.

use std::collections::BTreeMap;

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_query;
use diesel::sql_types::{Array, Double, Int8, Jsonb, Nullable, Text, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::connection::{PgPool, checkout, trouble};
use super::events;
use super::janitor::UNTOLD;
use super::row_isolation::{Put, may_be_about_rows, put_isolating};
use crate::alerting::lifecycle::Alert;
use crate::alerting::message::Message;
use crate::alerting::silences::Silence;
use crate::fleet::cleanup::Finding;
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::history::stored_name::stored_name;

/// A notification for one channel, and its delivery state. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutboxRow {
    /// ID of the message, a UUID.
    pub id: String,
    /// Name of the channel.
    pub channel: String,
    /// Time of creation.
    pub created: f64,
    /// Content.
    pub message: Message,
    /// Delivery state.
    pub state: Delivery,
    /// Number of attempts started.
    pub attempts: u32,
    /// Earliest time of the next attempt.
    pub next_attempt: Option<f64>,
    /// Start of an attempt whose outcome is unknown.
    pub begun: Option<f64>,
    /// Last answer of the channel.
    pub answer: Option<String>,
    /// Time at which it was sent or given up.
    pub ended: Option<f64>,
}

/// Delivery state of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Not sent yet.
    Waiting,
    /// Accepted by the channel.
    Sent,
    /// Given up.
    Dead,
}

impl OutboxRow {
    /// Returns the row of a new notification.
    #[must_use]
    pub fn new(message: &Message, channel: &str) -> Self {
        Self {
            id: message.id.clone(),
            channel: channel.to_owned(),
            created: message.at,
            message: message.clone(),
            state: Delivery::Waiting,
            attempts: 0,
            next_attempt: None,
            begun: None,
            answer: None,
            ended: None,
        }
    }
}

/// Rows to write in one transaction.
#[derive(Debug, Clone, Default)]
pub struct Rows<'a> {
    /// Alerts, in their new state.
    pub alerts: Vec<&'a Alert>,
    /// Notifications, in their new state.
    pub outbox: Vec<&'a OutboxRow>,
    /// Events.
    pub events: Vec<&'a events::NewRow>,
}

/// Why rows were not written.
#[derive(Debug)]
pub enum NotWritten {
    /// Another instance is the leader.
    Deposed,
    /// Postgres failed.
    Trouble(SourceTrouble),
}

impl From<diesel::result::Error> for NotWritten {
    fn from(error: diesel::result::Error) -> Self {
        Self::Trouble(trouble(&error))
    }
}

/// Writes rows if `epoch` is current.
///
/// # Errors
/// If another instance is the leader, or Postgres fails.
pub async fn write(pool: &PgPool, epoch: i64, rows: Rows<'_>) -> Result<(), NotWritten> {
    let mut connection = checkout(pool).await.map_err(NotWritten::Trouble)?;
    let parts = Parts::of(rows)?;
    connection
        .transaction::<(), NotWritten, _>(async move |connection| {
            // The row lock delays a change of leader until this is committed, or until the lock times out because the writing
            // process was stopped.
            let leads = sql_query(
                "SELECT set_config('idle_in_transaction_session_timeout', '3s', true)
                 FROM monitor_alert_leader WHERE epoch = $1 FOR SHARE",
            )
            .bind::<Int8, _>(epoch)
            .execute(connection)
            .await?;
            if leads == 0 {
                return Err(NotWritten::Deposed);
            }
            Ok(parts.put(connection).await?)
        })
        .await
}

/// Rows in the form in which they are sent.
struct Parts {
    alerts: Vec<Value>,
    outbox: Vec<Value>,
    events: Vec<events::NewRow>,
}

impl Parts {
    fn of(rows: Rows<'_>) -> Result<Self, NotWritten> {
        let (alerts, outbox) = (json(&rows.alerts)?, json(&rows.outbox)?);
        Ok(Self { alerts, outbox, events: rows.events.into_iter().cloned().collect() })
    }

    /// Writes all rows, or the accepted ones if Postgres rejects some for their content.
    async fn put(&self, connection: &mut AsyncPgConnection) -> Result<(), diesel::result::Error> {
        let together = connection.transaction(async |connection| {
            put_alerts(connection, &self.alerts, "").await?;
            put_outbox(connection, &self.outbox).await?;
            events::put(connection, &self.events).await
        });
        match together.await {
            Err(error) if may_be_about_rows(&error) => {}
            other => return other,
        }
        let alert: fn(&Value) -> String = |row| format!("alert {}", text_of(row, "key"));
        let notification: fn(&Value) -> String = |row| format!("notification {}", text_of(row, "id"));
        let put: Put<Value> =
            |connection, rows| async move { put_alerts(connection, rows, "").await.map(drop) }.boxed();
        let alerts = put_isolating(connection, &self.alerts, put, alert).await?;
        let put: Put<Value> = |connection, rows| put_outbox(connection, rows).boxed();
        let outbox = put_isolating(connection, &self.outbox, put, notification).await?;
        alerts.and(outbox).and(events::put_each(connection, &self.events).await?).settle()
    }
}

fn text_of<'a>(row: &'a Value, field: &str) -> &'a str {
    row.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Writes the notifications that a deposed leader sent. Alerts whose resolution was not sent and that the leader does not know
/// become the leader's: a new epoch makes it reload the alerts.
///
/// # Errors
/// If Postgres fails.
pub async fn hand_over(pool: &PgPool, rows: Rows<'_>) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let no_json = |_| SourceTrouble::new(TroubleKind::Failed, "cannot serialize an alert or a notification");
    let mut parts = Parts::of(rows).map_err(no_json)?;
    let alerts = std::mem::take(&mut parts.alerts);
    connection
        .transaction::<(), diesel::result::Error, _>(async move |connection| {
            // Same lock order as the leader's writes, to avoid deadlocks.
            sql_query("SELECT epoch FROM monitor_alert_leader FOR UPDATE").execute(connection).await?;
            parts.put(connection).await?;
            let adopting =
                connection.transaction(async |connection| put_alerts(connection, &alerts, UNKNOWN_TO_THE_LEADER).await);
            let adopted = match adopting.await {
                Err(error) if may_be_about_rows(&error) => {
                    tracing::warn!(%error, "discarded the alerts of an earlier leader: Postgres rejects one of them");
                    0
                }
                other => other?,
            };
            if adopted > 0 {
                sql_query("UPDATE monitor_alert_leader SET epoch = epoch + 1").execute(connection).await?;
            }
            Ok(())
        })
        .await
        .map_err(|e| trouble(&e))
}

/// The leader does not know the alert, or never sent a notification of it, or resolved it earlier.
const UNKNOWN_TO_THE_LEADER: &str = " WHERE monitor_alerts.state->>'told' IS NULL
    OR monitor_alerts.phase = 'resolved' AND coalesce(monitor_alerts.state->>'resolved_at', monitor_alerts.state->>'since')::float8
        < (excluded.state->'told'->>'at')::float8";

/// Writes alerts; overwrites existing rows that match `where_they`. Returns the number of rows written.
async fn put_alerts(
    connection: &mut AsyncPgConnection,
    alerts: &[Value],
    where_they: &str,
) -> Result<usize, diesel::result::Error> {
    let with_row_key = |alert: &Value| {
        let mut with_key = alert.clone();
        if let Value::Object(fields) = &mut with_key {
            fields.insert("row_key".to_owned(), Value::from(stored_name(text_of(alert, "key"))));
        }
        with_key
    };
    let alerts: Value = alerts.iter().map(with_row_key).collect();
    sql_query(format!(
        "INSERT INTO monitor_alerts (key, rule, subject, severity, phase, since, value, acknowledged_by, state, updated)
         SELECT a->>'row_key', a->>'rule', a->>'subject', a->>'severity', a->>'phase',
                to_timestamp((a->>'since')::float8), (a->>'value')::float8, a->'acknowledged'->>'by', a - 'row_key', now()
         FROM jsonb_array_elements($1) AS a
         ON CONFLICT (key) DO UPDATE SET rule = excluded.rule, subject = excluded.subject,
             severity = excluded.severity, phase = excluded.phase, since = excluded.since, value = excluded.value,
             acknowledged_by = excluded.acknowledged_by, state = excluded.state, updated = excluded.updated{where_they}"
    ))
    .bind::<Jsonb, _>(alerts)
    .execute(connection)
    .await
}

async fn put_outbox(connection: &mut AsyncPgConnection, outbox: &[Value]) -> Result<(), diesel::result::Error> {
    // A sent notification stays sent, even if another instance still considers it waiting.
    sql_query(
        "INSERT INTO monitor_alert_outbox
             (id, channel, created, message, state, attempts, next_attempt, begun, answer, ended)
         SELECT id, channel, to_timestamp(created), message, state, attempts, to_timestamp(next_attempt),
                to_timestamp(begun), answer, to_timestamp(ended)
         FROM jsonb_to_recordset($1) AS x(id uuid, channel text, created float8, message jsonb, state text,
              attempts int, next_attempt float8, begun float8, answer text, ended float8)
         ON CONFLICT (id, channel) DO UPDATE SET state = excluded.state,
             attempts = greatest(monitor_alert_outbox.attempts, excluded.attempts),
             next_attempt = excluded.next_attempt, begun = excluded.begun, answer = excluded.answer,
             ended = excluded.ended
         WHERE monitor_alert_outbox.state = 'waiting'",
    )
    .bind::<Jsonb, _>(Value::Array(outbox.to_vec()))
    .execute(connection)
    .await?;
    Ok(())
}

/// State from which a leader resumes.
#[derive(Debug, Default)]
pub struct StoredAlerts {
    /// Active alerts, and recently resolved ones.
    pub alerts: Vec<Alert>,
    /// Waiting notifications, in order.
    pub waiting: Vec<OutboxRow>,
}

#[derive(QueryableByName)]
struct Json {
    #[diesel(sql_type = Jsonb)]
    json: Value,
}

const OUTBOX_JSON: &str = "jsonb_build_object('id', id, 'channel', channel,
    'created', extract(epoch from created)::float8, 'message', message, 'state', state, 'attempts', attempts,
    'next_attempt', extract(epoch from next_attempt)::float8, 'begun', extract(epoch from begun)::float8,
    'answer', answer, 'ended', extract(epoch from ended)::float8) AS json";

/// Loads the state.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn load(pool: &PgPool) -> Result<StoredAlerts, SourceTrouble> {
    Ok(StoredAlerts {
        alerts: alerts(pool).await?,
        waiting: outbox(pool, "WHERE state = 'waiting' ORDER BY seq").await?,
    })
}

/// Returns the alerts.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn alerts(pool: &PgPool) -> Result<Vec<Alert>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let rows: Vec<Json> = sql_query("SELECT state AS json FROM monitor_alerts ORDER BY updated DESC LIMIT 5000")
        .load(&mut connection)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(read(rows))
}

/// Returns the newest notifications, waiting ones first.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn newest_messages(pool: &PgPool, limit: u32) -> Result<Vec<OutboxRow>, SourceTrouble> {
    outbox(pool, &format!("ORDER BY state <> 'waiting', seq DESC LIMIT {limit}")).await
}

async fn outbox(pool: &PgPool, rest: &str) -> Result<Vec<OutboxRow>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let query = format!("SELECT {OUTBOX_JSON} FROM monitor_alert_outbox {rest}");
    let rows: Vec<Json> = sql_query(query).load(&mut connection).await.map_err(|e| trouble(&e))?;
    Ok(read(rows))
}

/// Maximum number of active silences; each alert is compared with all of them.
pub const SILENCES: usize = 200;
/// Maximum number of acknowledgements that are kept. Beyond it, the oldest end; what they acknowledged stays so.
const ACKNOWLEDGEMENTS: i64 = 1000;

/// Active silences and acknowledgements as a JSON list. Texts of an earlier version are truncated to the current limit.
const ACTIVE: &str =
    "coalesce((SELECT jsonb_agg(jsonb_build_object('id', id, 'rule', left(rule, 4096), 'subject', left(subject, 4096),
    'owner', left(owner, 100), 'reason', left(reason, 1024), 'starts', extract(epoch from starts)::float8,
    'until', extract(epoch from until)::float8, 'acknowledges', acknowledges) ORDER BY starts)
    FROM monitor_silences WHERE until > now()), '[]')";

/// Returns the state that an instance needs when it does not request the lease.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn follow(pool: &PgPool) -> Result<LeaseReply, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let statement = format!(
        "SELECT jsonb_build_object('silences', {ACTIVE}, 'epoch', (SELECT epoch FROM monitor_alert_leader)) AS json"
    );
    let row: Json = sql_query(statement).get_result(&mut connection).await.map_err(|e| trouble(&e))?;
    let followed = row.json.get("epoch").and_then(Value::as_i64);
    Ok(LeaseReply { followed, silences: row.json.get("silences").cloned().map(list), ..LeaseReply::default() })
}

/// Returns the active silences and acknowledgements.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn silences(pool: &PgPool) -> Result<Vec<Silence>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let row: Json =
        sql_query(format!("SELECT {ACTIVE} AS json")).get_result(&mut connection).await.map_err(|e| trouble(&e))?;
    Ok(list(row.json))
}

/// Stores a silence, or an acknowledgement in place of earlier ones of the same alert.
///
/// # Errors
/// If Postgres fails, or [`SILENCES`] are active.
pub async fn silence(pool: &PgPool, silence: &Silence) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let id = Uuid::parse_str(&silence.id).unwrap_or_else(|_| Uuid::new_v4());
    let stored = sql_query(
        "WITH replaced AS (UPDATE monitor_silences SET until = now()
            WHERE $8 AND acknowledges AND until > now() AND (rule = $2 OR id IN (
                SELECT id FROM monitor_silences WHERE acknowledges AND until > now() ORDER BY starts DESC OFFSET $10)))
         INSERT INTO monitor_silences (id, rule, subject, owner, reason, starts, until, acknowledges)
         SELECT $1, $2, $3, $4, $5, to_timestamp($6), to_timestamp($7), $8
         WHERE $8 OR (SELECT count(*) FROM monitor_silences WHERE until > now() AND NOT acknowledges) < $9",
    )
    .bind::<SqlUuid, _>(id)
    .bind::<Text, _>(silence.rule.replace('\0', "\u{fffd}"))
    .bind::<Text, _>(silence.subject.replace('\0', "\u{fffd}"))
    .bind::<Text, _>(silence.owner.replace('\0', "\u{fffd}"))
    .bind::<Text, _>(silence.reason.replace('\0', "\u{fffd}"))
    .bind::<Double, _>(silence.starts)
    .bind::<Double, _>(silence.until)
    .bind::<diesel::sql_types::Bool, _>(silence.acknowledges)
    .bind::<diesel::sql_types::BigInt, _>(i64::try_from(SILENCES).unwrap_or(i64::MAX))
    .bind::<diesel::sql_types::BigInt, _>(ACKNOWLEDGEMENTS - 1)
    .execute(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    match stored {
        0 => Err(SourceTrouble::new(
            TroubleKind::Failed,
            format!("{SILENCES} silences are active: end some of them first"),
        )),
        _ => Ok(()),
    }
}

/// Ends a silence now. Returns whether it existed.
///
/// # Errors
/// If Postgres fails.
pub async fn end_silence(pool: &PgPool, id: Uuid) -> Result<bool, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let ended = sql_query("UPDATE monitor_silences SET until = now() WHERE id = $1 AND until > now()")
        .bind::<SqlUuid, _>(id)
        .execute(&mut connection)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(ended > 0)
}

/// Deletes notifications and silences that ended more than 30 days ago.
///
/// # Errors
/// If Postgres fails.
pub async fn forget_old(pool: &PgPool) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    for statement in [
        "DELETE FROM monitor_alert_outbox WHERE ctid = ANY (ARRAY(SELECT ctid FROM monitor_alert_outbox
             WHERE ended < now() - interval '30 days' LIMIT 1000))",
        "DELETE FROM monitor_silences WHERE until < now() - interval '30 days'",
        "DELETE FROM monitor_alerts WHERE phase = 'resolved' AND updated < now() - interval '30 days'",
    ] {
        sql_query(statement).execute(&mut connection).await.map_err(|e| trouble(&e))?;
    }
    Ok(())
}

/// Result of requesting the lease, with the state that a leader needs.
#[derive(Debug, Default)]
pub struct LeaseReply {
    /// Epoch, if the holder is the leader now.
    pub epoch: Option<i64>,
    /// Epoch of the previous leader, if Postgres was asked.
    pub followed: Option<i64>,
    /// Active silences and acknowledgements, if they could be read.
    pub silences: Option<Vec<Silence>>,
    /// Cleanup runs that marked queries as abandoned and have no alert yet; oldest first.
    pub findings: Vec<Finding>,
}

/// Requests or renews the lease. By Postgres' clock, a lease expires `lease_sec` after its last renewal. A single prepared
/// statement, because it runs every few seconds.
///
/// # Errors
/// If Postgres fails.
pub async fn lead(pool: &PgPool, holder: &str, lease_sec: f64) -> Result<LeaseReply, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let (epoch, followed, silences, findings): (_, _, Value, Value) =
        AskToLead { holder, lease_sec }.get_result(&mut connection).await.map_err(|e| trouble(&e))?;
    Ok(LeaseReply { epoch, followed, silences: Some(list(silences)), findings: list(findings) })
}

/// Statement of [`lead`]; a `sql_query` would be parsed and prepared on each call.
struct AskToLead<'a> {
    holder: &'a str,
    lease_sec: f64,
}

impl QueryId for AskToLead<'_> {
    type QueryId = AskToLead<'static>;
}

impl Query for AskToLead<'_> {
    type SqlType = (Nullable<Int8>, Nullable<Int8>, Jsonb, Jsonb);
}

impl QueryFragment<Pg> for AskToLead<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("WITH asked AS (SELECT ");
        out.push_bind_param::<Text, _>(self.holder)?;
        out.push_sql(" AS who, make_interval(secs => ");
        out.push_bind_param::<Double, _>(&self.lease_sec)?;
        out.push_sql(
            ") AS lease),
             led AS (
                 UPDATE monitor_alert_leader
                 SET epoch = epoch + (holder <> who)::int, holder = who, renewed = clock_timestamp()
                 FROM asked WHERE holder = who OR renewed < clock_timestamp() - lease
                 RETURNING epoch)
             SELECT (SELECT epoch FROM led), (SELECT epoch FROM monitor_alert_leader), ",
        );
        out.push_sql(ACTIVE);
        out.push_sql(", ");
        out.push_sql(UNTOLD);
        Ok(())
    }
}

/// Returns the items of a JSON list that can be parsed.
fn list<T: serde::de::DeserializeOwned>(json: Value) -> Vec<T> {
    let Value::Array(items) = json else { return Vec::new() };
    items.into_iter().filter_map(|item| serde_json::from_value(item).ok()).collect()
}

/// Releases the lease.
///
/// # Errors
/// If Postgres fails.
pub async fn resign(pool: &PgPool, holder: &str) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    sql_query("UPDATE monitor_alert_leader SET renewed = '-infinity' WHERE holder = $1")
        .bind::<Text, _>(holder)
        .execute(&mut connection)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(())
}

#[derive(QueryableByName)]
struct Cooldown {
    #[diesel(sql_type = Text)]
    key: String,
    #[diesel(sql_type = Int8)]
    seconds: i64,
}

/// Returns the alerts in cooldown, each with the seconds left.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn cooldowns(pool: &PgPool) -> Result<Vec<(String, u64)>, SourceTrouble> {
    #[derive(QueryableByName)]
    struct Exists {
        #[diesel(sql_type = diesel::sql_types::Bool)]
        exists: bool,
    }
    let mut connection = checkout(pool).await?;
    let table: Exists = sql_query("SELECT to_regclass('monitor_alerts') IS NOT NULL AS exists")
        .get_result(&mut connection)
        .await
        .map_err(|e| trouble(&e))?;
    if !table.exists {
        return Ok(Vec::new());
    }
    let rows: Vec<Cooldown> = sql_query(
        "SELECT key, ceil((state->>'quiet_until')::float8 - extract(epoch from now()))::int8 AS seconds
         FROM monitor_alerts WHERE (state->>'quiet_until')::float8 > extract(epoch from now())",
    )
    .load(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    Ok(rows.into_iter().filter_map(|row| Some((row.key, u64::try_from(row.seconds).ok()?))).collect())
}

/// A state change of an alert: time (Unix seconds), and whether it fired (`true`) or resolved.
pub type Turn = (f64, bool);

#[derive(QueryableByName)]
struct TurnRow {
    #[diesel(sql_type = Text)]
    key: String,
    #[diesel(sql_type = Double)]
    at: f64,
    #[diesel(sql_type = diesel::sql_types::Bool)]
    fired: bool,
}

/// Returns when the alerts with these keys fired and resolved in the last 30 days, newest first.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn stories(pool: &PgPool, keys: Vec<String>) -> Result<BTreeMap<String, Vec<Turn>>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let rows: Vec<TurnRow> = sql_query(
        "SELECT payload->>'alert' AS key, extract(epoch from ts)::float8 AS at, type = 'alert' AS fired
         FROM monitor_events
         WHERE type IN ('alert', 'alert_resolved') AND ts > now() - interval '30 days' AND payload->>'alert' = ANY ($1)
         ORDER BY ts DESC, id DESC LIMIT 2000",
    )
    .bind::<Array<Text>, _>(keys)
    .load(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    let mut stories: BTreeMap<String, Vec<Turn>> = BTreeMap::new();
    for row in rows {
        stories.entry(row.key).or_default().push((row.at, row.fired));
    }
    Ok(stories)
}

/// Skips and logs rows that this version cannot parse.
fn read<T: for<'de> Deserialize<'de>>(rows: Vec<Json>) -> Vec<T> {
    let read = |row: Json| match serde_json::from_value(row.json) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(%error, "skipped an invalid stored alert or notification");
            None
        }
    };
    rows.into_iter().filter_map(read).collect()
}

/// JSON in Postgres cannot contain NUL.
fn json<T: Serialize>(rows: &[T]) -> Result<Vec<Value>, NotWritten> {
    let no_json = |_| NotWritten::Trouble(SourceTrouble::new(TroubleKind::Failed, "cannot serialize an alert"));
    let text = serde_json::to_string(rows).map_err(no_json)?;
    serde_json::from_str(&text.replace("\\u0000", "\\ufffd")).map_err(no_json)
}
