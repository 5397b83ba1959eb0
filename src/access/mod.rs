//! Who may do what. Pure: what a request carries in, who that is and what they may do out; no
//! socket, no clock.
//!
//! [`role`] is the ladder of what somebody may do, [`tokens`] by what they are known, [`policy`] how
//! the monitor finds out who asks, [`address`] where from.

pub mod address;
pub mod policy;
pub mod role;
pub mod tokens;

pub use policy::Policy;
pub use role::Role;
