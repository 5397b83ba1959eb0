//! Previews: selects the entries of an action without changing anything. Every scan is bounded; when a bound is
//! reached, the preview says so and covers the entries scanned until then.

use crate::contract::Name;
use crate::fleet::message::{Action, Chosen, DeadConsumer, DeadFound, Found, Message, MessageState, Part, Wanted};
use crate::fleet::reading::SourceTrouble;
use crate::redis_streams::connection::Pool;
use crate::redis_streams::messages::{self, Bounds, Start};

/// Maximum number of entries selected by one preview.
pub const MOST_CHOSEN: usize = 10_000;
/// Maximum number of entries scanned by one preview.
const MOST_LOOKED: u64 = 50_000;
/// Maximum number of consumers without heartbeats listed by one preview.
const MOST_CONSUMERS: usize = 1000;
/// Number of messages shown with a preview.
const SHOWN: usize = 3;
/// Number of bytes shown of each value.
const SHOWN_BYTES: usize = 2048;

/// Selects the messages of `stream` that match `wanted`, or only those of them with the given `ids`.
///
/// # Errors
/// When Redis is unreachable.
pub async fn messages(
    redis: &Pool,
    stream: &Name,
    wanted: &Wanted,
    ids: &[String],
    (action, why): (Action, &str),
) -> Result<Found, SourceTrouble> {
    let bounds = Bounds { matches: MOST_CHOSEN, looked: MOST_LOOKED, shown: 0 };
    let mut part = part(stream, &wanted.group, wanted.state);
    let (mut looked, mut complete) = (0, true);
    if ids.is_empty() {
        let page = messages::page(redis, stream, wanted, Start::Beginning, bounds).await?;
        page.messages.iter().for_each(|message| part.add(message));
        (looked, complete) = (page.looked, page.next.is_none());
    } else {
        for id in ids {
            let one = Bounds { matches: 1, looked: 1, ..bounds };
            let page = messages::page(redis, stream, wanted, Start::At(id), one).await?;
            page.messages.iter().filter(|message| message.id == *id).for_each(|message| part.add(message));
            looked += page.looked;
        }
    }
    let first = first(redis, &part).await?;
    let mut owners = Vec::new();
    if wanted.state == MessageState::Pending {
        let names: Vec<Name> = part.owners.iter().map(|owner| Name::from(owner.as_slice())).collect();
        let alive = messages::with_heartbeat(redis, stream, &names).await?;
        let mut counts = vec![0; names.len()];
        for (place, ..) in &part.entries {
            if let Some(count) = counts.get_mut(*place) {
                *count += 1;
            }
        }
        owners = names.into_iter().zip(alive).zip(counts).map(|((name, alive), count)| (name, alive, count)).collect();
    }
    let (groups, _) = messages::groups(redis, stream).await?;
    let chosen = Chosen { action, why: why.to_owned(), min_idle_ms: 0, of_the_dead: false, parts: vec![part] };
    Ok(Found { chosen, first, looked, complete, owners, groups: groups.len() })
}

/// Selects the entries stuck on consumers of these streams without heartbeats: both entry and consumer are idle for at
/// least `min_idle_ms`.
///
/// # Errors
/// When Redis is unreachable.
pub async fn on_dead_consumers(
    redis: &Pool,
    streams: &[Name],
    min_idle_ms: u64,
    (action, why): (Action, &str),
) -> Result<DeadFound, SourceTrouble> {
    let mut chosen = Chosen { action, why: why.to_owned(), min_idle_ms, of_the_dead: true, parts: Vec::new() };
    let (mut consumers, mut complete, mut looked) = (Vec::new(), true, 0);
    for stream in streams {
        let (groups, _) = messages::groups(redis, stream).await?;
        for group in groups.into_iter().filter(|group| group.pending > 0) {
            let mut part = part(stream, &group.name, MessageState::Pending);
            for listed in messages::dead_consumers(redis, stream, &group.name, min_idle_ms).await? {
                if listed.pending == 0 {
                    continue;
                }
                let room = MOST_CHOSEN.saturating_sub(chosen.len() + part.entries.len());
                if room == 0 || looked >= MOST_LOOKED || consumers.len() >= MOST_CONSUMERS {
                    complete = false;
                    break;
                }
                let wanted = Wanted {
                    state: MessageState::Pending,
                    group: group.name.clone(),
                    owner: Some(listed.name.clone()),
                    min_idle_ms,
                    field: None,
                    contains: Vec::new(),
                };
                let bounds = Bounds { matches: room, looked: MOST_LOOKED - looked, shown: 0 };
                let page = messages::page(redis, stream, &wanted, Start::Beginning, bounds).await?;
                looked += page.looked;
                complete &= page.next.is_none();
                page.messages.iter().for_each(|message| part.add(message));
                if let Some(oldest) = page.messages.first() {
                    let one = Bounds { matches: 1, looked: 1, shown: SHOWN_BYTES };
                    let shown = messages::page(redis, stream, &wanted, Start::At(&oldest.id), one).await?;
                    consumers.push(DeadConsumer {
                        stream: stream.clone(),
                        group: group.name.clone(),
                        name: listed.name,
                        pending: listed.pending,
                        stuck: u64::try_from(page.messages.len()).unwrap_or(u64::MAX),
                        phantoms: page.messages.iter().filter(|message| message.is_phantom()).count() as u64,
                        idle_ms: listed.idle_ms,
                        oldest_ms: page.messages.iter().map(|message| message.idle_ms).max().unwrap_or(0),
                        first: shown.messages.into_iter().next(),
                    });
                }
            }
            if !part.entries.is_empty() {
                chosen.parts.push(part);
            }
        }
    }
    Ok(DeadFound { chosen, consumers, complete })
}

async fn first(redis: &Pool, part: &Part) -> Result<Vec<Message>, SourceTrouble> {
    let stream = Name::from(part.stream.as_slice());
    let wanted = Wanted {
        state: part.state,
        group: Name::from(part.group.as_slice()),
        owner: None,
        min_idle_ms: 0,
        field: None,
        contains: Vec::new(),
    };
    let bounds = Bounds { matches: 1, looked: 1, shown: SHOWN_BYTES };
    let mut first = Vec::new();
    for (_, id, _) in part.entries.iter().take(SHOWN) {
        first.extend(messages::page(redis, &stream, &wanted, Start::At(id), bounds).await?.messages);
    }
    Ok(first)
}

fn part(stream: &Name, group: &Name, state: MessageState) -> Part {
    Part {
        stream: stream.as_bytes().to_vec(),
        group: group.as_bytes().to_vec(),
        state,
        owners: Vec::new(),
        entries: Vec::new(),
    }
}
