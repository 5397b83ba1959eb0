//! Who may do what. Pure: what a request carries in, who that is and what they may do out; no
//! socket, no clock.
//!
//! [`role`] is the ladder of what somebody may do, [`tokens`] by what they are known, [`policy`] how
//! the monitor finds out who asks, [`address`] where from; [`AuditedChange`] is what is kept of what they did.

pub mod address;
mod audited_change;
pub mod policy;
pub mod role;
pub mod tokens;

pub use audited_change::AuditedChange;
pub use policy::Policy;
pub use role::Role;
