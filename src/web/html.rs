//! Responses with rendered pages.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::ContentType;

use super::problem::Problem;
use crate::pages::PagesError;

/// The page, with status 200.
pub(super) fn html(rendered: Result<String, PagesError>) -> Result<HttpResponse, Problem> {
    html_with(StatusCode::OK, rendered)
}

/// The page with this status.
pub(super) fn html_with(status: StatusCode, rendered: Result<String, PagesError>) -> Result<HttpResponse, Problem> {
    let html = rendered.map_err(|error| {
        tracing::error!(%error, "cannot render a page");
        Problem::Unavailable("cannot render the page".to_owned())
    })?;
    Ok(HttpResponse::build(status).content_type(ContentType::html()).body(html))
}
