//! Autoscaling: the backlog of a worker type, and the number of workers for it.

pub mod openapi;

use std::time::Duration;

use actix_web::web::{Data, Query};
use actix_web::{HttpRequest, HttpResponse};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::AppState;
use super::problem::Problem;
use crate::actors::io::POSTGRES_LATE;
use crate::fleet::scaling::Demand;
use crate::history::window::Window;
use crate::pages::Site;
use crate::pages::link::{About, autoscaled};
use crate::postgres::history::{Selection, latency};

/// Default target time to drain the backlog, seconds.
const DRAIN_SEC: f64 = 300.0;
/// Period over which run times are averaged, seconds. If no task finished in it, the last day is used.
const LATELY_SEC: f64 = 600.0;
const DAY_SEC: f64 = 86_400.0;
/// Timeout of reading run times from Postgres.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Inputs that override the measured or default ones.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ScaleQuery {
    /// Target time to drain the backlog, seconds.
    #[schemars(range(min = 1), extend("default" = 300), example = 300)]
    drain_sec: Option<f64>,
    /// Run time of a task, seconds; default: measured from recent tasks.
    #[schemars(range(min = 0.001))]
    service_sec: Option<f64>,
    /// Concurrency of a worker; default: that of the alive workers.
    #[schemars(range(min = 1))]
    task_limit: Option<f64>,
}

/// Backlog and desired number of workers.
#[derive(Serialize, JsonSchema)]
struct Scale {
    /// The worker type.
    worker_type: String,
    /// Time of the poll, Unix seconds.
    ts: f64,
    /// The backlog.
    #[serde(flatten)]
    demand: Demand,
    /// Target time to drain the backlog, seconds.
    drain_sec: f64,
    /// Alive workers.
    alive: u32,
    /// Desired workers; `null` if an input is unknown.
    proposed_replicas: Option<u64>,
    /// Unknown inputs.
    unknown: Vec<&'static str>,
}

/// `GET /api/autoscale/{type}?drain_sec=&service_sec=&task_limit=`: the backlog of a type, and the number of workers
/// that handle incoming messages and drain the backlog within `drain_sec` (300); `null` if an input is unknown, which
/// `unknown` lists. Returns 503 if the backlog itself is not known exactly, since an autoscaler must not mistake an
/// unknown backlog for an empty one.
pub async fn autoscale(
    front: Data<AppState>,
    request: HttpRequest,
    query: Query<ScaleQuery>,
) -> Result<HttpResponse, Problem> {
    let snapshot =
        front.newest.load_full().ok_or_else(|| Problem::Unavailable("the first poll has not finished".to_owned()))?;
    let drain_sec = at_least(1.0, "drain_sec", query.drain_sec)?.unwrap_or(DRAIN_SEC);
    let asked = autoscaled(request.uri().path(), request.query_string());
    // A stream without any worker yet also counts: the autoscaler starts the first one.
    let name = Site::find(&snapshot, About::WorkerType, &asked)
        .or_else(|| Site::find(&snapshot, About::Stream, &asked))
        .ok_or(Problem::NotFound)?;
    let mut demand = Demand::of(&snapshot, &name)
        .ok_or(Problem::NotFound)?
        .map_err(|unknown| Problem::Unavailable(unknown.to_string()))?;
    demand.task_limit = at_least(1.0, "task_limit", query.task_limit)?.or(demand.task_limit);
    demand.service_sec = match at_least(0.001, "service_sec", query.service_sec)? {
        Some(said) => Some(said),
        None if snapshot.postgres.source.is_current() => service_sec(&front, name.to_text()).await,
        None => None,
    };
    let proposed = demand.workers(Duration::from_secs_f64(drain_sec));
    let scale = Scale {
        worker_type: name.to_text(),
        ts: snapshot.ts,
        demand,
        drain_sec,
        alive: snapshot.workers.get(&name).map_or(0, |status| status.alive),
        proposed_replicas: proposed.as_ref().ok().copied(),
        unknown: proposed.err().unwrap_or_default(),
    };
    Ok(HttpResponse::Ok().json(scale))
}

/// Mean run time of tasks of `stream`, seconds; `None` if unknown or if Postgres is unreachable.
async fn service_sec(front: &AppState, stream: String) -> Option<f64> {
    let selection = Selection::Names(vec![stream.replace('\0', "\u{fffd}")]);
    let now = front.io.wall();
    for back in [LATELY_SEC, DAY_SEC] {
        let window = Window::new(Some(now - back), Some(now), Some(300), now).ok()?;
        let (pool, selection) = (front.io.web.reads.clone(), selection.clone());
        let reading = async move { latency::read(&pool, &selection, window).await };
        let found = front.io.read(ANSWER_WITHIN, POSTGRES_LATE, reading).await.ok()?;
        let mean_ms = found.totals.into_values().next().and_then(|total| total.summary().mean_ms);
        if let Some(mean_ms) = mean_ms {
            return Some(mean_ms / 1000.0);
        }
    }
    None
}

/// Validates a number: at least `least`, if given.
fn at_least(least: f64, name: &str, given: Option<f64>) -> Result<Option<f64>, Problem> {
    match given {
        Some(number) if !(least..=1e9).contains(&number) => {
            Err(Problem::BadRequest(format!("{name} is {number}: expected a number ≥ {least}")))
        }
        given => Ok(given),
    }
}
