//! The recycle bin: settles rows after interrupted actions, and restores entries.

use std::collections::BTreeMap;

use super::Sources;
use crate::failpoint;
use crate::fleet::message::{BinState, Binned};
use crate::fleet::reading::SourceTrouble;
use crate::postgres::recycle_bin::{self, Filter};
use crate::redis_streams::message_actions::{self, PutBack};

/// Rows settled per statement.
const SETTLED_AT_ONCE: i64 = 500;
/// Rows restored per call; bounded because their payloads are in memory.
const RESTORED_AT_ONCE: i64 = 16;
/// Age of an unsettled row, seconds, after which the action that wrote it was interrupted.
const OVERDUE_SEC: i32 = 60;

/// Result of a restore.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// Entries restored to their streams.
    pub restored: u64,
    /// Entries that never left their stream.
    pub void: u64,
    /// Number of entries that Redis rejected, and the last error.
    pub refused: Option<(u64, String)>,
}

/// Settles rows of interrupted actions.
///
/// # Errors
/// When a data source is unreachable.
pub async fn settle_overdue(sources: &Sources) -> Result<(), SourceTrouble> {
    let filter = Filter { state: Some(BinState::Pending), older_sec: Some(OVERDUE_SEC), ..Filter::default() };
    let rows = recycle_bin::rows(&sources.postgres, &filter, SETTLED_AT_ONCE).await?;
    let mut batches: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for row in rows {
        batches.entry(row.batch).or_default().push(row.id);
    }
    for (batch, places) in batches {
        let dropped = message_actions::settle(&sources.redis, &batch, &places).await?;
        for (state, wanted) in [(BinState::Binned, true), (BinState::Void, false)] {
            let these: Vec<i64> = places
                .iter()
                .zip(&dropped)
                .filter(|(_, dropped)| **dropped == wanted)
                .map(|(place, _)| *place)
                .collect();
            recycle_bin::settle(&sources.postgres, state, &these).await?;
        }
    }
    Ok(())
}

/// Restores the entries that match `filter` to their streams, oldest first, on behalf of `who`. The operation is
/// idempotent: a repeated call restores no entry twice.
///
/// # Errors
/// When a data source is unreachable; entries up to then are restored.
pub async fn restore(sources: &Sources, filter: &Filter, who: &str) -> Result<Restored, SourceTrouble> {
    let mut result = Restored::default();
    let mut filter = Filter { after: Some(0), payload_bytes: i32::MAX, ..filter.clone() };
    loop {
        let rows = recycle_bin::rows(&sources.postgres, &filter, RESTORED_AT_ONCE).await?;
        let Some(last) = rows.last() else { return Ok(result) };
        filter.after = Some(last.id);
        let open: Vec<Binned> =
            rows.into_iter().filter(|row| matches!(row.state, BinState::Binned | BinState::Pending)).collect();
        for some in open.chunk_by(|a, b| (&a.batch, &a.home, &a.group) == (&b.batch, &b.home, &b.group)) {
            restore_some(sources, some, who, &mut result).await?;
        }
    }
}

async fn restore_some(
    sources: &Sources,
    some: &[Binned],
    who: &str,
    result: &mut Restored,
) -> Result<(), SourceTrouble> {
    let answers = message_actions::restore(&sources.redis, some).await?;
    failpoint::reached("operator.restored");
    let (mut put_back, mut void) = (Vec::new(), Vec::new());
    for (row, answer) in some.iter().zip(answers) {
        match answer {
            PutBack::Restored(id) => put_back.push((row.id, id)),
            PutBack::Void => void.push(row.id),
            PutBack::Refused(error) => {
                let so_far = result.refused.take().map_or(0, |(count, _)| count);
                result.refused = Some((so_far + 1, error));
            }
        }
    }
    // Another request may have put the same back meanwhile; then it counts there.
    let restored = recycle_bin::restored(&sources.postgres, who, &put_back).await?;
    recycle_bin::settle(&sources.postgres, BinState::Void, &void).await?;
    result.restored += u64::try_from(restored).unwrap_or(u64::MAX);
    result.void += u64::try_from(void.len()).unwrap_or(u64::MAX);
    Ok(())
}

/// Logs that Postgres did not store the outcome of rows in the bin.
pub(super) fn not_settled(trouble: &SourceTrouble) {
    tracing::warn!(error = trouble.detail, "what became of dropped entries is in Redis and not in Postgres yet");
}
