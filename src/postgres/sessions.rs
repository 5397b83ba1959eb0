//! `monitor_sessions`: who logged in by a browser, so that every monitor with this database knows it.

use diesel::sql_types::{Array, BigInt, Binary, Text};
use diesel::{QueryableByName, sql_query};
use diesel_async::RunQueryDsl;

use super::connection::{PgPool, checkout, trouble};
use crate::fleet::reading::SourceTrouble;

/// A session as it is stored. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct StoredSession {
    /// The digest of what the cookie holds.
    #[diesel(sql_type = Binary)]
    pub id: Vec<u8>,
    /// What its user is called.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// The role.
    #[diesel(sql_type = Text)]
    pub role: String,
    /// When it began.
    #[diesel(sql_type = BigInt)]
    pub began: i64,
    /// When it was last used, to a few minutes.
    #[diesel(sql_type = BigInt)]
    pub used: i64,
    /// By which a monitor knows that a monitor with the same tokens wrote this.
    #[diesel(sql_type = Binary)]
    pub proof: Vec<u8>,
}

/// Stores a session, and deletes those that were last used before `outdated`.
///
/// # Errors
/// When Postgres did not take it.
pub async fn put(pool: &PgPool, session: &StoredSession, outdated: i64) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    sql_query(
        "WITH outdated AS (DELETE FROM monitor_sessions WHERE used < $7) \
         INSERT INTO monitor_sessions (id, name, role, began, used, proof) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind::<Binary, _>(&session.id)
    .bind::<Text, _>(session.name.replace('\0', "\u{fffd}"))
    .bind::<Text, _>(&session.role)
    .bind::<BigInt, _>(session.began)
    .bind::<BigInt, _>(session.used)
    .bind::<Binary, _>(&session.proof)
    .bind::<BigInt, _>(outdated)
    .execute(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    Ok(())
}

/// Those of these sessions that are stored.
///
/// # Errors
/// When Postgres cannot be read.
pub async fn find(pool: &PgPool, ids: Vec<Vec<u8>>) -> Result<Vec<StoredSession>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    sql_query("SELECT id, name, role, began, used, proof FROM monitor_sessions WHERE id = ANY($1)")
        .bind::<Array<Binary>, _>(ids)
        .load(&mut connection)
        .await
        .map_err(|e| trouble(&e))
}

/// Notes that a session is used.
///
/// # Errors
/// When Postgres did not take it.
pub async fn touch(pool: &PgPool, id: Vec<u8>, now: i64) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    sql_query("UPDATE monitor_sessions SET used = greatest(used, $2) WHERE id = $1")
        .bind::<Binary, _>(id)
        .bind::<BigInt, _>(now)
        .execute(&mut connection)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(())
}

/// Ends a session for all monitors.
///
/// # Errors
/// When Postgres did not take it.
pub async fn remove(pool: &PgPool, id: Vec<u8>) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    sql_query("DELETE FROM monitor_sessions WHERE id = $1")
        .bind::<Binary, _>(id)
        .execute(&mut connection)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(())
}
