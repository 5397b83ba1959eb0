//! Who guessed wrong lately: after some tries an address has to wait.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::web::problem::Problem;

/// Wrong guesses of one address in [`WITHIN`].
const MOST: u32 = 10;
/// For so long they count.
const WITHIN: Duration = Duration::from_secs(60);
/// Addresses known at most; when there are more, the older half is forgotten.
const ADDRESSES: usize = 4096;

/// Wrong guesses by address, and since when they are counted.
#[derive(Debug, Default)]
pub struct Failures(Mutex<HashMap<Option<IpAddr>, (u32, Instant)>>);

impl Failures {
    /// Whether this address may try.
    ///
    /// # Errors
    /// When it has to wait.
    pub fn may_try(&self, peer: Option<IpAddr>) -> Result<(), Problem> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&peer) {
            Some((count, since)) if *count >= MOST && since.elapsed() < WITHIN => {
                Err(Problem::TooMany { wait: WITHIN.saturating_sub(since.elapsed()).as_secs() + 1 })
            }
            _ => Ok(()),
        }
    }

    /// It guessed wrong.
    pub fn note(&self, peer: Option<IpAddr>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= ADDRESSES {
            known.retain(|_, (_, since)| since.elapsed() < WITHIN / 2);
        }
        let entry = known.entry(peer).or_insert((0, Instant::now()));
        if entry.1.elapsed() >= WITHIN {
            *entry = (0, Instant::now());
        }
        entry.0 += 1;
        tracing::warn!(address = ?peer, count = entry.0, "a login was wrong");
    }
}
