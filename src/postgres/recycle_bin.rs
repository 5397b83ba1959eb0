//! `monitor_recycle_bin`: deleted messages that can be restored; `monitor_previews`: previews of pending operations.

use chrono::{DateTime, Utc};
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Binary, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::connection::{PgPool, checkout, trouble};
use crate::contract::Name;
use crate::fleet::message::{BinState, Binned, MessageState, packed, unpacked};
use crate::fleet::reading::SourceTrouble;

/// Retention of the recycle bin, days.
pub const DAYS: i32 = 30;
/// Maximum number of previews per user; a new one replaces the oldest.
const PREVIEWS: i64 = 20;
/// Lifetime of a preview, minutes.
pub const PREVIEW_MINUTES: i32 = 15;
/// Rows to delete per statement.
const AT_ONCE: i64 = 500;

/// A message to move to the bin.
#[derive(Debug, Clone)]
pub struct NewRow {
    /// ID in the stream.
    pub entry: String,
    /// Consumer that owns it.
    pub owner: Option<Name>,
    /// Delivery count.
    pub deliveries: u64,
    /// Its fields.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Common properties of messages that are moved together.
#[derive(Debug, Clone)]
pub struct Batch {
    /// UUID of the batch.
    pub id: Uuid,
    /// Stream.
    pub stream: Name,
    /// Key under which they are stored.
    pub home: Name,
    /// Consumer group; `None` for dead letters.
    pub group: Option<Name>,
    /// State of the messages.
    pub was: MessageState,
    /// Name of the user.
    pub who: String,
    /// Reason.
    pub why: String,
}

#[derive(diesel::QueryableByName)]
struct Id {
    #[diesel(sql_type = BigInt)]
    id: i64,
}

/// Stores messages before they are deleted from the stream. Returns their row IDs, in order.
///
/// # Errors
/// If Postgres fails; none is stored then.
pub async fn put(pool: &PgPool, batch: &Batch, rows: &[NewRow]) -> Result<Vec<i64>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let payload = |row: &NewRow| packed(row.fields.iter().map(|(name, value)| (name.as_slice(), value.as_slice())));
    let ids: Vec<Id> = sql_query(
        "WITH given AS (SELECT nextval('monitor_recycle_bin_id_seq') AS id, place, entry, owner, deliveries, payload \
           FROM unnest($1, $2, $3, $4) WITH ORDINALITY AS g(entry, owner, deliveries, payload, place)), \
         stored AS (INSERT INTO monitor_recycle_bin \
           (id, batch, stream, home, in_group, was, entry, owner, deliveries, payload, state, who, why) \
           SELECT id, $5, $6, $7, $8, $9, entry, owner, deliveries, payload, 'pending', $10, $11 FROM given) \
         SELECT id FROM given ORDER BY place",
    )
    .bind::<Array<Text>, _>(rows.iter().map(|row| row.entry.as_str()).collect::<Vec<_>>())
    .bind::<Array<Nullable<Binary>>, _>(
        rows.iter().map(|row| row.owner.as_ref().map(Name::as_bytes)).collect::<Vec<_>>(),
    )
    .bind::<Array<BigInt>, _>(rows.iter().map(|row| signed(row.deliveries)).collect::<Vec<_>>())
    .bind::<Array<Binary>, _>(rows.iter().map(payload).collect::<Vec<_>>())
    .bind::<SqlUuid, _>(batch.id)
    .bind::<Binary, _>(batch.stream.as_bytes())
    .bind::<Binary, _>(batch.home.as_bytes())
    .bind::<Nullable<Binary>, _>(batch.group.as_ref().map(Name::as_bytes))
    .bind::<Text, _>(batch.was.as_str())
    .bind::<Text, _>(without_nul(&batch.who))
    .bind::<Text, _>(without_nul(&batch.why))
    .load(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    Ok(ids.into_iter().map(|row| row.id).collect())
}

/// Records the result for rows that were pending.
///
/// # Errors
/// If Postgres fails.
pub async fn settle(pool: &PgPool, state: BinState, places: &[i64]) -> Result<(), SourceTrouble> {
    if places.is_empty() {
        return Ok(());
    }
    let mut connection = checkout(pool).await?;
    sql_query("UPDATE monitor_recycle_bin SET state = $1 WHERE id = ANY($2) AND state = 'pending'")
        .bind::<Text, _>(state.as_str())
        .bind::<Array<BigInt>, _>(places)
        .execute(&mut connection)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(())
}

/// Records that messages were restored, with their new IDs. Returns the number of rows that were not recorded before.
///
/// # Errors
/// If Postgres fails.
pub async fn restored(pool: &PgPool, who: &str, put_back: &[(i64, String)]) -> Result<usize, SourceTrouble> {
    if put_back.is_empty() {
        return Ok(0);
    }
    let mut connection = checkout(pool).await?;
    sql_query(
        "UPDATE monitor_recycle_bin b SET state = 'restored', restored_as = g.restored_as, restored_by = $3, \
         restored_at = now() FROM unnest($1, $2) AS g(id, restored_as) WHERE b.id = g.id AND b.state <> 'restored'",
    )
    .bind::<Array<BigInt>, _>(put_back.iter().map(|(place, _)| *place).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(put_back.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>())
    .bind::<Text, _>(without_nul(who))
    .execute(&mut connection)
    .await
    .map_err(|e| trouble(&e))
}

/// Filter of rows.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Stream.
    pub stream: Option<Name>,
    /// Batch.
    pub batch: Option<Uuid>,
    /// State.
    pub state: Option<BinState>,
    /// Row IDs.
    pub ids: Option<Vec<i64>>,
    /// Minimum age, seconds.
    pub older_sec: Option<i32>,
    /// Only rows with a lower ID.
    pub before: Option<i64>,
    /// Only rows with a higher ID, oldest first.
    pub after: Option<i64>,
    /// Maximum size of payloads to return, bytes.
    pub payload_bytes: i32,
}

#[derive(diesel::QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = SqlUuid)]
    batch: Uuid,
    #[diesel(sql_type = Binary)]
    stream: Vec<u8>,
    #[diesel(sql_type = Binary)]
    home: Vec<u8>,
    #[diesel(sql_type = Nullable<Binary>)]
    in_group: Option<Vec<u8>>,
    #[diesel(sql_type = Text)]
    was: String,
    #[diesel(sql_type = Text)]
    entry: String,
    #[diesel(sql_type = Nullable<Binary>)]
    owner: Option<Vec<u8>>,
    #[diesel(sql_type = BigInt)]
    deliveries: i64,
    #[diesel(sql_type = Nullable<Binary>)]
    payload: Option<Vec<u8>>,
    #[diesel(sql_type = Integer)]
    bytes: i32,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Text)]
    who: String,
    #[diesel(sql_type = Text)]
    why: String,
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Text>)]
    restored_as: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    restored_by: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    restored_at: Option<DateTime<Utc>>,
}

impl From<Row> for Binned {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            batch: row.batch.to_string(),
            stream: Name::from(row.stream),
            home: Name::from(row.home),
            group: row.in_group.map(Name::from),
            was: row.was.parse().unwrap_or(MessageState::Pending),
            entry: row.entry,
            owner: row.owner.map(Name::from),
            deliveries: u64::try_from(row.deliveries).unwrap_or(0),
            fields: row.payload.and_then(|bytes| unpacked(&bytes)).unwrap_or_default(),
            bytes: u64::try_from(row.bytes).unwrap_or(0),
            state: BinState::from_word(&row.state),
            who: row.who,
            why: row.why,
            at: seconds(row.at),
            restored_as: row.restored_as,
            restored_by: row.restored_by,
            restored_at: row.restored_at.map(seconds),
        }
    }
}

/// Returns matching rows, newest first; with `after`, oldest first.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn rows(pool: &PgPool, filter: &Filter, limit: i64) -> Result<Vec<Binned>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let order = if filter.after.is_some() { "ASC" } else { "DESC" };
    let rows: Vec<Row> = sql_query(format!(
        "SELECT id, batch, stream, home, in_group, was, entry, owner, deliveries, \
         CASE WHEN octet_length(payload) <= $1 THEN payload END AS payload, octet_length(payload) AS bytes, \
         state, who, why, at, restored_as, restored_by, restored_at FROM monitor_recycle_bin \
         WHERE ($2 IS NULL OR md5(stream) = md5($2) AND stream = $2) AND ($3 IS NULL OR batch = $3) \
         AND ($4 IS NULL OR state = $4) AND ($5 IS NULL OR id = ANY($5)) \
         AND ($6 IS NULL OR at < now() - $6 * interval '1 second') AND ($7 IS NULL OR id < $7) \
         AND ($8 IS NULL OR id > $8) ORDER BY id {order} LIMIT $9"
    ))
    .bind::<Integer, _>(filter.payload_bytes)
    .bind::<Nullable<Binary>, _>(filter.stream.as_ref().map(Name::as_bytes))
    .bind::<Nullable<SqlUuid>, _>(filter.batch)
    .bind::<Nullable<Text>, _>(filter.state.map(BinState::as_str))
    .bind::<Nullable<Array<BigInt>>, _>(filter.ids.as_deref())
    .bind::<Nullable<Integer>, _>(filter.older_sec)
    .bind::<Nullable<BigInt>, _>(filter.before)
    .bind::<Nullable<BigInt>, _>(filter.after)
    .bind::<BigInt, _>(limit)
    .load(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    Ok(rows.into_iter().map(Binned::from).collect())
}

/// Stores the selection of a preview. Returns its token.
///
/// # Errors
/// If Postgres fails.
pub async fn keep_preview(pool: &PgPool, who: &str, chosen: &[u8]) -> Result<Uuid, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let token = Uuid::new_v4();
    sql_query(
        "WITH older AS (DELETE FROM monitor_previews WHERE token IN \
            (SELECT token FROM monitor_previews WHERE who = $2 ORDER BY made DESC OFFSET $4)) \
         INSERT INTO monitor_previews (token, who, chosen) VALUES ($1, $2, $3)",
    )
    .bind::<SqlUuid, _>(token)
    .bind::<Text, _>(without_nul(who))
    .bind::<Binary, _>(chosen)
    .bind::<diesel::sql_types::BigInt, _>(PREVIEWS - 1)
    .execute(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    Ok(token)
}

#[derive(diesel::QueryableByName)]
struct Preview {
    #[diesel(sql_type = Binary)]
    chosen: Vec<u8>,
}

/// Returns the selection of a preview, unless it expired; with `take`, also deletes it.
///
/// # Errors
/// If Postgres fails.
pub async fn preview(pool: &PgPool, token: Uuid, take: bool) -> Result<Option<Vec<u8>>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let statement = if take {
        "DELETE FROM monitor_previews WHERE token = $1 AND made > now() - $2 * interval '1 minute' RETURNING chosen"
    } else {
        "SELECT chosen FROM monitor_previews WHERE token = $1 AND made > now() - $2 * interval '1 minute'"
    };
    let found: Vec<Preview> = sql_query(statement)
        .bind::<SqlUuid, _>(token)
        .bind::<Integer, _>(PREVIEW_MINUTES)
        .load(&mut connection)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(found.into_iter().next().map(|row| row.chosen))
}

/// Deletes expired rows and previews. Returns the number of rows.
///
/// # Errors
/// If Postgres fails; earlier statements remain in effect.
pub async fn sweep(pool: &PgPool) -> Result<usize, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let mut deleted = 0;
    for (statement, age) in [
        (
            "DELETE FROM monitor_recycle_bin WHERE id = ANY(ARRAY(SELECT id FROM monitor_recycle_bin \
         WHERE at < now() - $1 * interval '1 day' ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED))",
            DAYS,
        ),
        (
            "DELETE FROM monitor_previews WHERE token = ANY(ARRAY(SELECT token FROM monitor_previews \
         WHERE made < now() - $1 * interval '1 minute' ORDER BY made LIMIT $2 FOR UPDATE SKIP LOCKED))",
            PREVIEW_MINUTES,
        ),
    ] {
        loop {
            let some = sql_query(statement)
                .bind::<Integer, _>(age)
                .bind::<BigInt, _>(AT_ONCE)
                .execute(&mut connection)
                .await
                .map_err(|e| trouble(&e))?;
            deleted += some;
            if some == 0 {
                break;
            }
        }
    }
    Ok(deleted)
}

fn seconds(time: DateTime<Utc>) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a date fit a double")]
    let seconds = time.timestamp_micros() as f64 / 1e6;
    seconds
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Text in Postgres cannot contain NUL.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
