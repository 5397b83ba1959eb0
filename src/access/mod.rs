//! Who may do what. Pure: what a request carries in, who that is and what they may do out; no
//! socket, no clock.
//!
//! [`role`] is the ladder of what somebody may do.

pub mod role;

pub use role::Role;
