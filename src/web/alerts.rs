//! Alerts: the list of the contract, the page, and actions on alerts, which are recorded in the audit log.

pub mod openapi;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix_web::http::header::LOCATION;
use actix_web::web::{Data, Path, Query};
use actix_web::{HttpRequest, HttpResponse};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use self::openapi::{Acknowledged, Fired, FiredAlert, Said, Silenced, Tested};
use super::AppState;
use super::access::{Caller, audited};
use super::body::Body;
use super::html::html;
use super::problem::Problem;
use super::text_limits::{REASON, TIME, at_most};
use crate::actors::io::{POSTGRES_LATE, REDIS_LATE};
use crate::actors::messages::{AlertOrder, SendTest};
use crate::alerting::alert_manager::Shown;
use crate::alerting::chart_series::Charted;
use crate::alerting::file;
use crate::alerting::glob::Glob;
use crate::alerting::silences::Silence;
use crate::history::window::{Aggregate, Window};
use crate::pages::alerts::{AlertsPage, CHARTED, Past, Sent};
use crate::postgres::alerts::{self as stored, Delivery, SILENCES};
use crate::postgres::events::{self, Filter};
use crate::postgres::history::{Selection, metrics};
use crate::redis_streams;

/// Maximum number of alerts per response.
const MAX_ALERTS: usize = 200;
/// Default number of alerts.
const ALERTS: usize = 50;
/// Maximum duration of a silence.
const LONGEST_SILENCE: Duration = Duration::from_secs(90 * 86_400);
/// Notifications shown.
const MESSAGES: u32 = 100;
/// Maximum number of alerts whose timeline and chart are shown.
const STORIES: usize = 100;
const CHARTS: usize = 40;
/// Chart resolution, seconds per point.
const CHART_BUCKET: u32 = 60;

/// Query of `GET /api/alerts`.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListQuery {
    /// Maximum number of alerts.
    #[schemars(with = "Option<u32>", range(min = 1, max = MAX_ALERTS), extend("default" = ALERTS), example = 5)]
    limit: Option<String>,
}

/// `GET /api/alerts?limit=50`: alerts that fired, newest first; from Redis, or from Postgres while Redis is
/// unreachable.
pub async fn list(front: Data<AppState>, query: Query<ListQuery>) -> Result<HttpResponse, Problem> {
    let limit = match &query.limit {
        None => ALERTS,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=MAX_ALERTS).contains(limit))
            .ok_or_else(|| Problem::BadRequest(format!("limit is {text}: expected 1 to {MAX_ALERTS}")))?,
    };
    let redis = front.io.web.redis.clone();
    let reading = front
        .io
        .read(Duration::from_secs(2), REDIS_LATE, async move { redis_streams::alerts::newest(&redis, limit).await });
    // In observe-only mode, the monitor does not write the list in Redis.
    if !front.io.observe_only
        && let Ok(alerts) = reading.await
    {
        // As stored, by any monitor.
        let alerts = alerts.iter().filter_map(|json| serde_json::from_str(json).ok()).collect();
        return Ok(HttpResponse::Ok().json(Fired { alerts }));
    }
    let pool = front.io.web.reads.clone();
    let reading = front.io.read(Duration::from_secs(5), POSTGRES_LATE, async move {
        let filter = Filter { type_name: Some("alert".to_owned()), ..Filter::default() };
        events::newest(&pool, &filter, i64::try_from(limit).unwrap_or(50)).await
    });
    let told = |row: events::Row| {
        let ts = row.unix_seconds();
        let detail = row.detail.unwrap_or_default();
        let (rule, severity) = (row.worker.unwrap_or_default(), row.severity.unwrap_or_default());
        json!(FiredAlert { ts, rule, severity, message: detail.clone(), detail })
    };
    Ok(HttpResponse::Ok().json(Fired { alerts: reading.await?.into_iter().map(told).collect() }))
}

/// `GET /alerts`: all alerts, rules and notifications; complete without scripts.
pub async fn page(front: Data<AppState>, caller: Caller) -> Result<HttpResponse, Problem> {
    let ledger = std::sync::Arc::clone(&front.ledger);
    let reading =
        front.io.read(Duration::from_secs(3), POSTGRES_LATE, async move { Ok(ledger.messages(MESSAGES).await) });
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
    let past = if from_postgres { past(&front, &shown).await } else { Past::default() };
    let page = AlertsPage { shown: &shown, snapshot: snapshot.as_deref(), past, messages, from_postgres };
    html(page.html(&front.site_for(&caller)))
}

/// History of the alerts on the page. Parts that Postgres does not return in time are empty.
async fn past(front: &AppState, shown: &Shown) -> Past {
    let since = shown.at - CHARTED;
    let mut newest: Vec<_> = shown.alerts.iter().map(|(alert, _)| alert).collect();
    newest.sort_by(|a, b| b.is_active().cmp(&a.is_active()).then(b.since.total_cmp(&a.since)));
    newest.truncate(STORIES);
    let keys = newest.iter().map(|alert| alert.key.clone()).collect();
    let drawn = newest.iter().filter(|alert| alert.resolved_at.is_none_or(|over| over > since)).take(CHARTS);
    let names: BTreeSet<String> =
        drawn.filter_map(|alert| Charted::of(alert, &shown.rules)).map(|charted| charted.series).collect();
    let Ok(window) = Window::new(Some(since), Some(shown.at), Some(CHART_BUCKET), shown.at) else {
        return Past::default();
    };
    let pool = front.io.web.reads.clone();
    let reading = front.io.read(Duration::from_secs(2), POSTGRES_LATE, async move {
        let stories = stored::stories(&pool, keys).await?;
        let series = match names.is_empty() {
            true => BTreeMap::new(),
            false => metrics::read(&pool, &Selection::Names(names.into_iter().collect()), window).await?,
        };
        Ok((stories, series))
    });
    let Ok((stories, series)) = reading.await else { return Past::default() };
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a date fit a double")]
    let samples = |buckets: BTreeMap<i64, Aggregate>| {
        buckets.into_iter().map(|(at, of)| (at as f64 / 1e6, of.mean())).collect::<Vec<_>>()
    };
    Past { samples: series.into_iter().map(|(name, buckets)| (name, samples(buckets))).collect(), stories }
}

/// A silence to create.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct SilenceOrder {
    /// Glob on rule names or alert keys, at most 200 characters.
    #[schemars(example = &"queue_*")]
    rule: String,
    /// Glob on streams and worker types; at most 200 characters; default: all.
    #[serde(default)]
    #[schemars(example = &"aragorn.lookup")]
    subject: Option<String>,
    /// Duration: `30m`, `2h`, up to `90d`.
    #[schemars(example = &"2h")]
    duration: String,
    /// Creator; truncated to 100 characters.
    #[schemars(length(min = 1), example = &"bo")]
    owner: String,
    /// Reason, at most 1024 bytes.
    #[serde(default)]
    #[schemars(example = &"new disks")]
    reason: String,
}

/// An acknowledgement of an alert.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct AcknowledgeOrder {
    /// Key of a pending or firing alert: `rule` in the list of alerts.
    #[schemars(example = &"aragorn_backlog")]
    key: String,
    /// Who acknowledges; truncated to 100 characters.
    #[schemars(length(min = 1), example = &"bo")]
    owner: String,
    /// Comment, at most 1024 bytes.
    #[serde(default)]
    #[schemars(example = &"on it")]
    reason: String,
}

/// `POST /api/silences`.
pub async fn silence(front: Data<AppState>, caller: Caller, body: Body<SilenceOrder>) -> Result<HttpResponse, Problem> {
    let Body { given: order, form } = body;
    at_most("duration", &order.duration, TIME)?;
    at_most("reason", &order.reason, REASON)?;
    let active = front.alerts.load().silences.iter().filter(|silence| !silence.acknowledges).count();
    if active >= SILENCES {
        return Err(Problem::BadRequest(format!(
            "{active} silences are active: expected fewer than {SILENCES}; end some of them, or silence more with one glob"
        )));
    }
    let duration = file::duration(&order.duration)
        .filter(|duration| !duration.is_zero() && *duration <= LONGEST_SILENCE)
        .ok_or_else(|| {
            Problem::BadRequest(format!("duration is {:?}: expected 30m, 2h or up to 90d", order.duration))
        })?;
    let subject = order.subject.filter(|subject| !subject.trim().is_empty()).unwrap_or_else(|| "*".to_owned());
    for (name, glob) in [("rule", &order.rule), ("subject", &subject)] {
        let why = if glob.trim().is_empty() { Some("empty".to_owned()) } else { Glob::new(glob).err() };
        if let Some(why) = why {
            let glob: String = glob.chars().take(60).collect();
            return Err(Problem::BadRequest(format!(
                "{name} is {glob:?} ({why}): expected a name or a glob such as worker_*"
            )));
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
    let parameters = json!({
        "rule": silence.rule, "subject": silence.subject, "duration": order.duration, "owner": silence.owner,
        "reason": silence.reason,
    });
    let answer = json!(Silenced { silenced: silence.id.clone(), until: silence.until });
    let work = change(&front, AlertOrder::Silence(silence), move |_| answer);
    let (answer, ()) = audited(&front, &caller, "silence", parameters, work).await?;
    Ok(done(&front, form, answer))
}

/// `POST /api/silences/{id}/end`.
pub async fn end_silence(
    request: HttpRequest,
    front: Data<AppState>,
    caller: Caller,
    id: Path<String>,
) -> Result<HttpResponse, Problem> {
    let id = Uuid::parse_str(&id).map_err(|_| Problem::NotFound)?;
    let work = change(&front, AlertOrder::EndSilence(id), |said| json!(Said { said }));
    let (answer, ()) = audited(&front, &caller, "end silence", json!({"silence": id.to_string()}), work).await?;
    Ok(done(&front, is_form(&request), answer))
}

/// `POST /api/alerts/acknowledge`.
pub async fn acknowledge(
    front: Data<AppState>,
    caller: Caller,
    body: Body<AcknowledgeOrder>,
) -> Result<HttpResponse, Problem> {
    let Body { given: order, form } = body;
    at_most("reason", &order.reason, REASON)?;
    let shown = front.alerts.load_full();
    if !shown.alerts.iter().any(|(alert, _)| alert.key == order.key && alert.is_active()) {
        let key: String = order.key.chars().take(200).collect();
        return Err(Problem::BadRequest(format!("no pending or firing alert {key:?}")));
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
    let parameters = json!({"alert": order.key, "owner": silence.owner, "reason": silence.reason});
    let work = change(&front, AlertOrder::Silence(silence), move |_| json!(Acknowledged { acknowledged: order.key }));
    let (answer, ()) = audited(&front, &caller, "acknowledge", parameters, work).await?;
    Ok(done(&front, form, answer))
}

/// `POST /api/alerts/test`: sends a test notification through each channel and returns the replies.
pub async fn test(request: HttpRequest, front: Data<AppState>, caller: Caller) -> Result<HttpResponse, Problem> {
    let order = SendTest { nonce: Uuid::new_v4().to_string() };
    let channels = front.test.clone();
    let work = async move {
        let answers = channels.send(order).await.map_err(|error| Problem::Unavailable(error.to_string()))?;
        Ok((json!(Tested { channels: answers.clone() }), answers))
    };
    let (answer, answers) = audited(&front, &caller, "send test notifications", json!({}), work).await?;
    if is_form(&request) {
        return html(AlertsPage::answers(
            &front.site_for(&caller),
            answers.iter().map(|answer| (answer.channel.as_str(), answer.ok, answer.answer.as_str())).collect(),
        ));
    }
    Ok(HttpResponse::Ok().json(answer))
}

/// `POST /-/reload`: reloads the rules file. If it is invalid, the active rules are kept.
pub async fn reload(request: HttpRequest, front: Data<AppState>, caller: Caller) -> Result<HttpResponse, Problem> {
    let order = front.order.clone();
    let work = async move {
        let said = order.send(AlertOrder::Reload).await.map_err(|error| Problem::Unavailable(error.to_string()))?;
        Ok((json!(Said { said: said.map_err(Problem::BadRequest)? }), ()))
    };
    let (answer, ()) = audited(&front, &caller, "reload rules", json!({}), work).await?;
    Ok(done(&front, is_form(&request), answer))
}

/// Applies an order to the alerts and converts its result to the response.
fn change(
    front: &AppState,
    order: AlertOrder,
    answer: impl FnOnce(String) -> Value + 'static,
) -> impl Future<Output = Result<(Value, ()), Problem>> + 'static {
    let orders = front.order.clone();
    async move {
        let said = orders.send(order).await.map_err(|error| Problem::Unavailable(error.to_string()))?;
        Ok((answer(said.map_err(Problem::Unavailable)?), ()))
    }
}

/// JSON for programs; forms are redirected to the page.
fn done(front: &AppState, form: bool, answer: Value) -> HttpResponse {
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
        return Err(Problem::BadRequest("owner is empty: expected a name".to_owned()));
    }
    Ok(owner.trim().chars().take(100).collect())
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
