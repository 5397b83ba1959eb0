//! The newest 200 alerts, stored in Redis.

use super::connection::{self, Pool, send};
use super::resp_reader::Reply;
use crate::contract::keys;
use crate::fleet::reading::SourceTrouble;
use std::borrow::Cow;

/// Number of stored alerts.
pub(super) const KEPT: isize = 200;

/// Stores alerts (JSON, oldest first) before the others. Safe to repeat after a timeout: each alert is stored once.
///
/// # Errors
/// If Redis fails.
pub async fn remember(pool: &Pool, alerts: &[String]) -> Result<(), SourceTrouble> {
    let mut redis = connection::checkout(pool).await?;
    let mut pipe = redis::pipe();
    for alert in alerts {
        pipe.cmd("LREM").arg(keys::ALERTS_HISTORY).arg(0).arg(alert);
        pipe.cmd("LPUSH").arg(keys::ALERTS_HISTORY).arg(alert);
    }
    if !alerts.is_empty() {
        pipe.cmd("LTRIM").arg(keys::ALERTS_HISTORY).arg(0).arg(KEPT - 1);
    }
    for answer in send(&mut redis, &mut pipe).await? {
        answer.map_err(|e| connection::trouble(&e))?;
    }
    Ok(())
}

/// Returns the newest `limit` alerts (JSON), newest first.
///
/// # Errors
/// If Redis cannot be read.
pub async fn newest(pool: &Pool, limit: usize) -> Result<Vec<String>, SourceTrouble> {
    let mut redis = connection::checkout(pool).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("LRANGE").arg(keys::ALERTS_HISTORY).arg(0).arg(limit.saturating_sub(1));
    match send(&mut redis, &mut pipe).await?.into_iter().next() {
        Some(Ok(value)) => Ok(Reply::of(&value).items().filter_map(Reply::text).map(Cow::into_owned).collect()),
        Some(Err(error)) => Err(connection::trouble(&error)),
        None => Ok(Vec::new()),
    }
}
