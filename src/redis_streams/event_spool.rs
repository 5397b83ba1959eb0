//! Where events wait in Redis while Postgres is away: written down before anyone is told.

use std::borrow::Cow;
use std::sync::LazyLock;

use redis::Script;

use super::connection::{self, Pool, send};
use super::reply::Reply;
use crate::contract::keys;
use crate::fleet::reading::SourceTrouble;

static REMOVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/remove_spooled.lua")));

/// Events kept at most; the oldest go first.
const CAPACITY: isize = 10_000;

/// Puts events (JSON, oldest first) behind those that wait already.
///
/// # Errors
/// When Redis did not take them.
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

/// The oldest `count` waiting events, left where they are.
///
/// # Errors
/// When Redis cannot be read.
pub async fn peek(pool: &Pool, count: usize) -> Result<Vec<String>, SourceTrouble> {
    let mut redis = connection::checkout(pool).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("LRANGE").arg(keys::EVENT_SPOOL).arg(0).arg(count.saturating_sub(1));
    match send(&mut redis, &mut pipe).await?.into_iter().next() {
        Some(Ok(value)) => Ok(Reply::of(&value).items().filter_map(Reply::text).map(Cow::into_owned).collect()),
        Some(Err(error)) => Err(connection::trouble(&error)),
        None => Ok(Vec::new()),
    }
}

/// Removes `stored`, the oldest as [`peek`] returned them, once they are in Postgres. Another monitor may have removed
/// some of them meanwhile: what stands at the front goes only if it is one of these.
///
/// # Errors
/// When Redis did not do it: they will be seen again, and stored once all the same.
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
