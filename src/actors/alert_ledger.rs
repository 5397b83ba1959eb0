//! Decides which instance may evaluate and send, and stores its alerts: in Postgres, or on disk while Postgres is unreachable.
//! Shared by the alert evaluator and the alert dispatcher; not an actor.
//!
//! The leader holds a lease in Postgres. It renews the lease every [`RENEW_EVERY`]; the lease expires after
//! [`LEASE`] by Postgres' clock. Each transaction that writes checks the epoch of the lease, and the
//! leader does not send after the time until which the lease is guaranteed, so a process that was stopped and continued must renew
//! before it acts. (An advisory lock would stay with a stopped process for as long as its socket is open.)
//!
//! Decisions belong to a term: from the moment a leader resumes from the written state until it is deposed. Decisions of another
//! term are rejected. Of the unsaved rows of a deposed leader, only those of notifications that were sent are stored.
//!
//! The leader also holds a lease in Redis, which decides while Postgres is unreachable: the leader continues, another instance
//! takes over when the lease expires, and of several instances that start, one becomes the leader. If Redis is unreachable too, the
//! leader continues and each starting instance acts: duplicate notifications are better than none.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::Mutex;

use super::alert_store::{AlertStore, LiveStore};
use crate::alerting::lifecycle::Alert;
use crate::alerting::silences::Silence;
use crate::fleet::cleanup::Finding;
use crate::fleet::reading::SourceTrouble;
use crate::fleet::time::Mono;
use crate::postgres::alerts::{LeaseReply, NotWritten, OutboxRow, StoredAlerts};
use crate::postgres::alerts_spool::Unsaved;
use crate::postgres::events::NewRow;
pub use crate::redis_streams::leader::LEASE;

/// Interval at which the lease is renewed or requested.
pub const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Time after the request of a successful renewal in which the leader may act.
const SURE_FOR: Duration = LEASE.saturating_sub(Duration::from_secs(2));
/// Minimum time between a failed query and the next one.
const REST: Duration = Duration::from_secs(5);
/// Time limit for the outcome of an attempt to send; longer than the limit of an attempt in the dispatcher.
const OUTCOME_WITHIN: Duration = Duration::from_secs(45);
/// An instance that has not reached Postgres for this long since its start acts without it.
const ALONE_AFTER: Duration = Duration::from_secs(5);

/// Rows to write in one transaction.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Alerts, in their new state.
    pub alerts: Vec<Alert>,
    /// Notifications, in their new state.
    pub outbox: Vec<OutboxRow>,
    /// Events.
    pub events: Vec<NewRow>,
}

impl Change {
    /// Returns whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.alerts.is_empty() && self.outbox.is_empty() && self.events.is_empty()
    }
}

/// Result of a renewal.
#[derive(Debug)]
pub enum LeaseChange {
    /// No change.
    None,
    /// This instance became the leader and resumes from this state.
    Leads {
        /// New term.
        term: u64,
        /// Alerts.
        alerts: Vec<Alert>,
        /// Notifications to send, in order.
        waiting: Vec<OutboxRow>,
    },
    /// Another instance is the leader; the alerts as it wrote them.
    Follows(Vec<Alert>),
}

/// Leadership of this instance.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Leadership {
    /// Not known yet.
    Starting,
    /// Another instance is the leader.
    Follows,
    /// Leader, guaranteed until `until`.
    Leads { epoch: i64, until: Mono },
    /// Leader without Postgres: guaranteed until `until`, or, while Redis is unreachable too, until either server can be asked.
    Alone { until: Option<Mono> },
}

impl Leadership {
    /// Returns whether this instance may evaluate and send now.
    fn may_act(self, now: Mono) -> bool {
        match self {
            Self::Leads { until, .. } => now < until,
            Self::Alone { until } => until.is_none_or(|until| now < until),
            Self::Starting | Self::Follows => false,
        }
    }
}

/// The ledger.
pub struct Ledger<S = LiveStore> {
    store: S,
    started: Mono,
    books: Mutex<LedgerState>,
}

struct LedgerState {
    standing: Leadership,
    /// Number of times that this instance resumed from the written state.
    term: u64,
    /// Epoch in which this instance was leader last, or that of the leader it followed.
    led_under: Option<i64>,
    /// This process was the leader in `led_under`, as opposed to following it.
    led_itself: bool,
    /// The term began without Postgres, so it lacks what is only stored there.
    began_alone: bool,
    /// Start of the wait for an outcome before unsaved rows can be handed over.
    sending_since: Option<Mono>,
    unsaved: Unsaved,
    /// The spool on disk is not empty.
    on_disk: bool,
    failed: Option<Mono>,
    silences: Vec<Silence>,
    /// Alerts as the leader wrote them, while another instance is the leader.
    followed: Vec<Alert>,
    /// See [`Unsaved::based_on`].
    based_on: Option<Vec<Alert>>,
}

impl LedgerState {
    fn acts(&self) -> bool {
        matches!(self.standing, Leadership::Leads { .. } | Leadership::Alone { .. })
    }

    /// Returns whether no other instance was leader since the unsaved rows were decided, given that `epoch` begins. An instance that
    /// started without Postgres does not know what was written before.
    fn is_newest(&self, epoch: i64) -> bool {
        self.led_under.is_some_and(|led_under| epoch <= led_under + i64::from(!self.led_itself))
    }

    /// Returns the alerts that the previous leader changed after this instance last read them: unsaved decisions about these are
    /// older than what is `stored`.
    fn changed_since(&self, stored: &[Alert]) -> BTreeSet<String> {
        let Some(known) = &self.based_on else { return BTreeSet::new() };
        let known: BTreeMap<&str, &Alert> = known.iter().map(|alert| (alert.key.as_str(), alert)).collect();
        let is_known = |alert: &&Alert| known.get(alert.key.as_str()).is_some_and(|known| *known == *alert);
        stored.iter().filter(|alert| !is_known(alert)).map(|alert| alert.key.clone()).collect()
    }

    fn begin_term(&mut self, alerts: Vec<Alert>, waiting: Vec<OutboxRow>) -> LeaseChange {
        self.term += 1;
        self.began_alone = matches!(self.standing, Leadership::Alone { .. });
        LeaseChange::Leads { term: self.term, alerts, waiting }
    }

    fn saved(&mut self) {
        self.unsaved = Unsaved::default();
    }

    /// Returns the state in Postgres overlaid with the unsaved rows, which are newer.
    fn with_postgres(&self, kept: StoredAlerts) -> (Vec<Alert>, Vec<OutboxRow>) {
        let mut alerts = self.unsaved.alerts();
        let newer: BTreeSet<String> = alerts.iter().map(|alert| alert.key.clone()).collect();
        alerts.extend(kept.alerts.into_iter().filter(|alert| !newer.contains(&alert.key)));
        // In the order of the writes, independent of the clocks of the instances.
        let mut unsaved: Vec<OutboxRow> = self.unsaved.outbox().to_vec();
        let mut waiting: Vec<OutboxRow> = Vec::new();
        for row in kept.waiting {
            let newer = unsaved.iter().position(|other| other.id == row.id && other.channel == row.channel);
            waiting.push(newer.map_or(row, |place| unsaved.remove(place)));
        }
        waiting.extend(unsaved);
        waiting.retain(|row| row.ended.is_none());
        (alerts, waiting)
    }

    /// Returns the last known state overlaid with the unsaved rows, which are newer.
    fn without_postgres(&self) -> (Vec<Alert>, Vec<OutboxRow>) {
        let mut alerts = self.unsaved.alerts();
        let newer: BTreeSet<String> = alerts.iter().map(|alert| alert.key.clone()).collect();
        alerts.extend(self.followed.iter().filter(|alert| !newer.contains(&alert.key)).cloned());
        (alerts, self.unsaved.outbox().iter().filter(|row| row.ended.is_none()).cloned().collect())
    }
}

impl<S: AlertStore> Ledger<S> {
    /// Returns a ledger on `store`, with the rows that an earlier run left on disk.
    #[must_use]
    pub fn new(store: S) -> Self {
        let mut unsaved = store.load_from_disk();
        unsaved.forget_attempts();
        let on_disk = !unsaved.is_empty();
        let books = LedgerState {
            standing: Leadership::Starting,
            term: 0,
            led_under: unsaved.led_under,
            led_itself: false,
            began_alone: false,
            sending_since: None,
            based_on: unsaved.based_on.clone(),
            unsaved,
            on_disk,
            failed: None,
            silences: Vec::new(),
            followed: Vec::new(),
        };
        Self { started: store.now(), store, books: Mutex::new(books) }
    }

    /// Returns whether this instance may evaluate and send now.
    pub async fn may_act(&self) -> bool {
        self.books.lock().await.standing.may_act(self.store.now())
    }

    /// Returns the silences and acknowledgements as last read.
    pub async fn silences(&self) -> Vec<Silence> {
        self.books.lock().await.silences.clone()
    }

    /// Renews or requests the lease and reads what other instances wrote. Also returns the findings of the janitor that have no
    /// alert yet.
    pub async fn renew(&self) -> (LeaseChange, Vec<Finding>) {
        let asked = self.store.now();
        let acts = self.may_act().await;
        let answer = if !acts && self.store.another_leads().await.unwrap_or(false) {
            // The instance is the leader even if Postgres cannot be read.
            Ok(self.store.follow().await.unwrap_or_default())
        } else {
            self.store.lead().await
        };
        let held = match &answer {
            Ok(LeaseReply { epoch: Some(_), .. }) => self.store.claim_redis().await.map(|()| true),
            Ok(_) => Ok(false),
            Err(_) => self.store.claim_redis_if_free().await,
        };
        let mut books = self.books.lock().await;
        let led = match answer {
            Err(trouble) => return (self.unreachable(&mut books, &trouble, held.ok(), asked), Vec::new()),
            Ok(led) => led,
        };
        if let Some(silences) = led.silences {
            books.silences = silences;
        }
        let news = match led.epoch {
            None => self.follow(&mut books, led.followed).await,
            Some(epoch) => {
                // Also if it ran without Postgres in between: no other instance was leader in this epoch.
                let goes_on = books.acts() && !books.began_alone && books.led_under == Some(epoch);
                let alone = Some(books.standing).filter(|standing| matches!(standing, Leadership::Alone { .. }));
                books.failed = None;
                books.standing = Leadership::Leads { epoch, until: asked.plus(SURE_FOR) };
                if goes_on {
                    self.flush(&mut books, epoch).await;
                    LeaseChange::None
                } else {
                    self.take_over(&mut books, epoch, alone).await
                }
            }
        };
        (news, led.findings)
    }

    async fn take_over(&self, books: &mut LedgerState, epoch: i64, alone: Option<Leadership>) -> LeaseChange {
        if books.is_newest(epoch) {
            // Rows that this instance wrote without Postgres, or that an earlier run left on disk, are newer than the tables, except
            // where the leader wrote before its end what this instance had not read.
            let stored = match &books.based_on {
                Some(_) if !books.unsaved.is_empty() => match self.store.load().await {
                    Ok(stored) => stored,
                    Err(trouble) => return Self::not_loaded(books, &trouble, alone),
                },
                _ => StoredAlerts::default(),
            };
            let changed = books.changed_since(&stored.alerts);
            if !changed.is_empty() && self.waits_for_outcome(books) {
                return Self::not_yet(books, alone);
            }
            let outdated = books.unsaved.split_off(&changed);
            books.unsaved.settle_superseded(&stored.waiting);
            self.flush(books, epoch).await;
            let written = books.acts() && books.unsaved.is_empty();
            if !outdated.is_empty() {
                books.unsaved.merge(outdated);
                if written {
                    self.hand_over(books).await;
                } else if books.acts() {
                    return Self::not_yet(books, alone);
                }
            }
            if !books.acts() {
                // Another instance became the leader meanwhile, so this state is outdated.
                return LeaseChange::None;
            }
        } else {
            self.hand_over(books).await;
            if books.unsaved.is_sending() {
                return Self::not_yet(books, alone);
            }
        }
        match self.store.load().await {
            Ok(kept) => {
                (books.led_under, books.led_itself) = (Some(epoch), true);
                (books.followed, books.based_on) = (Vec::new(), None);
                tracing::info!(epoch, "became leader: evaluating and sending alerts");
                let (alerts, waiting) = books.with_postgres(kept);
                books.begin_term(alerts, waiting)
            }
            Err(trouble) => Self::not_loaded(books, &trouble, alone),
        }
    }

    fn not_loaded(books: &mut LedgerState, trouble: &SourceTrouble, alone: Option<Leadership>) -> LeaseChange {
        tracing::warn!(error = trouble.detail, "cannot load stored alerts; retrying");
        Self::not_yet(books, alone)
    }

    /// Postpones the takeover to the next renewal.
    fn not_yet(books: &mut LedgerState, alone: Option<Leadership>) -> LeaseChange {
        books.standing = alone.unwrap_or(Leadership::Starting);
        LeaseChange::None
    }

    async fn follow(&self, books: &mut LedgerState, epoch: Option<i64>) -> LeaseChange {
        if books.standing != Leadership::Follows {
            tracing::info!("another instance is the leader; standing by");
        }
        books.standing = Leadership::Follows;
        books.failed = None;
        self.hand_over(books).await;
        match self.store.alerts().await {
            Ok(alerts) => {
                // Later decisions made without Postgres are newer than this epoch.
                if books.unsaved.is_empty() && epoch.is_some() {
                    (books.led_under, books.led_itself, books.based_on) = (epoch, false, None);
                }
                books.followed.clone_from(&alerts);
                LeaseChange::Follows(alerts)
            }
            Err(_) => LeaseChange::None,
        }
    }

    /// Returns whether the outcome of an attempt to send is awaited. The wait is limited, since an interrupted attempt has no
    /// outcome.
    fn waits_for_outcome(&self, books: &mut LedgerState) -> bool {
        if !books.unsaved.is_sending() {
            books.sending_since = None;
            return false;
        }
        let now = self.store.now();
        let since = *books.sending_since.get_or_insert(now);
        if now.since(since) < OUTCOME_WITHIN {
            return true;
        }
        books.unsaved.forget_attempts();
        books.sending_since = None;
        false
    }

    /// Another instance was leader since: rows of notifications that were sent are written, the other decisions are void. Waits
    /// while an attempt is in progress, because only its outcome decides which applies.
    async fn hand_over(&self, books: &mut LedgerState) {
        if books.unsaved.is_empty() || self.waits_for_outcome(books) {
            return;
        }
        books.unsaved = books.unsaved.sent();
        if books.unsaved.is_empty() || self.store.hand_over(books.unsaved.rows()).await.is_ok() {
            books.saved();
        }
        if books.on_disk {
            self.keep_on_disk(books);
        }
    }

    /// Handles an unreachable Postgres. `held`: whether this instance holds the lease in Redis, if Redis is reachable.
    fn unreachable(
        &self,
        books: &mut LedgerState,
        trouble: &SourceTrouble,
        held: Option<bool>,
        asked: Mono,
    ) -> LeaseChange {
        books.failed = Some(self.store.now());
        let alone = Leadership::Alone { until: held.map(|_| asked.plus(SURE_FOR)) };
        match (books.standing, held) {
            (Leadership::Leads { .. } | Leadership::Alone { .. }, Some(false)) => {
                tracing::warn!("lost leadership to another instance; no longer evaluating and sending alerts");
                books.standing = Leadership::Follows;
                LeaseChange::None
            }
            (Leadership::Leads { .. }, _) => {
                tracing::warn!(
                    error = trouble.detail,
                    "Postgres is unavailable; alerting continues, changes are spooled to disk"
                );
                books.standing = alone;
                LeaseChange::None
            }
            (Leadership::Alone { .. }, _) => {
                books.standing = alone;
                LeaseChange::None
            }
            (Leadership::Starting, None | Some(true)) if self.store.now().since(self.started) > ALONE_AFTER => {
                tracing::warn!(
                    error = trouble.detail,
                    "Postgres is unavailable; alerting starts, changes are spooled to disk"
                );
                books.standing = alone;
                // This instance does not know what Postgres holds, so its decisions are not known to be newer.
                books.led_under = None;
                let (alerts, waiting) = books.without_postgres();
                books.begin_term(alerts, waiting)
            }
            (Leadership::Follows, Some(true)) => {
                tracing::warn!(
                    error = trouble.detail,
                    "the leader is gone and Postgres is unavailable: alerting continues on this instance, changes are spooled to disk"
                );
                books.standing = alone;
                if !books.led_itself {
                    books.based_on = Some(books.followed.clone());
                }
                let (alerts, waiting) = books.without_postgres();
                books.begin_term(alerts, waiting)
            }
            _ => LeaseChange::None,
        }
    }

    /// Returns the term and the state from which a restarted actor resumes; `None` if another instance is the leader.
    pub async fn read_back(&self) -> Option<(u64, Vec<Alert>, Vec<OutboxRow>)> {
        let books = self.books.lock().await;
        let (alerts, waiting) = match books.standing {
            Leadership::Starting | Leadership::Follows => return None,
            Leadership::Alone { .. } => books.without_postgres(),
            Leadership::Leads { .. } => books.with_postgres(self.store.load().await.ok()?),
        };
        Some((books.term, alerts, waiting))
    }

    /// Writes decisions of `term` to Postgres, or to disk if Postgres does not accept them in time. Returns whether they are valid;
    /// those of a deposed leader or of another term are discarded.
    pub async fn record(&self, change: Change, term: u64) -> bool {
        let mut books = self.books.lock().await;
        if !books.acts() || books.term != term {
            return false;
        }
        let before = (!books.unsaved.is_empty()).then(|| books.unsaved.clone());
        books.unsaved.add(change.alerts, change.outbox, change.events);
        self.save(&mut books).await;
        let holds = books.acts();
        if !holds {
            books.unsaved = before.unwrap_or_default();
        }
        holds
    }

    /// Writes the outcome of an attempt in `term` to send `row`. Sent and given-up rows are written whichever instance is the
    /// leader; a row that still waits is discarded if the term ended.
    pub async fn note(&self, row: OutboxRow, term: u64) {
        let mut books = self.books.lock().await;
        if row.ended.is_none() && (!books.acts() || books.term != term) {
            books.unsaved.forget(&row);
            return;
        }
        books.unsaved.add(Vec::new(), vec![row], Vec::new());
        self.save(&mut books).await;
    }

    async fn save(&self, books: &mut LedgerState) {
        match books.standing {
            Leadership::Leads { epoch, .. } if books.failed.is_none_or(|at| self.store.now().since(at) > REST) => {
                self.flush(books, epoch).await;
            }
            _ => self.keep_on_disk(books),
        }
    }

    async fn flush(&self, books: &mut LedgerState, epoch: i64) {
        if books.unsaved.is_empty() {
            return;
        }
        match self.store.write(epoch, books.unsaved.rows()).await {
            Ok(()) => {
                if books.on_disk {
                    tracing::info!("spooled changes were written to Postgres");
                }
                books.saved();
                books.failed = None;
                if books.on_disk {
                    self.keep_on_disk(books);
                }
            }
            Err(NotWritten::Deposed) => {
                tracing::warn!("lost leadership to another instance; no longer evaluating and sending alerts");
                books.standing = Leadership::Follows;
            }
            Err(NotWritten::Trouble(trouble)) => {
                tracing::warn!(error = trouble.detail, "alert changes are spooled to disk until Postgres accepts them");
                books.failed = Some(self.store.now());
                self.keep_on_disk(books);
            }
        }
    }

    fn keep_on_disk(&self, books: &mut LedgerState) {
        books.unsaved.led_under = books.led_under;
        books.unsaved.based_on.clone_from(&books.based_on);
        match self.store.save_to_disk(&books.unsaved) {
            Ok(()) => books.on_disk = !books.unsaved.is_empty(),
            Err(error) => tracing::error!(%error, "cannot write alerts to Postgres or to disk"),
        }
    }

    /// Gives up the lease, so that another instance can take over at once.
    pub async fn resign(&self) {
        let standing = self.books.lock().await.standing;
        let leads = matches!(standing, Leadership::Leads { .. });
        let says_so = leads || matches!(standing, Leadership::Alone { .. });
        let in_postgres = async { if leads { self.store.resign().await } else { Ok(()) } };
        let in_redis = async { if says_so { self.store.release_redis().await } else { Ok(()) } };
        let (in_postgres, in_redis) = tokio::join!(in_postgres, in_redis);
        for resigned in [in_postgres, in_redis] {
            if let Err(trouble) = resigned {
                tracing::debug!(error = trouble.detail, "cannot release the leader lease; it will expire");
            }
        }
        self.books.lock().await.standing = Leadership::Follows;
    }

    /// Returns the newest notifications, from Postgres or, while it is unreachable, the unsaved ones. The flag says whether they
    /// are from Postgres.
    pub async fn messages(&self, limit: u32) -> (Vec<OutboxRow>, bool) {
        match self.store.newest_messages(limit).await {
            Ok(rows) => (rows, true),
            Err(_) => (self.books.lock().await.unsaved.outbox().iter().rev().cloned().collect(), false),
        }
    }
}
