//! Sessions of browsers that logged in.
//!
//! A cookie holds 256 random bits and nothing else, so that no token can be guessed from it. Sessions are stored in
//! memory and in Postgres by a digest of these bits: every monitor with the same tokens and the same database accepts
//! them. While Postgres is unreachable, only the monitor that created a session accepts it. A session ends at logout,
//! when it is revoked, after its idle time, after its absolute lifetime, and when a shared token changes or the token of
//! its named user ends.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::rt;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Semaphore, watch};

use super::gate::unix_seconds;
use super::users::Users;
use crate::access::policy::Session;
use crate::access::sealing::SealingKey;
use crate::access::users::User;
use crate::actors::io::{Io, POSTGRES_LATE};
use crate::fleet::reading::SourceTrouble;
use crate::postgres::sessions::{self as stored, StoredSession};

/// Sessions of one role in memory. Beyond it, the least recently used are evicted and read from Postgres again.
const MOST_OF_ROLE: usize = 1000;
/// A session confirmed by Postgres is valid for this long, which bounds the delay of a logout at another monitor.
const CHECKED_FOR: Duration = Duration::from_millis(500);
/// Timeout of reading or writing a session in Postgres.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// Concurrent lookups of unknown sessions, and of known ones: anonymous clients can send cookies, behind which known
/// sessions do not queue. Changes need connections as well.
const LOOKUPS: usize = 1;
/// Pause after Postgres failed to answer a lookup.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Retry interval of removing an ended session from Postgres.
const REMOVE_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Interval of storing that a session is in use, seconds.
const TOUCH_EVERY: u64 = 300;

/// Lifetimes of a session.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    /// Maximum time without a request and without an open page.
    pub idle: Duration,
    /// Maximum total lifetime.
    pub absolute: Duration,
}

type Key = [u8; 32];

/// All sessions that this monitor knows.
pub struct Sessions {
    lifetimes: Lifetimes,
    key: SealingKey,
    users: Option<Arc<Users>>,
    open: Mutex<HashMap<Key, Open>>,
    /// Ended at this monitor, possibly still in Postgres.
    ended: Mutex<HashSet<Key>>,
    lookups: Semaphore,
    confirmations: Semaphore,
    /// Time of the last failed lookup in Postgres.
    failed: Mutex<Option<Instant>>,
    watching: AtomicBool,
}

struct Open {
    session: Session,
    began: u64,
    used: u64,
    /// When `used` was last stored.
    touched: u64,
    /// The session is in Postgres, so it ends when its row is removed.
    stored: bool,
    checked: Instant,
    /// Number of open websockets that belong to the session.
    websockets: usize,
    /// Dropping it with the session notifies the receivers.
    _open: watch::Sender<()>,
    closed: watch::Receiver<()>,
}

/// An open session, for a connection that closes when the session ends.
pub(in crate::web) struct OpenSession {
    sessions: Arc<Sessions>,
    key: Key,
    closed: watch::Receiver<()>,
}

impl Sessions {
    /// Creates an empty store. `key` proves the rows in Postgres.
    #[must_use]
    pub fn new(lifetimes: Lifetimes, key: SealingKey, users: Option<Arc<Users>>) -> Arc<Self> {
        Arc::new(Self {
            lifetimes,
            key,
            users,
            open: Mutex::default(),
            ended: Mutex::default(),
            lookups: Semaphore::new(LOOKUPS),
            confirmations: Semaphore::new(LOOKUPS),
            failed: Mutex::default(),
            watching: AtomicBool::new(false),
        })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Key, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maximum total lifetime, for the age of the cookie.
    #[must_use]
    pub fn absolute(&self) -> Duration {
        self.lifetimes.absolute
    }

    /// Creates a session and returns its ID for the cookie; `None` if the system returns no random bits.
    pub(super) async fn begin(&self, io: &Io, session: Session) -> Option<String> {
        let now = unix_seconds();
        let (id, key) = self.begin_in_memory(session.clone(), now)?;
        let row = self.row(&key, &session, now);
        let outdated = now.saturating_sub(self.lifetimes.idle.as_secs());
        let pool = io.web.changes.clone();
        let putting = async move { stored::put(&pool, &row, signed(outdated)).await };
        match io.run(ANSWER_WITHIN, POSTGRES_LATE, putting).await {
            Ok(()) => self.open().get_mut(&key).into_iter().for_each(|known| known.stored = true),
            Err(trouble) => tracing::warn!(error = trouble.detail, "a session is known to this monitor alone"),
        }
        Some(id)
    }

    fn begin_in_memory(&self, session: Session, now: u64) -> Option<(String, Key)> {
        let mut bits = [0; 32];
        SystemRandom::new().fill(&mut bits).ok()?;
        let id: String = bits.iter().map(|byte| format!("{byte:02x}")).collect();
        let key = key(&id)?;
        self.keep(key, session, (now, now), false);
        Some((id, key))
    }

    fn keep(&self, key: Key, session: Session, (began, used): (u64, u64), stored: bool) {
        let mut open = self.open();
        // Another role is another session, so that its websockets close.
        if open.get(&key).is_some_and(|known| known.session != session) {
            open.remove(&key);
        }
        if let Some(known) = open.get_mut(&key) {
            known.used = known.used.max(used);
            known.touched = known.touched.max(used);
            (known.stored, known.checked) = (stored, Instant::now());
            return;
        }
        let of_role = open.iter().filter(|(_, known)| known.session.role == session.role);
        if of_role.clone().count() >= MOST_OF_ROLE
            && let Some(oldest) = of_role.min_by_key(|(_, known)| known.used).map(|(key, _)| *key)
        {
            open.remove(&oldest);
        }
        let (sender, closed) = watch::channel(());
        let (touched, checked) = (used, Instant::now());
        open.insert(key, Open { session, began, used, touched, stored, checked, websockets: 0, _open: sender, closed });
    }

    /// Session of a cookie, marked as used; `None` if unknown or ended.
    pub(super) async fn find(self: &Arc<Self>, io: &Io, id: &str) -> Option<(Session, OpenSession)> {
        // Avoids a lookup for cookies that no monitor set.
        if id.len() != 64 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let key = key(id)?;
        if !self.is_known_well(&key) {
            let is_open = self.open().contains_key(&key);
            let slots = if is_open { &self.confirmations } else { &self.lookups };
            let _one_of_few = slots.acquire().await.ok()?;
            // A page sends several requests at once: the first confirms the session for all of them.
            if !self.is_known_well(&key) {
                self.check(io, &[key]).await;
            }
        }
        let (session, closed) = self.used(&key, unix_seconds())?;
        self.touch(io, key);
        Some((session, OpenSession { sessions: Arc::clone(self), key, closed }))
    }

    fn is_known_well(&self, key: &Key) -> bool {
        self.open().get(key).is_some_and(|known| known.checked.elapsed() < CHECKED_FOR)
    }

    /// Updates these sessions from Postgres. If Postgres fails, they stay valid.
    async fn check(&self, io: &Io, keys: &[Key]) {
        let failed = || self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed().is_some_and(|then| then.elapsed() < ASK_AGAIN_AFTER) {
            return;
        }
        let (pool, ids) = (io.web.changes.clone(), keys.iter().map(|key| key.to_vec()).collect());
        let finding = async move { stored::find(&pool, ids).await };
        let found = io.read(ANSWER_WITHIN, POSTGRES_LATE, finding).await;
        *failed() = found.is_err().then(Instant::now);
        let Ok(rows) = found else { return };
        let Ok(users) = self.users_of(io, &rows).await else { return };
        for key in keys.iter().filter(|key| !self.ended().contains(*key)) {
            let row = rows.iter().find(|row| row.id == key);
            match row.and_then(|row| self.session_of(key, row)).and_then(|found| as_the_user_is(found, &users)) {
                Some((session, times)) => self.keep(*key, session, times, true),
                None => {
                    let mut open = self.open();
                    if open.get(key).is_some_and(|known| known.stored) {
                        open.remove(key);
                    }
                }
            }
        }
    }

    /// Current named users of these sessions.
    async fn users_of(&self, io: &Io, rows: &[StoredSession]) -> Result<Vec<User>, SourceTrouble> {
        let mut ids: Vec<String> = rows.iter().filter_map(|row| row.token_id.clone()).collect();
        ids.sort_unstable();
        ids.dedup();
        match &self.users {
            Some(users) if !ids.is_empty() => users.current(io, &ids).await,
            _ => Ok(Vec::new()),
        }
    }

    /// Stores, at most once per [`TOUCH_EVERY`], that a session is in use.
    fn touch(&self, io: &Io, key: Key) {
        let now = unix_seconds();
        let often = TOUCH_EVERY.min(self.lifetimes.idle.as_secs() / 4).max(1);
        let due = self.open().get_mut(&key).is_some_and(|known| {
            let due = known.stored && now.saturating_sub(known.touched) >= often;
            if due {
                known.touched = now;
            }
            due
        });
        if due {
            let pool = io.web.changes.clone();
            let touching = async move { stored::touch(&pool, key.to_vec(), signed(now)).await };
            let touched = io.run(ANSWER_WITHIN, POSTGRES_LATE, touching);
            rt::spawn(async move {
                if let Err(trouble) = touched.await {
                    tracing::debug!(error = trouble.detail, "the use of a session is not stored");
                }
            });
        }
    }

    fn row(&self, key: &Key, session: &Session, now: u64) -> StoredSession {
        let mut row = StoredSession {
            id: key.to_vec(),
            name: session.name.clone(),
            role: session.role.as_str().to_owned(),
            began: signed(now),
            used: signed(now),
            token_id: session.token_id.clone(),
            proof: Vec::new(),
        };
        row.proof = self.key.seal(&sealed(key, &row));
        row
    }

    /// Decodes a row, if a monitor with the same secrets wrote it.
    fn session_of(&self, key: &Key, row: &StoredSession) -> Option<(Session, (u64, u64))> {
        let is_ours = self.key.is_sealed(&sealed(key, row), &row.proof);
        let role = row.role.parse().ok().filter(|_| is_ours)?;
        let times = (u64::try_from(row.began).ok()?, u64::try_from(row.used).ok()?);
        Some((Session { name: row.name.clone(), role, token_id: row.token_id.clone() }, times))
    }

    fn used(&self, key: &Key, now: u64) -> Option<(Session, watch::Receiver<()>)> {
        let mut open = self.open();
        let known = open.get_mut(key)?;
        let since = |then: u64| Duration::from_secs(now.saturating_sub(then));
        if since(known.used) >= self.lifetimes.idle || since(known.began) >= self.lifetimes.absolute {
            open.remove(key);
            return None;
        }
        known.used = known.used.max(now);
        Some((known.session.clone(), known.closed.clone()))
    }

    fn ended(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a session and returns it: here at once, at other monitors through Postgres. While Postgres is
    /// unreachable, the removal is retried.
    pub(super) async fn end(self: &Arc<Self>, io: &Io, id: &str) -> Option<Session> {
        let key = key(id)?;
        // The cookie may belong to a session of another monitor.
        let known = self.find(io, id).await.map(|(session, _)| session)?;
        self.ended().insert(key);
        self.open().remove(&key);
        if let Err(trouble) = self.remove(io, key).await {
            tracing::warn!(error = trouble.detail, "a session ended, and other monitors do not know it yet");
            let (this, io) = (Arc::clone(self), io.clone());
            rt::spawn(async move {
                while this.remove(&io, key).await.is_err() {
                    rt::time::sleep(REMOVE_AGAIN_AFTER).await;
                }
            });
        }
        Some(known)
    }

    async fn remove(&self, io: &Io, key: Key) -> Result<(), SourceTrouble> {
        let pool = io.web.changes.clone();
        let removing = async move { stored::remove(&pool, key.to_vec()).await };
        io.run(ANSWER_WITHIN, POSTGRES_LATE, removing).await?;
        self.ended().remove(&key);
        Ok(())
    }

    /// While websockets are open, polls whether their sessions ended at another monitor.
    fn keep_watching(self: &Arc<Self>, io: &Io) {
        if self.watching.swap(true, Ordering::SeqCst) {
            return;
        }
        let (this, io) = (Arc::clone(self), io.clone());
        rt::spawn(async move {
            loop {
                rt::time::sleep(CHECKED_FOR).await;
                let with_websockets = |open: MutexGuard<'_, HashMap<Key, Open>>| -> Vec<Key> {
                    open.iter().filter(|(_, known)| known.websockets > 0).map(|(key, _)| *key).collect()
                };
                let keys = with_websockets(this.open());
                if keys.is_empty() {
                    this.watching.store(false, Ordering::SeqCst);
                    return;
                }
                this.check(&io, &keys).await;
            }
        });
    }
}

impl OpenSession {
    /// Handle for a websocket. While it is open, the session counts as used.
    pub(in crate::web) fn for_websocket(&self, io: &Io) -> Self {
        if let Some(known) = self.sessions.open().get_mut(&self.key) {
            known.websockets += 1;
        }
        self.sessions.keep_watching(io);
        Self { sessions: Arc::clone(&self.sessions), key: self.key, closed: self.closed.clone() }
    }

    /// To be called when the websocket closes.
    pub(in crate::web) fn websocket_closed(&self) {
        if let Some(known) = self.sessions.open().get_mut(&self.key) {
            known.websockets = known.websockets.saturating_sub(1);
        }
    }

    /// Completes when the session ends.
    pub(in crate::web) fn ended(&self) -> impl Future<Output = ()> + use<> {
        let mut closed = self.closed.clone();
        // No value is ever sent: this fails when the session is dropped.
        async move { while closed.changed().await.is_ok() {} }
    }

    /// Whether the session is still valid; counts as use.
    pub(in crate::web) fn is_used(&self, io: &Io) -> bool {
        let lasts = self.sessions.used(&self.key, unix_seconds()).is_some();
        self.sessions.touch(io, self.key);
        lasts
    }
}

fn key(id: &str) -> Option<Key> {
    digest(&SHA256, id.as_bytes()).as_ref().try_into().ok()
}

fn signed(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// Bytes that the proof of a row covers.
fn sealed(key: &Key, row: &StoredSession) -> Vec<u8> {
    let mut text = key.to_vec();
    let StoredSession { name, role, began, token_id, .. } = row;
    text.extend_from_slice(format!("{began} {role} {name}").as_bytes());
    // A name has no NUL.
    text.extend(token_id.iter().flat_map(|id| format!("\0{id}").into_bytes()));
    text
}

/// The session with the role that its named user has now; `None` if the token of the user ended.
fn as_the_user_is<T>((session, times): (Session, T), users: &[User]) -> Option<(Session, T)> {
    match &session.token_id {
        None => Some((session, times)),
        Some(id) => users.iter().find(|user| user.token_id == *id).map(|user| (Session::of(user), times)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Role;

    const HOUR: u64 = 3600;

    fn sealing(secret: &str) -> SealingKey {
        SealingKey::derive(secret.as_bytes(), "sessions")
    }

    fn sessions() -> Arc<Sessions> {
        let lifetimes = Lifetimes { idle: Duration::from_secs(HOUR), absolute: Duration::from_secs(10 * HOUR) };
        Sessions::new(lifetimes, sealing("admin-4c58-admin-20"), None)
    }

    fn bo(role: Role) -> Session {
        Session { name: "bo".to_owned(), role, token_id: None }
    }

    #[test]
    fn each_login_gets_a_new_random_cookie() {
        let sessions = sessions();
        let ids: std::collections::BTreeSet<String> =
            (0..100).map(|_| sessions.begin_in_memory(bo(Role::Viewer), 0).unwrap().0).collect();
        assert_eq!(ids.len(), 100);
        assert!(ids.iter().all(|id| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())));
    }

    #[test]
    fn a_session_ends_after_its_idle_time_and_its_absolute_lifetime() {
        let sessions = sessions();
        let (_, key) = sessions.begin_in_memory(bo(Role::Viewer), 0).unwrap();
        for request in 1..=10 {
            let now = request * (HOUR - 1);
            assert_eq!(sessions.used(&key, now).map(|(session, _)| session), Some(bo(Role::Viewer)), "{now}");
        }
        assert!(sessions.used(&key, 10 * HOUR).is_none(), "however much it is used");
        let (_, key) = sessions.begin_in_memory(bo(Role::Viewer), 0).unwrap();
        assert!(sessions.used(&key, HOUR).is_none(), "nobody used it");
        assert!(sessions.used(&key, 1).is_none(), "and it does not come back");
    }

    #[tokio::test]
    async fn the_end_of_a_session_wakes_its_waiters() {
        let sessions = sessions();
        let (_, key) = sessions.begin_in_memory(bo(Role::Admin), 0).unwrap();
        let closed = sessions.used(&key, 0).unwrap().1;
        let open = OpenSession { sessions: Arc::clone(&sessions), key, closed };
        let ended = open.ended();
        sessions.open().remove(&key);
        tokio::time::timeout(Duration::from_secs(1), ended).await.unwrap();
    }

    #[test]
    fn sessions_are_bounded_per_role() {
        let sessions = sessions();
        let (_, admin) = sessions.begin_in_memory(bo(Role::Admin), 0).unwrap();
        for _ in 0..2 * MOST_OF_ROLE {
            sessions.begin_in_memory(bo(Role::Viewer), 1).unwrap();
        }
        assert_eq!(sessions.open().len(), MOST_OF_ROLE + 1);
        assert!(sessions.used(&admin, 2).is_some());
    }

    #[test]
    fn a_row_is_accepted_only_if_a_monitor_with_the_same_secrets_wrote_it_unchanged() {
        let sessions = sessions();
        let (_, key) = sessions.begin_in_memory(bo(Role::Viewer), 5).unwrap();
        let row = sessions.row(&key, &bo(Role::Viewer), 5);
        assert_eq!(sessions.session_of(&key, &row), Some((bo(Role::Viewer), (5, 5))));
        let changed = |change: fn(&mut StoredSession)| {
            let mut row = row.clone();
            change(&mut row);
            sessions.session_of(&key, &row).is_none()
        };
        assert!(changed(|row| row.role = "admin".to_owned()));
        assert!(changed(|row| row.name = "eve".to_owned()));
        assert!(changed(|row| row.began = 1 << 40));
        assert!(changed(|row| row.token_id = Some("0123456789abcdef".to_owned())));
        assert!(changed(|row| row.proof.clear()));
        assert!(sessions.session_of(&[7; 32], &row).is_none(), "the row of another cookie");
        let others = Sessions::new(sessions.lifetimes, sealing("admin-9b27-admin-43"), None);
        assert!(others.session_of(&key, &row).is_none());
    }
}
