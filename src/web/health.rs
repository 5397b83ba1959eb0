//! Probes: `/livez` checks that the process runs, `/readyz` that it works.

pub mod openapi;

use std::time::Duration;

use actix_web::web::{Data, Query};
use actix_web::{HttpRequest, HttpResponse, Responder};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use self::openapi::{More, Readiness};
use super::AppState;
use super::problem::Problem;
use crate::actors::messages::GetHealth;

/// Timeout of the question to the supervisor.
const ANSWER_WITHIN: Duration = Duration::from_millis(1000);

/// `GET /livez`: succeeds whatever the state of the data sources.
pub async fn livez() -> impl Responder {
    HttpResponse::Ok().content_type("text/plain").body("alive\n")
}

/// Query of `GET /readyz`.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ReadyQuery {
    /// Include details; the value is ignored.
    #[schemars(example = &"")]
    verbose: Option<String>,
}

/// `GET /readyz`: 200 if every actor runs and ticks complete in time, otherwise 503. Unreachable data sources do not
/// make the monitor unready, since it has to report them. Only callers with access to the pages see the reasons.
pub async fn readyz(
    request: HttpRequest,
    front: Data<AppState>,
    query: Query<ReadyQuery>,
) -> Result<HttpResponse, Problem> {
    if query.verbose.is_some() {
        front.lock.caller(&request).await?;
    }
    let health = actix_web::rt::time::timeout(ANSWER_WITHIN, front.health.send(GetHealth)).await;
    let Ok(Ok(health)) = health else {
        return Ok(HttpResponse::ServiceUnavailable().json(Readiness {
            ready: false,
            reason: Some("the supervisor does not respond".to_owned()),
            more: None,
        }));
    };
    let late = Duration::from_secs_f64(health.interval_sec) * 3 + Duration::from_secs(5);
    let down: Vec<_> = health.actors.iter().filter(|actor| !actor.up).map(|actor| actor.actor).collect();
    let reason = if health.stopping {
        Some("stopping".to_owned())
    } else if !down.is_empty() {
        Some(format!("down: {}", json!(down)))
    } else {
        match health.last_tick_age_sec {
            None => Some("the first poll has not finished".to_owned()),
            Some(age) if age > late.as_secs_f64() => Some(format!("the last poll finished {age:.0} s ago")),
            Some(_) => None,
        }
    };
    let mut answer = match reason {
        None => HttpResponse::Ok(),
        Some(_) => HttpResponse::ServiceUnavailable(),
    };
    let newest = front.newest.load_full();
    let more = query.verbose.is_some().then(|| More {
        redis: newest.as_ref().map(|snapshot| snapshot.redis.source.clone()),
        postgres: newest.as_ref().map(|snapshot| snapshot.postgres.source.clone()),
        redis_write_error: newest.as_ref().and_then(|snapshot| snapshot.redis.write_error.clone()),
        postgres_write_error: newest.as_ref().and_then(|snapshot| snapshot.postgres.write_error.clone()),
        monitor: health,
    });
    Ok(answer.json(Readiness { ready: reason.is_none(), reason, more }))
}
