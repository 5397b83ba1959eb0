//! Applies a previewed action to exactly the selected entries, skipping those that changed since.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Sources, recycle};
use crate::contract::Name;
use crate::failpoint;
use crate::fleet::message::{Action, Applied, BinState, Chosen, MessageState, Part, Verdict};
use crate::fleet::reading::SourceTrouble;
use crate::postgres::recycle_bin::{self, Batch, NewRow};
use crate::redis_streams::message_actions::{self, Place, Rules, Target};

/// Entries in the first call; later calls use as many as keep a call short.
const FIRST_CALL: usize = 8;
/// Maximum number of entries in one call.
const MOST_IN_A_CALL: usize = 64;
/// Duration above which the next call is smaller.
const SHORT: Duration = Duration::from_millis(20);

/// Applies the action on behalf of `who`, until all entries are processed or an error occurs. Results up to then are
/// counted, and the error is in [`Applied::ended_early`].
pub async fn apply(sources: &Sources, chosen: &Chosen, who: &str) -> Applied {
    let batch = Uuid::new_v4();
    let mut applied = Applied::default();
    if chosen.action == Action::Drop {
        applied.batch = Some(batch.to_string());
    }
    for part in &chosen.parts {
        if let Err(trouble) = apply_part(sources, chosen, part, (batch, who), &mut applied).await {
            applied.ended_early = Some(trouble.detail);
            break;
        }
    }
    applied
}

async fn apply_part(
    sources: &Sources,
    chosen: &Chosen,
    part: &Part,
    (batch, who): (Uuid, &str),
    applied: &mut Applied,
) -> Result<(), SourceTrouble> {
    let stream = Name::from(part.stream.as_slice());
    let place = Place { stream: stream.clone(), group: Name::from(part.group.as_slice()), state: part.state };
    let owners: Vec<Name> = part.owners.iter().map(|owner| Name::from(owner.as_slice())).collect();
    let target = |(owner, id, deliveries): &(usize, String, u64)| Target {
        id: id.clone(),
        owner: owners.get(*owner).cloned().unwrap_or_else(|| Name::from("")),
        deliveries: *deliveries,
        binned: None,
    };
    let (mut rest, mut size) = (part.entries.as_slice(), FIRST_CALL);
    while !rest.is_empty() {
        let (some, after) = rest.split_at(size.min(rest.len()));
        rest = after;
        let began = Instant::now();
        let targets: Vec<Target> = some.iter().map(target).collect();
        let written = batch.to_string();
        let rules = Rules {
            min_idle_ms: chosen.min_idle_ms,
            owner_is_dead: chosen.of_the_dead,
            batch: &written,
            why: &chosen.why,
        };
        let verdicts = if chosen.action == Action::Drop {
            let common = Batch {
                id: batch,
                stream: stream.clone(),
                home: place.home(),
                group: (part.state != MessageState::Dead).then(|| place.group.clone()),
                was: part.state,
                who: who.to_owned(),
                why: chosen.why.clone(),
            };
            drop_some(sources, &common, &place, targets, rules).await?
        } else {
            message_actions::operate(&sources.redis, chosen.action, &place, &targets, rules).await?
        };
        for verdict in verdicts {
            applied.count(&stream, verdict);
        }
        size = if began.elapsed() < SHORT { (2 * size).min(MOST_IN_A_CALL) } else { (size / 2).max(1) };
    }
    if chosen.of_the_dead {
        for owner in &owners {
            match message_actions::remove_consumer(&sources.redis, &stream, &place.group, owner).await? {
                None => {
                    applied.consumers_removed += 1;
                    applied.by_stream.entry(stream.clone()).or_default().consumers += 1;
                }
                Some(why) => *applied.consumers_kept.entry(why).or_default() += 1,
            }
        }
    }
    Ok(())
}

/// Writes entries to the recycle bin, removes them from Redis, then marks the rows as settled. An interruption at any
/// point loses nothing: unsettled rows are settled when the bin is next opened, or by the janitor.
async fn drop_some(
    sources: &Sources,
    common: &Batch,
    place: &Place,
    mut targets: Vec<Target>,
    rules: Rules<'_>,
) -> Result<Vec<Verdict>, SourceTrouble> {
    let payloads = message_actions::payloads(&sources.redis, place, &targets).await?;
    let (mut rows, mut with_row) = (Vec::new(), Vec::new());
    for (target, fields) in targets.iter_mut().zip(payloads) {
        // A deleted entry has no payload to store.
        let Some(fields) = fields else { continue };
        rows.push(NewRow {
            entry: target.id.clone(),
            owner: (place.state == MessageState::Pending).then(|| target.owner.clone()),
            deliveries: target.deliveries,
            fields,
        });
        with_row.push(target);
    }
    let places = if rows.is_empty() { Vec::new() } else { recycle_bin::put(&sources.postgres, common, &rows).await? };
    for (target, place) in with_row.into_iter().zip(places) {
        target.binned = Some(place);
    }
    failpoint::reached("operator.binned");
    let chosen = targets.len();
    if place.state == MessageState::Dead {
        targets.retain(|target| target.binned.is_some());
    }
    let mut verdicts = message_actions::operate(&sources.redis, Action::Drop, place, &targets, rules).await?;
    failpoint::reached("operator.dropped");
    let (mut binned, mut void) = (Vec::new(), Vec::new());
    for (target, verdict) in targets.iter().zip(&verdicts) {
        match (target.binned, verdict) {
            (Some(id), Verdict::Done) => binned.push(id),
            (Some(id), _) => void.push(id),
            (None, _) => {}
        }
    }
    verdicts.extend(std::iter::repeat_n(Verdict::LeftAlone("gone"), chosen - targets.len()));
    let postgres = &sources.postgres;
    for (state, places) in [(BinState::Binned, &binned), (BinState::Void, &void)] {
        // Redis is already updated; the rows are settled when the bin is next opened, or by the janitor.
        if let Err(trouble) = recycle_bin::settle(postgres, state, places).await {
            recycle::not_settled(&trouble);
        }
    }
    Ok(verdicts)
}
