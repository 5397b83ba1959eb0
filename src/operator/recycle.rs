//! The recycle bin: settling what a crash left open, and putting back.

use std::collections::BTreeMap;

use super::Sources;
use crate::failpoint;
use crate::fleet::message::{BinState, Binned};
use crate::fleet::reading::SourceTrouble;
use crate::postgres::recycle_bin::{self, Filter};
use crate::redis_streams::operate::{self, PutBack};

/// Rows settled in one statement.
const SETTLED_AT_ONCE: i64 = 500;
/// Rows put back in one call: their payloads are in memory.
const RESTORED_AT_ONCE: i64 = 16;
/// Whoever drops has settled after so many seconds, or never will.
const OVERDUE_SEC: i32 = 60;

/// What came of putting back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// Entries that are in their streams again.
    pub restored: u64,
    /// Entries that never left their stream.
    pub void: u64,
    /// Entries that Redis refused to take, and what it said of the last.
    pub refused: Option<(u64, String)>,
}

/// Settles places of which nobody said what became of them.
///
/// # Errors
/// When a source cannot be asked.
pub async fn settle_overdue(sources: &Sources) -> Result<(), SourceTrouble> {
    let filter = Filter { state: Some(BinState::Pending), older_sec: Some(OVERDUE_SEC), ..Filter::default() };
    let rows = recycle_bin::rows(&sources.postgres, &filter, SETTLED_AT_ONCE).await?;
    let mut batches: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for row in rows {
        batches.entry(row.batch).or_default().push(row.id);
    }
    for (batch, places) in batches {
        let dropped = operate::settle(&sources.redis, &batch, &places).await?;
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

/// Puts what `filter` names back into its streams, oldest first, in the name of `who`. Asking again
/// puts nothing back twice.
///
/// # Errors
/// When a source cannot be asked; what was put back by then is.
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
    let answers = operate::restore(&sources.redis, some).await?;
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

/// Said when Postgres does not take what became of places in the bin.
pub(super) fn not_settled(trouble: &SourceTrouble) {
    tracing::warn!(error = trouble.detail, "what became of dropped entries is in Redis and not in Postgres yet");
}
