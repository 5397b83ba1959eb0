//! Run times of tasks: workers push durations to lists; the monitor moves them to batches, archives those, and then deletes them.

use redis::Script;
use uuid::Uuid;

use super::connection::{PooledConnection, is_wrong_type, send, trouble};
use super::resp_reader::Reply;
use crate::contract::{Name, keys};
use crate::failpoint;
use crate::fleet::reading::SourceTrouble;

/// Maximum number of waiting batches: days of a fleet whose database is unreachable. Beyond that, durations stay in the workers'
/// lists, which keep the newest 10,000.
const MOST_BATCHES: usize = 50_000;
/// Batches to read at a time.
const READ_AT_ONCE: usize = 200;
/// Streams to drain per call.
const STREAMS_AT_ONCE: usize = 100;

/// A batch of durations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// ID, for deduplication.
    pub id: Uuid,
    /// Stream of the tasks.
    pub stream: Name,
    /// Time at which it was drained, Unix milliseconds by Redis' clock.
    pub drained_ms: i64,
    /// Run times, milliseconds; invalid values are omitted.
    pub durations: Vec<u64>,
}

/// Result of [`drain`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetAside {
    /// Drained durations by stream, milliseconds.
    pub durations: Vec<(Name, Vec<u64>)>,
    /// Something was left in the lists because too many batches wait.
    pub too_many: bool,
}

/// Moves the durations of `streams` to batches. Reads them in the same call, before another instance can delete them.
///
/// # Errors
/// If Redis fails.
pub async fn drain(redis: &mut PooledConnection, streams: &[Name]) -> Result<SetAside, SourceTrouble> {
    let mut set_aside = SetAside::default();
    let script = Script::new(include_str!("scripts/drain.lua"));
    for some in streams.chunks(STREAMS_AT_ONCE) {
        let mut call = script.key(keys::LATENCY_BATCHES);
        call.arg(MOST_BATCHES);
        let ids: Vec<String> = some.iter().map(|_| Uuid::now_v7().to_string()).collect();
        for (stream, id) in some.iter().zip(&ids) {
            call.key(keys::task_durations(stream));
            call.arg(id).arg(keys::latency_batch(id)).arg(stream.as_bytes());
        }
        let mut pipe = redis::pipe();
        pipe.invoke_script(&call);
        for id in &ids {
            pipe.cmd("LRANGE").arg(keys::latency_batch(id)).arg(0).arg(-1);
        }
        let mut answers = send(redis, &mut pipe).await?.into_iter();
        let mut drained = answers.next().transpose();
        // The script is not loaded: Redis was restarted.
        if drained.as_ref().is_err_and(|error| error.code() == Some("NOSCRIPT")) {
            script.load_async(redis).await.map_err(|e| trouble(&e))?;
            answers = send(redis, &mut pipe).await?.into_iter();
            drained = answers.next().transpose();
        }
        let drained = drained.map_err(|e| trouble(&e))?;
        let drained = drained.as_ref().and_then(|answer| Reply::of(answer).number());
        for (stream, answer) in some.iter().zip(answers) {
            let durations = answer.map(|list| numbers(&list)).unwrap_or_default();
            if !durations.is_empty() {
                set_aside.durations.push((stream.clone(), durations));
            }
        }
        // -1 means too many batches, not a number of them.
        if drained.is_none() {
            set_aside.too_many = true;
            return Ok(set_aside);
        }
    }
    failpoint::reached("latency.drained");
    Ok(set_aside)
}

/// Returns the durations in the workers' lists without draining them, newest first, milliseconds. Streams without durations are
/// omitted.
///
/// # Errors
/// If Redis cannot be read.
pub async fn read(redis: &mut PooledConnection, streams: &[Name]) -> Result<Vec<(Name, Vec<u64>)>, SourceTrouble> {
    let mut found = Vec::new();
    for some in streams.chunks(STREAMS_AT_ONCE) {
        let mut pipe = redis::pipe();
        for stream in some {
            pipe.cmd("LRANGE").arg(keys::task_durations(stream)).arg(0).arg(-1);
        }
        for (stream, answer) in some.iter().zip(send(redis, &mut pipe).await?) {
            let durations = answer.map(|list| numbers(&list)).unwrap_or_default();
            if !durations.is_empty() {
                found.push((stream.clone(), durations));
            }
        }
    }
    Ok(found)
}

/// Returns those of `now` that were pushed since the list was read as `before`; all if it was drained in between.
#[must_use]
pub fn pushed_since<'a>(before: &[u64], now: &'a [u64]) -> &'a [u64] {
    // Workers trim long lists at the end, so `now` may contain only the newer part of `before`.
    let least = now.len().saturating_sub(before.len());
    let grown = (least..now.len()).find(|new| now.get(*new..).is_some_and(|rest| before.starts_with(rest)));
    now.get(..grown.unwrap_or(now.len())).unwrap_or_default()
}

fn numbers(list: &redis::Value) -> Vec<u64> {
    Reply::of(list).items().filter_map(Reply::number).collect()
}

/// Returns some of the waiting batches with their durations. Batches that cannot be read are removed from the index, so that they do
/// not delay the others; a key of another type is not deleted.
///
/// # Errors
/// If Redis cannot be read.
pub async fn waiting(redis: &mut PooledConnection) -> Result<Vec<Batch>, SourceTrouble> {
    let index: Vec<(Vec<u8>, Vec<u8>)> = redis::cmd("HRANDFIELD")
        .arg(keys::LATENCY_BATCHES)
        .arg(READ_AT_ONCE)
        .arg("WITHVALUES")
        .query_async(redis)
        .await
        .map_err(|e| trouble(&e))?;
    let mut unreadable = Vec::new();
    let mut named_batches = Vec::new();
    for (id, note) in &index {
        match named(id, note) {
            Some(batch) => named_batches.push((id, batch)),
            None => unreadable.push((id, "invalid entry".to_owned())),
        }
    }
    let mut pipe = redis::pipe();
    for (_, batch) in &named_batches {
        pipe.cmd("LRANGE").arg(keys::latency_batch(&batch.id.to_string())).arg(0).arg(-1);
    }
    let mut batches = Vec::new();
    for ((id, mut batch), answer) in named_batches.into_iter().zip(send(redis, &mut pipe).await?) {
        match answer {
            Ok(list) => {
                batch.durations = numbers(&list);
                batches.push(batch);
            }
            Err(error) if is_wrong_type(&error) => unreadable.push((id, error.to_string())),
            Err(error) => return Err(trouble(&error)),
        }
    }
    let mut pipe = redis::pipe();
    for (id, reason) in unreadable {
        let batch = String::from_utf8_lossy(id);
        tracing::warn!(%batch, reason, "skipped a batch of task durations in Redis that cannot be read");
        pipe.cmd("HDEL").arg(keys::LATENCY_BATCHES).arg(id);
    }
    send(redis, &mut pipe).await?;
    Ok(batches)
}

/// Parses the index entry of a batch, `{milliseconds} {stream}`.
fn named(id: &[u8], note: &[u8]) -> Option<Batch> {
    let space = note.iter().position(|byte| *byte == b' ')?;
    let (milliseconds, stream) = note.split_at_checked(space)?;
    Some(Batch {
        id: std::str::from_utf8(id).ok()?.parse().ok()?,
        stream: Name::from(stream.get(1..)?),
        drained_ms: std::str::from_utf8(milliseconds).ok()?.parse().ok()?,
        durations: Vec::new(),
    })
}

/// Deletes archived batches.
///
/// # Errors
/// If Redis fails; they are read again, and not counted twice.
pub async fn drop_archived(redis: &mut PooledConnection, ids: &[Uuid]) -> Result<(), SourceTrouble> {
    if ids.is_empty() {
        return Ok(());
    }
    let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    let mut pipe = redis::pipe();
    pipe.atomic();
    pipe.cmd("DEL").arg(ids.iter().map(|id| keys::latency_batch(id)).collect::<Vec<_>>()).ignore();
    pipe.cmd("HDEL").arg(keys::LATENCY_BATCHES).arg(&ids).ignore();
    pipe.exec_async(redis).await.map_err(|e| trouble(&e))?;
    failpoint::reached("latency.dropped");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_since_is_counted_once_and_a_drained_list_counts_whole() {
        for (before, now, new) in [
            (&[][..], &[3, 2, 1][..], &[3, 2, 1][..]),
            (&[2, 1], &[2, 1], &[]),
            (&[2, 1], &[4, 3, 2, 1], &[4, 3]),
            (&[2, 1], &[], &[]),
            (&[2, 1], &[9], &[9]),
            (&[2, 1], &[9, 8, 7], &[9, 8, 7]),
            // Trimmed at the end.
            (&[4, 3, 2, 1], &[6, 5, 4, 3], &[6, 5]),
        ] {
            assert_eq!(pushed_since(before, now), new, "{before:?} {now:?}");
        }
    }
}
