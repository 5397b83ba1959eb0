//! How long tasks took: workers push durations, the monitor sets them aside in batches, archives
//! them, and only then drops them.

use redis::Script;
use uuid::Uuid;

use super::connection::{PooledConnection, send, trouble};
use super::reply::Reply;
use crate::contract::{Name, keys};
use crate::failpoint;
use crate::fleet::reading::SourceTrouble;

/// Batches that wait at most: days of a fleet whose database is away. After that durations stay
/// in the workers' lists, which keep the newest 10,000.
const MOST_BATCHES: usize = 50_000;
/// Batches read at a time.
const READ_AT_ONCE: usize = 200;
/// Streams drained by one call.
const STREAMS_AT_ONCE: usize = 100;

/// Durations that were set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// By which it is known again.
    pub id: Uuid,
    /// The stream whose tasks these are.
    pub stream: Name,
    /// When it was set aside: Unix milliseconds by Redis' clock.
    pub drained_ms: i64,
    /// Milliseconds each; what is no number is left out.
    pub durations: Vec<u64>,
}

/// What a call of [`drain`] set aside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetAside {
    /// Each stream that had any, with its durations, milliseconds each.
    pub durations: Vec<(Name, Vec<u64>)>,
    /// So many batches wait that not all was set aside.
    pub too_many: bool,
}

/// Sets the durations of `streams` aside, and looks at them before another monitor can drop them.
///
/// # Errors
/// When Redis did not do it.
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
        // Redis does not know the script yet: it was just started.
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
        // Minus one is no number of batches.
        if drained.is_none() {
            set_aside.too_many = true;
            return Ok(set_aside);
        }
    }
    failpoint::reached("latency.drained");
    Ok(set_aside)
}

/// The durations that stand in the workers' lists, newest first, milliseconds each; nothing is set aside. Streams
/// without any are left out.
///
/// # Errors
/// When Redis cannot be read.
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

/// Those of `now` that were pushed since the list read as `before`: all of them if another monitor drained it in
/// between.
#[must_use]
pub fn pushed_since<'a>(before: &[u64], now: &'a [u64]) -> &'a [u64] {
    // Workers cut a long list at its end, so `now` may hold only the newer part of `before`.
    let least = now.len().saturating_sub(before.len());
    let grown = (least..now.len()).find(|new| now.get(*new..).is_some_and(|rest| before.starts_with(rest)));
    now.get(..grown.unwrap_or(now.len())).unwrap_or_default()
}

fn numbers(list: &redis::Value) -> Vec<u64> {
    Reply::of(list).items().filter_map(Reply::number).collect()
}

/// Some of the batches that wait, each with its durations.
///
/// # Errors
/// When Redis cannot be read.
pub async fn waiting(redis: &mut PooledConnection) -> Result<Vec<Batch>, SourceTrouble> {
    let index: Vec<(String, Vec<u8>)> = redis::cmd("HRANDFIELD")
        .arg(keys::LATENCY_BATCHES)
        .arg(READ_AT_ONCE)
        .arg("WITHVALUES")
        .query_async(redis)
        .await
        .map_err(|e| trouble(&e))?;
    let mut batches: Vec<Batch> = index.iter().filter_map(|(id, note)| named(id, note)).collect();
    let mut pipe = redis::pipe();
    for batch in &batches {
        pipe.cmd("LRANGE").arg(keys::latency_batch(&batch.id.to_string())).arg(0).arg(-1);
    }
    for (batch, answer) in batches.iter_mut().zip(send(redis, &mut pipe).await?) {
        let list = answer.map_err(|e| trouble(&e))?;
        batch.durations = numbers(&list);
    }
    Ok(batches)
}

/// A batch as the index notes it: `{milliseconds} {stream}`.
fn named(id: &str, note: &[u8]) -> Option<Batch> {
    let space = note.iter().position(|byte| *byte == b' ')?;
    let (milliseconds, stream) = note.split_at_checked(space)?;
    Some(Batch {
        id: id.parse().ok()?,
        stream: Name::from(stream.get(1..)?),
        drained_ms: std::str::from_utf8(milliseconds).ok()?.parse().ok()?,
        durations: Vec::new(),
    })
}

/// Drops batches that are archived.
///
/// # Errors
/// When Redis did not do it: they will be seen again, and counted once all the same.
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
            // Cut at its end.
            (&[4, 3, 2, 1], &[6, 5, 4, 3], &[6, 5]),
        ] {
            assert_eq!(pushed_since(before, now), new, "{before:?} {now:?}");
        }
    }
}
