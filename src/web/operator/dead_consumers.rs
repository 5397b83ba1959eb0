//! Consumers without heartbeat that own pending messages: list, preview, and the one-step route of the contract.

use std::collections::BTreeMap;

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use serde_json::json;

use super::form_or_json::FormOrJson;
use super::messages::action;
use super::openapi::{DeadConsumerResponse, DeadConsumers, DeadPreview, MessageResponse, Reclaimed};
use super::{LOOK_WITHIN, carry_out, keep, may};
use crate::actors::io::REDIS_LATE;
use crate::contract::Name;
use crate::fleet::message::{Action, Applied, AppliedToStream, DeadConsumer, DeadFound, Message};
use crate::fleet::snapshot::SourceStatus;
use crate::operator::preview;
use crate::pages::operator::{PreviewPage, dead_consumers_page};
use crate::web::AppState;
use crate::web::access::{Caller, audited};
use crate::web::html::html;
use crate::web::problem::Problem;

/// Consumers and entries idle for less than this are skipped, seconds: the fleet may still reclaim them.
pub(super) const MIN_IDLE: u64 = 3600;
/// Ten years.
pub(super) const LONGEST_IDLE: u64 = 315_360_000;
/// Maximum number of scans of the one-step route; each covers ten thousand entries.
const MOST_LOOKS: usize = 100;

fn min_idle(given: &FormOrJson) -> Result<u64, Problem> {
    given.number("min_idle_seconds", MIN_IDLE, LONGEST_IDLE)
}

async fn look(front: &AppState, min_idle_seconds: u64, action: Action, why: &str) -> Result<DeadFound, Problem> {
    let snapshot =
        front.newest.load_full().ok_or_else(|| Problem::Unavailable("the first poll has not finished".to_owned()))?;
    // Without Redis, an empty list would wrongly mean that there are no dead consumers.
    if let SourceStatus::Down { trouble, .. } = &snapshot.redis.source {
        return Err(trouble.clone().into());
    }
    let streams: Vec<Name> = snapshot.streams.keys().cloned().collect();
    let (redis, why) = (front.io.web.redis.clone(), why.to_owned());
    let looking = front.io.read(LOOK_WITHIN, REDIS_LATE, async move {
        preview::on_dead_consumers(&redis, &streams, min_idle_seconds * 1000, (action, &why)).await
    });
    Ok(looking.await?)
}

/// `GET /admin/dead-consumers?min_idle_seconds=3600`.
pub async fn page(front: Data<AppState>, request: HttpRequest, caller: Caller) -> Result<HttpResponse, Problem> {
    let min_idle_seconds = min_idle(&FormOrJson::in_address(&request)?)?;
    let found = look(&front, min_idle_seconds, Action::Retry, "").await?;
    html(dead_consumers_page(&front.site_for(&caller), &found, min_idle_seconds))
}

/// `GET /api/admin/dead_consumers?min_idle_seconds=3600`: messages pending on consumers without heartbeat.
pub async fn list(front: Data<AppState>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let min_idle_seconds = min_idle(&FormOrJson::in_address(&request)?)?;
    let found = look(&front, min_idle_seconds, Action::Retry, "").await?;
    Ok(HttpResponse::Ok().json(told(&found, min_idle_seconds)))
}

fn told(found: &DeadFound, min_idle_seconds: u64) -> DeadConsumers {
    let consumer = |dead: &DeadConsumer| DeadConsumerResponse {
        stream: dead.stream.clone(),
        group: dead.group.clone(),
        consumer: dead.name.clone(),
        pending: dead.pending,
        stuck: dead.stuck,
        phantom_pending: dead.phantoms,
        idle_ms: dead.idle_ms,
        oldest_idle_ms: dead.oldest_ms,
        first: dead.first.as_ref().map(MessageResponse::from),
    };
    DeadConsumers {
        min_idle_seconds,
        messages: found.chosen.len(),
        complete: found.complete,
        consumers: found.consumers.iter().map(consumer).collect(),
    }
}

/// `POST /api/admin/dead_consumers/preview` with `action` (`retry` or `drop`) and `min_idle_seconds`: the same list,
/// with the token to apply the action.
pub async fn preview(front: Data<AppState>, caller: Caller, given: FormOrJson) -> Result<HttpResponse, Problem> {
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

/// `POST /api/admin/reclaim_dead_consumers?min_idle_seconds=3600&dry_run=false`: moves those messages to the recycle
/// bin and removes the consumers.
pub async fn reclaim(request: HttpRequest, front: Data<AppState>, caller: Caller) -> Result<HttpResponse, Problem> {
    let given = FormOrJson::in_address(&request)?;
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
        let mut reclaimed = Reclaimed::new(true, min_idle_seconds);
        for dead in &found.consumers {
            let remains = dead.pending > dead.stuck;
            let of_stream = AppliedToStream {
                done: dead.stuck.saturating_sub(dead.phantoms),
                phantoms: dead.phantoms,
                consumers: u64::from(!remains),
            };
            reclaimed.add(&dead.stream, of_stream);
            if remains {
                *reclaimed.consumers_kept.entry("busy".to_owned()).or_default() += 1;
            }
        }
        reclaimed.complete = found.complete;
        return Ok(HttpResponse::Ok().json(reclaimed));
    }
    may(&caller, Action::Drop)?;
    let (asked, who) = (Data::clone(&front), caller.name.clone());
    let work = async move {
        let mut reclaimed = Reclaimed::new(false, min_idle_seconds);
        for _ in 0..MOST_LOOKS {
            let found = look(&asked, min_idle_seconds, Action::Drop, "reclaim_dead_consumers").await?;
            reclaimed.complete = found.complete;
            if found.chosen.is_empty() {
                break;
            }
            let applied = carry_out(&asked, &found.chosen, &who).await?;
            for (stream, of_stream) in &applied.by_stream {
                reclaimed.add(stream, *of_stream);
            }
            reclaimed.explain(&applied);
            if let Some(why) = applied.ended_early {
                return Err(Problem::Unavailable(why));
            }
            if applied.done > 0 {
                reclaimed.batches.extend(applied.batch);
            }
            if found.complete || applied.done + applied.vanished == 0 {
                break;
            }
        }
        Ok((json!(reclaimed), ()))
    };
    let parameters = json!({"min_idle_seconds": min_idle_seconds});
    let (answer, ()) = audited(&front, &caller, "reclaim dead consumers", parameters, work).await?;
    Ok(HttpResponse::Ok().json(answer))
}

impl Reclaimed {
    fn new(dry_run: bool, min_idle_seconds: u64) -> Self {
        Self {
            dry_run,
            min_idle_seconds,
            dropped_messages: 0,
            phantom_pending: 0,
            consumers_removed: 0,
            by_stream: BTreeMap::new(),
            not_dropped: BTreeMap::new(),
            refused: None,
            consumers_kept: BTreeMap::new(),
            complete: true,
            batches: Vec::new(),
        }
    }

    fn add(&mut self, stream: &Name, more: AppliedToStream) {
        self.dropped_messages += more.done;
        self.phantom_pending += more.phantoms;
        self.consumers_removed += more.consumers;
        let of_stream = self.by_stream.entry(stream.clone()).or_default();
        of_stream.messages += more.done;
        of_stream.phantom_pending += more.phantoms;
        of_stream.consumers += more.consumers;
    }

    /// Records why messages were not dropped or consumers not removed.
    fn explain(&mut self, applied: &Applied) {
        for (why, n) in &applied.left_alone {
            *self.not_dropped.entry((*why).to_owned()).or_default() += n;
        }
        for (why, n) in &applied.consumers_kept {
            *self.consumers_kept.entry((*why).to_owned()).or_default() += n;
        }
        if let Some((n, error)) = applied.refused.clone() {
            let so_far = self.refused.as_ref().map_or(0, |refused| refused.messages);
            self.refused = Some((so_far + n, error).into());
        }
    }
}
