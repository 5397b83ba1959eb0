//! Who may evaluate and send, and where that is written down: in Postgres while it is there, else
//! on disk. Shared by the alert evaluator and the alert dispatcher; no actor itself.
//!
//! One monitor leads: it holds a lease in Postgres, renewed every [`RENEW_EVERY`] and over after
//! `LEASE`, by Postgres' clock. Each writing transaction checks the lease's epoch, and nothing
//! is sent after the time up to which the lease is known to hold: a leader that was stopped and
//! continued does nothing before it has asked again. (An advisory lock would stay with a stopped
//! process for as long as its socket does.) A leader that loses Postgres goes on alone: nobody
//! else can be elected meanwhile.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::alerting::lifecycle::Alert;
use crate::alerting::quiet::Silence;
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::postgres::alerts::{self, NotWritten, OutboxRow};
use crate::postgres::alerts_spool::{Spool, Unsaved};
use crate::postgres::connection::PgPool;
use crate::postgres::events::NewRow;

/// How often the lease is renewed, or asked for.
pub const RENEW_EVERY: Duration = Duration::from_secs(3);
/// A leader that did not renew for so long leads no more.
const LEASE: Duration = Duration::from_secs(10);
/// Up to this long after it asked, a leader knows that it leads.
const SURE_FOR: Duration = Duration::from_secs(8);
/// How long Postgres may take to answer before the disk is used.
const WITHIN: Duration = Duration::from_secs(1);
/// Postgres is not asked again so soon after it failed.
const REST: Duration = Duration::from_secs(5);
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
    Leads { epoch: i64, until: Instant },
    /// It led, or nobody could be asked: it goes on without Postgres.
    Alone,
}

/// The ledger.
pub struct Ledger {
    postgres: PgPool,
    holder: String,
    spool: Spool,
    started: Instant,
    books: Mutex<Books>,
}

struct Books {
    standing: Standing,
    unsaved: Unsaved,
    /// Something is on disk.
    on_disk: bool,
    failed: Option<Instant>,
    silences: Vec<Silence>,
}

impl Ledger {
    /// A ledger of the monitor `holder`; what waits on disk from an earlier run is taken up.
    #[must_use]
    pub fn new(postgres: PgPool, holder: String, spool: Spool) -> Self {
        let unsaved = spool.load();
        let on_disk = !unsaved.is_empty();
        let books = Books { standing: Standing::Starting, unsaved, on_disk, failed: None, silences: Vec::new() };
        Self { postgres, holder, spool, started: Instant::now(), books: Mutex::new(books) }
    }

    /// Whether this monitor may evaluate and send at this moment.
    pub async fn may_act(&self) -> bool {
        match self.books.lock().await.standing {
            Standing::Leads { until, .. } => Instant::now() < until,
            Standing::Alone => true,
            Standing::Starting | Standing::Follows => false,
        }
    }

    /// The silences and acknowledgements, as last read.
    pub async fn silences(&self) -> Vec<Silence> {
        self.books.lock().await.silences.clone()
    }

    /// Asks for the lease or renews it, and reads what others wrote.
    pub async fn renew(&self) -> News {
        let asked = Instant::now();
        let answer = within(alerts::lead(&self.postgres, &self.holder, LEASE.as_secs_f64())).await;
        let silences = match &answer {
            Ok(_) => within(alerts::silences(&self.postgres)).await.ok(),
            Err(_) => None,
        };
        let mut books = self.books.lock().await;
        if let Some(silences) = silences {
            books.silences = silences;
        }
        match answer {
            Err(trouble) => self.unreachable(&mut books, &trouble),
            Ok(None) => self.follow(&mut books).await,
            Ok(Some(epoch)) => {
                let known = match books.standing {
                    Standing::Leads { epoch: known, .. } => known == epoch,
                    _ => false,
                };
                let was_alone = books.standing == Standing::Alone;
                books.failed = None;
                books.standing = Standing::Leads { epoch, until: asked + SURE_FOR };
                if known {
                    self.flush(&mut books, epoch).await;
                    return News::None;
                }
                self.take_over(&mut books, epoch, was_alone).await
            }
        }
    }

    async fn take_over(&self, books: &mut Books, epoch: i64, was_alone: bool) -> News {
        // What this monitor did alone, or an earlier run left on disk, is newer than the tables.
        self.flush(books, epoch).await;
        match within(alerts::load(&self.postgres)).await {
            Ok(kept) => {
                tracing::info!(epoch, "this monitor evaluates and sends alerts");
                News::Leads { alerts: kept.alerts, waiting: kept.waiting }
            }
            Err(trouble) => {
                tracing::warn!(error = trouble.detail, "alerts cannot be read back; trying again");
                books.standing = if was_alone { Standing::Alone } else { Standing::Starting };
                News::None
            }
        }
    }

    async fn follow(&self, books: &mut Books) -> News {
        if books.standing != Standing::Follows {
            tracing::info!("another monitor evaluates and sends alerts; this one is ready to take over");
        }
        books.standing = Standing::Follows;
        books.failed = None;
        if !books.unsaved.is_empty() && within(alerts::hand_over(&self.postgres, books.unsaved.rows())).await.is_ok() {
            books.unsaved = Unsaved::default();
            self.keep_on_disk(books);
        }
        match within(alerts::alerts(&self.postgres)).await {
            Ok(alerts) => News::Follows(alerts),
            Err(_) => News::None,
        }
    }

    fn unreachable(&self, books: &mut Books, trouble: &SourceTrouble) -> News {
        books.failed = Some(Instant::now());
        match books.standing {
            Standing::Leads { .. } => {
                tracing::warn!(error = trouble.detail, "alerts go on without Postgres; what happens waits on disk");
                books.standing = Standing::Alone;
                News::None
            }
            Standing::Starting if self.started.elapsed() > ALONE_AFTER => {
                tracing::warn!(error = trouble.detail, "alerts begin without Postgres; what happens waits on disk");
                books.standing = Standing::Alone;
                let waiting = books.unsaved.outbox().iter().filter(|row| row.ended.is_none()).cloned().collect();
                News::Leads { alerts: books.unsaved.alerts(), waiting }
            }
            _ => News::None,
        }
    }

    /// What a part of this monitor that fell goes on from; `None` if another monitor leads.
    pub async fn read_back(&self) -> Option<(Vec<Alert>, Vec<OutboxRow>)> {
        let books = self.books.lock().await;
        let unsaved = || {
            let waiting = books.unsaved.outbox().iter().filter(|row| row.ended.is_none()).cloned();
            (books.unsaved.alerts(), waiting.collect::<Vec<_>>())
        };
        match books.standing {
            Standing::Starting | Standing::Follows => None,
            Standing::Alone => Some(unsaved()),
            Standing::Leads { .. } => {
                let kept = within(alerts::load(&self.postgres)).await.ok()?;
                // What is not saved yet is newer.
                let (mut alerts, mut waiting) = unsaved();
                let newer: Vec<String> = alerts.iter().map(|alert| alert.key.clone()).collect();
                alerts.extend(kept.alerts.into_iter().filter(|alert| !newer.contains(&alert.key)));
                let outbox = books.unsaved.outbox();
                let is_newer = |row: &OutboxRow| outbox.iter().any(|o| o.id == row.id && o.channel == row.channel);
                waiting.extend(kept.waiting.into_iter().filter(|row| !is_newer(row)));
                waiting.sort_by(|a, b| a.created.total_cmp(&b.created));
                Some((alerts, waiting))
            }
        }
    }

    /// Writes rows down: in Postgres, or on disk if that does not take them soon. Whether this
    /// monitor may go on; a deposed one may not.
    pub async fn record(&self, change: Change) -> bool {
        let mut books = self.books.lock().await;
        books.unsaved.add(change.alerts, change.outbox, change.events);
        match books.standing {
            Standing::Leads { epoch, .. } if books.failed.is_none_or(|at| at.elapsed() > REST) => {
                self.flush(&mut books, epoch).await;
            }
            Standing::Leads { .. } | Standing::Alone => self.keep_on_disk(&mut books),
            Standing::Starting | Standing::Follows => {}
        }
        matches!(books.standing, Standing::Leads { .. } | Standing::Alone)
    }

    async fn flush(&self, books: &mut Books, epoch: i64) {
        if books.unsaved.is_empty() {
            return;
        }
        let writing = tokio::time::timeout(WITHIN, alerts::write(&self.postgres, epoch, books.unsaved.rows()));
        match writing.await {
            Ok(Ok(())) => {
                if books.on_disk {
                    tracing::info!("what waited on disk is in Postgres");
                }
                books.unsaved = Unsaved::default();
                books.failed = None;
                if books.on_disk {
                    self.keep_on_disk(books);
                }
            }
            Ok(Err(NotWritten::Deposed)) => {
                tracing::warn!("another monitor leads now; this one stops evaluating and sending");
                books.standing = Standing::Follows;
            }
            Ok(Err(NotWritten::Trouble(trouble))) => {
                tracing::warn!(error = trouble.detail, "alerts wait on disk until Postgres takes them");
                books.failed = Some(Instant::now());
                self.keep_on_disk(books);
            }
            Err(_) => {
                tracing::warn!("alerts wait on disk until Postgres answers again");
                books.failed = Some(Instant::now());
                self.keep_on_disk(books);
            }
        }
    }

    fn keep_on_disk(&self, books: &mut Books) {
        match self.spool.save(&books.unsaved) {
            Ok(()) => books.on_disk = !books.unsaved.is_empty(),
            Err(error) => tracing::error!(%error, "alerts can be written down neither in Postgres nor on disk"),
        }
    }

    /// Leads no more; another may at once.
    pub async fn resign(&self) {
        let led = matches!(self.books.lock().await.standing, Standing::Leads { .. });
        if led && let Err(trouble) = within(alerts::resign(&self.postgres, &self.holder)).await {
            tracing::debug!(error = trouble.detail, "the lease runs out by itself");
        }
        self.books.lock().await.standing = Standing::Follows;
    }

    /// Reads the newest messages, from Postgres or, while it is away, those not saved there.
    pub async fn messages(&self, limit: u32) -> (Vec<OutboxRow>, bool) {
        match within(alerts::newest_messages(&self.postgres, limit)).await {
            Ok(rows) => (rows, true),
            Err(_) => (self.books.lock().await.unsaved.outbox().iter().rev().cloned().collect(), false),
        }
    }
}

async fn within<T>(work: impl Future<Output = Result<T, SourceTrouble>>) -> Result<T, SourceTrouble> {
    tokio::time::timeout(WITHIN, work)
        .await
        .unwrap_or_else(|_| Err(SourceTrouble::new(TroubleKind::TimedOut, super::io::POSTGRES_LATE)))
}
