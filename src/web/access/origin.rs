//! Whether a request comes from one of this monitor's own pages, or from no page at all.

use actix_web::http::header::{HOST, HeaderMap, ORIGIN};

use crate::web::problem::Problem;

/// Browsers say where a request comes from; from another site's page it is refused.
///
/// # Errors
/// When another site's page asks.
pub(super) fn same(headers: &HeaderMap) -> Result<(), Problem> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let foreign = || Err(Problem::Forbidden("a page of another site may not do this".to_owned()));
    if let Some(site) = header("sec-fetch-site") {
        return if matches!(site, "same-origin" | "none") { Ok(()) } else { foreign() };
    }
    let Some(origin) = header(ORIGIN.as_str()) else { return Ok(()) };
    let host = origin.split("://").nth(1).unwrap_or_default();
    if !host.is_empty() && header(HOST.as_str()) == Some(host) { Ok(()) } else { foreign() }
}
