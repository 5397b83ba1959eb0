//! Maximum lengths of texts that clients send to be stored, or to be searched for in Redis.

use super::problem::Problem;

/// Reason of a change, bytes.
pub const REASON: usize = 1024;
/// Name of a stream, consumer or worker type, bytes.
pub const NAME: usize = 1024;
/// Search text, bytes. Short, because Redis compares it with every message that it scans.
pub const NEEDLE: usize = 256;
/// A duration such as `30m`, bytes.
pub const TIME: usize = 32;
/// A URL within this site, bytes.
pub const ADDRESS: usize = 2048;

/// Checks the length of a text.
///
/// # Errors
/// If it is longer than `most` bytes; the error contains the length and the limit.
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
    fn an_error_about_a_long_text_contains_its_length_and_the_limit() {
        assert!(at_most("reason", &"x".repeat(REASON), REASON).is_ok());
        let why = at_most("reason", &"x".repeat(REASON + 1), REASON).unwrap_err().to_string();
        assert_eq!(why, "reason has 1025 bytes: expected at most 1024; shorten it");
    }
}
