//! Lock of a response: compatible with the Python workers, renewed while it is held, and fenced.
//!
//! A background task renews the lock at a third of its TTL. The guard knows until when the lock cannot have expired, so
//! a process that was stopped and continued detects immediately that it may have lost the lock.
//! [`ResponseLock::put_body`] checks the lock and writes in one atomic script.

use std::fmt;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Limits, Shepherd, ShepherdError, bodies};
use crate::contract::Name;
use crate::redis_streams::tasks::SharedLink;
use crate::redis_streams::tasks::shepherd::{Claim, Releases};
use crate::worker::retry::persist;

/// Pause before a failed renewal is retried.
const RETRY: Duration = Duration::from_millis(500);
/// How long a dropped guard tries to release its lock.
const LAST_TRIES: Duration = Duration::from_secs(5);

/// Timing of locks. The defaults are the values that Python workers use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockOptions {
    /// TTL of a lock; renewed while it is held (default 45 s).
    pub ttl: Duration,
    /// How long [`Shepherd::lock`] waits for a lock that is taken (default 60 s).
    pub wait: Duration,
    /// Polling interval while no release is published (default 5 s). A killed worker publishes none.
    pub poll: Duration,
}

impl Default for LockOptions {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(45), wait: Duration::from_secs(60), poll: Duration::from_secs(5) }
    }
}

impl LockOptions {
    pub(super) fn check(&self) -> Result<(), ShepherdError> {
        let least = Duration::from_millis(30);
        if self.ttl < least || self.poll.is_zero() {
            return Err(ShepherdError::Setting(format!(
                "invalid lock settings: TTL {:?}, retry interval {:?}; expected a TTL of at least {least:?} and an \
                 interval above zero",
                self.ttl, self.poll
            )));
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// The lock cannot expire before this time.
    Certain(Instant),
    Lost,
}

/// A held lock. It is renewed until it is released; dropping the guard releases it on a best-effort basis.
///
/// Long-running work should stop when the lock is lost:
///
/// ```no_run
/// # use shepherd_monitor::worker::shepherd::ResponseLock;
/// # async fn merge() {}
/// # async fn example(lock: ResponseLock) -> Result<(), Box<dyn std::error::Error>> {
/// tokio::select! {
///     () = merge() => lock.release().await?,
///     () = lock.lost() => return Err("another worker may hold the lock".into()),
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "a lock is released when its guard is dropped"]
pub struct ResponseLock {
    held: Held,
    state: watch::Sender<State>,
    renewing: AbortHandle,
    limits: Limits,
}

impl fmt::Debug for ResponseLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseLock")
            .field("response_id", &self.held.claim.response_id)
            .field("state", &*self.state.borrow())
            .finish_non_exhaustive()
    }
}

/// A claim that may hold its lock, and releases it when dropped.
struct Held {
    claim: Claim,
    locks: SharedLink,
    /// Whether the lock may be held.
    possible: bool,
    /// Whether an attempt had no reply: Redis may still execute it.
    unanswered: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.possible {
            return;
        }
        // Without a runtime, the lock is left to expire.
        if let Ok(runtime) = Handle::try_current() {
            let (claim, locks) = (self.claim.clone(), self.locks.clone());
            runtime.spawn(async move {
                let released = persist(LAST_TRIES, "releasing a lock", true, || claim.release(&locks)).await;
                if let Err(error) = released {
                    tracing::warn!(response_id = claim.response_id, %error, "cannot release a lock; it will expire");
                }
            });
        }
    }
}

impl Shepherd {
    /// Waits for the lock of a response and acquires it for `consumer`, the name of this worker
    /// (`task.fence().consumer` in a handler).
    ///
    /// # Errors
    /// [`ShepherdError::LockHeld`] if the lock is taken for [`LockOptions::wait`]; [`ShepherdError::Redis`] if Redis is
    /// unreachable for that time.
    pub async fn lock(&self, response_id: &str, consumer: impl Into<Name>) -> Result<ResponseLock, ShepherdError> {
        let LockOptions { wait, poll, .. } = self.limits.lock;
        let give_up = Instant::now() + wait;
        let mut held = self.claim(response_id, consumer.into());
        let mut releases: Option<Releases> = None;
        loop {
            if let Some(certain) = self.attempt(&mut held, give_up).await? {
                return Ok(self.keep(held, certain));
            }
            let now = Instant::now();
            if now >= give_up {
                return Err(ShepherdError::LockHeld { response_id: response_id.to_owned(), waited: wait });
            }
            match &mut releases {
                Some(known) => {
                    if timeout_at(give_up.min(now + poll), known.next()).await == Ok(false) {
                        releases = None;
                    }
                }
                // A release between the attempt and the subscription would be missed, so try again immediately.
                None => {
                    releases = Releases::of(&self.locks, response_id).await;
                    if releases.is_none() {
                        sleep_until(give_up.min(now + RETRY)).await;
                    }
                }
            }
        }
    }

    /// Acquires the lock of a response for `consumer`; `None` if it is taken.
    ///
    /// # Errors
    /// If Redis fails.
    pub async fn try_lock(
        &self,
        response_id: &str,
        consumer: impl Into<Name>,
    ) -> Result<Option<ResponseLock>, ShepherdError> {
        let mut held = self.claim(response_id, consumer.into());
        let certain = self.attempt(&mut held, Instant::now() + self.limits.retry_for).await?;
        Ok(certain.map(|certain| self.keep(held, certain)))
    }

    fn claim(&self, response_id: &str, consumer: Name) -> Held {
        let token = uuid::Uuid::new_v4().simple().to_string();
        let claim = Claim { response_id: response_id.to_owned(), consumer, token };
        Held { claim, locks: self.locks.clone(), possible: false, unanswered: false }
    }

    /// Tries to acquire the lock and returns until when it is certain; `None` if it is taken. Retries until Redis
    /// replies or `give_up` is reached.
    async fn attempt(&self, held: &mut Held, give_up: Instant) -> Result<Option<Instant>, ShepherdError> {
        let ttl = self.limits.lock.ttl;
        loop {
            // Set before the command: if this future is dropped now, the lock may be held.
            held.possible = true;
            let sent_at = Instant::now();
            match held.claim.acquire(&held.locks, ttl).await {
                Ok(true) => return Ok(Some(sent_at + ttl)),
                Ok(false) => {
                    held.possible = held.unanswered;
                    return Ok(None);
                }
                Err(failure) => {
                    held.unanswered |= failure.unanswered;
                    held.possible = held.unanswered;
                    if !failure.may_retry(true) || Instant::now() >= give_up {
                        let response_id = &held.claim.response_id;
                        return Err(ShepherdError::redis("acquire the lock of response", response_id, failure));
                    }
                }
            }
            sleep_until(give_up.min(Instant::now() + RETRY)).await;
        }
    }

    fn keep(&self, held: Held, certain: Instant) -> ResponseLock {
        let (state, _) = watch::channel(State::Certain(certain));
        let renewing = renew(held.claim.clone(), held.locks.clone(), self.limits.lock.ttl, state.clone(), certain);
        let renewing = tokio::spawn(renewing).abort_handle();
        ResponseLock { held, state, renewing, limits: self.limits }
    }
}

/// Renews the lock until it is lost.
async fn renew(claim: Claim, locks: SharedLink, ttl: Duration, state: watch::Sender<State>, mut certain: Instant) {
    let mut next = certain - ttl * 2 / 3;
    loop {
        sleep_until(next.min(certain)).await;
        let sent_at = Instant::now();
        // The process was stopped and continues after the lock has expired.
        if sent_at >= certain {
            break;
        }
        match timeout_at(certain, claim.renew(&locks, ttl)).await {
            Ok(Ok(true)) => {
                certain = sent_at + ttl;
                next = sent_at + ttl / 3;
                state.send_replace(State::Certain(certain));
            }
            Ok(Err(error)) => {
                tracing::warn!(response_id = claim.response_id, %error, "cannot renew a lock; retrying");
                next = Instant::now() + RETRY.min(ttl / 10);
            }
            Ok(Ok(false)) | Err(_) => break,
        }
    }
    tracing::warn!(response_id = claim.response_id, "lost the lock of a response");
    state.send_replace(State::Lost);
}

impl ResponseLock {
    /// ID of the response.
    #[must_use]
    pub fn response_id(&self) -> &str {
        &self.held.claim.response_id
    }

    /// Whether another worker may hold the lock: it was taken, or could not be renewed in time.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        match *self.state.borrow() {
            State::Certain(until) => Instant::now() >= until,
            State::Lost => true,
        }
    }

    /// Waits until the lock [is lost](Self::is_lost).
    pub async fn lost(&self) {
        let mut states = self.state.subscribe();
        loop {
            let state = *states.borrow_and_update();
            match state {
                State::Certain(until) if Instant::now() < until => {
                    let _ = timeout_at(until, states.changed()).await;
                }
                _ => return,
            }
        }
    }

    /// Stores the body of the locked response and checks in the same script that the lock is still held, so that a
    /// worker that was stopped and continued overwrites nothing.
    ///
    /// # Errors
    /// [`ShepherdError::LockLost`] if the lock is not held; if Redis fails; if the body is too large or cannot be
    /// serialized.
    pub async fn put_body(&self, body: &(impl serde::Serialize + Sync + ?Sized)) -> Result<(), ShepherdError> {
        let Limits { largest, life, retry_for, .. } = self.limits;
        let id = self.response_id();
        let blob = bodies::encode(id, body, largest).await?;
        let Held { claim, locks, .. } = &self.held;
        match persist(retry_for, "storing a body", true, || claim.put(locks, &blob, life)).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.renewing.abort();
                self.state.send_replace(State::Lost);
                Err(ShepherdError::LockLost { response_id: id.to_owned() })
            }
            Err(failure) => Err(ShepherdError::redis("store the body", id, failure)),
        }
    }

    /// Releases the lock and notifies waiting workers.
    ///
    /// # Errors
    /// [`ShepherdError::LockLost`] if the lock was not held; if Redis fails, in which case the lock expires.
    pub async fn release(mut self) -> Result<(), ShepherdError> {
        self.renewing.abort();
        let was_lost = self.is_lost();
        let (mut unanswered, retry_for) = (false, self.limits.retry_for);
        let give_up = Instant::now() + retry_for;
        loop {
            match self.held.claim.release(&self.held.locks).await {
                // If a reply was lost, the first attempt may have released the lock.
                Ok(released) if released || (unanswered && !was_lost) => {
                    self.held.possible = false;
                    return Ok(());
                }
                Ok(_) => {
                    self.held.possible = false;
                    return Err(ShepherdError::LockLost { response_id: self.response_id().to_owned() });
                }
                Err(failure) => {
                    unanswered |= failure.unanswered;
                    if !failure.may_retry(true) || Instant::now() >= give_up {
                        let response_id = self.response_id();
                        return Err(ShepherdError::redis("release the lock of response", response_id, failure));
                    }
                    sleep_until(give_up.min(Instant::now() + RETRY)).await;
                }
            }
        }
    }
}

impl Drop for ResponseLock {
    fn drop(&mut self) {
        // Stop renewing before the release, so that a late renewal does not extend the lock.
        self.renewing.abort();
    }
}
