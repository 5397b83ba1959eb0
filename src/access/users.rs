//! Named users: people and programs, each with a role and a token that expires. Without I/O.
//!
//! `shepherd-monitor users` creates them. The database has a hash of the token that is expensive to compute, in memory
//! too, and a proof that a holder of `MONITOR_SECRET_KEY` wrote the row.

use std::fmt;
use std::str::FromStr;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use ring::rand::{SecureRandom, SystemRandom};

use super::Role;
use super::sealing::SealingKey;

/// Beginning of each token, by which scanners for leaked secrets can recognize it.
const PREFIX: &str = "smtoken_";
/// Lengths of the ID and of the secret, hexadecimal digits.
const ID_DIGITS: usize = 16;
const SECRET_DIGITS: usize = 48;
/// Maximum length of a user name, characters.
pub const LONGEST_NAME: usize = 64;

/// Parameters of Argon2id: 7 MiB and five passes, which OWASP considers equivalent to 46 MiB and one pass. The monitor
/// verifies one token at a time, in its 20 MB of memory.
const MEMORY_KIB: u32 = 7 * 1024;
const PASSES: u32 = 5;

/// Key of the proofs of users, from `MONITOR_SECRET_KEY`.
#[must_use]
pub fn sealing_key(secret: &str) -> SealingKey {
    SealingKey::derive(secret.as_bytes(), "users")
}

/// Token of a named user, as the user presents it. `Debug` does not print the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct UserToken {
    id: String,
    secret: String,
}

/// A named user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Unique name: letters, digits and `._@+-`.
    pub name: String,
    /// Role.
    pub role: Role,
    /// Public part of the token.
    pub token_id: String,
    /// Hash of the secret part in PHC format.
    pub token_hash: String,
    /// When the token was created, Unix seconds.
    pub created: i64,
    /// When the token expires, Unix seconds.
    pub expires: i64,
}

/// The name cannot be that of a user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a user name: expected 1 to {LONGEST_NAME} letters, digits and . _ @ + -")]
pub struct BadName(String);

/// Checks a user name. It cannot look like that of a session of a shared token, `bo (admin token)`.
///
/// # Errors
/// If it is too long or has other characters.
pub fn user_name(text: &str) -> Result<String, BadName> {
    let right = |c: char| c.is_alphanumeric() || "._@+-".contains(c);
    let length = text.chars().count();
    if (1..=LONGEST_NAME).contains(&length) && text.chars().all(right) && !text.starts_with('-') {
        Ok(text.to_owned())
    } else {
        Err(BadName(text.chars().take(2 * LONGEST_NAME).collect()))
    }
}

impl UserToken {
    /// A new random token; `None` if the system returns no random bits.
    #[must_use]
    pub fn generate() -> Option<Self> {
        Some(Self { id: random_digits(ID_DIGITS)?, secret: random_digits(SECRET_DIGITS)? })
    }

    /// The public part.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The token itself, to be shown to its user once.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}", self.id, self.secret)
    }

    /// Hash of the secret part, in PHC format.
    ///
    /// # Errors
    /// If the system returns no random bits, or has too little memory.
    pub fn hash(&self) -> Result<String, String> {
        let hash = kdf()?.hash_password(self.secret.as_bytes()).map_err(|error| error.to_string())?;
        Ok(hash.to_string())
    }

    /// Whether this is the token of `hash`. Takes some hundredths of a second.
    #[must_use]
    pub fn is_of(&self, hash: &str) -> bool {
        let Ok(hash) = PasswordHash::new(hash) else { return false };
        // The parameters are those of the hash.
        Argon2::default().verify_password(self.secret.as_bytes(), &hash).is_ok()
    }
}

impl FromStr for UserToken {
    type Err = ();

    /// Recognizes the format; nothing is known about the token then.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (id, secret) = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).ok_or(())?;
        let hexadecimal = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let right = (id.len(), secret.len()) == (ID_DIGITS, SECRET_DIGITS) && hexadecimal(id) && hexadecimal(secret);
        right.then(|| Self { id: id.to_owned(), secret: secret.to_owned() }).ok_or(())
    }
}

impl fmt::Debug for UserToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}_(secret)", self.id)
    }
}

impl User {
    /// Proof for the database that a holder of `key` made this user.
    #[must_use]
    pub fn proof(&self, key: &SealingKey) -> Vec<u8> {
        key.seal(&self.sealed())
    }

    /// Whether `proof` is that of this user.
    #[must_use]
    pub fn is_proven(&self, key: &SealingKey, proof: &[u8]) -> bool {
        key.is_sealed(&self.sealed(), proof)
    }

    /// Whether the token is expired at `now`, Unix seconds.
    #[must_use]
    pub fn is_expired(&self, now: i64) -> bool {
        now >= self.expires
    }

    fn sealed(&self) -> Vec<u8> {
        let Self { name, role, token_id, token_hash, created, expires } = self;
        format!("{token_id} {created} {expires} {role} {token_hash} {name}").into_bytes()
    }
}

fn kdf() -> Result<Argon2<'static>, String> {
    let parameters = Params::new(MEMORY_KIB, PASSES, 1, None).map_err(|error| error.to_string())?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters))
}

fn random_digits(digits: usize) -> Option<String> {
    let mut bits = vec![0; digits / 2];
    SystemRandom::new().fill(&mut bits).ok()?;
    Some(bits.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_recognized_by_its_hash_only() {
        let (token, other) = (UserToken::generate().unwrap(), UserToken::generate().unwrap());
        let hash = token.hash().unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=7168,t=5,p=1$"), "{hash}");
        assert_eq!(token.reveal().parse(), Ok(token.clone()));
        assert!(token.is_of(&hash) && !other.is_of(&hash) && !token.is_of("") && !token.is_of("$argon2id$v=19$"));
        assert!(!hash.contains(&token.secret) && !format!("{token:?}").contains(&token.secret));
        assert_ne!(token.hash().unwrap(), hash, "each hash has its own salt");
    }

    #[test]
    fn other_texts_are_not_tokens_of_users() {
        let token = UserToken::generate().unwrap().reveal();
        let changed = [
            token.to_uppercase(),
            token.replace("smtoken", "token"),
            format!("{token}0"),
            token.replacen('_', "__", 1),
        ];
        for text in changed.iter().map(String::as_str).chain(["", "smtoken_", "smtoken__", "an administrators token"]) {
            assert_eq!(text.parse::<UserToken>(), Err(()), "{text}");
        }
    }

    #[test]
    fn a_row_is_proven_only_unchanged_and_by_the_same_secret() {
        let key = sealing_key("4f2a91c07be84d16a1b74f2a91c07be8");
        let user = User {
            name: "bo".to_owned(),
            role: Role::Viewer,
            token_id: "0123456789abcdef".to_owned(),
            token_hash: "$argon2id$".to_owned(),
            created: 5,
            expires: 10,
        };
        let proof = user.proof(&key);
        assert!(user.is_proven(&key, &proof));
        let changed = |change: fn(&mut User)| {
            let mut user = user.clone();
            change(&mut user);
            !user.is_proven(&key, &proof)
        };
        assert!(changed(|user| user.role = Role::Admin));
        assert!(changed(|user| user.name = "eve".to_owned()));
        assert!(changed(|user| user.token_hash.clear()));
        assert!(changed(|user| user.expires = i64::MAX));
        assert!(!user.is_proven(&sealing_key("another secret"), &proof));
        assert!(!user.is_proven(&key, &[]));
        assert!(!user.is_expired(9) && user.is_expired(10));
    }

    #[test]
    fn user_names_have_no_spaces_and_brackets() {
        for good in ["bo", "bo@fleet.example", "ci-deploy_2", "Zoë", &"x".repeat(LONGEST_NAME)] {
            assert_eq!(user_name(good).as_deref(), Ok(good));
        }
        for bad in ["", "bo (admin token)", "-x", "a\nb", "a\u{202e}b", &"x".repeat(LONGEST_NAME + 1)] {
            assert!(user_name(bad).is_err(), "{bad}");
        }
    }
}
