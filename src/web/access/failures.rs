//! Who guessed wrong lately: after some tries an address is told to wait, and fills the log no more.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::web::problem::Problem;

/// Wrong guesses of one address in [`WITHIN`].
const MOST: u32 = 100;
/// For so long they count.
const WITHIN: Duration = Duration::from_secs(60);
/// Addresses known at most; when there are more, the older half is forgotten.
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
            known.retain(|_, (_, since)| since.elapsed() < WITHIN / 2);
        }
        let entry = known.entry(peer).or_insert((0, Instant::now()));
        if entry.1.elapsed() >= WITHIN {
            *entry = (0, Instant::now());
        }
        entry.0 += 1;
        if entry.0 > MOST {
            return Err(Problem::TooMany { wait: WITHIN.saturating_sub(entry.1.elapsed()).as_secs() + 1 });
        }
        tracing::warn!(address = ?peer, count = entry.0, "a login was wrong");
        Ok(())
    }
}
