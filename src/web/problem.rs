//! Errors of the API: `application/problem+json` with a stable type. They never contain internals.

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::json;

use super::request_id;
use crate::fleet::reading::SourceTrouble;

/// `Retry-After` while a data source is unavailable, seconds.
pub const RETRY_AFTER_SEC: u64 = 5;

/// Why a request failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Problem {
    /// Invalid request: names the parameter and the expected value.
    #[error("{0}")]
    BadRequest(String),
    /// The caller is not authenticated.
    #[error("{why}")]
    Unauthorized {
        /// Value of `WWW-Authenticate`, for programs.
        challenge: Option<&'static str>,
        /// The reason.
        why: String,
    },
    /// Too many failed logins from this address or account.
    #[error("too many failed logins from this address; retry in {wait} s")]
    TooMany {
        /// Seconds until the next attempt.
        wait: u64,
    },
    /// Too many connections from this address.
    #[error("too many connections from this address; close some, or raise MONITOR_MAX_CONNECTIONS_PER_ADDRESS")]
    TooManyConnections,
    /// Too many concurrent reads of this client: names the limit and the remedy.
    #[error("{0}")]
    Busy(String),
    /// The caller lacks the permission: the reason.
    #[error("{0}")]
    Forbidden(String),
    /// The route requires another method: this one.
    #[error("method not allowed; use {0}")]
    WrongMethod(&'static str),
    /// No such route or object.
    #[error("not found")]
    NotFound,
    /// Rejected before routing: body too large, unsupported encoding.
    #[error("{1}")]
    Refused(StatusCode, String),
    /// A required component is unavailable: the reason.
    #[error("{0}")]
    Unavailable(String),
}

impl From<SourceTrouble> for Problem {
    fn from(trouble: SourceTrouble) -> Self {
        Self::Unavailable(trouble.detail)
    }
}

/// An error response (RFC 9457).
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub struct ProblemDetails {
    /// Stable problem type.
    #[schemars(transform = name_all)]
    pub r#type: String,
    /// Short title of the problem type.
    pub title: &'static str,
    /// HTTP status of the response.
    pub status: u16,
    /// Description of this occurrence: which parameter, and what was expected.
    pub detail: String,
    /// Request ID, as in `X-Request-Id` and in the log.
    pub request_id: Option<String>,
}

/// Lists all types with title and status in the schema.
fn name_all(schema: &mut Schema) {
    let each = Problem::each().into_iter().map(|problem| {
        let told = problem.told();
        json!({"const": told.r#type, "description": format!("{}: {}", told.status, told.title)})
    });
    schema.insert("oneOf".to_owned(), each.collect());
}

impl Problem {
    /// One example of each type.
    #[must_use]
    pub fn each() -> Vec<Self> {
        let refused = |status| Self::Refused(status, String::new());
        vec![
            Self::BadRequest(String::new()),
            Self::Unauthorized { challenge: None, why: String::new() },
            Self::Forbidden(String::new()),
            Self::NotFound,
            Self::WrongMethod("GET"),
            refused(StatusCode::NOT_ACCEPTABLE),
            refused(StatusCode::PAYLOAD_TOO_LARGE),
            refused(StatusCode::UNSUPPORTED_MEDIA_TYPE),
            refused(StatusCode::UPGRADE_REQUIRED),
            Self::TooMany { wait: 0 },
            Self::TooManyConnections,
            Self::Busy(String::new()),
            refused(StatusCode::REQUEST_TIMEOUT),
            refused(StatusCode::INTERNAL_SERVER_ERROR),
            Self::Unavailable(String::new()),
        ]
    }

    /// The body of the response.
    #[must_use]
    pub fn told(&self) -> ProblemDetails {
        let (kind, title) = self.type_and_title();
        let status = self.status_code().as_u16();
        ProblemDetails {
            r#type: format!("urn:shepherd-monitor:problem:{kind}"),
            title,
            status,
            detail: self.to_string(),
            request_id: request_id::current().as_deref().map(str::to_owned),
        }
    }

    /// Whether it is certain that nothing was changed.
    #[must_use]
    pub fn means_nothing_was_done(&self) -> bool {
        !matches!(self, Self::Unavailable(_))
    }

    /// Short title of the type.
    #[must_use]
    pub fn title(&self) -> &'static str {
        self.type_and_title().1
    }

    fn type_and_title(&self) -> (&'static str, &'static str) {
        match self {
            Self::BadRequest(_) => ("bad-request", "Invalid request"),
            Self::Unauthorized { .. } => ("unauthorized", "Authentication required"),
            Self::TooMany { .. } => ("too-many", "Too many failed logins"),
            Self::TooManyConnections => ("too-many-connections", "Too many connections"),
            Self::Busy(_) => ("too-many-reads", "Too many expensive requests"),
            Self::Forbidden(_) => ("forbidden", "Forbidden"),
            Self::WrongMethod(_) => ("wrong-method", "Method not allowed"),
            Self::NotFound => ("not-found", "Not found"),
            Self::Refused(status, _) => match *status {
                StatusCode::NOT_ACCEPTABLE => ("not-acceptable", "Not acceptable"),
                StatusCode::REQUEST_TIMEOUT => ("request-timeout", "Request timeout"),
                StatusCode::PAYLOAD_TOO_LARGE => ("too-large", "Request body too large"),
                StatusCode::UNSUPPORTED_MEDIA_TYPE => ("unsupported-media-type", "Unsupported media type"),
                StatusCode::UPGRADE_REQUIRED => ("upgrade-required", "Upgrade required"),
                status if status.is_server_error() => ("internal", "Internal error"),
                _ => ("bad-request", "Invalid request"),
            },
            Self::Unavailable(_) => ("unavailable", "Temporarily unavailable"),
        }
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
            Self::TooMany { .. } | Self::TooManyConnections | Self::Busy(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::WrongMethod(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Refused(status, _) => *status,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn error_response(&self) -> HttpResponse {
        let body = self.told();
        let mut answer = HttpResponse::build(self.status_code());
        match self {
            Self::WrongMethod(allowed) => answer.insert_header((ALLOW, *allowed)),
            Self::Unauthorized { challenge: Some(challenge), .. } => {
                answer.insert_header((WWW_AUTHENTICATE, *challenge))
            }
            Self::TooMany { wait } => answer.insert_header((RETRY_AFTER, *wait)),
            Self::Unavailable(_) | Self::Busy(_) => answer.insert_header((RETRY_AFTER, RETRY_AFTER_SEC)),
            _ => &mut answer,
        };
        answer.content_type("application/problem+json").body(json!(body).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problem_types_are_unique_and_complete() {
        let kind = |problem: &Problem| match problem {
            // Fails to compile for a new variant, which `each` must contain too.
            Problem::BadRequest(_)
            | Problem::Unauthorized { .. }
            | Problem::TooMany { .. }
            | Problem::TooManyConnections
            | Problem::Busy(_)
            | Problem::Forbidden(_)
            | Problem::WrongMethod(_)
            | Problem::NotFound
            | Problem::Refused(..)
            | Problem::Unavailable(_) => problem.told().r#type,
        };
        let kinds: Vec<String> = Problem::each().iter().map(kind).collect();
        let different: std::collections::BTreeSet<&String> = kinds.iter().collect();
        assert_eq!((kinds.len(), different.len()), (15, 15), "{kinds:?}");
    }
}
