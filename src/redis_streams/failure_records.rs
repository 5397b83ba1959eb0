//! Stores the state of task failures, so that it survives restarts of the monitor.

use redis::Value;

use super::connection::{self, Pool, send};
use super::resp_reader::Reply;
use crate::contract::{Name, failures, keys};
use crate::fleet::failures::{FailureRecord, FailureRecords};
use crate::fleet::reading::SourceTrouble;

const READ_AT: &str = "read_at";
const STREAM_PREFIX: &[u8] = b"stream:";
/// TTL of the records, seconds.
const KEPT_SEC: u32 = 30 * 86_400;

/// Loads the records. Unreadable ones are logged and omitted.
///
/// # Errors
/// If Redis cannot be read.
pub async fn load(pool: &Pool) -> Result<FailureRecords, SourceTrouble> {
    let mut redis = connection::checkout(pool).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("HGETALL").arg(keys::SEEN_FAILURES);
    let answer = send(&mut redis, &mut pipe).await?.into_iter().next().and_then(Result::ok).unwrap_or(Value::Nil);
    let mut records = FailureRecords::default();
    for (field, value) in Reply::of(&answer).fields() {
        let Some(value) = value.bytes() else { continue };
        if field == READ_AT.as_bytes() {
            records.read_at = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        }
        let Some(stream) = field.strip_prefix(STREAM_PREFIX).map(Name::from) else { continue };
        match serde_json::from_slice::<FailureRecord>(value) {
            Ok(record) => drop(records.streams.insert(stream, record)),
            Err(error) => {
                tracing::warn!(%stream, %error, "skipped invalid task failure records of a stream")
            }
        }
    }
    Ok(records)
}

/// Saves records, if there are any.
///
/// # Errors
/// If Redis fails.
pub async fn save(pool: &Pool, records: &FailureRecords) -> Result<(), SourceTrouble> {
    let (Some(read_at), false) = (records.read_at, records.streams.is_empty()) else { return Ok(()) };
    let mut pipe = redis::pipe();
    let set = pipe.cmd("HSET").arg(keys::SEEN_FAILURES).arg(READ_AT).arg(read_at);
    for (stream, record) in &records.streams {
        let Ok(json) = serde_json::to_vec(record) else { continue };
        set.arg(field(stream)).arg(json);
    }
    pipe.cmd("EXPIRE").arg(keys::SEEN_FAILURES).arg(KEPT_SEC);
    let mut redis = connection::checkout(pool).await?;
    let answers = send(&mut redis, &mut pipe).await?;
    answers.into_iter().try_for_each(|answer| answer.map(drop).map_err(|error| connection::trouble(&error)))
}

/// Deletes the counters of workers and the record of `stream`. Returns whether there were any.
///
/// # Errors
/// If Redis fails.
pub async fn forget(pool: &Pool, stream: &Name) -> Result<bool, SourceTrouble> {
    let mut pipe = redis::pipe();
    pipe.cmd("HDEL").arg(keys::TASK_FAILURES).arg(&failures::fields(stream));
    pipe.cmd("HDEL").arg(keys::SEEN_FAILURES).arg(field(stream));
    let mut redis = connection::checkout(pool).await?;
    let mut deleted = 0;
    for answer in send(&mut redis, &mut pipe).await? {
        match answer {
            Ok(count) => deleted += Reply::of(&count).number().unwrap_or(0),
            // A key of another type has nothing to delete.
            Err(error) if connection::is_wrong_type(&error) => {}
            Err(error) => return Err(connection::trouble(&error)),
        }
    }
    Ok(deleted > 0)
}

/// Returns the hash field of a stream's record.
fn field(stream: &Name) -> Vec<u8> {
    [STREAM_PREFIX, stream.as_bytes()].concat()
}
