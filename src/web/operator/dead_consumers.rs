//! Consumers without heartbeat that hold entries: look, preview, and the contract's one step.

use std::collections::BTreeMap;

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use serde_json::json;

use super::given::Given;
use super::messages::action;
use super::openapi::{DeadConsumerTold, DeadConsumers, DeadPreview, InStream, MessageTold, Reclaimed};
use super::{LOOK_WITHIN, carry_out, keep, may};
use crate::actors::io::REDIS_LATE;
use crate::contract::Name;
use crate::fleet::message::{Action, DeadConsumer, DeadFound, Message};
use crate::fleet::snapshot::SourceStatus;
use crate::operator::find;
use crate::pages::operator::{PreviewPage, dead_consumers_page};
use crate::web::Front;
use crate::web::access::{Caller, audited};
use crate::web::html::html;
use crate::web::problem::Problem;

/// Consumers and entries idle for less are left to the fleet, in seconds.
pub(super) const MIN_IDLE: u64 = 3600;
/// Ten years.
pub(super) const LONGEST_IDLE: u64 = 315_360_000;
/// Looks of the one-step route: each takes ten thousand entries.
const MOST_LOOKS: usize = 100;

fn min_idle(given: &Given) -> Result<u64, Problem> {
    given.number("min_idle_seconds", MIN_IDLE, LONGEST_IDLE)
}

async fn look(front: &Front, min_idle_seconds: u64, action: Action, why: &str) -> Result<DeadFound, Problem> {
    let snapshot =
        front.newest.load_full().ok_or_else(|| Problem::Unavailable("the first tick is still under way".to_owned()))?;
    // Of streams that are not known nothing can be said, not even that there is nothing.
    if let SourceStatus::Down { trouble, .. } = &snapshot.redis.source {
        return Err(trouble.clone().into());
    }
    let streams: Vec<Name> = snapshot.streams.keys().cloned().collect();
    let (redis, why) = (front.io.redis.clone(), why.to_owned());
    let looking = front.io.run(LOOK_WITHIN, REDIS_LATE, async move {
        find::on_dead_consumers(&redis, &streams, min_idle_seconds * 1000, (action, &why)).await
    });
    Ok(looking.await?)
}

/// `GET /admin/dead-consumers?min_idle_seconds=3600`.
pub async fn page(front: Data<Front>, request: HttpRequest, caller: Caller) -> Result<HttpResponse, Problem> {
    let min_idle_seconds = min_idle(&Given::in_address(&request)?)?;
    let found = look(&front, min_idle_seconds, Action::Retry, "").await?;
    html(dead_consumers_page(&front.site_for(&caller), &found, min_idle_seconds))
}

/// `GET /api/admin/dead_consumers?min_idle_seconds=3600`: what is stuck on consumers without heartbeat.
pub async fn list(front: Data<Front>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let min_idle_seconds = min_idle(&Given::in_address(&request)?)?;
    let found = look(&front, min_idle_seconds, Action::Retry, "").await?;
    Ok(HttpResponse::Ok().json(told(&found, min_idle_seconds)))
}

fn told(found: &DeadFound, min_idle_seconds: u64) -> DeadConsumers {
    let consumer = |dead: &DeadConsumer| DeadConsumerTold {
        stream: dead.stream.clone(),
        group: dead.group.clone(),
        consumer: dead.name.clone(),
        pending: dead.pending,
        stuck: dead.stuck,
        idle_ms: dead.idle_ms,
        oldest_idle_ms: dead.oldest_ms,
        first: dead.first.as_ref().map(MessageTold::from),
    };
    DeadConsumers {
        min_idle_seconds,
        messages: found.chosen.len(),
        complete: found.complete,
        consumers: found.consumers.iter().map(consumer).collect(),
    }
}

/// `POST /api/admin/dead_consumers/preview` with `action` (`retry` or `drop`) and `min_idle_seconds`: the
/// same, with the token to do it.
pub async fn preview(front: Data<Front>, caller: Caller, given: Given) -> Result<HttpResponse, Problem> {
    let (min_idle_seconds, action) = (min_idle(&given)?, action(&given)?);
    let found = look(&front, min_idle_seconds, action, given.one("why").unwrap_or_default()).await?;
    let token = keep(&front, &caller, &found.chosen).await?;
    if given.form {
        let first: Vec<Message> = found.consumers.iter().filter_map(|dead| dead.first.clone()).take(3).collect();
        let owners: Vec<(Name, bool, u64)> =
            found.consumers.iter().map(|dead| (dead.name.clone(), false, dead.stuck)).collect();
        let page = PreviewPage {
            token: &token,
            action,
            messages: (found.chosen.len() as u64, found.complete),
            apply: "/api/admin/dead_consumers/apply",
            back: &format!("/admin/dead-consumers?min_idle_seconds={min_idle_seconds}"),
            owners: &owners,
            first: &first,
            groups: 1,
            of_the_dead: true,
        };
        return html(page.html(&front.site_for(&caller)));
    }
    let expires_in_seconds = crate::postgres::recycle_bin::PREVIEW_MINUTES * 60;
    Ok(HttpResponse::Ok().json(DeadPreview {
        found: told(&found, min_idle_seconds),
        token,
        action,
        expires_in_seconds,
    }))
}

/// `POST /api/admin/reclaim_dead_consumers?min_idle_seconds=3600&dry_run=false`: drops what is stuck, by
/// way of the recycle bin, and removes those consumers.
pub async fn reclaim(request: HttpRequest, front: Data<Front>, caller: Caller) -> Result<HttpResponse, Problem> {
    let given = Given::in_address(&request)?;
    let min_idle_seconds = min_idle(&given)?;
    let dry_run = match given.one("dry_run") {
        None => false,
        Some(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" => true,
            "false" | "0" | "no" => false,
            _ => return Err(Problem::BadRequest(format!("dry_run is {text:?}: expected true or false"))),
        },
    };
    if dry_run {
        let found = look(&front, min_idle_seconds, Action::Drop, "").await?;
        let mut by_stream: BTreeMap<Name, (u64, u64)> = BTreeMap::new();
        for dead in &found.consumers {
            let counts = by_stream.entry(dead.stream.clone()).or_default();
            *counts = (counts.0 + dead.stuck, counts.1 + u64::from(dead.stuck == dead.pending));
        }
        return Ok(HttpResponse::Ok().json(answer(true, min_idle_seconds, &by_stream, Vec::new())));
    }
    may(&caller, Action::Drop)?;
    let (asked, who) = (Data::clone(&front), caller.name.clone());
    let work = async move {
        let (mut by_stream, mut batches) = (BTreeMap::<Name, (u64, u64)>::new(), Vec::new());
        for _ in 0..MOST_LOOKS {
            let found = look(&asked, min_idle_seconds, Action::Drop, "reclaim_dead_consumers").await?;
            if found.chosen.is_empty() {
                break;
            }
            let applied = carry_out(&asked, &found.chosen, &who).await?;
            for (stream, (messages, consumers)) in &applied.by_stream {
                let counts = by_stream.entry(stream.clone()).or_default();
                *counts = (counts.0 + messages, counts.1 + consumers);
            }
            if let Some(why) = applied.ended_early {
                return Err(Problem::Unavailable(why));
            }
            if applied.done > 0 {
                batches.extend(applied.batch);
            }
            if found.complete || applied.done == 0 {
                break;
            }
        }
        Ok((json!(answer(false, min_idle_seconds, &by_stream, batches)), ()))
    };
    let parameters = json!({"min_idle_seconds": min_idle_seconds});
    let (answer, ()) = audited(&front, &caller, "reclaim dead consumers", parameters, work).await?;
    Ok(HttpResponse::Ok().json(answer))
}

/// The contract's answer, with the batches of the recycle bin beside it.
fn answer(
    dry_run: bool,
    min_idle_seconds: u64,
    by_stream: &BTreeMap<Name, (u64, u64)>,
    batches: Vec<String>,
) -> Reclaimed {
    let of = |(stream, (messages, consumers)): (&Name, &(u64, u64))| {
        (stream.clone(), InStream { messages: *messages, consumers: *consumers })
    };
    Reclaimed {
        dry_run,
        min_idle_seconds,
        dropped_messages: by_stream.values().map(|(messages, _)| messages).sum(),
        consumers_removed: by_stream.values().map(|(_, consumers)| consumers).sum(),
        by_stream: by_stream.iter().map(of).collect(),
        batches,
    }
}
