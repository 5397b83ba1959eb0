//! The tokens by which people and programs are known, and the sessions of those who logged in with
//! one.
//!
//! No token is kept: only what a keyed hash makes of it. The key is made of all tokens, so that every
//! monitor with the same tokens knows a session, and none does once one of them is another.

use std::fmt;

use ring::hmac::{self, HMAC_SHA256, Key};

use super::Role;

/// Tokens shorter than this can be guessed.
pub const SHORTEST: usize = 16;
/// How long a session lasts, seconds: a week.
pub const SESSION_SEC: u64 = 7 * 86_400;

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

/// Why tokens cannot be used: whose, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadTokens {
    /// There is none.
    None,
    /// It is shorter than [`SHORTEST`].
    Short(Role),
    /// It is the same as that of another role.
    Twice(Role),
}

/// Who a session is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// What they call themselves.
    pub name: String,
    /// What they may do.
    pub role: Role,
}

impl Tokens {
    /// These tokens.
    ///
    /// # Errors
    /// When they are none, too short or not different.
    pub fn new(tokens: &[(Role, String)]) -> Result<Self, BadTokens> {
        let mut material = Vec::new();
        for (place, (role, token)) in tokens.iter().enumerate() {
            if token.len() < SHORTEST {
                return Err(BadTokens::Short(*role));
            }
            if tokens.iter().take(place).any(|(_, earlier)| earlier == token) {
                return Err(BadTokens::Twice(*role));
            }
            material.extend_from_slice(format!("{role} {} {token}\n", token.len()).as_bytes());
        }
        if tokens.is_empty() {
            return Err(BadTokens::None);
        }
        let key = Key::new(HMAC_SHA256, &material);
        let tags = tokens.iter().map(|(role, token)| (*role, hmac::sign(&key, token.as_bytes()))).collect();
        Ok(Self { key, tags })
    }

    /// Whose token this is. Takes as long for a wrong one as for a right one.
    #[must_use]
    pub fn role_of(&self, given: &str) -> Option<Role> {
        self.tags.iter().fold(None, |found, (role, tag)| {
            let right = hmac::verify(&self.key, given.as_bytes(), tag.as_ref()).is_ok();
            if right { Some(*role) } else { found }
        })
    }

    /// A session that begins at `now` (Unix seconds), as a cookie's value.
    #[must_use]
    pub fn session(&self, session: &Session, now: u64) -> String {
        let text = format!("{}.{}.{}", now + SESSION_SEC, session.role, hex(session.name.as_bytes()));
        let tag = hmac::sign(&self.key, signed(&text).as_bytes());
        format!("{text}.{}", hex(tag.as_ref()))
    }

    /// The session of a cookie; `None` if it is over, or was not made with these tokens.
    #[must_use]
    pub fn read_session(&self, cookie: &str, now: u64) -> Option<Session> {
        let (text, tag) = cookie.rsplit_once('.')?;
        hmac::verify(&self.key, signed(text).as_bytes(), &unhex(tag)?).ok()?;
        let mut parts = text.split('.');
        let (until, role, name) = (parts.next()?, parts.next()?, parts.next()?);
        if until.parse::<u64>().ok()? <= now {
            return None;
        }
        Some(Session { name: String::from_utf8(unhex(name)?).ok()?, role: role.parse().ok()? })
    }
}

/// Nobody's token can be mistaken for a session.
fn signed(text: &str) -> String {
    format!("session {text}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    let byte = |pair: &[u32]| pair.iter().fold(0, |byte, digit| byte * 16 + digit);
    digits.chunks(2).map(|pair| u8::try_from(byte(pair)).ok()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens(admin: &str) -> Tokens {
        Tokens::new(&[(Role::Viewer, "viewer-viewer-viewer".to_owned()), (Role::Admin, admin.to_owned())]).unwrap()
    }

    #[test]
    fn a_token_is_known_and_nothing_else_is() {
        let tokens = tokens("admin-admin-admin");
        assert_eq!(tokens.role_of("viewer-viewer-viewer"), Some(Role::Viewer));
        assert_eq!(tokens.role_of("admin-admin-admin"), Some(Role::Admin));
        for wrong in ["", "admin-admin-admi", "admin-admin-admin ", "session 1.admin."] {
            assert_eq!(tokens.role_of(wrong), None, "{wrong}");
        }
        assert_eq!(format!("{tokens:?}"), "[Viewer, Admin]");
    }

    #[test]
    fn tokens_that_protect_nothing_are_refused() {
        let new = |tokens: &[(Role, &str)]| {
            let tokens: Vec<_> = tokens.iter().map(|(role, token)| (*role, (*token).to_owned())).collect();
            Tokens::new(&tokens).err()
        };
        assert_eq!(new(&[]), Some(BadTokens::None));
        assert_eq!(new(&[(Role::Admin, "short")]), Some(BadTokens::Short(Role::Admin)));
        let same = "the-same-token-twice";
        assert_eq!(new(&[(Role::Viewer, same), (Role::Admin, same)]), Some(BadTokens::Twice(Role::Admin)));
    }

    #[test]
    fn a_session_ends_with_its_time_and_with_any_of_the_tokens() {
        let (session, now) = (Session { name: "Bo. <b>".to_owned(), role: Role::Viewer }, 1_700_000_000);
        let cookie = tokens("admin-admin-admin").session(&session, now);
        assert!(cookie.chars().all(|c| c.is_ascii_alphanumeric() || c == '.'), "{cookie}");
        assert_eq!(tokens("admin-admin-admin").read_session(&cookie, now + 5), Some(session));
        assert_eq!(tokens("admin-admin-admin").read_session(&cookie, now + SESSION_SEC), None);
        assert_eq!(tokens("another-admin-token").read_session(&cookie, now), None);
    }

    proptest! {
        #[test]
        fn no_changed_session_is_believed(place in any::<prop::sample::Index>(), to in any::<char>()) {
            let tokens = tokens("admin-admin-admin");
            let cookie = tokens.session(&Session { name: "bo".to_owned(), role: Role::Viewer }, 1);
            let mut changed: Vec<char> = cookie.chars().collect();
            let place = place.index(changed.len());
            changed[place] = to;
            let changed: String = changed.into_iter().collect();
            // The tag's digits may be written in either case, what it is the tag of may not.
            let in_the_tag = place > cookie.rfind('.').unwrap();
            let same = if in_the_tag { changed.eq_ignore_ascii_case(&cookie) } else { changed == cookie };
            prop_assert_eq!(tokens.read_session(&changed, 2).is_some(), same);
        }
    }
}
