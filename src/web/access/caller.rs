//! Who asks.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpMessage, HttpRequest};

use crate::access::Role;
use crate::pages::Visitor;
use crate::web::problem::Problem;

/// Who asks: put there by the gate, for handlers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// What they are called: in the audit, and on the pages.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Where they ask from: an IP address.
    pub address: String,
    /// Nobody was asked who they are: the monitor runs without a login.
    pub anonymous: bool,
    /// They logged in by the page, and can log out.
    pub can_leave: bool,
}

impl Caller {
    /// Who looks at a page.
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
