//! Authentication and authorization, without I/O: the input is the contents of a request, the output the user and the
//! role.
//!
//! [`role`] defines roles, [`tokens`] verifies the token of each role, [`users`] named users and their tokens,
//! [`policy`] implements the authentication modes, [`oidc`] the login at an identity provider, [`sealing`] proves rows in
//! the database, [`address`] finds the client address; [`AuditedChange`] is an entry of the audit log, [`audit_chain`] its
//! hash chain; [`security_events`] defines security events.

pub mod address;
pub mod audit_chain;
mod audited_change;
pub mod oidc;
pub mod policy;
pub mod role;
pub mod sealing;
pub mod security_events;
pub mod tokens;
pub mod users;

pub use audited_change::AuditedChange;
pub use policy::Policy;
pub use role::Role;
