//! The newest 200 alerts, kept in Redis.

use super::connection::{self, Pool, send};
use super::reply::Reply;
use crate::contract::keys;
use crate::fleet::reading::SourceTrouble;
use std::borrow::Cow;

/// Alerts kept.
pub(super) const KEPT: isize = 200;

/// Puts alerts (JSON, oldest first) in front of the others. Repeated after an answer that did not come in time, each
/// alert is there once.
///
/// # Errors
/// When Redis did not take them.
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

/// The newest `limit` alerts (JSON), newest first.
///
/// # Errors
/// When Redis cannot be read.
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
