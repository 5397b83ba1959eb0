//! `monitor_events`: stored events.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use diesel::dsl::max;
use diesel::prelude::*;
use diesel::sql_types::{Int8, Text};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::connection::{PgPool, checkout, trouble};
use super::row_isolation::{Isolated, may_be_about_rows, put_isolating};
use super::schema::monitor_events;
use crate::fleet::event::{Event, EventKind, Severity};
use crate::fleet::reading::SourceTrouble;
use crate::history::stored_name::bounded_text;

/// An event that is not stored yet; also the format of the spool.
#[derive(Debug, Clone, PartialEq, Insertable, Serialize, Deserialize)]
#[diesel(table_name = monitor_events)]
pub struct NewRow {
    ts: DateTime<Utc>,
    type_: String,
    worker: String,
    severity: String,
    detail: String,
    payload: Value,
}

impl From<&Event> for NewRow {
    fn from(event: &Event) -> Self {
        Self {
            ts: time(event.ts),
            type_: event.type_name().to_owned(),
            worker: bounded(&event.subject),
            severity: event.severity().as_str().to_owned(),
            detail: bounded(&event.summary()),
            payload: bounded_value(event.payload()),
        }
    }
}

impl NewRow {
    /// Returns the event as part of the history of the alert `key`.
    #[must_use]
    pub fn of_alert(mut self, key: &str) -> Self {
        self.payload_insert("alert", Value::String(key.replace('\0', "\u{fffd}")));
        self
    }

    /// Returns the event with an additional payload field.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.payload_insert(field, bounded_value(value));
        self
    }

    fn payload_insert(&mut self, field: &str, value: Value) {
        if let Value::Object(payload) = &mut self.payload {
            payload.insert(field.to_owned(), value);
        }
    }
}

impl NewRow {
    /// Returns the key of the alert to which it belongs.
    #[must_use]
    pub fn alert(&self) -> Option<&str> {
        self.payload.get("alert").and_then(Value::as_str)
    }

    /// Returns when it happened, Unix seconds.
    #[must_use]
    pub fn happened_at(&self) -> f64 {
        self.ts.timestamp_micros() as f64 / 1e6
    }

    /// Returns whether it has this type.
    #[must_use]
    pub fn is_of_type(&self, name: &str) -> bool {
        self.type_ == name
    }
}

/// Types of events that report a level: running workers of a type, or whether a data source is reachable.
pub const CHANGES: [&str; 4] = ["scale_down", "scale_up", "source_down", "source_up"];
/// Maximum time between two reports of the same change in the number of workers by two instances.
const REPEATED_WITHIN: TimeDelta = TimeDelta::seconds(120);
/// Payload field with the keys under which other instances reported the same change.
const REPEATED_AS: &str = "repeated_as";
/// Number of newest events among which a repeated change is searched.
const RECENT: i64 = 10_000;
/// Advisory lock (arbitrary number): instances compare and store changes one at a time.
const CHANGES_LOCK: i64 = 0x5348_4556;

impl NewRow {
    /// Returns the subject of a change, `None` for other events; changes of the same subject are compared.
    fn changed(&self) -> Option<(bool, &str)> {
        CHANGES.contains(&self.type_.as_str()).then(|| (self.is_of_source(), self.worker.as_str()))
    }

    /// Returns the unique key.
    #[must_use]
    pub fn key(&self) -> &str {
        self.payload.get("key").and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns its key and those under which other instances reported the same change.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let repeated = self.payload.get(REPEATED_AS).and_then(Value::as_array).into_iter().flatten();
        [self.key()].into_iter().chain(repeated.filter_map(Value::as_str))
    }

    /// Records the key under which another instance reported the same change.
    pub fn is_repeated_as(&mut self, key: &str) {
        let mut keys: Vec<&str> = self.keys().skip(1).collect();
        keys.push(key);
        let keys = json!(keys);
        self.payload_insert(REPEATED_AS, keys);
    }

    fn is_of_source(&self) -> bool {
        self.type_.starts_with("source")
    }

    /// Returns whether it repeats `before`, the previous change of the same subject.
    fn repeats(&self, before: &Self) -> bool {
        let same = |field: &str| self.payload.get(field) == before.payload.get(field);
        // A data source is down until it is up. The number of workers can drop to the same value again after a change that was not
        // stored.
        let is_near = self.is_of_source() || (self.ts - before.ts).abs() <= REPEATED_WITHIN;
        self.type_ == before.type_ && same("from") && same("to") && is_near
    }

    /// Returns whether it reports the outage that began with `begun` and ended with `ended`: it began before that end.
    fn is_within(&self, begun: &Self, ended: &Self) -> bool {
        let begins = |row: &Self| row.type_ == "source_down";
        begins(self) && begins(begun) && (begun.ts - REPEATED_WITHIN..=ended.ts).contains(&self.ts)
    }
}

/// Result of merging changes with stored ones.
#[derive(Debug, Default, PartialEq)]
pub struct Merged {
    /// Events to store.
    pub new: Vec<NewRow>,
    /// Keys of stored changes, each with the key of a repetition.
    pub repeated: Vec<(String, String)>,
}

impl Merged {
    /// Merges `rows` with the changes in `stored` (oldest first). Two instances that see the same outage, or two exits in a
    /// different order, report the same change under two keys. It is stored once, with both keys, so that later repetitions are
    /// recognized too.
    #[must_use]
    pub fn of(rows: &[NewRow], stored: &[NewRow]) -> Self {
        let mut merged = Self::default();
        let mut known: BTreeSet<&str> = stored.iter().flat_map(NewRow::keys).collect();
        // The newest change of each subject, and the one before.
        let mut newest: BTreeMap<(bool, &str), (&NewRow, Option<&NewRow>)> = BTreeMap::new();
        for row in stored {
            let Some(what) = row.changed() else { continue };
            let before = newest.get(&what).map(|(before, _)| *before);
            newest.insert(what, (row, before));
        }
        for row in rows {
            let Some(what) = row.changed() else {
                merged.new.push(row.clone());
                continue;
            };
            let is_known = row.keys().any(|key| !known.insert(key));
            let last = newest.get(&what).copied();
            let repeated = last.and_then(|(last, before)| match before {
                _ if row.repeats(last) => Some(last),
                before => before.filter(|before| row.is_within(before, last)),
            });
            match repeated {
                _ if is_known => {}
                Some(before) => match merged.new.iter_mut().find(|new| new.key() == before.key()) {
                    Some(new) => new.is_repeated_as(row.key()),
                    None => merged.repeated.push((before.key().to_owned(), row.key().to_owned())),
                },
                None => {
                    newest.insert(what, (row, last.map(|(last, _)| last)));
                    merged.new.push(row.clone());
                }
            }
        }
        merged
    }
}

/// A stored event.
#[derive(Debug, Clone, PartialEq, Queryable, Selectable)]
#[diesel(table_name = monitor_events)]
pub struct Row {
    /// Row ID, in the order of storing.
    pub id: i64,
    /// Time of the event.
    pub ts: DateTime<Utc>,
    /// Type of the event.
    pub type_: String,
    /// Worker type or data source.
    pub worker: Option<String>,
    /// info, warning or critical.
    pub severity: Option<String>,
    /// One-line description.
    pub detail: Option<String>,
    /// Payload fields.
    pub payload: Option<Value>,
}

impl Row {
    /// Returns the time of the event, Unix seconds.
    #[must_use]
    pub fn unix_seconds(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of a date fit a double")]
        let seconds = self.ts.timestamp_micros() as f64 / 1e6;
        seconds
    }
}

impl From<Row> for Event {
    fn from(row: Row) -> Self {
        let ts = row.unix_seconds();
        let key =
            row.payload.as_ref().and_then(|p| p.get("key")).and_then(Value::as_str).unwrap_or_default().to_owned();
        let severity = Severity::from_stored(row.severity.as_deref().unwrap_or_default());
        let kind = EventKind::Recorded { type_name: row.type_, severity, detail: row.detail.unwrap_or_default() };
        let count = |field: &str| {
            let stored = row.payload.as_ref().and_then(|payload| payload.get(field)).and_then(Value::as_u64);
            stored.and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
        };
        let running = (count("from"), count("to"));
        Self { ts, subject: row.worker.unwrap_or_default(), kind, key, running }
    }
}

impl From<Row> for NewRow {
    fn from(row: Row) -> Self {
        Self {
            ts: row.ts,
            type_: row.type_,
            worker: row.worker.unwrap_or_default(),
            severity: row.severity.unwrap_or_default(),
            detail: row.detail.unwrap_or_default(),
            payload: row.payload.unwrap_or_default(),
        }
    }
}

/// Stores events. Skips stored events and repetitions of the newest change of the same subject; sets aside events that Postgres
/// rejects.
///
/// # Errors
/// If Postgres fails.
pub async fn insert(pool: &PgPool, rows: &[NewRow]) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let stored = match put(&mut connection, rows).await {
        Err(error) if may_be_about_rows(&error) => put_each(&mut connection, rows).await.and_then(Isolated::settle),
        other => other,
    };
    stored.map_err(|e| trouble(&e))
}

/// Stores events; returns those that Postgres rejected.
pub(super) async fn put_each(
    connection: &mut AsyncPgConnection,
    rows: &[NewRow],
) -> Result<Isolated, diesel::result::Error> {
    let name = |row: &NewRow| format!("{} event of {}", row.type_, row.worker);
    put_isolating(connection, rows, |connection, rows| put(connection, rows).boxed(), name).await
}

/// Stores events on a connection that may be in a transaction.
pub(super) async fn put(connection: &mut AsyncPgConnection, rows: &[NewRow]) -> Result<(), diesel::result::Error> {
    if rows.is_empty() {
        // Diesel runs no statement for zero rows, but this must show whether the table is writable.
        diesel::sql_query("INSERT INTO monitor_events (type) SELECT type FROM monitor_events WHERE false")
            .execute(connection)
            .await?;
    }
    if rows.iter().all(|row| row.changed().is_none()) {
        return put_all(connection, rows).await;
    }
    connection
        .transaction(async |connection| {
            let stored = newest_changes(connection, rows).await?;
            let Merged { new, repeated } = Merged::of(rows, &stored);
            for (key, repeats) in repeated {
                let noted = "UPDATE monitor_events SET payload = jsonb_set(payload, array[$1],
                    coalesce(payload->$1, '[]') || to_jsonb($2)) WHERE payload->>'key' = $3";
                let noted = diesel::sql_query(noted).bind::<Text, _>(REPEATED_AS).bind::<Text, _>(repeats);
                noted.bind::<Text, _>(key).execute(connection).await?;
            }
            put_all(connection, &new).await
        })
        .await
}

async fn put_all(connection: &mut AsyncPgConnection, rows: &[NewRow]) -> Result<(), diesel::result::Error> {
    for some in rows.chunks(500) {
        diesel::insert_into(monitor_events::table).values(some).on_conflict_do_nothing().execute(connection).await?;
    }
    Ok(())
}

/// Returns recent changes of the subjects of `rows`, oldest first. Other instances cannot store changes until this transaction
/// ends; the lock of a stopped process times out after three seconds.
async fn newest_changes(
    connection: &mut AsyncPgConnection,
    rows: &[NewRow],
) -> Result<Vec<NewRow>, diesel::result::Error> {
    use monitor_events::dsl;
    diesel::sql_query(
        "SELECT set_config('idle_in_transaction_session_timeout', '3s', true), pg_advisory_xact_lock($1)",
    )
    .bind::<Int8, _>(CHANGES_LOCK)
    .execute(connection)
    .await?;
    let newest: Option<i64> = dsl::monitor_events.select(max(dsl::id)).first(connection).await?;
    let subjects: BTreeSet<&str> = rows.iter().filter_map(NewRow::changed).map(|(_, subject)| subject).collect();
    let changes: Vec<Row> = dsl::monitor_events
        .filter(dsl::id.gt(newest.unwrap_or(0) - RECENT))
        .filter(dsl::type_.eq_any(CHANGES))
        .filter(dsl::worker.eq_any(subjects))
        .order(dsl::id)
        .select(Row::as_select())
        .load(connection)
        .await?;
    Ok(changes.into_iter().map(NewRow::from).collect())
}

/// Filter of events; `None` matches all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Type.
    pub type_name: Option<String>,
    /// Severity.
    pub severity: Option<String>,
    /// Worker type or data source.
    pub worker: Option<String>,
    /// Start of the time range.
    pub since: Option<DateTime<Utc>>,
    /// End of the time range, exclusive.
    pub until: Option<DateTime<Utc>>,
}

/// Returns the newest matching events, newest first.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn newest(pool: &PgPool, filter: &Filter, limit: i64) -> Result<Vec<Row>, SourceTrouble> {
    use monitor_events::dsl;
    let mut query =
        dsl::monitor_events.order((dsl::ts.desc(), dsl::id.desc())).limit(limit).select(Row::as_select()).into_boxed();
    if let Some(type_name) = &filter.type_name {
        query = query.filter(dsl::type_.eq(type_name));
    }
    if let Some(severity) = &filter.severity {
        query = query.filter(dsl::severity.eq(severity));
    }
    if let Some(worker) = &filter.worker {
        query = query.filter(dsl::worker.eq(worker));
    }
    if let Some(since) = filter.since {
        query = query.filter(dsl::ts.ge(since));
    }
    if let Some(until) = filter.until {
        query = query.filter(dsl::ts.lt(until));
    }
    let mut connection = checkout(pool).await?;
    query.load(&mut connection).await.map_err(|e| trouble(&e))
}

fn time(unix_seconds: f64) -> DateTime<Utc> {
    #[expect(clippy::cast_possible_truncation, reason = "microseconds of a date")]
    DateTime::from_timestamp_micros((unix_seconds * 1e6) as i64).unwrap_or_default()
}

/// Maximum size of an event's text, bytes: names may be as long as Redis allows, and the feed sends the text to every page.
const LONGEST_TEXT: usize = 8000;

/// Truncates `text`, and removes NUL, which Postgres cannot store.
pub(super) fn bounded(text: &str) -> String {
    bounded_text(text, LONGEST_TEXT).into_owned()
}

pub(super) fn bounded_value(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(bounded(&text)),
        Value::Array(items) => items.into_iter().map(bounded_value).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, bounded_value(value))).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(ts: f64, type_: &str, worker: &str, from: u32, to: u32) -> NewRow {
        NewRow {
            ts: time(ts),
            type_: type_.to_owned(),
            worker: worker.to_owned(),
            severity: "info".to_owned(),
            detail: String::new(),
            payload: json!({"from": from, "to": to, "key": format!("{ts}")}),
        }
    }

    fn times(rows: &[NewRow], stored: &[NewRow]) -> Vec<i64> {
        Merged::of(rows, stored).new.iter().map(|row| row.ts.timestamp()).collect()
    }

    #[test]
    fn outage_seen_by_two_monitors_is_stored_once() {
        let down = |ts| event(ts, "source_down", "redis", 1, 0);
        let up = |ts| event(ts, "source_up", "redis", 0, 1);
        // Independent of clock differences, in one batch or several.
        for other in [100.5, 7300.0, -7300.0] {
            assert_eq!(times(&[down(100.0), down(other), up(110.0), up(other + 10.0)], &[]), [100, 110]);
            assert_eq!(times(&[down(other)], &[down(100.0)]), [0_i64; 0]);
            assert_eq!(times(&[up(other)], &[down(100.0), up(110.0)]), [0_i64; 0]);
        }
        // Each reports the whole outage after its end.
        assert_eq!(times(&[down(99.7), up(110.0), down(120.0)], &[down(100.0), up(110.0)]), [120]);
        assert_eq!(times(&[down(99.7), up(110.5)], &[down(100.0), up(110.0)]), [0_i64; 0]);
        // An earlier outage, reported late.
        assert_eq!(times(&[down(-800.0), up(-790.0)], &[down(100.0), up(110.0)]), [-800, -790]);
        // The next outage and one of the other source are separate.
        assert_eq!(times(&[down(120.0), up(130.0)], &[down(100.0), up(110.0)]), [120, 130]);
        assert_eq!(times(&[event(101.0, "source_down", "postgres", 1, 0)], &[down(100.0)]), [101]);
    }

    #[test]
    fn merged_changes_are_recognized_when_reported_again() {
        let down = |ts| event(ts, "source_down", "redis", 1, 0);
        let up = |ts| event(ts, "source_up", "redis", 0, 1);
        let Merged { new, repeated } = Merged::of(&[down(100.0), down(100.5), up(110.0)], &[]);
        assert_eq!((new[0].keys().collect::<Vec<_>>(), repeated), (vec!["100", "100.5"], Vec::new()));
        assert_eq!(Merged::of(&[down(100.5), down(100.0)], &new), Merged::default());
        let Merged { new, repeated } = Merged::of(&[up(111.0)], &new);
        assert_eq!((new, repeated), (Vec::new(), vec![("110".to_owned(), "111".to_owned())]));
    }

    #[test]
    fn two_exits_seen_in_different_order_are_two_changes() {
        let down = |ts, from| event(ts, "scale_down", "arax", from, from - 1);
        assert_eq!(times(&[down(709.0, 3)], &[down(708.0, 3)]), [0_i64; 0]);
        assert_eq!(times(&[down(708.0, 3), down(709.0, 3), down(710.0, 2), down(711.0, 2)], &[]), [708, 710]);
        // The same change again, after another one or much later, is separate.
        assert_eq!(times(&[down(720.0, 3)], &[down(708.0, 3), event(709.0, "scale_up", "arax", 2, 3)]), [720]);
        assert_eq!(times(&[down(900.0, 3)], &[down(708.0, 3)]), [900]);
        assert_eq!(times(&[event(709.0, "scale_down", "other", 3, 2)], &[down(708.0, 3)]), [709]);
    }

    #[test]
    fn events_that_are_not_changes_are_not_merged() {
        let lost = event(1.0, "consumers_lost", "arax", 3, 2);
        assert_eq!(times(&[lost.clone(), lost.clone()], &[lost]), [1, 1]);
    }
}
