//! Security events, and how repetitions of them are bounded. Without I/O.
//!
//! The first event of a kind, address and user in a minute is logged and recorded on its own, the following ones are
//! counted and reported as one at the end of the minute. A flood thus adds few log lines and rows.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Role;
use super::address::client_prefix;

/// Period of counting repetitions.
const PERIOD: Duration = Duration::from_secs(60);
/// Different events per period of the users of each role, and as many of others; further ones are counted per kind.
const MOST: usize = 40;

/// Kind of a security event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SecurityKind {
    /// A user logged in on the login page.
    Login,
    /// A user logged out, which revokes the session.
    Logout,
    /// Wrong credentials.
    FailedLogin,
    /// An attempt was rejected because too many failed before.
    Throttled,
    /// A request without permission: credentials, role, origin or scope.
    Denied,
    /// First valid use of a role's token from an address.
    TokenFirstUse,
    /// A change, which has a row in the audit log of its own.
    Change,
}

impl SecurityKind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Login,
        Self::Logout,
        Self::FailedLogin,
        Self::Throttled,
        Self::Denied,
        Self::TokenFirstUse,
        Self::Change,
    ];

    /// Label in metrics and in the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Logout => "logout",
            Self::FailedLogin => "failed_login",
            Self::Throttled => "throttled_login",
            Self::Denied => "denied",
            Self::TokenFirstUse => "token_first_use",
            Self::Change => "change",
        }
    }

    /// Log message, and action in the audit log.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Login => "logged in",
            Self::Logout => "logged out",
            Self::FailedLogin => "failed login",
            Self::Throttled => "login attempt rejected after too many failures",
            Self::Denied => "request denied",
            Self::TokenFirstUse => "first use of a token from this address",
            Self::Change => "change",
        }
    }

    /// Whether the request was rejected.
    #[must_use]
    pub fn is_rejection(self) -> bool {
        matches!(self, Self::FailedLogin | Self::Throttled | Self::Denied)
    }
}

/// A security event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityEvent {
    /// Kind.
    pub kind: SecurityKind,
    /// User; claimed by the client unless there is a role. Empty if unknown.
    pub user: String,
    /// Role of an authenticated user.
    pub role: Option<Role>,
    /// Client address.
    pub address: Option<IpAddr>,
    /// What was requested, and why it was rejected.
    pub detail: String,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    kind: SecurityKind,
    address: Option<IpAddr>,
    role: Option<Role>,
    /// An unauthenticated client may claim any name.
    user: Option<String>,
}

/// Repetitions of an event within a period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeated {
    /// The first one; of several addresses, only the kind.
    pub event: SecurityEvent,
    /// Number of events after the first one.
    pub count: u64,
}

/// Events of the current period.
#[derive(Debug, Default)]
pub struct Tally {
    since: Option<Instant>,
    seen: HashMap<Key, Repeated>,
    /// Events beyond [`MOST`].
    others: BTreeMap<SecurityKind, u64>,
}

impl Tally {
    /// Counts an event. Returns whether it is to be logged and recorded on its own.
    pub fn note(&mut self, event: &SecurityEvent, now: Instant) -> bool {
        self.since.get_or_insert(now);
        let user = event.role.is_some().then(|| event.user.clone());
        let key = Key { kind: event.kind, address: event.address.map(client_prefix), role: event.role, user };
        if let Some(known) = self.seen.get_mut(&key) {
            known.count += 1;
            return false;
        }
        // Counted separately, so that neither a flood of rejected requests nor a viewer can hide the login of an admin.
        if self.seen.keys().filter(|known| known.role == event.role).count() >= MOST {
            *self.others.entry(event.kind).or_default() += 1;
            return false;
        }
        self.seen.insert(key, Repeated { event: event.clone(), count: 0 });
        true
    }

    /// Returns the repetitions once the period is over, and begins a new one.
    pub fn take_due(&mut self, now: Instant) -> Vec<Repeated> {
        match self.since {
            Some(since) if now.duration_since(since) >= PERIOD => self.take(),
            _ => Vec::new(),
        }
    }

    /// Returns the repetitions so far, and begins a new period.
    pub fn take(&mut self) -> Vec<Repeated> {
        self.since = None;
        let seen = std::mem::take(&mut self.seen).into_values().filter(|repeated| repeated.count > 0);
        let others = std::mem::take(&mut self.others).into_iter().map(|(kind, count)| {
            let (user, detail) = (String::new(), "from several addresses or users".to_owned());
            Repeated { event: SecurityEvent { kind, user, role: None, address: None, detail }, count }
        });
        seen.chain(others).collect()
    }

    /// Whether no period has begun.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.since.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn event(kind: SecurityKind, address: u32, role: Option<Role>, user: &str) -> SecurityEvent {
        let address = Some(Ipv4Addr::from(address).into());
        SecurityEvent { kind, user: user.to_owned(), role, address, detail: String::new() }
    }

    #[test]
    fn repetitions_of_an_address_are_counted_and_reported_once() {
        let (mut tally, begun) = (Tally::default(), Instant::now());
        // A claimed name does not make an event another one.
        let firsts =
            (0..1000).filter(|n| tally.note(&event(SecurityKind::FailedLogin, 7, None, &format!("user {n}")), begun));
        assert_eq!(firsts.count(), 1);
        assert!(tally.note(&event(SecurityKind::FailedLogin, 8, None, ""), begun), "another address");
        assert!(tally.note(&event(SecurityKind::Denied, 7, None, ""), begun), "another kind");
        assert_eq!(tally.take_due(begun + PERIOD / 2), []);
        let repeated = tally.take_due(begun + PERIOD);
        let [one] = repeated.as_slice() else { panic!("{repeated:?}") };
        assert_eq!((one.count, one.event.user.as_str()), (999, "user 0"));
        assert!(tally.is_idle() && tally.note(&event(SecurityKind::FailedLogin, 7, None, ""), begun + PERIOD));
    }

    #[test]
    fn a_flood_from_many_addresses_is_bounded_and_hides_no_login() {
        let (mut tally, now) = (Tally::default(), Instant::now());
        let firsts = (0..100_000).filter(|n| tally.note(&event(SecurityKind::FailedLogin, *n, None, ""), now)).count();
        assert_eq!(firsts, MOST);
        // Nor can a user with a token fill the log with names, or hide a user with another role.
        let names = (0..1000)
            .filter(|n| tally.note(&event(SecurityKind::Login, 1, Some(Role::Viewer), &format!("user {n}")), now));
        assert_eq!(names.count(), MOST);
        assert!(tally.note(&event(SecurityKind::Login, 1, Some(Role::Admin), "bo"), now));
        let others: Vec<(SecurityKind, u64)> = tally.take().iter().map(|one| (one.event.kind, one.count)).collect();
        let (logins, failed) = (1000 - u64::try_from(MOST).unwrap(), 100_000 - u64::try_from(MOST).unwrap());
        assert_eq!(others, [(SecurityKind::Login, logins), (SecurityKind::FailedLogin, failed)]);
    }
}
