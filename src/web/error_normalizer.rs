//! Converts errors from outside the handlers (an unreadable body, a path that is not text, an invalid handshake) to
//! problems, so that all errors have one format.

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use actix_web::middleware::Next;
use actix_web::{Error, HttpResponse};

use super::deadlines::{BODY_WITHIN, body_was_late};
use super::problem::Problem;

/// Media types of errors that handlers return: a problem, a probe's response, a page.
const FORMS: [&str; 3] = ["application/problem+json", "application/json", "text/html"];

/// Middleware: converts errors of other media types than [`FORMS`] to a [`Problem`].
///
/// # Errors
/// Those of the inner service.
pub(super) async fn normalize_errors<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let answer = next.call(request).await?;
    let status = answer.status();
    let late = status.is_client_error() && body_was_late(answer.request());
    if !(status.is_client_error() || status.is_server_error()) || (has_a_form(&answer) && !late) {
        return Ok(answer.map_into_left_body());
    }
    let why = answer.response().error().map(ToString::to_string);
    let problem = if late { late_body() } else { problem(status, why) };
    let mut told = HttpResponse::from_error(problem);
    for (name, value) in answer.headers() {
        if ![CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING].contains(name) {
            told.headers_mut().append(name.clone(), value.clone());
        }
    }
    Ok(answer.into_response(told).map_into_right_body())
}

fn late_body() -> Problem {
    let within = BODY_WITHIN.as_secs();
    Problem::Refused(
        StatusCode::REQUEST_TIMEOUT,
        format!(
            "the body of the request did not arrive within {within} s: expected all of it in that time; send it again"
        ),
    )
}

fn has_a_form<B>(answer: &ServiceResponse<B>) -> bool {
    let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    FORMS.iter().any(|form| kind.starts_with(form))
}

fn problem(status: StatusCode, why: Option<String>) -> Problem {
    match (status, why) {
        (StatusCode::BAD_REQUEST, Some(why)) => Problem::BadRequest(why),
        (StatusCode::NOT_FOUND, _) => Problem::NotFound,
        (StatusCode::NOT_ACCEPTABLE, _) => Problem::Refused(
            status,
            "Accept-Encoding allows no supported encoding: expected gzip or identity".to_owned(),
        ),
        (_, Some(why)) => Problem::Refused(status, why),
        (_, None) => Problem::Refused(status, status.canonical_reason().unwrap_or("refused").to_lowercase()),
    }
}
