//! Who asks, and that a change is told of. Until logins are there, whoever reaches the port may all.

use std::future::{Future, Ready, ready};

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest};
use serde_json::Value;

use crate::web::Front;
use crate::web::alerts::own_site;
use crate::web::problem::Problem;

/// What somebody may do; the order is by what it may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Looks, previews, retries.
    Operator,
    /// Also drops, buries and puts back.
    Admin,
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// What they are called.
    pub name: String,
    /// What they may do.
    pub role: Role,
}

impl FromRequest for Caller {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let get = request.method() == actix_web::http::Method::GET;
        ready(
            if get { Ok(()) } else { own_site(request) }
                .map(|()| Self { name: "anybody".to_owned(), role: Role::Admin }),
        )
    }
}

/// Does `work`, and tells of it in the log.
///
/// A client that hangs up does not stop it.
///
/// # Errors
/// Those of `work`.
pub(super) async fn audited<T: 'static>(
    _: &Front,
    caller: &Caller,
    action: &'static str,
    parameters: Value,
    work: impl Future<Output = Result<(Value, T), Problem>> + 'static,
) -> Result<(Value, T), Problem> {
    tracing::info!(caller = caller.name, action, %parameters, "a change");
    actix_web::rt::spawn(work).await.unwrap_or_else(|error| Err(Problem::Unavailable(error.to_string())))
}
