//! The authenticated caller of a request.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpMessage, HttpRequest};

use crate::access::Role;
use crate::pages::Visitor;
use crate::web::problem::Problem;

/// Authenticated caller, which the gate attaches for handlers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// User name, for the audit log and the pages.
    pub name: String,
    /// Role.
    pub role: Role,
    /// IP address.
    pub address: String,
    /// No credentials were required: the authentication mode is `none`.
    pub anonymous: bool,
    /// Has a login session, so it can log out.
    pub can_leave: bool,
}

impl Caller {
    /// The caller as the pages show it.
    #[must_use]
    pub fn visitor(&self) -> Visitor {
        Visitor { name: (!self.anonymous).then(|| self.name.clone()), role: self.role, can_leave: self.can_leave }
    }
}

impl FromRequest for Caller {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let caller = request.extensions().get::<Self>().cloned();
        ready(caller.ok_or_else(|| Problem::Forbidden("this route has no access rule".to_owned())))
    }
}
