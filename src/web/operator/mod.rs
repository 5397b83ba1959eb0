//! Operations on messages: list, preview, apply, restore. Each responds with JSON to programs and with a page to
//! forms; each change is recorded in the audit log.

pub mod dead_consumers;
mod form_or_json;
pub mod messages;
pub mod openapi;
pub mod recycle_bin;

use std::time::Duration;

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use serde_json::json;
use uuid::Uuid;

use self::form_or_json::FormOrJson;
use self::openapi::{AppliedResponse, FieldResponse, MessageResponse, RefusedResponse};
use super::AppState;
use super::access::{Caller, Role, audited};
use super::html::html;
use super::problem::Problem;
use crate::actors::io::POSTGRES_LATE;
use crate::contract::Name;
use crate::fleet::message::{Action, Applied, Chosen, Field, Message};
use crate::operator::{self, Sources};
use crate::pages::link::stream_of_messages;
use crate::pages::operator as pages;
use crate::postgres::recycle_bin as bin;

/// Timeout of reads.
const LOOK_WITHIN: Duration = Duration::from_secs(20);
/// Timeout of changes. Changes made before it remain.
const DO_WITHIN: Duration = Duration::from_secs(300);
/// Error message after [`DO_WITHIN`].
const LATE: &str = "the operation timed out and was stopped; changes made until then remain, and deleted messages \
 are in the recycle bin";

fn sources(front: &AppState) -> Sources {
    Sources { redis: front.io.web.redis.clone(), postgres: front.io.web.changes.clone() }
}

/// Retrying requires the operator role; removing messages from a stream requires admin.
fn may(caller: &Caller, action: Action) -> Result<(), Problem> {
    let needed = if action.takes_away() { Role::Admin } else { Role::Operator };
    if caller.role < needed {
        return Err(Problem::Forbidden(format!(
            "{action} requires the role {needed}; {} has the role {}",
            caller.name, caller.role
        )));
    }
    Ok(())
}

/// Stores the messages selected by a preview; returns its token.
async fn keep(front: &AppState, caller: &Caller, chosen: &Chosen) -> Result<String, Problem> {
    let packed = serde_json::to_vec(chosen).map_err(|error| Problem::Unavailable(error.to_string()))?;
    let (pool, who) = (front.io.web.changes.clone(), caller.name.clone());
    let keeping =
        front.io.run(LOOK_WITHIN, POSTGRES_LATE, async move { bin::keep_preview(&pool, &who, &packed).await });
    Ok(keeping.await?.to_string())
}

async fn preview_of(front: &AppState, token: Uuid, take: bool) -> Result<Chosen, Problem> {
    let pool = front.io.web.changes.clone();
    let reading = front.io.run(LOOK_WITHIN, POSTGRES_LATE, async move { bin::preview(&pool, token, take).await });
    let packed = reading.await?.ok_or_else(|| {
        Problem::BadRequest(format!(
            "invalid preview token {token}: already applied, or older than {} minutes",
            bin::PREVIEW_MINUTES
        ))
    })?;
    serde_json::from_slice(&packed).map_err(|error| Problem::Unavailable(error.to_string()))
}

/// `POST …/apply` with `token` and an optional `why`: applies the preview once, skipping messages that changed since.
pub async fn apply(
    request: HttpRequest,
    front: Data<AppState>,
    caller: Caller,
    given: FormOrJson,
) -> Result<HttpResponse, Problem> {
    let token = given.needed("token", "a preview token")?;
    let token: Uuid =
        token.parse().map_err(|_| Problem::BadRequest(format!("token is {token:?}: expected a preview token")))?;
    let chosen = preview_of(&front, token, false).await?;
    of_this_address(&request, token, &chosen)?;
    may(&caller, chosen.action)?;
    // The preview may predate a change of the settings, or come from another monitor with the same database.
    chosen.parts.iter().try_for_each(|part| front.within_scope(&Name::from(part.stream.as_slice())))?;
    let streams: Vec<String> =
        chosen.parts.iter().map(|part| Name::from(part.stream.as_slice()).to_text()).take(20).collect();
    let parameters = json!({
        "action": chosen.action, "messages": chosen.len(), "streams": streams, "why": given.one("why"),
        "of_dead_consumers": chosen.of_the_dead,
    });
    let (asked, why) = (Data::clone(&front), given.one("why").map(str::to_owned));
    let who = caller.name.clone();
    let work = async move {
        let mut chosen = preview_of(&asked, token, true).await?;
        chosen.why = why.unwrap_or(chosen.why);
        let applied = carry_out(&asked, &chosen, &who).await?;
        Ok((json!(told(chosen.action, &applied)), (chosen.action, applied)))
    };
    let name = match chosen.action {
        Action::Retry => "retry messages",
        Action::Bury => "dead-letter messages",
        Action::Drop => "move messages to recycle bin",
    };
    let (answer, (action, applied)) = audited(&front, &caller, name, parameters, work).await?;
    if given.form {
        let path = request.uri().path();
        let back = if path.contains("/streams/") {
            crate::pages::link::messages_of(&crate::pages::link::stream_of_messages(path, request.query_string()))
        } else {
            "/admin/dead-consumers".to_owned()
        };
        return html(pages::applied_page(&front.site_for(&caller), action, &applied, &back));
    }
    Ok(HttpResponse::Ok().json(answer))
}

/// Rejects a preview created under another path, such as that of another stream.
fn of_this_address(request: &HttpRequest, token: Uuid, chosen: &Chosen) -> Result<(), Problem> {
    let path = request.uri().path();
    let stream = path.contains("/streams/").then(|| stream_of_messages(path, request.query_string()));
    let fits = match &stream {
        Some(stream) => !chosen.of_the_dead && chosen.parts.iter().all(|part| part.stream == stream.as_bytes()),
        None => chosen.of_the_dead,
    };
    if fits {
        return Ok(());
    }
    let expected =
        stream.map_or_else(|| "dead consumers".to_owned(), |stream| format!("stream {:?}", stream.to_text()));
    Err(Problem::BadRequest(format!("token {token} belongs to another preview: expected one of {expected}")))
}

async fn carry_out(front: &AppState, chosen: &Chosen, who: &str) -> Result<Applied, Problem> {
    let (sources, chosen, who) = (sources(front), chosen.clone(), who.to_owned());
    let doing = front.io.run(DO_WITHIN, LATE, async move { Ok(operator::apply(&sources, &chosen, &who).await) });
    Ok(doing.await?)
}

fn told(action: Action, applied: &Applied) -> AppliedResponse {
    AppliedResponse {
        action,
        done: applied.done,
        left_alone: applied.left_alone.iter().map(|(why, n)| ((*why).to_owned(), *n)).collect(),
        deleted_before: applied.vanished,
        refused: applied.refused.clone().map(RefusedResponse::from),
        consumers_removed: applied.consumers_removed,
        batch: applied.batch.clone().filter(|_| applied.done > 0),
        ended_early: applied.ended_early.clone(),
    }
}

impl From<(u64, String)> for RefusedResponse {
    fn from((messages, error): (u64, String)) -> Self {
        Self { messages, error }
    }
}

impl From<&Message> for MessageResponse {
    fn from(message: &Message) -> Self {
        let pending = message.owner.is_some();
        Self {
            id: message.id.clone(),
            added_ms: message.added_ms(),
            owner: message.owner.clone(),
            deliveries: pending.then_some(message.deliveries),
            idle_ms: pending.then_some(message.idle_ms),
            bytes: message.bytes,
            field_count: message.field_count,
            fields: message.fields.iter().map(FieldResponse::from).collect(),
        }
    }
}

impl From<&Field> for FieldResponse {
    fn from(field: &Field) -> Self {
        Self {
            name: Name::from(field.name.as_slice()),
            value: Name::from(field.value.as_slice()),
            bytes: field.bytes,
            cut: field.is_cut(),
            utf8: std::str::from_utf8(&field.value).is_ok(),
        }
    }
}
