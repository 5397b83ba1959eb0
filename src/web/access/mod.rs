//! Access control. Every request passes [`gate`], which finds its route in the table, authenticates the caller,
//! checks the role, and only then forwards it. Handlers receive the [`Caller`].
//!
//! Routes respond only to requests that the gate authorized, so a route that is not in the table is unreachable.
//! [`login`] and [`oidc`] create browser sessions, [`audit_page`] shows the audit log; [`SecurityLog`] records logins and denied
//! requests.

pub mod audit_page;
mod audited;
mod caller;
mod connections;
mod cookies;
mod failures;
mod gate;
pub mod login;
pub mod oidc;
mod origin;
mod security_log;
mod sessions;
mod users;

pub use audited::audited;
pub use caller::Caller;
pub(in crate::web) use connections::{Connection, Counted};
pub use connections::{ConnectionLimits, Connections};
pub(in crate::web) use cookies::SESSION;
pub use failures::Failures;
pub use gate::{AuthGate, AuthGateLayer, admitted, gate};
pub use security_log::SecurityLog;
pub(in crate::web) use sessions::OpenSession;
pub use sessions::{Lifetimes, Sessions};
pub(in crate::web) use users::TokenOwner;
pub use users::Users;

pub use crate::access::Role;

/// Role that a route requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// None: probes, the login page, scripts of the pages.
    Nobody,
    /// This role or a higher one.
    AtLeast(Role),
}

/// How a route is requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// GET and HEAD: changes nothing.
    Read,
    /// GET with a websocket handshake: changes nothing, and only own pages may open it.
    Socket,
    /// POST, from own pages or from scripts.
    Change,
}
