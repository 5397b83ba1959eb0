//! How long the texts may be that clients send to be stored, or to be looked for in Redis.

use super::problem::Problem;

/// Why somebody does something, bytes.
pub const REASON: usize = 1024;
/// A name of a stream, a consumer or a worker type, bytes.
pub const NAME: usize = 1024;
/// A text that is looked for in messages, bytes: each part of a stream is compared with it.
pub const NEEDLE: usize = 256;
/// A time such as `30m`, bytes.
pub const TIME: usize = 32;
/// An address within this site, bytes.
pub const ADDRESS: usize = 2048;

/// Refuses a text that is too long, and says by how much.
///
/// # Errors
/// When it is longer than `most` bytes.
pub(super) fn at_most(name: &str, text: &str, most: usize) -> Result<(), Problem> {
    match text.len() {
        length if length > most => {
            Err(Problem::BadRequest(format!("{name} has {length} bytes: expected at most {most}; shorten it")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_too_long_is_refused_with_its_length_and_the_limit() {
        assert!(at_most("reason", &"x".repeat(REASON), REASON).is_ok());
        let why = at_most("reason", &"x".repeat(REASON + 1), REASON).unwrap_err().to_string();
        assert_eq!(why, "reason has 1025 bytes: expected at most 1024; shorten it");
    }
}
