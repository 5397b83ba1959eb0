//! `monitor_sessions`: browser sessions, shared by all instances with this database.

use diesel::sql_types::{Array, BigInt, Binary, Nullable, Text};
use diesel::{QueryableByName, sql_query};
use diesel_async::RunQueryDsl;

use super::connection::{PgPool, checkout, trouble};
use crate::fleet::reading::SourceTrouble;

const COLUMNS: &str = "id, name, role, began, used, token_id, proof";

/// A stored session. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct StoredSession {
    /// Digest of the cookie.
    #[diesel(sql_type = Binary)]
    pub id: Vec<u8>,
    /// Name of the user.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// Role.
    #[diesel(sql_type = Text)]
    pub role: String,
    /// Start.
    #[diesel(sql_type = BigInt)]
    pub began: i64,
    /// Last use, to a few minutes.
    #[diesel(sql_type = BigInt)]
    pub used: i64,
    /// Token of the named user; `None` for a shared token.
    #[diesel(sql_type = Nullable<Text>)]
    pub token_id: Option<String>,
    /// Proof that an instance with the same tokens stored the session.
    #[diesel(sql_type = Binary)]
    pub proof: Vec<u8>,
}

/// Stores a session, and deletes those last used before `outdated`.
///
/// # Errors
/// If Postgres fails.
pub async fn put(pool: &PgPool, session: &StoredSession, outdated: i64) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    sql_query(
        "WITH outdated AS (DELETE FROM monitor_sessions WHERE used < $8) \
         INSERT INTO monitor_sessions (id, name, role, began, used, proof, token_id) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind::<Binary, _>(&session.id)
    .bind::<Text, _>(session.name.replace('\0', "\u{fffd}"))
    .bind::<Text, _>(&session.role)
    .bind::<BigInt, _>(session.began)
    .bind::<BigInt, _>(session.used)
    .bind::<Binary, _>(&session.proof)
    .bind::<Nullable<Text>, _>(&session.token_id)
    .bind::<BigInt, _>(outdated)
    .execute(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    Ok(())
}

/// Returns the stored ones of these sessions.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn find(pool: &PgPool, ids: Vec<Vec<u8>>) -> Result<Vec<StoredSession>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    sql_query(format!("SELECT {COLUMNS} FROM monitor_sessions WHERE id = ANY($1)"))
        .bind::<Array<Binary>, _>(ids)
        .load(&mut connection)
        .await
        .map_err(|e| trouble(&e))
}

/// Updates the last use of a session.
///
/// # Errors
/// If Postgres fails.
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

/// Ends a session for all instances.
///
/// # Errors
/// If Postgres fails.
pub async fn remove(pool: &PgPool, id: Vec<u8>) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    sql_query("DELETE FROM monitor_sessions WHERE id = $1")
        .bind::<Binary, _>(id)
        .execute(&mut connection)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(())
}

/// Returns all sessions, most recently used first.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn all(pool: &PgPool) -> Result<Vec<StoredSession>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    sql_query(format!("SELECT {COLUMNS} FROM monitor_sessions ORDER BY used DESC, id"))
        .load(&mut connection)
        .await
        .map_err(|e| trouble(&e))
}

/// Ends these sessions for all instances. Returns their number.
///
/// # Errors
/// If Postgres fails.
pub async fn remove_all(pool: &PgPool, ids: Vec<Vec<u8>>) -> Result<usize, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    sql_query("DELETE FROM monitor_sessions WHERE id = ANY($1)")
        .bind::<Array<Binary>, _>(ids)
        .execute(&mut connection)
        .await
        .map_err(|e| trouble(&e))
}
