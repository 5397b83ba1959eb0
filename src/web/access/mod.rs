//! The door: every request passes [`gate`], which finds its route in the table, decides who asks
//! and whether they may, and only then lets it in. Handlers are given the [`Caller`].
//!
//! What is not in the table cannot be reached: routes answer to what the gate has admitted and to
//! nothing else. [`login`] is how a browser gets a session, [`audit_page`] shows what was done.

pub mod audit_page;
mod audited;
mod caller;
mod connections;
mod failures;
mod gate;
pub mod login;
mod origin;
mod sessions;

pub use audited::audited;
pub use caller::Caller;
pub(in crate::web) use connections::{Connection, Counted};
pub use connections::{ConnectionLimits, Connections};
pub use failures::Failures;
pub(super) use gate::SESSION_COOKIE;
pub use gate::{Door, Lock, admitted, gate};
pub(in crate::web) use sessions::OpenSession;
pub use sessions::{Lifetimes, Sessions};

pub use crate::access::Role;

/// What a route asks of who comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: whether the process lives, how to log in, the pages' scripts.
    Nobody,
    /// This role, or one above it.
    AtLeast(Role),
}

/// How a route is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// GET and HEAD: changes nothing.
    Read,
    /// GET, then a websocket: changes nothing, and is read by its page alone.
    Socket,
    /// POST, from this site's own pages or from no page.
    Change,
}
