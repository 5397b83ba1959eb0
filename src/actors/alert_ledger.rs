//! Who may evaluate and send, and where that is written down: in Postgres while it is there, else
//! on disk. Shared by the alert evaluator and the alert dispatcher; no actor itself.
//!
//! One monitor leads: it holds a lease in Postgres, renewed every [`RENEW_EVERY`] and over after
//! [`LEASE`](super::alert_store::LEASE), by Postgres' clock. Each writing transaction checks the lease's epoch, and nothing
//! is sent after the time up to which the lease is known to hold: a leader that was stopped and
//! continued does nothing before it has asked again. (An advisory lock would stay with a stopped
//! process for as long as its socket does.)
//!
//! What a leader decides holds for its term: from the moment it went on from what is written down until it is deposed.
//! A decision of another term is refused and discarded. Of what a deposed monitor has not written yet, only what it
//! sent is kept.
//!
//! Whoever leads says so in Redis too, for as long. While Postgres is away that decides: the leader
//! goes on without it, another takes over when it falls silent, and of those that start then one
//! begins. If Redis is away as well, a leader goes on and whoever starts begins: rather told twice
//! than not at all.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::Mutex;

use super::alert_store::{AlertStore, LiveStore};
use crate::alerting::lifecycle::Alert;
use crate::alerting::quiet::Silence;
use crate::fleet::cleanup::Finding;
use crate::fleet::reading::SourceTrouble;
use crate::fleet::time::Mono;
use crate::postgres::alerts::{Kept, Led, NotWritten, OutboxRow};
use crate::postgres::alerts_spool::Unsaved;
use crate::postgres::events::NewRow;

/// How often the lease is renewed, or asked for.
pub const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Up to this long after it asked, a leader knows that it leads.
const SURE_FOR: Duration = Duration::from_secs(8);
/// Postgres is not asked again so soon after it failed.
const REST: Duration = Duration::from_secs(5);
/// So long the outcome of an attempt to send is awaited: longer than the dispatcher lets one take.
const OUTCOME_WITHIN: Duration = Duration::from_secs(45);
/// A monitor that has not reached Postgres for so long since its start goes on alone.
const ALONE_AFTER: Duration = Duration::from_secs(5);

/// Rows to write down together.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Alerts as they are now.
    pub alerts: Vec<Alert>,
    /// Messages as they are now.
    pub outbox: Vec<OutboxRow>,
    /// What happened.
    pub events: Vec<NewRow>,
}

impl Change {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.alerts.is_empty() && self.outbox.is_empty() && self.events.is_empty()
    }
}

/// What asking for the lease came to.
#[derive(Debug)]
pub enum News {
    /// As before.
    None,
    /// This monitor leads from now on: what it goes on from.
    Leads {
        /// The term that begins.
        term: u64,
        /// The alerts.
        alerts: Vec<Alert>,
        /// Messages on their way, in order.
        waiting: Vec<OutboxRow>,
    },
    /// Another monitor leads; the alerts as it wrote them down.
    Follows(Vec<Alert>),
}

/// Whether this monitor leads.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Standing {
    /// Not known yet.
    Starting,
    /// Another leads.
    Follows,
    /// It leads, surely until then.
    Leads { epoch: i64, until: Mono },
    /// It goes on without Postgres: surely until then, or, if Redis is away too, until one of the two
    /// can be asked.
    Alone { until: Option<Mono> },
}

impl Standing {
    /// Whether it may act at this moment.
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
    books: Mutex<Books>,
}

struct Books {
    standing: Standing,
    /// Counts the times that this monitor went on from what is written down.
    term: u64,
    /// The epoch in which this monitor led last, or that of the leader it followed.
    led_under: Option<i64>,
    /// That was this process, which the epoch after it does not begin with: another monitor handed over.
    led_itself: bool,
    /// Since when an outcome is awaited before what is unsaved can be handed over.
    sending_since: Option<Mono>,
    unsaved: Unsaved,
    /// Something is on disk.
    on_disk: bool,
    failed: Option<Mono>,
    silences: Vec<Silence>,
    /// The alerts as the leader wrote them down, while another leads.
    followed: Vec<Alert>,
}

impl Books {
    fn acts(&self) -> bool {
        matches!(self.standing, Standing::Leads { .. } | Standing::Alone { .. })
    }

    /// Whether no other monitor can have written since what is unsaved was decided, when `epoch` begins. A monitor that
    /// began alone does not know what was written before.
    fn is_newest(&self, epoch: i64) -> bool {
        self.led_under.is_some_and(|led_under| epoch <= led_under + i64::from(!self.led_itself))
    }

    fn begin_term(&mut self, alerts: Vec<Alert>, waiting: Vec<OutboxRow>) -> News {
        self.term += 1;
        News::Leads { term: self.term, alerts, waiting }
    }

    fn saved(&mut self) {
        self.unsaved = Unsaved::default();
    }

    /// What Postgres has, and what is not saved there, which is newer.
    fn with_postgres(&self, kept: Kept) -> (Vec<Alert>, Vec<OutboxRow>) {
        let mut alerts = self.unsaved.alerts();
        let newer: BTreeSet<String> = alerts.iter().map(|alert| alert.key.clone()).collect();
        alerts.extend(kept.alerts.into_iter().filter(|alert| !newer.contains(&alert.key)));
        // In the order in which they were written down, whatever the clocks of those who made them said.
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

    /// What this monitor goes on from without Postgres: what is not saved there is newer.
    fn without_postgres(&self) -> (Vec<Alert>, Vec<OutboxRow>) {
        let mut alerts = self.unsaved.alerts();
        let newer: BTreeSet<String> = alerts.iter().map(|alert| alert.key.clone()).collect();
        alerts.extend(self.followed.iter().filter(|alert| !newer.contains(&alert.key)).cloned());
        (alerts, self.unsaved.outbox().iter().filter(|row| row.ended.is_none()).cloned().collect())
    }
}

impl<S: AlertStore> Ledger<S> {
    /// A ledger in `store`; what waits on disk from an earlier run is taken up.
    #[must_use]
    pub fn new(store: S) -> Self {
        let mut unsaved = store.load_from_disk();
        unsaved.forget_attempts();
        let on_disk = !unsaved.is_empty();
        let books = Books {
            standing: Standing::Starting,
            term: 0,
            led_under: unsaved.led_under,
            led_itself: false,
            sending_since: None,
            unsaved,
            on_disk,
            failed: None,
            silences: Vec::new(),
            followed: Vec::new(),
        };
        Self { started: store.now(), store, books: Mutex::new(books) }
    }

    /// Whether this monitor may evaluate and send at this moment.
    pub async fn may_act(&self) -> bool {
        self.books.lock().await.standing.may_act(self.store.now())
    }

    /// The silences and acknowledgements, as last read.
    pub async fn silences(&self) -> Vec<Silence> {
        self.books.lock().await.silences.clone()
    }

    /// Asks for the lease or renews it, and reads what others wrote: beside the news, what the janitor found and
    /// nobody was told of yet.
    pub async fn renew(&self) -> (News, Vec<Finding>) {
        let asked = self.store.now();
        let acts = self.may_act().await;
        let answer = if !acts && self.store.another_leads().await.unwrap_or(false) {
            // It leads whether Postgres can be read or not.
            Ok(self.store.follow().await.unwrap_or_default())
        } else {
            self.store.lead().await
        };
        let held = match &answer {
            Ok(Led { epoch: Some(_), .. }) => self.store.claim_redis().await.map(|()| true),
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
                // Alone in between, too: nobody else led in this epoch.
                let goes_on = books.acts() && books.led_under == Some(epoch);
                let alone = Some(books.standing).filter(|standing| matches!(standing, Standing::Alone { .. }));
                books.failed = None;
                books.standing = Standing::Leads { epoch, until: asked.plus(SURE_FOR) };
                if goes_on {
                    self.flush(&mut books, epoch).await;
                    News::None
                } else {
                    self.take_over(&mut books, epoch, alone).await
                }
            }
        };
        (news, led.findings)
    }

    async fn take_over(&self, books: &mut Books, epoch: i64, alone: Option<Standing>) -> News {
        if books.is_newest(epoch) {
            // What this monitor did alone, or an earlier run left on disk, is newer than the tables.
            self.flush(books, epoch).await;
            if !books.acts() {
                // Deposed in between; what it has is not the newest any more.
                return News::None;
            }
        } else {
            self.hand_over(books).await;
            if books.unsaved.is_sending() {
                books.standing = alone.unwrap_or(Standing::Starting);
                return News::None;
            }
        }
        match self.store.load().await {
            Ok(kept) => {
                (books.led_under, books.led_itself) = (Some(epoch), true);
                books.followed.clear();
                tracing::info!(epoch, "became leader: evaluating and sending alerts");
                let (alerts, waiting) = books.with_postgres(kept);
                books.begin_term(alerts, waiting)
            }
            Err(trouble) => {
                tracing::warn!(error = trouble.detail, "cannot load stored alerts; retrying");
                books.standing = alone.unwrap_or(Standing::Starting);
                News::None
            }
        }
    }

    async fn follow(&self, books: &mut Books, epoch: Option<i64>) -> News {
        if books.standing != Standing::Follows {
            tracing::info!("another instance is the leader; standing by");
        }
        books.standing = Standing::Follows;
        books.failed = None;
        self.hand_over(books).await;
        match self.store.alerts().await {
            Ok(alerts) => {
                // What this monitor may decide alone later is newer than that epoch.
                if books.unsaved.is_empty() && epoch.is_some() {
                    (books.led_under, books.led_itself) = (epoch, false);
                }
                books.followed.clone_from(&alerts);
                News::Follows(alerts)
            }
            Err(_) => News::None,
        }
    }

    /// Whether an attempt to send is under way whose outcome is awaited: not for ever, since an attempt that was cut off
    /// has none.
    fn waits_for_outcome(&self, books: &mut Books) -> bool {
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

    /// Another monitor led since: what this one sent is written, the rest of what it decided is void. While an attempt to
    /// send is under way this waits: only its outcome says which of the two it is.
    async fn hand_over(&self, books: &mut Books) {
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

    /// Postgres cannot be asked. `held`: whether this monitor leads by Redis, if that can be asked.
    fn unreachable(&self, books: &mut Books, trouble: &SourceTrouble, held: Option<bool>, asked: Mono) -> News {
        books.failed = Some(self.store.now());
        let alone = Standing::Alone { until: held.map(|_| asked.plus(SURE_FOR)) };
        match (books.standing, held) {
            (Standing::Leads { .. } | Standing::Alone { .. }, Some(false)) => {
                tracing::warn!("lost leadership to another instance; no longer evaluating and sending alerts");
                books.standing = Standing::Follows;
                News::None
            }
            (Standing::Leads { .. }, _) => {
                tracing::warn!(
                    error = trouble.detail,
                    "Postgres is unavailable; alerting continues, changes are spooled to disk"
                );
                books.standing = alone;
                News::None
            }
            (Standing::Alone { .. }, _) => {
                books.standing = alone;
                News::None
            }
            (Standing::Starting, None | Some(true)) if self.store.now().since(self.started) > ALONE_AFTER => {
                tracing::warn!(
                    error = trouble.detail,
                    "Postgres is unavailable; alerting starts, changes are spooled to disk"
                );
                books.standing = alone;
                // It does not know what is written in Postgres: what it decides is not newer than that.
                books.led_under = None;
                let (alerts, waiting) = books.without_postgres();
                books.begin_term(alerts, waiting)
            }
            (Standing::Follows, Some(true)) => {
                tracing::warn!(
                    error = trouble.detail,
                    "the leader is gone and Postgres is unavailable: alerting continues on this instance, changes are spooled to disk"
                );
                books.standing = alone;
                let (alerts, waiting) = books.without_postgres();
                books.begin_term(alerts, waiting)
            }
            _ => News::None,
        }
    }

    /// What a part of this monitor that fell goes on from, with the term; `None` if another monitor leads.
    pub async fn read_back(&self) -> Option<(u64, Vec<Alert>, Vec<OutboxRow>)> {
        let books = self.books.lock().await;
        let (alerts, waiting) = match books.standing {
            Standing::Starting | Standing::Follows => return None,
            Standing::Alone { .. } => books.without_postgres(),
            Standing::Leads { .. } => books.with_postgres(self.store.load().await.ok()?),
        };
        Some((books.term, alerts, waiting))
    }

    /// Writes down what was decided in `term`: in Postgres, or on disk if that does not take it soon. Whether the
    /// decision holds; that of a deposed monitor, or of another term, does not, and is discarded.
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

    /// Writes down what came of an attempt in `term` to send `row`. That it was sent or given up is so whoever leads by now;
    /// that it waits is void in another term, whose messages are others.
    pub async fn note(&self, row: OutboxRow, term: u64) {
        let mut books = self.books.lock().await;
        if row.ended.is_none() && (!books.acts() || books.term != term) {
            books.unsaved.forget(&row);
            return;
        }
        books.unsaved.add(Vec::new(), vec![row], Vec::new());
        self.save(&mut books).await;
    }

    async fn save(&self, books: &mut Books) {
        match books.standing {
            Standing::Leads { epoch, .. } if books.failed.is_none_or(|at| self.store.now().since(at) > REST) => {
                self.flush(books, epoch).await;
            }
            _ => self.keep_on_disk(books),
        }
    }

    async fn flush(&self, books: &mut Books, epoch: i64) {
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
                books.standing = Standing::Follows;
            }
            Err(NotWritten::Trouble(trouble)) => {
                tracing::warn!(error = trouble.detail, "alert changes are spooled to disk until Postgres accepts them");
                books.failed = Some(self.store.now());
                self.keep_on_disk(books);
            }
        }
    }

    fn keep_on_disk(&self, books: &mut Books) {
        books.unsaved.led_under = books.led_under;
        match self.store.save_to_disk(&books.unsaved) {
            Ok(()) => books.on_disk = !books.unsaved.is_empty(),
            Err(error) => tracing::error!(%error, "cannot write alerts to Postgres or to disk"),
        }
    }

    /// Leads no more; another may at once.
    pub async fn resign(&self) {
        let standing = self.books.lock().await.standing;
        let leads = matches!(standing, Standing::Leads { .. });
        let says_so = leads || matches!(standing, Standing::Alone { .. });
        let in_postgres = async { if leads { self.store.resign().await } else { Ok(()) } };
        let in_redis = async { if says_so { self.store.release_redis().await } else { Ok(()) } };
        let (in_postgres, in_redis) = tokio::join!(in_postgres, in_redis);
        for resigned in [in_postgres, in_redis] {
            if let Err(trouble) = resigned {
                tracing::debug!(error = trouble.detail, "cannot release the leader lease; it will expire");
            }
        }
        self.books.lock().await.standing = Standing::Follows;
    }

    /// Reads the newest messages, from Postgres or, while it is away, those not saved there.
    pub async fn messages(&self, limit: u32) -> (Vec<OutboxRow>, bool) {
        match self.store.newest_messages(limit).await {
            Ok(rows) => (rows, true),
            Err(_) => (self.books.lock().await.unsaved.outbox().iter().rev().cloned().collect(), false),
        }
    }
}
