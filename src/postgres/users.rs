//! `monitor_users`: named users and the hashes of their tokens.

use diesel::sql_types::{Array, BigInt, Binary, Nullable, Text};
use diesel::{QueryableByName, sql_query};
use diesel_async::RunQueryDsl;

use super::connection::{PgPool, checkout, trouble};
use crate::access::sealing::SealingKey;
use crate::access::users::User;
use crate::fleet::reading::SourceTrouble;

const COLUMNS: &str = "name, role, token_id, token_hash, created, expires, used, proof";

/// A stored user. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct StoredUser {
    /// Unique name.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// Role.
    #[diesel(sql_type = Text)]
    pub role: String,
    /// Public part of the token.
    #[diesel(sql_type = Text)]
    pub token_id: String,
    /// Hash of the token.
    #[diesel(sql_type = Text)]
    pub token_hash: String,
    /// Creation of the token.
    #[diesel(sql_type = BigInt)]
    pub created: i64,
    /// Expiry of the token.
    #[diesel(sql_type = BigInt)]
    pub expires: i64,
    /// Last use, to a few minutes.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub used: Option<i64>,
    /// Proof that a holder of the secret key wrote the row.
    #[diesel(sql_type = Binary)]
    pub proof: Vec<u8>,
}

impl StoredUser {
    /// The row of a user whose token was not used yet.
    #[must_use]
    pub fn new(user: &User, key: &SealingKey) -> Self {
        Self {
            name: user.name.clone(),
            role: user.role.as_str().to_owned(),
            token_id: user.token_id.clone(),
            token_hash: user.token_hash.clone(),
            created: user.created,
            expires: user.expires,
            used: None,
            proof: user.proof(key),
        }
    }

    /// The user, if a holder of `key` wrote the row.
    #[must_use]
    pub fn proven(self, key: &SealingKey) -> Option<User> {
        let Self { name, role, token_id, token_hash, created, expires, used: _, proof } = self;
        let user = User { name, role: role.parse().ok()?, token_id, token_hash, created, expires };
        user.is_proven(key, &proof).then_some(user)
    }
}

/// Adds a user. Returns whether there was none of this name.
///
/// # Errors
/// If Postgres fails.
pub async fn add(pool: &PgPool, user: StoredUser) -> Result<bool, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let added = sql_query(
        "INSERT INTO monitor_users (name, role, token_id, token_hash, created, expires, proof) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (name) DO NOTHING",
    )
    .bind::<Text, _>(user.name)
    .bind::<Text, _>(user.role)
    .bind::<Text, _>(user.token_id)
    .bind::<Text, _>(user.token_hash)
    .bind::<BigInt, _>(user.created)
    .bind::<BigInt, _>(user.expires)
    .bind::<Binary, _>(user.proof)
    .execute(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    Ok(added > 0)
}

/// Returns all users, ordered by name.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn all(pool: &PgPool) -> Result<Vec<StoredUser>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    sql_query(format!("SELECT {COLUMNS} FROM monitor_users ORDER BY name"))
        .load(&mut connection)
        .await
        .map_err(|e| trouble(&e))
}

/// Returns the users with these tokens.
///
/// # Errors
/// If Postgres cannot be read.
pub async fn with_tokens(pool: &PgPool, token_ids: Vec<String>) -> Result<Vec<StoredUser>, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    sql_query(format!("SELECT {COLUMNS} FROM monitor_users WHERE token_id = ANY($1)"))
        .bind::<Array<Text>, _>(token_ids)
        .load(&mut connection)
        .await
        .map_err(|e| trouble(&e))
}

/// Replaces the row of `user`, if it still has the token `replaced`. Returns whether it had.
///
/// # Errors
/// If Postgres fails.
pub async fn replace(pool: &PgPool, replaced: &str, user: StoredUser) -> Result<bool, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let done = sql_query(
        "WITH ended AS (DELETE FROM monitor_sessions WHERE token_id = $2 AND $2 <> $4) \
         UPDATE monitor_users SET role = $3, token_id = $4, token_hash = $5, created = $6, expires = $7, proof = $8 \
         WHERE name = $1 AND token_id = $2",
    )
    .bind::<Text, _>(user.name)
    .bind::<Text, _>(replaced)
    .bind::<Text, _>(user.role)
    .bind::<Text, _>(user.token_id)
    .bind::<Text, _>(user.token_hash)
    .bind::<BigInt, _>(user.created)
    .bind::<BigInt, _>(user.expires)
    .bind::<Binary, _>(user.proof)
    .execute(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    Ok(done > 0)
}

/// Removes a user, with its sessions. Returns whether there was one.
///
/// # Errors
/// If Postgres fails.
pub async fn remove(pool: &PgPool, name: &str) -> Result<bool, SourceTrouble> {
    let mut connection = checkout(pool).await?;
    let removed = sql_query(
        "WITH ended AS (DELETE FROM monitor_sessions \
           WHERE token_id IN (SELECT token_id FROM monitor_users WHERE name = $1)) \
         DELETE FROM monitor_users WHERE name = $1",
    )
    .bind::<Text, _>(name)
    .execute(&mut connection)
    .await
    .map_err(|e| trouble(&e))?;
    Ok(removed > 0)
}

/// Updates the last use of a token.
///
/// # Errors
/// If Postgres fails.
pub async fn touch(pool: &PgPool, token_id: String, now: i64) -> Result<(), SourceTrouble> {
    let mut connection = checkout(pool).await?;
    sql_query("UPDATE monitor_users SET used = greatest(used, $2) WHERE token_id = $1")
        .bind::<Text, _>(token_id)
        .bind::<BigInt, _>(now)
        .execute(&mut connection)
        .await
        .map_err(|e| trouble(&e))?;
    Ok(())
}
