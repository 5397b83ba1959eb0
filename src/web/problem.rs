//! Errors as the API tells them: `application/problem+json` with a stable type, leaking nothing.

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::json;

use super::request_id;
use crate::fleet::reading::SourceTrouble;

/// After how long an unavailable data source is worth another request, seconds.
pub const RETRY_AFTER_SEC: u64 = 5;

/// What went wrong with a request.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Problem {
    /// The request cannot be understood: which parameter, and what was expected.
    #[error("{0}")]
    BadRequest(String),
    /// It is not known who asks.
    #[error("{why}")]
    Unauthorized {
        /// What a program is to present.
        challenge: Option<&'static str>,
        /// Why.
        why: String,
    },
    /// Too many wrong guesses came from where this comes from.
    #[error("too many failed logins from this address; retry in {wait} s")]
    TooMany {
        /// Seconds until it may try again.
        wait: u64,
    },
    /// The address holds too many connections open.
    #[error("too many connections from this address; close some, or raise MONITOR_MAX_CONNECTIONS_PER_ADDRESS")]
    TooManyConnections,
    /// The client reads more at once than it may: what, and what to do.
    #[error("{0}")]
    Busy(String),
    /// Who asks may not do this: why.
    #[error("{0}")]
    Forbidden(String),
    /// This address is asked in another way: which.
    #[error("method not allowed; use {0}")]
    WrongMethod(&'static str),
    /// There is nothing at this address.
    #[error("not found")]
    NotFound,
    /// It was refused before a route saw it: a body that is too long, an encoding that nobody speaks.
    #[error("{1}")]
    Refused(StatusCode, String),
    /// What is needed to answer is not there just now.
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
pub struct Told {
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

/// Every type that there is, with its title and status.
fn name_all(schema: &mut Schema) {
    let each = Problem::each().into_iter().map(|problem| {
        let told = problem.told();
        json!({"const": told.r#type, "description": format!("{}: {}", told.status, told.title)})
    });
    schema.insert("oneOf".to_owned(), each.collect());
}

impl Problem {
    /// One of each type.
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

    /// As the API tells it.
    #[must_use]
    pub fn told(&self) -> Told {
        let (kind, title) = self.type_and_title();
        let status = self.status_code().as_u16();
        Told {
            r#type: format!("urn:shepherd-monitor:problem:{kind}"),
            title,
            status,
            detail: self.to_string(),
            request_id: request_id::current().as_deref().map(str::to_owned),
        }
    }

    /// It was found before anything was changed.
    #[must_use]
    pub fn means_nothing_was_done(&self) -> bool {
        !matches!(self, Self::Unavailable(_))
    }

    /// What it is, in a few words.
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
            Self::Unavailable(_) => ("unavailable", "Data source unavailable"),
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
    fn each_type_is_named_once() {
        let kind = |problem: &Problem| match problem {
            // Whoever adds one enters it in `each` too.
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
