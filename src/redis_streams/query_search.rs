//! Finds the stream that queries reached last, by a bounded search at both ends of the watched streams.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use redis::{Script, Value};

use super::cleanup::is_about_the_stream;
use super::connection::{Pool, checkout, trouble};
use super::resp_reader::Reply;
use crate::contract::Name;
use crate::fleet::cleanup::added_at;
use crate::fleet::reading::SourceTrouble;

static FIND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(include_str!("scripts/before.lua"), include_str!("scripts/find_queries.lua")))
});

/// Entries to read from each end of a stream; at most a millisecond of Redis' time.
const ENTRIES: usize = 100;
/// Maximum number of streams to search.
const STREAMS: usize = 200;
/// Pause between two streams as a multiple of the duration of the previous one.
const REST: u32 = 3;

/// Returns the stream for each of `queries` that has an entry near an end of one of `streams`: preferably one where it is pending
/// or undelivered, then the one with the newest entry. Stops at `until`.
///
/// # Errors
/// If Redis cannot be read.
pub async fn last_streams(
    pool: &Pool,
    streams: &[Name],
    queries: &[&str],
    until: Instant,
) -> Result<BTreeMap<String, Name>, SourceTrouble> {
    let mut best: BTreeMap<String, (bool, f64, Name)> = BTreeMap::new();
    if queries.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut redis = checkout(pool).await?;
    for stream in streams.iter().take(STREAMS) {
        let began = Instant::now();
        if began >= until {
            break;
        }
        let mut call = FIND.key(stream.as_bytes());
        call.arg(ENTRIES).arg(queries);
        let answer: Value = match call.invoke_async(&mut redis).await {
            Ok(answer) => answer,
            Err(error) if is_about_the_stream(&error) => continue,
            Err(error) => return Err(trouble(&error)),
        };
        for found in Reply::of(&answer).items() {
            let mut parts = found.items().filter_map(Reply::text);
            let (Some(query), Some(id), Some(state)) = (parts.next(), parts.next(), parts.next()) else { continue };
            let (open, at) = (state == "open", added_at(&id).unwrap_or(0.0));
            let better = best.get(&*query).is_none_or(|(was_open, was, _)| (open, at) > (*was_open, *was));
            if better {
                best.insert(query.into_owned(), (open, at, stream.clone()));
            }
        }
        tokio::time::sleep(began.elapsed().min(Duration::from_millis(50)) * REST).await;
    }
    Ok(best.into_iter().map(|(query, (.., stream))| (query, stream)).collect())
}
