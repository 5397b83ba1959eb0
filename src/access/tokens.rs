//! Verification of tokens.
//!
//! Tokens are not stored: only a keyed hash, whose key never leaves the process.

use std::fmt;

use ring::hmac::{self, HMAC_SHA256, Key};

use super::Role;

/// Minimum length of a token, characters.
pub const SHORTEST: usize = 16;

/// One token for each role that has one.
#[derive(Clone)]
pub struct Tokens {
    key: Key,
    tags: Vec<(Role, hmac::Tag)>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.tags.iter().map(|(role, _)| role)).finish()
    }
}

/// Why tokens are rejected: the role, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadTokens {
    /// Shorter than [`SHORTEST`].
    Short(Role),
    /// Easy to guess, with the reason.
    Weak(Role, &'static str),
    /// The same as the token of another role.
    Twice(Role),
}

impl Tokens {
    /// Hashes these tokens.
    ///
    /// # Errors
    /// If one is too short, easy to guess or used twice.
    pub fn new(tokens: &[(Role, String)]) -> Result<Self, BadTokens> {
        for (place, (role, token)) in tokens.iter().enumerate() {
            if token.len() < SHORTEST {
                return Err(BadTokens::Short(*role));
            }
            if let Some(why) = weakness(token) {
                return Err(BadTokens::Weak(*role, why));
            }
            if tokens.iter().take(place).any(|(_, earlier)| earlier == token) {
                return Err(BadTokens::Twice(*role));
            }
        }
        let key = Key::new(HMAC_SHA256, &material(tokens));
        let tags = tokens.iter().map(|(role, token)| (*role, hmac::sign(&key, token.as_bytes()))).collect();
        Ok(Self { key, tags })
    }

    /// Role of a token. Takes the same time for wrong and valid tokens.
    #[must_use]
    pub fn role_of(&self, given: &str) -> Option<Role> {
        self.tags.iter().fold(None, |found, (role, tag)| {
            let right = hmac::verify(&self.key, given.as_bytes(), tag.as_ref()).is_ok();
            if right { Some(*role) } else { found }
        })
    }
}

/// All tokens with their roles, as the secret that keys are derived from.
pub(super) fn material(tokens: &[(Role, String)]) -> Vec<u8> {
    let lines = tokens.iter().map(|(role, token)| format!("{role} {} {token}\n", token.len()));
    lines.collect::<String>().into_bytes()
}

/// Why a token is easy to guess; `None` if it is not.
#[must_use]
pub fn weakness(token: &str) -> Option<&'static str> {
    let lower = token.to_lowercase();
    let distinct: std::collections::BTreeSet<char> = lower.chars().collect();
    if distinct.len() < DISTINCT {
        return Some("it has fewer than 8 different characters");
    }
    let bytes = lower.as_bytes();
    let repeats = |period: usize| bytes.iter().zip(bytes.iter().skip(period)).all(|(a, b)| a == b);
    if (1..=bytes.len() / 2).any(repeats) {
        return Some("it repeats a shorter text");
    }
    // Remove common words and sequences, and check what remains.
    let mut rest = lower.clone();
    for word in WORDS {
        rest = rest.replace(word, " ");
    }
    let guessable: usize = in_rows(&rest);
    let unknown = rest.chars().filter(|c| c.is_alphanumeric()).count().saturating_sub(guessable);
    (unknown < UNKNOWN).then_some("it is made of common words and sequences")
}

/// Characters of `text` in sequences of at least four, forward or backward.
fn in_rows(text: &str) -> usize {
    let chars: Vec<char> = text.chars().collect();
    let stands = |a: char, b: char| ROWS.iter().any(|row| row.contains(&format!("{a}{b}")));
    let in_direction = |forwards: bool| {
        let (mut found, mut run) = (0, 1);
        for pair in chars.windows(2) {
            let goes_on = match pair {
                [a, b] if forwards => stands(*a, *b),
                [a, b] => stands(*b, *a),
                _ => false,
            };
            if goes_on {
                run += 1;
            } else {
                found += if run >= 4 { run } else { 0 };
                run = 1;
            }
        }
        found + if run >= 4 { run } else { 0 }
    };
    in_direction(true) + in_direction(false)
}

/// Minimum number of different characters.
const DISTINCT: usize = 8;
/// Minimum number of characters outside of common words and sequences.
const UNKNOWN: usize = 5;
/// Words from lists of common passwords.
const WORDS: &[&str] = &[
    "password",
    "passw0rd",
    "p4ssword",
    "passwort",
    "letmein",
    "welcome",
    "changeme",
    "change-me",
    "change_me",
    "secret",
    "default",
    "example",
    "qwerty",
    "iloveyou",
    "monkey",
    "dragon",
    "sunshine",
    "princess",
    "football",
    "baseball",
    "superman",
    "batman",
    "master",
    "trustno",
    "whatever",
    "starwars",
    "shadow",
    "michael",
    "correcthorse",
    "batterystaple",
    "token",
    "shepherd",
    "monitor",
    "please",
    "insecure",
    "placeholder",
];
/// Sequences of the alphabet and of keyboard rows.
const ROWS: &[&str] = &[
    "0123456789",
    "1234567890",
    "abcdefghijklmnopqrstuvwxyz",
    "qwertyuiop",
    "qwertz",
    "asdfghjkl",
    "zxcvbnm",
    "yxcvbnm",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(admin: &str) -> Tokens {
        Tokens::new(&[(Role::Viewer, "viewer-9f31-viewer-77".to_owned()), (Role::Admin, admin.to_owned())]).unwrap()
    }

    #[test]
    fn only_exact_tokens_are_accepted() {
        let tokens = tokens("admin-4c58-admin-20");
        assert_eq!(tokens.role_of("viewer-9f31-viewer-77"), Some(Role::Viewer));
        assert_eq!(tokens.role_of("admin-4c58-admin-20"), Some(Role::Admin));
        for wrong in ["", "admin-4c58-admin-2", "admin-4c58-admin-20 ", "session 1.admin."] {
            assert_eq!(tokens.role_of(wrong), None, "{wrong}");
        }
        assert_eq!(format!("{tokens:?}"), "[Viewer, Admin]");
    }

    #[test]
    fn short_and_repeated_tokens_are_rejected() {
        let new = |tokens: &[(Role, &str)]| {
            let tokens: Vec<_> = tokens.iter().map(|(role, token)| (*role, (*token).to_owned())).collect();
            Tokens::new(&tokens).err()
        };
        assert_eq!(new(&[(Role::Admin, "short")]), Some(BadTokens::Short(Role::Admin)));
        let same = "the-same-token-twice";
        assert_eq!(new(&[(Role::Viewer, same), (Role::Admin, same)]), Some(BadTokens::Twice(Role::Admin)));
    }

    #[test]
    fn only_tokens_that_are_easy_to_guess_are_rejected() {
        for (weak, why) in [
            ("aaaaaaaaaaaaaaaa", "different characters"),
            ("abababababababab", "different characters"),
            ("Tr0ub4dor&Tr0ub4dor&", "repeats"),
            ("password12345678", "common words"),
            ("Passw0rd-Passw0rd!", "common words"),
            ("0123456789abcdef", "common words"),
            ("zyxwvutsrqponmlk", "common words"),
            ("qwertyuiopasdfghjkl", "common words"),
            ("changeme-please-1", "common words"),
            ("shepherd-monitor-1", "common words"),
            ("correcthorsebatterystaple", "common words"),
        ] {
            assert!(weakness(weak).is_some_and(|said| said.contains(why)), "{weak}: {:?}", weakness(weak));
        }
        for good in [
            "4f2a91c07be84d16a1b7",
            "kT9-vm2_Qx7LpZr4WnB8",
            "sixteen-characters",
            "viewer-0123456789",
            "operator-0123456789",
            "an administrators token",
            "purple otter drinks nine coffees",
            "7f3b0c2e-5d1a-4e8f-9b6c-2a4d8e0f1c3b",
        ] {
            assert_eq!(weakness(good), None, "{good}");
        }
    }
}
