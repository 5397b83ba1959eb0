//! Errors as the API tells them: `application/problem+json` with a stable type, leaking nothing.

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use serde_json::json;

use super::request_id;
use crate::fleet::reading::SourceTrouble;

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
        why: &'static str,
    },
    /// Too many wrong guesses came from where this comes from.
    #[error("too many wrong logins from this address; try again in {wait} s")]
    TooMany {
        /// Seconds until it may try again.
        wait: u64,
    },
    /// The address holds too many connections open.
    #[error("too many connections from this address; close some, or see MONITOR_MAX_CONNECTIONS_PER_ADDRESS")]
    TooManyConnections,
    /// Who asks may not do this: why.
    #[error("{0}")]
    Forbidden(String),
    /// This address is asked in another way: which.
    #[error("this address takes {0}")]
    WrongMethod(&'static str),
    /// There is nothing at this address.
    #[error("nothing here")]
    NotFound,
    /// What is needed to answer is not there just now.
    #[error("{0}")]
    Unavailable(String),
}

impl From<SourceTrouble> for Problem {
    fn from(trouble: SourceTrouble) -> Self {
        Self::Unavailable(trouble.detail)
    }
}

impl Problem {
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
            Self::BadRequest(_) => ("bad-request", "The request cannot be understood"),
            Self::Unauthorized { .. } => ("unauthorized", "It is not known who asks"),
            Self::TooMany { .. } => ("too-many", "Too many wrong logins"),
            Self::TooManyConnections => ("too-many-connections", "Too many connections"),
            Self::Forbidden(_) => ("forbidden", "This is not allowed"),
            Self::WrongMethod(_) => ("wrong-method", "This address is asked in another way"),
            Self::NotFound => ("not-found", "There is nothing at this address"),
            Self::Unavailable(_) => ("unavailable", "A source is not available"),
        }
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
            Self::TooMany { .. } | Self::TooManyConnections => StatusCode::TOO_MANY_REQUESTS,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::WrongMethod(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn error_response(&self) -> HttpResponse {
        let (kind, title) = self.type_and_title();
        // No `instance`: that has to be a URI, and an id which a proxy gave is none.
        let body = json!({
            "type": format!("urn:shepherd-monitor:problem:{kind}"),
            "title": title,
            "status": self.status_code().as_u16(),
            "detail": self.to_string(),
            "request_id": request_id::current().as_deref(),
        });
        let mut answer = HttpResponse::build(self.status_code());
        match self {
            Self::WrongMethod(allowed) => answer.insert_header((ALLOW, *allowed)),
            Self::Unauthorized { challenge: Some(challenge), .. } => {
                answer.insert_header((WWW_AUTHENTICATE, *challenge))
            }
            Self::TooMany { wait } => answer.insert_header((RETRY_AFTER, *wait)),
            _ => &mut answer,
        };
        answer.content_type("application/problem+json").body(body.to_string())
    }
}
