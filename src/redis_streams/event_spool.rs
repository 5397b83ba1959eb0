//! Spools events in Redis while Postgres is unreachable, so that they are stored before they are published.

use std::borrow::Cow;
use std::sync::LazyLock;

use redis::Script;

use super::connection::{self, Pool, send};
use super::resp_reader::Reply;
use crate::contract::keys;
use crate::fleet::reading::SourceTrouble;

static REMOVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/remove_spooled.lua")));

/// Maximum number of events; the oldest are dropped.
const CAPACITY: isize = 10_000;

/// Appends events (JSON, oldest first).
///
/// # Errors
/// If Redis fails.
pub async fn put(pool: &Pool, events: &[String]) -> Result<(), SourceTrouble> {
    let mut redis = connection::checkout(pool).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("RPUSH").arg(keys::EVENT_SPOOL).arg(events);
    pipe.cmd("LTRIM").arg(keys::EVENT_SPOOL).arg(-CAPACITY).arg(-1);
    for answer in send(&mut redis, &mut pipe).await? {
        answer.map_err(|e| connection::trouble(&e))?;
    }
    Ok(())
}

/// Returns the oldest `count` events without removing them.
///
/// # Errors
/// If Redis cannot be read.
pub async fn peek(pool: &Pool, count: usize) -> Result<Vec<String>, SourceTrouble> {
    let mut redis = connection::checkout(pool).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("LRANGE").arg(keys::EVENT_SPOOL).arg(0).arg(count.saturating_sub(1));
    match send(&mut redis, &mut pipe).await?.into_iter().next() {
        Some(Ok(value)) => Ok(Reply::of(&value).items().filter_map(Reply::text).map(Cow::into_owned).collect()),
        Some(Err(error)) if connection::is_wrong_type(&error) => {
            tracing::warn!(key = keys::EVENT_SPOOL, %error, "events cannot be spooled in Redis: the key holds another type");
            Ok(Vec::new())
        }
        Some(Err(error)) => Err(connection::trouble(&error)),
        None => Ok(Vec::new()),
    }
}

/// Removes `stored`, the oldest events as returned by [`peek`], after they were written to Postgres. Removes the first event only
/// while it is one of these, because another instance may have removed some.
///
/// # Errors
/// If Redis fails; they are read again, and not stored twice.
pub async fn remove(pool: &Pool, stored: &[String]) -> Result<(), SourceTrouble> {
    if stored.is_empty() {
        return Ok(());
    }
    let mut redis = connection::checkout(pool).await?;
    let mut script = REMOVE.prepare_invoke();
    script.key(keys::EVENT_SPOOL).arg(stored);
    let removed: Result<u64, _> = script.invoke_async(&mut redis).await;
    removed.map(drop).map_err(|e| connection::trouble(&e))
}
