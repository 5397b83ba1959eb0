//! Where events wait in Redis while Postgres is away: written down before anyone is told.

use std::borrow::Cow;

use super::connection::{self, send};
use super::reply::Reply;
use crate::contract::keys;
use crate::fleet::reading::SourceTrouble;

/// Events kept at most; the oldest go first.
const CAPACITY: isize = 10_000;

/// Puts events (JSON, oldest first) behind those that wait already.
///
/// # Errors
/// When Redis did not take them.
pub async fn put(pool: &deadpool_redis::Pool, events: &[String]) -> Result<(), SourceTrouble> {
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
pub async fn peek(pool: &deadpool_redis::Pool, count: usize) -> Result<Vec<String>, SourceTrouble> {
    let mut redis = connection::checkout(pool).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("LRANGE").arg(keys::EVENT_SPOOL).arg(0).arg(count.saturating_sub(1));
    match send(&mut redis, &mut pipe).await?.into_iter().next() {
        Some(Ok(value)) => Ok(Reply::of(&value).items().filter_map(Reply::text).map(Cow::into_owned).collect()),
        Some(Err(error)) => Err(connection::trouble(&error)),
        None => Ok(Vec::new()),
    }
}

/// Takes the oldest `count` away, once they are in Postgres.
///
/// # Errors
/// When Redis did not do it: they will be seen again, and stored once all the same.
pub async fn drop_oldest(pool: &deadpool_redis::Pool, count: usize) -> Result<(), SourceTrouble> {
    let mut redis = connection::checkout(pool).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("LTRIM").arg(keys::EVENT_SPOOL).arg(count).arg(-1);
    for answer in send(&mut redis, &mut pipe).await? {
        answer.map_err(|e| connection::trouble(&e))?;
    }
    Ok(())
}
