//! Failed logins, counted per address, per account and in total. Many of them are reported. Above a limit, attempts are
//! delayed whether they are valid or not: guessing becomes too slow, and no user is locked out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::rt::time::sleep;

use crate::access::Role;
use crate::access::address::client_prefix;
use crate::web::problem::Problem;

/// Failures per address or account within [`WITHIN`].
const MOST: u32 = 100;
/// Total failures within [`WITHIN`]. Above it, addresses with more than [`FEW`] are delayed as well.
const MOST_IN_ALL: u32 = 1000;
const FEW: u32 = 5;
/// Failures of an address, and in total, within [`WITHIN`] that are reported as an event.
const REPORTED: u32 = 20;
const REPORTED_IN_ALL: u32 = 200;
/// Period over which failures are counted.
const WITHIN: Duration = Duration::from_secs(60);
/// Delay of an attempt after too many failures.
const PAUSE: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(1) };
/// Delayed attempts per address and in total; further ones are rejected without a check.
const WAITING: u32 = 4;
const WAITING_IN_ALL: u32 = 64;
/// Maximum number of addresses and accounts tracked.
const KNOWN: usize = 4096;
/// An address with valid credentials is not delayed for the same credentials for this long.
const TRUSTED_FOR: Duration = Duration::from_secs(86_400);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Address(Option<IpAddr>),
    Account(String),
}

#[derive(Debug, Clone, Copy)]
struct Count {
    wrong: u32,
    since: Instant,
    waiting: u32,
}

#[derive(Debug, Default)]
struct Known {
    counts: HashMap<Key, Count>,
    in_all: Option<Count>,
    right: HashMap<(Option<IpAddr>, Holder), Instant>,
    many: Vec<ManyFailures>,
}

/// Many failed logins within a minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ManyFailures {
    /// Their address; `None`: all addresses.
    pub address: Option<IpAddr>,
    /// Their number.
    pub count: u32,
}

/// Whose valid credentials an attempt had.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Holder {
    /// A client with the shared token of a role.
    Role(Role),
    /// The named user with the token of this ID.
    User(String),
}

/// A login attempt: address and account.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Client address.
    pub address: Option<IpAddr>,
    /// Claimed user name.
    pub account: Option<String>,
}

/// Recent failed logins.
#[derive(Debug, Default)]
pub struct Failures(Mutex<Known>);

/// Slot of a delayed attempt, released when dropped.
struct Waits<'a> {
    failures: &'a Failures,
    key: Key,
}

impl Failures {
    /// Records an attempt with valid credentials of `holder`, or with wrong ones; waits first if there were too many
    /// failures. Returns whether they were valid for the first time at this address within a day.
    ///
    /// # Errors
    /// If too many attempts are waiting, or the credentials are wrong and the limit is exceeded.
    pub async fn settle(&self, attempt: &Attempt, holder: Option<Holder>) -> Result<bool, Problem> {
        let slow = {
            let mut known = self.known();
            let trusted = holder.as_ref().is_some_and(|holder| known.trusts(attempt, holder, Instant::now()));
            !trusted && known.is_too_many(attempt, Instant::now())
        };
        if slow {
            let waits = self.wait(attempt)?;
            sleep(PAUSE).await;
            drop(waits);
        }
        match holder {
            Some(holder) => Ok(self.known().trust(attempt, holder, Instant::now())),
            None => self.note(attempt, Instant::now()).map(|()| false),
        }
    }

    /// To be called before a verification that is expensive.
    ///
    /// # Errors
    /// If there were too many failures.
    pub fn may_verify(&self, attempt: &Attempt) -> Result<(), Problem> {
        match self.known().is_too_many(attempt, Instant::now()) {
            true => Err(Problem::TooMany { wait: PAUSE.as_secs() + 1 }),
            false => Ok(()),
        }
    }

    /// Returns the addresses that reached the number of failures to report since the last call.
    pub(super) fn take_many(&self) -> Vec<ManyFailures> {
        std::mem::take(&mut self.known().many)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, attempt: &Attempt) -> Result<Waits<'_>, Problem> {
        let mut known = self.known();
        let waiting_in_all: u32 = known.counts.values().map(|count| count.waiting).sum();
        let key = Key::Address(attempt.address.map(client_prefix));
        let count = known.count(&key, Instant::now());
        if count.waiting >= WAITING || waiting_in_all >= WAITING_IN_ALL {
            return Err(Problem::TooMany { wait: PAUSE.as_secs() + 1 });
        }
        count.waiting += 1;
        Ok(Waits { failures: self, key })
    }

    fn note(&self, attempt: &Attempt, now: Instant) -> Result<(), Problem> {
        let mut known = self.known();
        let mut over = None;
        for key in attempt.keys() {
            let count = known.count(&key, now);
            count.wrong = count.wrong.saturating_add(1);
            if count.wrong > MOST {
                over = Some(WITHIN.saturating_sub(now.duration_since(count.since)).as_secs() + 1);
            }
            if matches!(key, Key::Address(_)) && count.wrong == REPORTED {
                known.many.push(ManyFailures { address: attempt.address, count: REPORTED });
            }
        }
        let in_all = known.in_all.get_or_insert(Count { wrong: 0, since: now, waiting: 0 });
        if now.duration_since(in_all.since) >= WITHIN {
            *in_all = Count { wrong: 0, since: now, waiting: 0 };
        }
        in_all.wrong = in_all.wrong.saturating_add(1);
        let wrong = in_all.wrong;
        if wrong == REPORTED_IN_ALL {
            known.many.push(ManyFailures { address: None, count: wrong });
        }
        if wrong == MOST_IN_ALL {
            tracing::warn!(count = wrong, "failed logins from many addresses; attempts are slowed down");
        }
        match over {
            Some(wait) => Err(Problem::TooMany { wait }),
            None => Ok(()),
        }
    }
}

impl Attempt {
    fn keys(&self) -> Vec<Key> {
        let account = self.account.as_ref().map(|name| Key::Account(name.clone()));
        std::iter::once(Key::Address(self.address.map(client_prefix))).chain(account).collect()
    }
}

impl Known {
    /// Count of `key` at `now`. When the table is full, the entries with the fewest failures are evicted.
    fn count(&mut self, key: &Key, now: Instant) -> &mut Count {
        if self.counts.len() >= KNOWN && !self.counts.contains_key(key) {
            self.counts.retain(|_, count| count.waiting > 0 || now.duration_since(count.since) < WITHIN);
            if self.counts.len() >= KNOWN {
                let mut wrong: Vec<u32> = self.counts.values().map(|count| count.wrong).collect();
                let (_, median, _) = wrong.select_nth_unstable(KNOWN / 2);
                let (few, mut excess) = (*median, KNOWN / 4);
                self.counts.retain(|_, count| {
                    let goes = count.waiting == 0 && count.wrong <= few && excess > 0;
                    excess -= usize::from(goes);
                    !goes
                });
            }
        }
        let count = self.counts.entry(key.clone()).or_insert(Count { wrong: 0, since: now, waiting: 0 });
        if now.duration_since(count.since) >= WITHIN {
            *count = Count { wrong: 0, since: now, waiting: count.waiting };
        }
        count
    }

    fn is_too_many(&mut self, attempt: &Attempt, now: Instant) -> bool {
        let wrong = |key: &Key| {
            let recent = self.counts.get(key).filter(|count| now.duration_since(count.since) < WITHIN);
            recent.map_or(0, |count| count.wrong)
        };
        let crowded = self.in_all.is_some_and(|all| all.wrong >= MOST_IN_ALL && now.duration_since(all.since) < WITHIN);
        let most = if crowded { FEW } else { MOST };
        attempt.keys().iter().any(|key| wrong(key) > most)
    }

    fn trusts(&self, attempt: &Attempt, holder: &Holder, now: Instant) -> bool {
        let known = self.right.get(&(attempt.address.map(client_prefix), holder.clone()));
        known.is_some_and(|then| now.duration_since(*then) < TRUSTED_FOR)
    }

    fn trust(&mut self, attempt: &Attempt, holder: Holder, now: Instant) -> bool {
        if self.right.len() >= KNOWN {
            self.right.retain(|_, then| now.duration_since(*then) < TRUSTED_FOR);
            if self.right.len() >= KNOWN {
                return false;
            }
        }
        let before = self.right.insert((attempt.address.map(client_prefix), holder), now);
        before.is_none_or(|then| now.duration_since(then) >= TRUSTED_FOR)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.failures.known().counts.get_mut(&self.key) {
            count.waiting = count.waiting.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn from(address: u128) -> Attempt {
        Attempt { address: Some(Ipv6Addr::from_bits(address).into()), account: None }
    }

    fn note(failures: &Failures, attempt: &Attempt) -> Result<(), Problem> {
        failures.note(attempt, Instant::now())
    }

    #[test]
    fn tracked_addresses_are_bounded_without_losing_high_counts() {
        let failures = Failures::default();
        let guesser = 9 << 100;
        for n in 0..=u128::from(MOST) {
            let _ = note(&failures, &from(guesser + n));
        }
        for n in 0..20_000_u128 {
            let _ = note(&failures, &from(n << 64));
        }
        assert!(failures.known().counts.len() <= KNOWN);
        assert!(matches!(note(&failures, &from(guesser + 12_345)), Err(Problem::TooMany { .. })), "the same /64");
        assert!(failures.known().is_too_many(&from(guesser), Instant::now()));
        assert!(!failures.known().is_too_many(&from(7 << 100), Instant::now()), "one that never guessed");
    }

    #[test]
    fn failures_of_an_account_are_summed_over_addresses() {
        let failures = Failures::default();
        let at = |n: u128| Attempt { account: Some("bo".to_owned()), ..from(n << 64) };
        assert!((0..u128::from(MOST)).all(|n| note(&failures, &at(n)).is_ok()));
        assert!(matches!(note(&failures, &at(500)), Err(Problem::TooMany { .. })));
        assert!(failures.known().is_too_many(&at(501), Instant::now()));
        assert!(!failures.known().is_too_many(&from(501 << 64), Instant::now()));
    }

    #[test]
    fn many_failures_of_an_address_and_in_all_are_reported_once_a_minute() {
        let (failures, begun) = (Failures::default(), Instant::now());
        for n in 0..300 {
            let _ = failures.note(&from(u128::from(n % 4_u32) << 64), begun);
        }
        let many = failures.take_many();
        let of_addresses = many.iter().filter(|many| many.address.is_some() && many.count == REPORTED);
        assert_eq!((of_addresses.count(), many.len()), (4, 5));
        assert!(many.contains(&ManyFailures { address: None, count: REPORTED_IN_ALL }));
        assert_eq!(failures.take_many(), []);
    }

    #[tokio::test]
    async fn the_first_valid_use_at_an_address_is_recognized() {
        let failures = Failures::default();
        let first = async |n, role| failures.settle(&from(n), Some(Holder::Role(role))).await.unwrap();
        assert!(first(1, Role::Viewer).await && !first(1, Role::Viewer).await);
        assert!(first(1, Role::Admin).await && first(1 << 64, Role::Viewer).await);
    }

    #[test]
    fn counts_expire() {
        let (failures, begun) = (Failures::default(), Instant::now());
        for _ in 0..=MOST {
            let _ = failures.note(&from(1), begun);
        }
        let later = begun + WITHIN;
        assert!(failures.known().is_too_many(&from(1), begun));
        assert!(!failures.known().is_too_many(&from(1), later));
        assert!(failures.note(&from(1), later).is_ok());
    }

    #[tokio::test]
    async fn valid_credentials_are_delayed_as_long_as_wrong_ones() {
        let failures = Failures::default();
        let (guesser, program) = (from(1), Some(Role::Viewer));
        failures.settle(&guesser, program.map(Holder::Role)).await.unwrap();
        for _ in 0..=MOST {
            let _ = note(&failures, &guesser);
        }
        let timed = |role: Option<Role>| {
            let (failures, guesser) = (&failures, guesser.clone());
            async move {
                let begun = Instant::now();
                (failures.settle(&guesser, role.map(Holder::Role)).await.is_ok(), begun.elapsed() >= PAUSE)
            }
        };
        assert_eq!(timed(None).await, (false, true));
        assert_eq!(timed(Some(Role::Admin)).await, (true, true));
        assert_eq!(timed(program).await, (true, false), "a program that was right there before");
        let many = futures_util::future::join_all((0..10).map(|_| timed(Some(Role::Operator)))).await;
        assert_eq!(many.iter().filter(|(looked_at, _)| !looked_at).count(), 6, "more are not even looked at");
    }
}
