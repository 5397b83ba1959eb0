//! Stores the records of worker types, so that they survive restarts of the monitor.

use std::collections::BTreeMap;

use redis::Value;

use super::connection::{self, Pool, send};
use super::older_monitor;
use super::resp_reader::Reply;
use crate::contract::Name;
use crate::contract::keys::{self, older};
use crate::fleet::reading::SourceTrouble;
use crate::fleet::worker_type::WorkerStateRecord;

/// Records per round trip; bounds memory, since those of a large fleet have several kilobytes each.
const RECORDS_AT_ONCE: usize = 20;
/// Time for which other instances can learn that a type was forgotten, seconds.
const MARKS_LAST_SEC: u32 = 86_400;

/// Loads the records of all known types. Missing or unreadable records are logged and omitted.
///
/// # Errors
/// If Redis cannot be read.
pub async fn load(pool: &Pool) -> Result<BTreeMap<Name, WorkerStateRecord>, SourceTrouble> {
    load_from(pool, keys::KNOWN_WORKERS, keys::worker_state).await
}

/// Loads the records for an observer: those of the older monitor until this monitor has its own.
///
/// # Errors
/// If Redis cannot be read.
pub async fn load_to_observe(pool: &Pool) -> Result<BTreeMap<Name, WorkerStateRecord>, SourceTrouble> {
    match older_monitor::taken_over_at(pool).await? {
        Some(_) => load(pool).await,
        None => load_from(pool, older::KNOWN_WORKERS, older::worker_state).await,
    }
}

async fn load_from(
    pool: &Pool,
    known: &str,
    key: fn(&Name) -> Vec<u8>,
) -> Result<BTreeMap<Name, WorkerStateRecord>, SourceTrouble> {
    let mut redis = connection::checkout(pool).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("SMEMBERS").arg(known);
    let known = match send(&mut redis, &mut pipe).await?.into_iter().next() {
        Some(Err(error)) if connection::is_wrong_type(&error) => {
            tracing::warn!(key = known, %error, "cannot restore the worker types: the key holds another type");
            Value::Nil
        }
        answer => one(answer)?,
    };
    let names: Vec<Name> = Reply::of(&known).items().filter_map(Reply::bytes).map(Name::from).collect();
    let mut records = BTreeMap::new();
    for some in names.chunks(RECORDS_AT_ONCE) {
        let mut pipe = redis::pipe();
        for name in some {
            pipe.cmd("GET").arg(key(name));
        }
        for (name, value) in some.iter().zip(send(&mut redis, &mut pipe).await?) {
            let Some(bytes) = value.as_ref().ok().and_then(|value| Reply::of(value).bytes()) else { continue };
            match serde_json::from_slice(bytes) {
                Ok(record) => drop(records.insert(name.clone(), record)),
                Err(error) => {
                    tracing::warn!(worker_type = %name, %error, "skipped an invalid worker type record")
                }
            }
        }
    }
    Ok(records)
}

/// Saves records, and adds `new_types` to the known types.
///
/// # Errors
/// When Redis did not take them.
pub async fn save(pool: &Pool, records: &[(Name, WorkerStateRecord)], new_types: &[Name]) -> Result<(), SourceTrouble> {
    let mut redis = connection::checkout(pool).await?;
    for some in records.chunks(RECORDS_AT_ONCE) {
        let mut pipe = redis::pipe();
        for (name, record) in some {
            let Ok(json) = serde_json::to_vec(record) else { continue };
            pipe.cmd("SET").arg(keys::worker_state(name)).arg(json);
        }
        all_done(send(&mut redis, &mut pipe).await?)?;
    }
    let mut pipe = redis::pipe();
    for name in new_types {
        pipe.cmd("SADD").arg(keys::KNOWN_WORKERS).arg(name.as_bytes());
    }
    all_done(send(&mut redis, &mut pipe).await?)
}

/// Deletes the record of a type and sets `mark`, which tells other instances. Returns whether the type was known.
///
/// # Errors
/// If Redis fails.
pub async fn forget(pool: &Pool, worker_type: &Name, mark: &str) -> Result<bool, SourceTrouble> {
    let mut pipe = redis::pipe();
    pipe.atomic();
    pipe.cmd("SREM").arg(keys::KNOWN_WORKERS).arg(worker_type.as_bytes());
    pipe.cmd("DEL").arg(keys::worker_state(worker_type));
    pipe.cmd("HSET").arg(keys::FORGOTTEN_WORKERS).arg(worker_type.as_bytes()).arg(mark).ignore();
    pipe.cmd("EXPIRE").arg(keys::FORGOTTEN_WORKERS).arg(MARKS_LAST_SEC).ignore();
    let mut redis = connection::checkout(pool).await?;
    let (known, recorded): (u64, u64) = pipe.query_async(&mut redis).await.map_err(|e| connection::trouble(&e))?;
    Ok(known + recorded > 0)
}

/// Returns the types that any instance forgot in the last day, with their marks.
///
/// # Errors
/// If Redis cannot be read.
pub async fn forgotten(pool: &Pool) -> Result<BTreeMap<Name, String>, SourceTrouble> {
    let mut redis = connection::checkout(pool).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("HGETALL").arg(keys::FORGOTTEN_WORKERS);
    let marks = one(send(&mut redis, &mut pipe).await?.into_iter().next())?;
    let pair = |(name, mark): (&[u8], Reply<'_>)| Some((Name::from(name), mark.text()?.into_owned()));
    Ok(Reply::of(&marks).fields().filter_map(pair).collect())
}

fn all_done(answers: Vec<Result<Value, redis::RedisError>>) -> Result<(), SourceTrouble> {
    answers.into_iter().try_for_each(|answer| answer.map(drop).map_err(|e| connection::trouble(&e)))
}

fn one(answer: Option<Result<Value, redis::RedisError>>) -> Result<Value, SourceTrouble> {
    answer.transpose().map(Option::unwrap_or_default).map_err(|error| connection::trouble(&error))
}
