//! The sessions of browsers that logged in.
//!
//! A cookie holds 256 random bits and nothing else, so that there is nothing in it by which a token could be guessed.
//! Whose session that is stands in memory and in Postgres, by a digest of the bits: every monitor with the same tokens
//! and the same database knows it, and while Postgres is away the monitor that began it does. A session ends at logout,
//! when it is not used, after its absolute time, and when a token is changed.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::rt;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Semaphore, watch};

use super::gate::unix_seconds;
use crate::access::policy::Session;
use crate::access::tokens::Tokens;
use crate::actors::io::{Io, POSTGRES_LATE};
use crate::fleet::reading::SourceTrouble;
use crate::postgres::sessions::{self as stored, StoredSession};

/// Sessions of one role that are kept in memory; of more, those that were not used for longest are forgotten there.
const MOST_OF_ROLE: usize = 1000;
/// What Postgres said of a session holds for so long; a logout at another monitor takes effect within it.
const CHECKED_FOR: Duration = Duration::from_millis(500);
/// Postgres is given this long to say whose session it is, and to take one.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// Sessions that are looked up at a time: anybody can send cookies, and changes need a connection as well.
const LOOKUPS: usize = 1;
/// After Postgres could not say whose a session is, it is not asked again for this time.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Postgres is told of the end of a session again after this time, until it takes it.
const REMOVE_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// A session that is used is stored as such this often, seconds.
const TOUCH_EVERY: u64 = 300;

/// How long a session lasts.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    /// Without a request, and without an open page.
    pub idle: Duration,
    /// In all.
    pub absolute: Duration,
}

type Key = [u8; 32];

/// The sessions.
pub struct Sessions {
    lifetimes: Lifetimes,
    tokens: Tokens,
    open: Mutex<HashMap<Key, Open>>,
    /// Ended here, and perhaps still in Postgres.
    ended: Mutex<HashSet<Key>>,
    lookups: Semaphore,
    /// When Postgres last failed to answer.
    failed: Mutex<Option<Instant>>,
    watching: AtomicBool,
}

struct Open {
    session: Session,
    began: u64,
    used: u64,
    /// When `used` was last stored.
    touched: u64,
    /// It is in Postgres: once it is there no more, it is over.
    stored: bool,
    checked: Instant,
    /// Websockets that end with it.
    websockets: usize,
    /// Dropped with the session; who waits for that hears of it.
    _open: watch::Sender<()>,
    closed: watch::Receiver<()>,
}

/// A session that is open, for a connection that lasts as long as it does.
pub(in crate::web) struct OpenSession {
    sessions: Arc<Sessions>,
    key: Key,
    closed: watch::Receiver<()>,
}

impl Sessions {
    /// None yet. Rows are known by these tokens.
    #[must_use]
    pub fn new(lifetimes: Lifetimes, tokens: Tokens) -> Arc<Self> {
        Arc::new(Self {
            lifetimes,
            tokens,
            open: Mutex::default(),
            ended: Mutex::default(),
            lookups: Semaphore::new(LOOKUPS),
            failed: Mutex::default(),
            watching: AtomicBool::new(false),
        })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Key, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a cookie is worth keeping.
    #[must_use]
    pub fn absolute(&self) -> Duration {
        self.lifetimes.absolute
    }

    /// A session that begins now: its id, for the cookie. `None` if the system gives no random bits.
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

    /// The session of a cookie, which is used now; `None` if there is none, or it is over.
    pub(super) async fn find(self: &Arc<Self>, io: &Io, id: &str) -> Option<(Session, OpenSession)> {
        // A cookie that no monitor set is not looked for.
        if id.len() != 64 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let key = key(id)?;
        if !self.is_known_well(&key) {
            let _one_of_few = self.lookups.acquire().await.ok()?;
            // The requests of a page come together: the first asks for all of them.
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

    /// Takes over what Postgres says of these sessions. While it says nothing, they stay as they are.
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
        for key in keys.iter().filter(|key| !self.ended().contains(*key)) {
            match rows.iter().find(|row| row.id == key).and_then(|row| self.session_of(key, row)) {
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

    /// Stores now and then that a session is used.
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
        let proof = self.tokens.seal(&sealed(key, &session.name, session.role.as_str(), signed(now)));
        StoredSession {
            id: key.to_vec(),
            name: session.name.clone(),
            role: session.role.as_str().to_owned(),
            began: signed(now),
            used: signed(now),
            proof,
        }
    }

    /// What a row says, if a monitor with these tokens wrote it.
    fn session_of(&self, key: &Key, row: &StoredSession) -> Option<(Session, (u64, u64))> {
        let is_ours = self.tokens.is_sealed(&sealed(key, &row.name, &row.role, row.began), &row.proof);
        let role = row.role.parse().ok().filter(|_| is_ours)?;
        let times = (u64::try_from(row.began).ok()?, u64::try_from(row.used).ok()?);
        Some((Session { name: row.name.clone(), role }, times))
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

    /// Ends a session, here at once and at other monitors when Postgres knows: whose it was. While Postgres is away it
    /// is told again and again.
    pub(super) async fn end(self: &Arc<Self>, io: &Io, id: &str) -> Option<Session> {
        let key = key(id)?;
        // A cookie that this monitor does not know may be of another one.
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

    /// Looks, for as long as websockets are open, whether their sessions were ended at another monitor.
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
    /// The same for a websocket: it hears of the end, and its being open counts as use.
    pub(in crate::web) fn for_websocket(&self, io: &Io) -> Self {
        if let Some(known) = self.sessions.open().get_mut(&self.key) {
            known.websockets += 1;
        }
        self.sessions.keep_watching(io);
        Self { sessions: Arc::clone(&self.sessions), key: self.key, closed: self.closed.clone() }
    }

    /// The websocket is closed.
    pub(in crate::web) fn websocket_closed(&self) {
        if let Some(known) = self.sessions.open().get_mut(&self.key) {
            known.websockets = known.websockets.saturating_sub(1);
        }
    }

    /// Waits until it ends.
    pub(in crate::web) fn ended(&self) -> impl Future<Output = ()> + use<> {
        let mut closed = self.closed.clone();
        // Nothing is ever sent: this fails when the session is dropped.
        async move { while closed.changed().await.is_ok() {} }
    }

    /// Whether it lasts now, which counts as use.
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

/// What a proof is of.
fn sealed(key: &Key, name: &str, role: &str, began: i64) -> Vec<u8> {
    let mut text = key.to_vec();
    text.extend_from_slice(format!("{began} {role} {name}").as_bytes());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Role;

    const HOUR: u64 = 3600;

    fn tokens(admin: &str) -> Tokens {
        Tokens::new(&[(Role::Admin, admin.to_owned())]).unwrap()
    }

    fn sessions() -> Arc<Sessions> {
        let lifetimes = Lifetimes { idle: Duration::from_secs(HOUR), absolute: Duration::from_secs(10 * HOUR) };
        Sessions::new(lifetimes, tokens("admin-4c58-admin-20"))
    }

    fn bo(role: Role) -> Session {
        Session { name: "bo".to_owned(), role }
    }

    #[test]
    fn a_cookie_is_random_and_the_same_login_never_has_it_twice() {
        let sessions = sessions();
        let ids: std::collections::BTreeSet<String> =
            (0..100).map(|_| sessions.begin_in_memory(bo(Role::Viewer), 0).unwrap().0).collect();
        assert_eq!(ids.len(), 100);
        assert!(ids.iter().all(|id| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())));
    }

    #[test]
    fn a_session_ends_when_it_is_not_used_and_after_its_absolute_time() {
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
    async fn who_waits_for_the_end_of_a_session_hears_of_it_at_once() {
        let sessions = sessions();
        let (_, key) = sessions.begin_in_memory(bo(Role::Admin), 0).unwrap();
        let closed = sessions.used(&key, 0).unwrap().1;
        let open = OpenSession { sessions: Arc::clone(&sessions), key, closed };
        let ended = open.ended();
        sessions.open().remove(&key);
        tokio::time::timeout(Duration::from_secs(1), ended).await.unwrap();
    }

    #[test]
    fn whoever_logs_in_without_end_fills_no_memory_and_ends_no_session_of_another_role() {
        let sessions = sessions();
        let (_, admin) = sessions.begin_in_memory(bo(Role::Admin), 0).unwrap();
        for _ in 0..2 * MOST_OF_ROLE {
            sessions.begin_in_memory(bo(Role::Viewer), 1).unwrap();
        }
        assert_eq!(sessions.open().len(), MOST_OF_ROLE + 1);
        assert!(sessions.used(&admin, 2).is_some());
    }

    #[test]
    fn a_row_counts_if_a_monitor_with_the_same_tokens_wrote_it_and_nothing_in_it_was_changed() {
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
        assert!(changed(|row| row.proof.clear()));
        assert!(sessions.session_of(&[7; 32], &row).is_none(), "the row of another cookie");
        let others = Sessions::new(sessions.lifetimes, tokens("admin-9b27-admin-43"));
        assert!(others.session_of(&key, &row).is_none());
    }
}
