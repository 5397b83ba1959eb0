//! Who guessed wrong lately: after some tries an address is told to wait, and fills the log no more.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::access::address::household;
use crate::web::problem::Problem;

/// Wrong guesses of one address in [`WITHIN`].
const MOST: u32 = 100;
/// For so long they count.
const WITHIN: Duration = Duration::from_secs(60);
/// Addresses known at most; when there are more, those of old are forgotten, or all.
const ADDRESSES: usize = 4096;

/// Wrong guesses by address, and since when they are counted.
#[derive(Debug, Default)]
pub struct Failures(Mutex<HashMap<Option<IpAddr>, (u32, Instant)>>);

impl Failures {
    /// It guessed wrong. Who is right is let in all the same: others may share the address.
    ///
    /// # Errors
    /// When it did so too often.
    pub fn note(&self, peer: Option<IpAddr>) -> Result<(), Problem> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= ADDRESSES {
            known.retain(|_, (_, since)| since.elapsed() < WITHIN);
            if known.len() >= ADDRESSES {
                known.clear();
            }
        }
        let entry = known.entry(peer.map(household)).or_insert((0, Instant::now()));
        if entry.1.elapsed() >= WITHIN {
            *entry = (0, Instant::now());
        }
        entry.0 += 1;
        if entry.0 > MOST {
            return Err(Problem::TooMany { wait: WITHIN.saturating_sub(entry.1.elapsed()).as_secs() + 1 });
        }
        tracing::warn!(address = ?peer, count = entry.0, "failed login");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn whoever_guesses_from_many_addresses_fills_no_memory() {
        let failures = Failures::default();
        for n in 0..20_000_u128 {
            let _ = failures.note(Some(Ipv6Addr::from_bits(n << 64).into()));
        }
        assert!(failures.0.lock().unwrap().len() <= ADDRESSES);
        let of = |n: u128| Some(Ipv6Addr::from_bits((9 << 100) + n).into());
        assert!((0..u128::from(MOST)).all(|n| failures.note(of(n)).is_ok()));
        assert!(matches!(failures.note(of(12345)), Err(Problem::TooMany { .. })), "the same /64");
    }
}
