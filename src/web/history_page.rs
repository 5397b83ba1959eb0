//! The history page and those parts of it that the server renders.

use std::future::Future;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::rt::time::timeout;
use actix_web::web::{Data, Path, Query};
use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::AppState;
use super::access::Caller;
use super::history::{happened, summed_up};
use super::html::html;
use super::problem::Problem;
use crate::contract::Name;
use crate::fleet::incident::Happened;
use crate::history::window::Window;
use crate::pages::history::parts::{Part, Summary};
use crate::pages::history::{Found, HistoryRange, Scope};
use crate::pages::link::About;
use crate::postgres::events::Filter;

/// Timeout of the parts in the initial page; slower ones are loaded later by the script.
const FIRST_WITHIN: Duration = Duration::from_millis(400);

/// Time range and scope.
#[derive(Debug, Deserialize)]
pub struct PageQuery {
    from: Option<String>,
    to: Option<String>,
    worker: Option<String>,
}

impl PageQuery {
    pub(super) fn of(&self, front: &AppState) -> HistoryRange {
        HistoryRange::of(self.from.as_deref(), self.to.as_deref(), front.io.wall())
    }
}

/// `GET /history?from=&to=`
pub async fn page(front: Data<AppState>, caller: Caller, query: Query<PageQuery>) -> Result<HttpResponse, Problem> {
    let asked = query.of(&front);
    let found = found(&front, &asked, &Scope::Fleet).await;
    html(front.site_for(&caller).history(&asked, &found))
}

/// `GET /history/parts/{part}?from=&to=&worker=`: one part of the page as an HTML fragment.
pub async fn part(front: Data<AppState>, name: Path<String>, query: Query<PageQuery>) -> Result<HttpResponse, Problem> {
    let asked = query.of(&front);
    if let Some(why) = &asked.instead {
        return Err(Problem::BadRequest(why.clone()));
    }
    let scope = query.worker.as_deref().map_or(Scope::Fleet, |name| Scope::One(About::WorkerType, Name::from(name)));
    html(match name.as_str() {
        "summary" => front.site.summary(&Part::Known(summary_of(&front, &asked).await?)),
        "incidents" => front.site.incidents(&Part::Known(happened_in(&front, &asked, &scope).await?), &asked, &scope),
        "events" => front.site.events(&Part::Known(happened_in(&front, &asked, &scope).await?), &scope),
        _ => return Err(Problem::NotFound),
    })
}

/// The data of a time range that is available before [`FIRST_WITHIN`].
pub(super) async fn found(front: &AppState, asked: &HistoryRange, scope: &Scope) -> Found {
    let (summary, happened) = futures_util::join!(
        soon(async {
            match scope {
                Scope::Fleet => summary_of(front, asked).await,
                Scope::One(..) => Ok(Summary::default()),
            }
        }),
        soon(happened_in(front, asked, scope)),
    );
    Found { summary, happened }
}

async fn soon<T>(asking: impl Future<Output = Result<T, Problem>>) -> Part<T> {
    match timeout(FIRST_WITHIN, asking).await {
        Ok(Ok(known)) => Part::Known(known),
        Ok(Err(problem)) => Part::Failed(problem.to_string()),
        Err(_) => Part::Late,
    }
}

async fn summary_of(front: &AppState, asked: &HistoryRange) -> Result<Summary, Problem> {
    let (since, until) = (asked.range.since(asked.now), asked.range.until(asked.now));
    let window =
        Window::new(Some(since), Some(until), None, asked.now).map_err(|e| Problem::BadRequest(e.to_string()))?;
    summed_up(front, window).await
}

async fn happened_in(front: &AppState, asked: &HistoryRange, scope: &Scope) -> Result<Vec<Happened>, Problem> {
    let worker = match scope {
        Scope::Fleet => None,
        Scope::One(_, name) => Some(name.to_text().replace('\0', "\u{fffd}")),
    };
    let (since, until) = (date(asked.range.since(asked.now)), date(asked.range.until(asked.now)));
    happened(front, Filter { worker, since, until, ..Filter::default() }).await
}

#[expect(clippy::cast_possible_truncation, reason = "a range is within the calendar")]
fn date(unix: f64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros((unix * 1e6) as i64)
}
