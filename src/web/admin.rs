//! Page and API of the janitor: cleanup runs, their results, and forgetting worker types.

pub mod openapi;

use std::time::Duration;

use actix_web::http::header::{LOCATION, RETRY_AFTER};
use actix_web::web::{Bytes, Data, Query};
use actix_web::{HttpRequest, HttpResponse};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use self::openapi::{CleanedUp, Forgot, Passes, PhantomsAcknowledged, Retention, StaleConsumers, Trimmed};
use super::AppState;
use super::access::{Caller, audited};
use super::alerts::is_form;
use super::html::html;
use super::problem::Problem;
use super::text_limits::{NAME, at_most};
use crate::actors::io::{POSTGRES_LATE, REDIS_LATE};
use crate::actors::messages::{CleanUp, ForgetWorker};
use crate::contract::Name;
use crate::fleet::cleanup::{Outcome, Plan, Preview, Removable, StreamOutcome, StreamPreview};
use crate::fleet::snapshot::Snapshot;
use crate::pages::admin::AdminPage;
use crate::pages::link::About;
use crate::postgres::janitor;
use crate::redis_streams::retention_schedule::{self, LastRuns};
use crate::redis_streams::{cleanup, connection};

/// Cleanup runs on the page, and default for the API.
const PASSES: u32 = 50;
/// Maximum number of cleanup runs per response.
const MOST_PASSES: u32 = 500;
/// Maximum number of streams in the preview.
const LOOKED_AT: usize = 100;
/// Maximum number of retained entries that the preview counts per stream.
const COUNTED: u64 = 200;
/// Maximum number of queries and callbacks that the preview counts.
const ROWS_COUNTED: u32 = 10_000;

/// `GET /admin`: preview of the next cleanup, and recent cleanup runs.
pub async fn page(front: Data<AppState>, caller: Caller) -> Result<HttpResponse, Problem> {
    let preview = preview(&front).await;
    let pool = front.io.web.reads.clone();
    let passes =
        front.io.run(Duration::from_secs(3), POSTGRES_LATE, async move { janitor::newest(&pool, PASSES).await }).await;
    let passes = passes.as_deref().map_err(|trouble| trouble.detail.clone());
    html(AdminPage { preview, passes }.html(&front.site_for(&caller)))
}

/// Preview of a cleanup run, or the reason why none would start.
async fn preview(front: &AppState) -> Result<Preview, String> {
    let snapshot = front.newest.load_full();
    let plan = Plan::from(snapshot.as_deref()).map_err(|why| why.to_string())?;
    let phantoms = |snapshot: &Snapshot| {
        let cleaned = snapshot.streams.iter().filter(|(name, _)| front.may_clean.contains(name));
        cleaned.filter_map(|(_, stream)| stream.phantom_pending).sum()
    };
    let streams: Vec<Name> = plan.streams.iter().filter(|name| front.may_clean.contains(name)).cloned().collect();
    let mut preview = Preview {
        streams_not_looked_at: streams.len().saturating_sub(LOOKED_AT),
        consumers: plan.stale_consumers(),
        consumers_left: plan.consumers_left,
        phantoms: snapshot.as_deref().map_or(0, phantoms),
        settling_sec: plan.settling_sec,
        counted_to: u64::from(ROWS_COUNTED),
        ..Preview::default()
    };
    let redis = front.io.web.redis.clone();
    let looking = front.io.run(Duration::from_secs(5), REDIS_LATE, async move {
        let mut redis = connection::checkout(&redis).await?;
        let mut found = Vec::new();
        for name in streams.into_iter().take(LOOKED_AT) {
            // The cleanup run itself reports streams with errors.
            let Ok(step) = cleanup::trim_step(&mut redis, &name, 0, COUNTED).await else { continue };
            let Some(length) = step.length else { continue };
            let removable = Removable::of(length, step.counted, COUNTED, step.kept_because.as_ref());
            found.push((name, StreamPreview { removable, length, kept_because: step.kept_because }));
        }
        Ok(found)
    });
    preview.streams = looking.await.map_err(|trouble| trouble.detail)?;
    if !plan.queries {
        return Ok(preview);
    }
    let (pool, budget) = (front.io.web.reads.clone(), front.abandoned_after);
    let counting = front
        .io
        .run(Duration::from_secs(5), POSTGRES_LATE, async move { janitor::preview(&pool, budget, ROWS_COUNTED).await });
    match counting.await {
        Ok(queries) => preview.queries = Some(queries),
        Err(trouble) => preview.without_queries = Some(trouble.detail),
    }
    Ok(preview)
}

/// `POST /api/admin/cleanup`: starts a cleanup run and returns its result.
pub async fn cleanup(request: HttpRequest, front: Data<AppState>, caller: Caller) -> Result<HttpResponse, Problem> {
    let asked_by = if caller.anonymous { caller.address.clone() } else { caller.name.clone() };
    let janitor = front.clean_up.clone();
    let (io, redis) = (front.io.clone(), front.io.web.redis.clone());
    let work = async move {
        let asked = janitor.send(CleanUp { asked_by }).await;
        let outcome = asked.map_err(|error| Problem::Unavailable(error.to_string()))?.map_err(Problem::Unavailable)?;
        let last =
            io.run(Duration::from_secs(1), REDIS_LATE, async move { retention_schedule::last_runs(&redis).await });
        let retry_after = outcome.retry_after_sec;
        Ok((json!(answer(outcome, last.await.unwrap_or_default())), retry_after))
    };
    let (answer, retry_after) = audited(&front, &caller, "clean up", json!({}), work).await?;
    if is_form(&request) || is_page(&request) {
        return Ok(to_page(&front));
    }
    let mut response = HttpResponse::Ok();
    if let Some(seconds) = retry_after {
        response.insert_header((RETRY_AFTER, seconds));
    }
    Ok(response.json(answer))
}

/// The response in the format of the older monitor, with additional fields.
fn answer(outcome: Outcome, last: LastRuns) -> CleanedUp {
    let mut queries = outcome.queries.clone().unwrap_or_default();
    let abandoned_queries = std::mem::take(&mut queries.abandoned_queries);
    let trimmed = |(name, stream): (&String, &StreamOutcome)| Trimmed {
        stream: name.clone(),
        trimmed: stream.removed,
        before: stream.removed + stream.length,
        after: stream.length,
    };
    let retention = |deleted: Option<u64>, last_run| Retention { skipped: deleted.is_none(), last_run, deleted };
    CleanedUp {
        streams: outcome.streams.iter().map(trimmed).collect(),
        callbacks_deleted: queries.callbacks_deleted,
        abandoned_queries,
        stale_consumers: StaleConsumers { deleted: outcome.consumers_removed(), by_stream: outcome.consumers.clone() },
        phantom_pending: PhantomsAcknowledged {
            acknowledged: outcome.phantoms_cleared(),
            kept: outcome.phantoms_kept,
            by_stream: outcome.phantoms.clone(),
        },
        history_retention: retention(None, last.history),
        query_retention: retention(outcome.query_retention, last.queries),
        details: outcome,
    }
}

/// Query of `GET /api/admin/passes`.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct PassesQuery {
    /// Maximum number of cleanup runs.
    #[schemars(with = "Option<u32>", range(min = 1, max = MOST_PASSES), extend("default" = PASSES), example = 2)]
    limit: Option<String>,
}

/// `GET /api/admin/passes?limit=50`: cleanup runs, newest first.
pub async fn passes(front: Data<AppState>, query: Query<PassesQuery>) -> Result<HttpResponse, Problem> {
    let limit = match &query.limit {
        None => PASSES,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=MOST_PASSES).contains(limit))
            .ok_or_else(|| Problem::BadRequest(format!("limit is {text}: expected 1 to {MOST_PASSES}")))?,
    };
    let pool = front.io.web.reads.clone();
    let reading =
        front.io.run(Duration::from_secs(5), POSTGRES_LATE, async move { janitor::newest(&pool, limit).await });
    Ok(HttpResponse::Ok().json(Passes { passes: reading.await? }))
}

/// `POST /api/admin/forget_worker?name=X`: removes all knowledge of a worker type. The monitor shows it again if it
/// reappears. The page sends the name as a form.
pub async fn forget_worker(
    request: HttpRequest,
    front: Data<AppState>,
    caller: Caller,
    body: Bytes,
) -> Result<HttpResponse, Problem> {
    let form = is_form(&request);
    let sent =
        if form { String::from_utf8_lossy(&body).replace('+', "%20") } else { request.query_string().to_owned() };
    let name = About::WorkerType.name_in("", &sent);
    if name.as_bytes().is_empty() {
        return Err(Problem::BadRequest("name is missing: expected the worker type to forget".to_owned()));
    }
    at_most("name", &name.to_text(), NAME)?;
    front.within_scope(&name)?;
    let (tracker, parameters) = (front.forget.clone(), json!({"name": name.to_text()}));
    let work = async move {
        let asked = tracker.send(ForgetWorker(name.clone())).await;
        let known = asked.map_err(|error| Problem::Unavailable(error.to_string()))?.map_err(Problem::Unavailable)?;
        if !known {
            return Err(Problem::BadRequest(format!("name is {:?}: no such worker type is known", name.to_text())));
        }
        tracing::info!(worker_type = %name, "a worker type was removed");
        Ok((json!(Forgot { forgot: name.to_text() }), ()))
    };
    let (answer, ()) = audited(&front, &caller, "forget worker", parameters, work).await?;
    if form {
        return Ok(to_page(&front));
    }
    Ok(HttpResponse::Ok().json(answer))
}

/// Whether the client is a browser.
fn is_page(request: &HttpRequest) -> bool {
    let accept = request.headers().get("accept").and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept.starts_with("text/html")
}

fn to_page(front: &AppState) -> HttpResponse {
    HttpResponse::SeeOther().insert_header((LOCATION, format!("{}/admin", front.site.root()))).finish()
}
