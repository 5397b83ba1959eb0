//! Verifies the tokens of named users, which are in Postgres.
//!
//! Verifying a token is expensive by design, so it is done once: afterwards a keyed hash in memory recognizes it, and
//! rejects others. Whether the user still exists, with the same role, is read from Postgres at most every half second; a
//! revoked token is rejected within that time. While Postgres is unreachable, tokens that were verified before are
//! accepted until they expire.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::rt;
use ring::hmac::{self, HMAC_SHA256, Key};
use ring::rand::SystemRandom;
use tokio::sync::Semaphore;

use super::gate::unix_seconds;
use crate::access::sealing::SealingKey;
use crate::access::users::{User, UserToken, sealing_key};
use crate::actors::io::{Io, POSTGRES_LATE};
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::postgres::users as stored;

/// A user confirmed by Postgres is valid for this long, which bounds the delay of a revocation.
const CHECKED_FOR: Duration = Duration::from_millis(500);
/// Timeout of reading or writing a user in Postgres.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// Pause after Postgres failed to answer a lookup.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Interval of storing that a token is in use.
const TOUCH_EVERY: Duration = Duration::from_secs(300);

/// Named users that used the monitor.
pub struct Users {
    key: SealingKey,
    /// Key of the hashes in memory; it never leaves the process.
    memory_key: Key,
    known: Mutex<HashMap<String, Known>>,
    /// One lookup and one verification at a time: anonymous clients can send tokens. Tokens that were verified do not queue
    /// behind others.
    lookups: Semaphore,
    confirmations: Semaphore,
    verifications: Semaphore,
    /// Time of the last failed lookup in Postgres.
    failed: Mutex<Option<Instant>>,
}

struct Known {
    user: User,
    checked: Instant,
    /// Hash of the valid token, once it was presented.
    verified: Option<hmac::Tag>,
    touched: Option<Instant>,
}

/// The system returns no random bits.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the system returns no random bits")]
pub struct NoRandomBits;

/// A token of a named user that cannot be used.
#[derive(Debug)]
pub(super) enum Unusable {
    /// There is no such token, or no longer.
    Unknown,
    /// It was valid.
    Expired(User),
    /// Postgres cannot be read.
    Unverifiable(SourceTrouble),
}

impl Users {
    /// Creates an empty store; `secret` proves the rows in Postgres.
    ///
    /// # Errors
    /// If the system returns no random bits.
    pub fn new(secret: &str) -> Result<Self, NoRandomBits> {
        Ok(Self {
            key: sealing_key(secret),
            memory_key: Key::generate(HMAC_SHA256, &SystemRandom::new()).map_err(|_| NoRandomBits)?,
            known: Mutex::default(),
            lookups: Semaphore::new(1),
            confirmations: Semaphore::new(1),
            verifications: Semaphore::new(1),
            failed: Mutex::default(),
        })
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The user with this token.
    ///
    /// # Errors
    /// If there is none, or the token is expired or cannot be verified.
    pub(super) async fn owner(&self, io: &Io, token: &UserToken) -> Result<User, Unusable> {
        if !self.is_known_well(token.id()) {
            let slots = if self.must_verify(token) { &self.lookups } else { &self.confirmations };
            let _one_of_few = slots.acquire().await;
            if !self.is_known_well(token.id()) {
                self.look_up(io, &[token.id().to_owned()]).await.map_err(Unusable::Unverifiable)?;
            }
        }
        let user = self.known().get(token.id()).map(|known| known.user.clone()).ok_or(Unusable::Unknown)?;
        let verified = match self.is_verified(token, &user) {
            Some(verified) => verified,
            None => {
                let _one_of_few = self.verifications.acquire().await;
                // Several requests may have waited for the same verification.
                match self.is_verified(token, &user) {
                    Some(verified) => verified,
                    None => self.verify(token, &user).await,
                }
            }
        };
        if !verified {
            return Err(Unusable::Unknown);
        }
        if user.is_expired(now()) {
            return Err(Unusable::Expired(user));
        }
        self.touch(io, token.id());
        Ok(user)
    }

    /// The users with these tokens that exist and are not expired, as Postgres has them.
    ///
    /// # Errors
    /// If Postgres cannot be read.
    pub(super) async fn current(&self, io: &Io, token_ids: &[String]) -> Result<Vec<User>, SourceTrouble> {
        let due: Vec<String> = token_ids.iter().filter(|id| !self.is_known_well(id)).cloned().collect();
        if !due.is_empty() {
            self.look_up(io, &due).await?;
        }
        let (known, now) = (self.known(), now());
        let users = token_ids.iter().filter_map(|id| known.get(id)).map(|known| known.user.clone());
        Ok(users.filter(|user| !user.is_expired(now)).collect())
    }

    fn is_known_well(&self, token_id: &str) -> bool {
        self.known().get(token_id).is_some_and(|known| known.checked.elapsed() < CHECKED_FOR)
    }

    /// Updates these users from Postgres. If Postgres fails, known ones stay valid.
    async fn look_up(&self, io: &Io, token_ids: &[String]) -> Result<(), SourceTrouble> {
        let failed = || self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let are_known = || {
            let known = self.known();
            token_ids.iter().all(|id| known.contains_key(id))
        };
        if failed().is_some_and(|then| then.elapsed() < ASK_AGAIN_AFTER) {
            let trouble = SourceTrouble::new(TroubleKind::Unreachable, POSTGRES_LATE.to_owned());
            return if are_known() { Ok(()) } else { Err(trouble) };
        }
        let (pool, ids) = (io.web.changes.clone(), token_ids.to_vec());
        let finding = async move { stored::with_tokens(&pool, ids).await };
        let found = io.read(ANSWER_WITHIN, POSTGRES_LATE, finding).await;
        *failed() = found.is_err().then(Instant::now);
        let rows = match found {
            Ok(rows) => rows,
            Err(_) if are_known() => return Ok(()),
            Err(trouble) => return Err(trouble),
        };
        let users: Vec<User> = rows.into_iter().filter_map(|row| row.proven(&self.key)).collect();
        let mut known = self.known();
        for id in token_ids {
            match users.iter().find(|user| user.token_id == *id) {
                None => _ = known.remove(id),
                Some(user) => {
                    let entry = known.entry(id.clone()).or_insert_with(|| Known {
                        user: user.clone(),
                        checked: Instant::now(),
                        verified: None,
                        touched: None,
                    });
                    if entry.user.token_hash != user.token_hash {
                        entry.verified = None;
                    }
                    (entry.user, entry.checked) = (user.clone(), Instant::now());
                }
            }
        }
        Ok(())
    }

    /// Whether this is the token of `user`, if a token of the user was verified before.
    fn is_verified(&self, token: &UserToken, user: &User) -> Option<bool> {
        let known = self.known();
        let known = known.get(token.id()).filter(|known| known.user.token_hash == user.token_hash)?;
        let tag = known.verified.as_ref()?;
        Some(hmac::verify(&self.memory_key, token.reveal().as_bytes(), tag.as_ref()).is_ok())
    }

    async fn verify(&self, token: &UserToken, user: &User) -> bool {
        let (given, hash) = (token.clone(), user.token_hash.clone());
        let is_right = rt::task::spawn_blocking(move || given.is_of(&hash)).await.unwrap_or(false);
        if is_right {
            let tag = hmac::sign(&self.memory_key, token.reveal().as_bytes());
            let mut known = self.known();
            let known = known.get_mut(token.id()).filter(|known| known.user.token_hash == user.token_hash);
            if let Some(known) = known {
                known.verified = Some(tag);
            }
        }
        is_right
    }

    /// Whether the next use of this token verifies it, which is expensive.
    pub(super) fn must_verify(&self, token: &UserToken) -> bool {
        self.known().get(token.id()).is_none_or(|known| known.verified.is_none())
    }

    /// Stores, at most once per [`TOUCH_EVERY`], that a token is in use.
    fn touch(&self, io: &Io, token_id: &str) {
        let due = self.known().get_mut(token_id).is_some_and(|known| {
            let due = known.touched.is_none_or(|then| then.elapsed() >= TOUCH_EVERY);
            if due {
                known.touched = Some(Instant::now());
            }
            due
        });
        if due {
            let (pool, id) = (io.web.changes.clone(), token_id.to_owned());
            let touching = async move { stored::touch(&pool, id, now()).await };
            let touched = io.run(ANSWER_WITHIN, POSTGRES_LATE, touching);
            rt::spawn(async move {
                if let Err(trouble) = touched.await {
                    tracing::debug!(error = trouble.detail, "the use of a token is not stored");
                }
            });
        }
    }
}

/// The named user who opened a websocket with a token.
#[derive(Clone)]
pub(in crate::web) struct TokenOwner {
    pub(super) users: Arc<Users>,
    pub(super) user: User,
}

impl TokenOwner {
    /// Completes when the token ends, or the user has another role.
    pub(in crate::web) async fn ended(self, io: Io) {
        let Self { users, user } = self;
        loop {
            rt::time::sleep(CHECKED_FOR).await;
            let current = users.current(&io, std::slice::from_ref(&user.token_id)).await;
            if current.is_ok_and(|current| current.iter().all(|current| current.role != user.role)) {
                return;
            }
        }
    }
}

fn now() -> i64 {
    i64::try_from(unix_seconds()).unwrap_or(i64::MAX)
}
