//! Pages of a stream and of a worker type.

use actix_web::http::StatusCode;
use actix_web::web::{Data, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;

use super::AppState;
use super::access::Caller;
use super::history_page::{PageQuery, found};
use super::html::{html, html_with};
use super::problem::Problem;
use crate::pages::Site;
use crate::pages::history::Scope;
use crate::pages::link::About;

/// Selects a part of the page.
#[derive(Debug, Deserialize)]
pub struct PartQuery {
    part: Option<String>,
}

/// `GET /streams/{name}?from=&to=`: current state and history of a stream; with `part=now`, only the current state as
/// an HTML fragment.
pub async fn stream(
    front: Data<AppState>,
    caller: Caller,
    request: HttpRequest,
    range: Query<PageQuery>,
    part: Query<PartQuery>,
) -> Result<HttpResponse, Problem> {
    page((&front, &caller), &request, About::Stream, &range, part.part.as_deref()).await
}

/// `GET /workers/{type}?from=&to=`: the same for a worker type.
pub async fn worker_type(
    front: Data<AppState>,
    caller: Caller,
    request: HttpRequest,
    range: Query<PageQuery>,
    part: Query<PartQuery>,
) -> Result<HttpResponse, Problem> {
    page((&front, &caller), &request, About::WorkerType, &range, part.part.as_deref()).await
}

async fn page(
    (front, caller): (&AppState, &Caller),
    request: &HttpRequest,
    about: About,
    range: &PageQuery,
    part: Option<&str>,
) -> Result<HttpResponse, Problem> {
    let snapshot =
        front.newest.load_full().ok_or_else(|| Problem::Unavailable("the first poll has not finished".to_owned()))?;
    // From the raw path: names are bytes, and the router decodes to text.
    let asked_name = about.name_in(request.uri().path(), request.query_string());
    let Some(name) = Site::find(&snapshot, about, &asked_name) else {
        if part.is_some() {
            return Err(Problem::NotFound);
        }
        return html_with(StatusCode::NOT_FOUND, front.site_for(caller).nothing(about, &asked_name));
    };
    if part == Some("now") {
        return html(front.site.now(about, &name, &snapshot));
    }
    let asked = range.of(front);
    let found = found(front, &asked, &Scope::One(about, name.clone())).await;
    html(front.site_for(caller).detail((about, &name), &snapshot, &asked, &found))
}
