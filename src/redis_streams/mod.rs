//! Every Redis command and every Lua script of the project.
//!
//! [`tasks`] is the workers' half: reading, finishing, leasing and reclaiming entries of a stream.

pub mod tasks;
