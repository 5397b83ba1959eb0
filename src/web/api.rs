//! The API's live side: the newest snapshot, and the events that were kept.

use actix_web::HttpResponse;
use actix_web::http::header::ContentType;
use actix_web::web::{Data, Json, Query};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Front;
use super::problem::Problem;
use crate::actors::io::POSTGRES_LATE;
use crate::postgres::events::{self, Filter};

/// Events in one answer at most.
const MAX_EVENTS: i64 = 5000;

/// `GET /api/snapshot`: the newest snapshot. Asking changes nothing.
pub async fn snapshot(front: Data<Front>) -> Result<HttpResponse, Problem> {
    let snapshot =
        front.newest.load_full().ok_or_else(|| Problem::Unavailable("the first tick is still under way".to_owned()))?;
    let json = serde_json::to_vec(&*snapshot).map_err(|e| Problem::Unavailable(e.to_string()))?;
    Ok(HttpResponse::Ok().content_type(ContentType::json()).body(json))
}

/// `GET /api/health`: this process answers.
pub async fn health() -> Json<Value> {
    Json(json!({"ok": true}))
}

/// What `GET /api/historical/events` takes. Times are Unix seconds.
#[derive(Debug, Deserialize)]
pub struct EventsQuery {
    #[serde(rename = "type")]
    type_name: Option<String>,
    severity: Option<String>,
    since: Option<f64>,
    until: Option<f64>,
    limit: Option<i64>,
}

/// `GET /api/historical/events`: what happened, newest first.
pub async fn events(front: Data<Front>, query: Query<EventsQuery>) -> Result<Json<Value>, Problem> {
    let query = query.into_inner();
    let limit = query.limit.unwrap_or(500);
    if !(1..=MAX_EVENTS).contains(&limit) {
        return Err(Problem::BadRequest(format!("limit is {limit}: expected 1 to {MAX_EVENTS}")));
    }
    if let Some(severity) = query.severity.as_deref().filter(|s| !["info", "warning", "critical"].contains(s)) {
        return Err(Problem::BadRequest(format!("severity is {severity:?}: expected info, warning or critical")));
    }
    let (since, until) = (time("since", query.since)?, time("until", query.until)?);
    if since.zip(until).is_some_and(|(since, until)| since >= until) {
        return Err(Problem::BadRequest("since is not before until".to_owned()));
    }
    let filter = Filter { type_name: query.type_name, severity: query.severity, since, until };
    let pool = front.io.postgres.clone();
    let reading = front.io.run(std::time::Duration::from_secs(10), POSTGRES_LATE, async move {
        events::newest(&pool, &filter, limit).await
    });
    let rows = reading.await?;
    let events: Vec<Value> = rows.into_iter().map(event).collect();
    Ok(Json(json!({"events": events})))
}

fn event(row: events::Row) -> Value {
    json!({
        "id": row.id,
        "ts": row.unix_seconds(),
        "type": row.type_,
        "worker": row.worker,
        "severity": row.severity,
        "detail": row.detail,
        "payload": row.payload,
    })
}

fn time(name: &str, unix_seconds: Option<f64>) -> Result<Option<DateTime<Utc>>, Problem> {
    let Some(seconds) = unix_seconds else { return Ok(None) };
    #[expect(clippy::cast_possible_truncation, reason = "checked to be a date's range")]
    let time =
        (0.0..1e11).contains(&seconds).then(|| DateTime::from_timestamp_micros((seconds * 1e6) as i64)).flatten();
    time.map(Some).ok_or_else(|| Problem::BadRequest(format!("{name} is {seconds}: expected Unix seconds")))
}
