//! How long tasks took: workers push durations, the monitor sets them aside in batches, archives
//! them, and only then drops them.

use deadpool_redis::Pool;
use redis::Script;
use uuid::Uuid;

use super::connection::{checkout, send, trouble};
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
    /// Each batch's id and stream.
    pub batches: Vec<(Uuid, Name)>,
    /// So many batches wait that not all was set aside.
    pub too_many: bool,
}

/// Sets the durations of `streams` aside.
///
/// # Errors
/// When Redis did not do it.
pub async fn drain(pool: &Pool, streams: &[Name]) -> Result<SetAside, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let mut set_aside = SetAside::default();
    let script = Script::new(include_str!("scripts/drain.lua"));
    for some in streams.chunks(STREAMS_AT_ONCE) {
        let mut call = script.key(keys::LATENCY_BATCHES);
        call.arg(MOST_BATCHES);
        let ids: Vec<Uuid> = some.iter().map(|_| Uuid::now_v7()).collect();
        for (stream, id) in some.iter().zip(&ids) {
            call.key(keys::task_durations(stream));
            call.arg(id.to_string()).arg(keys::latency_batch(&id.to_string())).arg(stream.as_bytes());
        }
        let drained: Option<Vec<String>> = call.invoke_async(&mut redis).await.map_err(|e| trouble(&e))?;
        let Some(drained) = drained else {
            set_aside.too_many = true;
            return Ok(set_aside);
        };
        let drained: Vec<Uuid> = drained.iter().filter_map(|id| id.parse().ok()).collect();
        let batches = ids.into_iter().zip(some).filter(|(id, _)| drained.contains(id));
        set_aside.batches.extend(batches.map(|(id, stream)| (id, stream.clone())));
    }
    failpoint::reached("latency.drained");
    Ok(set_aside)
}

/// The durations in these batches, milliseconds each, with their streams.
///
/// # Errors
/// When Redis cannot be read.
pub async fn of_batches(pool: &Pool, batches: &[(Uuid, Name)]) -> Result<Vec<(Name, Vec<u64>)>, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let mut found = Vec::with_capacity(batches.len());
    for some in batches.chunks(READ_AT_ONCE) {
        let mut pipe = redis::pipe();
        for (id, _) in some {
            pipe.cmd("LRANGE").arg(keys::latency_batch(&id.to_string())).arg(0).arg(-1);
        }
        for ((_, stream), answer) in some.iter().zip(send(&mut redis, &mut pipe).await?) {
            found.push((stream.clone(), numbers(&answer.map_err(|e| trouble(&e))?)));
        }
    }
    Ok(found)
}

fn numbers(list: &redis::Value) -> Vec<u64> {
    Reply::of(list).items().filter_map(Reply::number).collect()
}

/// Some of the batches that wait, each with its durations.
///
/// # Errors
/// When Redis cannot be read.
pub async fn waiting(pool: &Pool) -> Result<Vec<Batch>, SourceTrouble> {
    let mut redis = checkout(pool).await?;
    let index: Vec<(String, Vec<u8>)> = redis::cmd("HRANDFIELD")
        .arg(keys::LATENCY_BATCHES)
        .arg(READ_AT_ONCE)
        .arg("WITHVALUES")
        .query_async(&mut redis)
        .await
        .map_err(|e| trouble(&e))?;
    let mut batches: Vec<Batch> = index.iter().filter_map(|(id, note)| named(id, note)).collect();
    let mut pipe = redis::pipe();
    for batch in &batches {
        pipe.cmd("LRANGE").arg(keys::latency_batch(&batch.id.to_string())).arg(0).arg(-1);
    }
    for (batch, answer) in batches.iter_mut().zip(send(&mut redis, &mut pipe).await?) {
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
pub async fn drop_archived(pool: &Pool, ids: &[Uuid]) -> Result<(), SourceTrouble> {
    if ids.is_empty() {
        return Ok(());
    }
    let mut redis = checkout(pool).await?;
    let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    let mut pipe = redis::pipe();
    pipe.atomic();
    pipe.cmd("DEL").arg(ids.iter().map(|id| keys::latency_batch(id)).collect::<Vec<_>>()).ignore();
    pipe.cmd("HDEL").arg(keys::LATENCY_BATCHES).arg(&ids).ignore();
    pipe.exec_async(&mut redis).await.map_err(|e| trouble(&e))?;
    failpoint::reached("latency.dropped");
    Ok(())
}
