//! Alerts: the contract's list, the page, and what somebody may do about them.
//!
//! A POST is taken from this monitor's own pages and from programs, not from another site's page.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix_web::http::header::{ContentType, HOST, LOCATION, ORIGIN};
use actix_web::web::{Data, Either, Form, Json, Path, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Front;
use super::problem::Problem;
use crate::actors::io::{POSTGRES_LATE, REDIS_LATE};
use crate::actors::messages::{AlertOrder, SendTest};
use crate::alerting::file;
use crate::alerting::quiet::{Silence, matcher};
use crate::pages::alerts::{AlertsPage, Sent};
use crate::postgres::alerts::Delivery;
use crate::postgres::events::{self, Filter};
use crate::redis_streams;

/// Alerts in one answer at most.
const MAX_ALERTS: usize = 200;
/// The longest silence.
const LONGEST_SILENCE: Duration = Duration::from_secs(90 * 86_400);
/// Messages shown.
const MESSAGES: u32 = 100;

/// What `GET /api/alerts` takes.
#[derive(Debug, Deserialize)]
pub struct ListQuery {
    limit: Option<String>,
}

/// `GET /api/alerts?limit=50`: what fired, newest first; from Redis, or while that is away from
/// Postgres.
pub async fn list(front: Data<Front>, query: Query<ListQuery>) -> Result<Json<Value>, Problem> {
    let limit = match &query.limit {
        None => 50,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=MAX_ALERTS).contains(limit))
            .ok_or_else(|| Problem::BadRequest(format!("limit is {text}: expected 1 to {MAX_ALERTS}")))?,
    };
    let redis = front.io.redis.clone();
    let reading = front
        .io
        .run(Duration::from_secs(2), REDIS_LATE, async move { redis_streams::alerts::newest(&redis, limit).await });
    if let Ok(alerts) = reading.await {
        let alerts: Vec<Value> = alerts.iter().filter_map(|json| serde_json::from_str(json).ok()).collect();
        return Ok(Json(json!({"alerts": alerts})));
    }
    let pool = front.io.postgres.clone();
    let reading = front.io.run(Duration::from_secs(5), POSTGRES_LATE, async move {
        let filter = Filter { type_name: Some("alert".to_owned()), ..Filter::default() };
        events::newest(&pool, &filter, i64::try_from(limit).unwrap_or(50)).await
    });
    let alerts: Vec<Value> = reading
        .await?
        .into_iter()
        .map(|row| {
            json!({
                "ts": row.unix_seconds(), "rule": row.worker, "severity": row.severity, "detail": row.detail,
                "message": row.detail,
            })
        })
        .collect();
    Ok(Json(json!({"alerts": alerts})))
}

/// `GET /alerts`: how every alert, rule and message stands; complete before any script runs.
pub async fn page(front: Data<Front>) -> Result<HttpResponse, Problem> {
    let ledger = std::sync::Arc::clone(&front.messages);
    let reading =
        front.io.run(Duration::from_secs(3), POSTGRES_LATE, async move { Ok(ledger.messages(MESSAGES).await) });
    let (rows, from_postgres) = reading.await.unwrap_or_default();
    let messages = rows
        .into_iter()
        .map(|row| Sent {
            title: row.message.title,
            reference: row.id.chars().take(8).collect(),
            channel: row.channel,
            state: match row.state {
                Delivery::Waiting => "waiting",
                Delivery::Sent => "sent",
                Delivery::Dead => "given up",
            },
            attempts: row.attempts,
            answer: row.answer.unwrap_or_default(),
            created: row.created,
            next_attempt: row.next_attempt,
            ended: row.ended,
        })
        .collect();
    let shown = front.alerts.load_full();
    let snapshot = front.newest.load_full();
    let page = AlertsPage { shown: &shown, snapshot: snapshot.as_deref(), messages, from_postgres };
    let html = page.html(&front.site);
    let html = html.map_err(|error| {
        tracing::error!(%error, "the alerts page cannot be rendered");
        Problem::Unavailable("the page cannot be rendered".to_owned())
    })?;
    Ok(HttpResponse::Ok().content_type(ContentType::html()).body(html))
}

/// What silences: a glob over rules, one over streams and worker types, for how long, who and why.
#[derive(Debug, Deserialize)]
pub struct SilenceOrder {
    rule: String,
    #[serde(default)]
    subject: Option<String>,
    duration: String,
    owner: String,
    #[serde(default)]
    reason: String,
}

/// Who takes care of an alert, and why.
#[derive(Debug, Deserialize)]
pub struct AcknowledgeOrder {
    key: String,
    owner: String,
    #[serde(default)]
    reason: String,
}

/// JSON from programs, a form from the page.
type Given<T> = Either<Json<T>, Form<T>>;

/// What was given, and whether by a form.
fn taken<T>(given: Given<T>) -> (T, bool) {
    match given {
        Either::Left(json) => (json.into_inner(), false),
        Either::Right(form) => (form.into_inner(), true),
    }
}

/// `POST /api/silences`.
pub async fn silence(
    request: HttpRequest,
    front: Data<Front>,
    given: Given<SilenceOrder>,
) -> Result<HttpResponse, Problem> {
    own_site(&request)?;
    let (order, form) = taken(given);
    let duration = file::duration(&order.duration)
        .filter(|duration| !duration.is_zero() && *duration <= LONGEST_SILENCE)
        .ok_or_else(|| {
            Problem::BadRequest(format!("duration is {:?}: expected 30m, 2h or up to 90d", order.duration))
        })?;
    let subject = order.subject.filter(|subject| !subject.trim().is_empty()).unwrap_or_else(|| "*".to_owned());
    for (name, glob) in [("rule", &order.rule), ("subject", &subject)] {
        if glob.trim().is_empty() || matcher(glob).is_none() {
            return Err(Problem::BadRequest(format!("{name} is {glob:?}: expected a name or a glob such as worker_*")));
        }
    }
    let now = now();
    let silence = Silence {
        id: Uuid::new_v4().to_string(),
        rule: order.rule,
        subject,
        owner: named(order.owner)?,
        reason: order.reason,
        starts: now,
        until: now + duration.as_secs_f64(),
        acknowledges: false,
    };
    do_it(&front, AlertOrder::Silence(silence.clone())).await?;
    Ok(done(&front, form, json!({"silenced": silence.id, "until": silence.until})))
}

/// `POST /api/silences/{id}/end`.
pub async fn end_silence(request: HttpRequest, front: Data<Front>, id: Path<String>) -> Result<HttpResponse, Problem> {
    own_site(&request)?;
    let id = Uuid::parse_str(&id).map_err(|_| Problem::NotFound)?;
    let said = do_it(&front, AlertOrder::EndSilence(id)).await?;
    Ok(done(&front, is_form(&request), json!({"said": said})))
}

/// `POST /api/alerts/acknowledge`.
pub async fn acknowledge(
    request: HttpRequest,
    front: Data<Front>,
    given: Given<AcknowledgeOrder>,
) -> Result<HttpResponse, Problem> {
    own_site(&request)?;
    let (order, form) = taken(given);
    let shown = front.alerts.load_full();
    if !shown.alerts.iter().any(|(alert, _)| alert.key == order.key && alert.is_active()) {
        return Err(Problem::BadRequest(format!("no alert {:?} is pending or firing", order.key)));
    }
    let now = now();
    let silence = Silence {
        id: Uuid::new_v4().to_string(),
        rule: order.key.clone(),
        subject: "*".to_owned(),
        owner: named(order.owner)?,
        reason: order.reason,
        starts: now,
        until: now + LONGEST_SILENCE.as_secs_f64(),
        acknowledges: true,
    };
    do_it(&front, AlertOrder::Silence(silence)).await?;
    Ok(done(&front, form, json!({"acknowledged": order.key})))
}

/// `POST /api/alerts/test`: a test message through each channel, and what each answered.
pub async fn test(request: HttpRequest, front: Data<Front>) -> Result<HttpResponse, Problem> {
    own_site(&request)?;
    let test = SendTest { nonce: Uuid::new_v4().to_string() };
    let answers = front.test.send(test).await.map_err(|error| Problem::Unavailable(error.to_string()))?;
    if is_form(&request) {
        let html = AlertsPage::answers(
            &front.site,
            answers.iter().map(|answer| (answer.channel.as_str(), answer.ok, answer.answer.as_str())).collect(),
        );
        let html = html.map_err(|error| Problem::Unavailable(error.to_string()))?;
        return Ok(HttpResponse::Ok().content_type(ContentType::html()).body(html));
    }
    Ok(HttpResponse::Ok().json(json!({"channels": answers})))
}

/// `POST /-/reload`: read the rules' file again; a bad one leaves the last good rules in force.
pub async fn reload(request: HttpRequest, front: Data<Front>) -> Result<HttpResponse, Problem> {
    own_site(&request)?;
    let said = front.order.send(AlertOrder::Reload).await.map_err(|error| Problem::Unavailable(error.to_string()))?;
    let said = said.map_err(Problem::BadRequest)?;
    Ok(done(&front, is_form(&request), json!({"said": said})))
}

async fn do_it(front: &Front, order: AlertOrder) -> Result<String, Problem> {
    let said = front.order.send(order).await.map_err(|error| Problem::Unavailable(error.to_string()))?;
    said.map_err(Problem::Unavailable)
}

/// A program gets JSON; the page is shown again.
fn done(front: &Front, form: bool, answer: Value) -> HttpResponse {
    if form {
        let page = format!("{}/alerts", front.site.root());
        return HttpResponse::SeeOther().insert_header((LOCATION, page)).finish();
    }
    HttpResponse::Ok().json(answer)
}

pub(super) fn is_form(request: &HttpRequest) -> bool {
    let kind = request.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.starts_with("application/x-www-form-urlencoded")
}

fn named(owner: String) -> Result<String, Problem> {
    if owner.trim().is_empty() {
        return Err(Problem::BadRequest("owner is empty: expected who asks".to_owned()));
    }
    Ok(owner.trim().chars().take(100).collect())
}

/// Browsers say where a POST comes from; one from another site's page is refused.
pub(super) fn own_site(request: &HttpRequest) -> Result<(), Problem> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = header(actix_web::http::header::HeaderName::from_static("sec-fetch-site")) {
        return if matches!(site, "same-origin" | "none") { Ok(()) } else { Err(Problem::Forbidden) };
    }
    let Some(origin) = header(ORIGIN) else { return Ok(()) };
    let host = origin.split("://").nth(1).unwrap_or_default();
    if !host.is_empty() && header(HOST) == Some(host) { Ok(()) } else { Err(Problem::Forbidden) }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
