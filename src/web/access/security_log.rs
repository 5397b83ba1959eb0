//! The security log: each event is a log line with the target `security`, a counter, and a row in the audit log.
//! Repetitions are bounded by [`Tally`].
//!
//! Rows are stored in the background: no request waits for them. While Postgres is unreachable they are retried, up to
//! a limit; the log lines remain.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::rt;
use serde_json::json;
use tracing::Instrument;

use super::caller::Caller;
use super::failures::ManyFailures;
use crate::access::audit_chain::Head;
use crate::access::security_events::{SecurityEvent, SecurityKind, Tally};
use crate::actors::io::{Io, POSTGRES_LATE};
use crate::exposition::counters::{Counters, Login};
use crate::fleet::event::{Event, EventKind, Severity};
use crate::fleet::reading::SourceTrouble;
use crate::postgres::audit::{self, Outcome, RequestedChange};
use crate::postgres::events::{self, NewRow};

/// Interval of storing rows.
const STORE_EVERY: Duration = Duration::from_secs(1);
/// Interval of retrying while Postgres fails.
const RETRY_EVERY: Duration = Duration::from_secs(10);
/// Timeout of storing rows.
const STORE_WITHIN: Duration = Duration::from_secs(5);
/// Rows waiting for Postgres; further ones are only logged.
const MOST_ROWS: usize = 500;
/// Minimum interval between events about failed logins of the same address.
const EVENT_EVERY: Duration = Duration::from_secs(600);
/// Maximum number of such events in that time.
const MOST_EVENTS: usize = 10;

/// Everything that happened to the protection of this monitor.
pub struct SecurityLog {
    io: Io,
    counters: Arc<Mutex<Counters>>,
    /// Authentication mode.
    mode: &'static str,
    waiting: Mutex<Waiting>,
    storing: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    tally: Tally,
    rows: Vec<(RequestedChange, Outcome)>,
    events: Vec<NewRow>,
    reported: Vec<(Option<IpAddr>, Instant)>,
}

impl SecurityLog {
    /// Creates a log for a monitor with this authentication mode.
    #[must_use]
    pub fn new(io: Io, counters: Arc<Mutex<Counters>>, mode: &'static str) -> Arc<Self> {
        Arc::new(Self { io, counters, mode, waiting: Mutex::default(), storing: AtomicBool::new(false) })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts, logs and records an event.
    pub(super) fn note(self: &Arc<Self>, event: SecurityEvent) {
        self.count(event.kind, event.role.is_some());
        let mut waiting = self.waiting();
        if waiting.tally.note(&event, Instant::now()) {
            self.report(&mut waiting, &event, 1);
        }
        drop(waiting);
        self.keep_storing();
    }

    /// Counts and logs a change. Its row in the audit log is stored by the caller; `head` is the end of the hash chain
    /// with its outcome, so that a copy of the log outside of the database covers it.
    pub(super) fn changed(
        &self,
        who: &RequestedChange,
        row: Option<i64>,
        outcome: Option<Outcome>,
        head: Option<&Head>,
    ) {
        self.count(SecurityKind::Change, true);
        let kind = SecurityKind::Change.as_str();
        let (user, role, address, action) = (who.who.as_str(), who.role, who.address.as_str(), who.action);
        let outcome = outcome.map_or("rejected", Outcome::as_str);
        let head = head.map(ToString::to_string);
        tracing::info!(target: "security", kind, user, role, address, action, row, outcome, head, "change");
    }

    /// Records that the rules were reloaded by a signal, whose sender is unknown.
    pub fn reloaded_by_signal(self: &Arc<Self>) {
        let change = RequestedChange {
            who: "SIGHUP".to_owned(),
            role: "none",
            address: String::new(),
            action: "reload rules",
            parameters: json!({}),
        };
        self.changed(&change, None, Some(Outcome::Done), None);
        self.waiting().rows.push((change, Outcome::Done));
        self.keep_storing();
    }

    /// Records an event about many failed logins.
    pub(super) fn report_failures(self: &Arc<Self>, many: &ManyFailures) {
        let mut waiting = self.waiting();
        let now = Instant::now();
        waiting.reported.retain(|(_, then)| now.duration_since(*then) < EVENT_EVERY);
        let is_reported = waiting.reported.iter().any(|(address, _)| *address == many.address);
        if is_reported || waiting.reported.len() >= MOST_EVENTS {
            return;
        }
        waiting.reported.push((many.address, now));
        let from = many.address.map_or_else(|| "all addresses".to_owned(), |address| address.to_string());
        // The same for several monitors behind one address.
        let key = format!("failed_logins:{from}:{:.0}", (self.io.wall() / EVENT_EVERY.as_secs_f64()).floor());
        let kind = EventKind::Recorded {
            type_name: "failed_logins".to_owned(),
            severity: Severity::Warning,
            detail: format!("{} failed logins from {from} within a minute", many.count),
        };
        let event = Event { ts: self.io.wall(), subject: "security".to_owned(), kind, key, running: (0, 0) };
        waiting.events.push(NewRow::from(&event));
        drop(waiting);
        self.keep_storing();
    }

    fn count(&self, kind: SecurityKind, authenticated: bool) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.count_security(kind);
        match kind {
            SecurityKind::Login => counters.count_login(Login::Accepted),
            SecurityKind::FailedLogin => counters.count_login(Login::Wrong),
            SecurityKind::Throttled => counters.count_login(Login::Slowed),
            SecurityKind::Denied if authenticated => counters.count_login(Login::Denied),
            _ => {}
        }
    }

    /// Logs an event that happened `count` times, and queues its row.
    fn report(&self, waiting: &mut Waiting, event: &SecurityEvent, count: u64) {
        let (kind, mode, title) = (event.kind.as_str(), self.mode, event.kind.title());
        let role = event.role.map_or("none", crate::access::Role::as_str);
        let address = event.address.map(|address| address.to_string());
        // As text: both log formats escape it.
        let (user, detail) = (event.user.as_str(), event.detail.as_str());
        if event.kind.is_rejection() {
            tracing::warn!(target: "security", kind, mode, user, role, address, detail, count, "{title}");
        } else {
            tracing::info!(target: "security", kind, mode, user, role, address, detail, count, "{title}");
        }
        if waiting.rows.len() >= MOST_ROWS {
            return;
        }
        let change = RequestedChange {
            who: if user.is_empty() { "unknown".to_owned() } else { user.to_owned() },
            role,
            address: address.unwrap_or_default(),
            action: title,
            parameters: json!({"kind": kind, "mode": mode, "count": count, "detail": detail}),
        };
        waiting.rows.push((change, if event.kind.is_rejection() { Outcome::Refused } else { Outcome::Done }));
    }

    /// Stores what waits, in the background, until nothing is left.
    fn keep_storing(self: &Arc<Self>) {
        if self.storing.swap(true, Ordering::SeqCst) {
            return;
        }
        let this = Arc::clone(self);
        let storing = async move {
            loop {
                rt::time::sleep(STORE_EVERY).await;
                if !this.has_more() {
                    return;
                }
                if let Err(trouble) = this.store().await {
                    tracing::warn!(error = trouble.detail, "cannot store security events; retrying");
                    rt::time::sleep(RETRY_EVERY).await;
                }
            }
        };
        // Not part of the request that happens to begin it.
        rt::spawn(storing.instrument(tracing::Span::none()));
    }

    /// Reports repetitions that are due. If nothing is left, marks storing as ended and returns false.
    fn has_more(&self) -> bool {
        let mut waiting = self.waiting();
        for repeated in waiting.tally.take_due(Instant::now()) {
            self.report(&mut waiting, &repeated.event, repeated.count);
        }
        let more = !(waiting.tally.is_idle() && waiting.rows.is_empty() && waiting.events.is_empty());
        // While the lock is held, so that no event is added in between.
        self.storing.store(more, Ordering::SeqCst);
        more
    }

    async fn store(&self) -> Result<(), SourceTrouble> {
        let (rows, events) = {
            let mut waiting = self.waiting();
            (std::mem::take(&mut waiting.rows), std::mem::take(&mut waiting.events))
        };
        if rows.is_empty() && events.is_empty() {
            return Ok(());
        }
        let (pool, of_events) = (self.io.postgres.clone(), self.io.postgres.clone());
        let (rows, events) = (Arc::new(rows), Arc::new(events));
        let (stored, found) = (Arc::clone(&rows), Arc::clone(&events));
        let putting = async move { if stored.is_empty() { Ok(()) } else { audit::record(&pool, &stored).await } };
        let recorded = self.io.run(STORE_WITHIN, POSTGRES_LATE, putting).await;
        if recorded.is_err() {
            self.wait_again(&rows, &[]);
        }
        let putting = async move { if found.is_empty() { Ok(()) } else { events::insert(&of_events, &found).await } };
        let reported = self.io.run(STORE_WITHIN, POSTGRES_LATE, putting).await;
        if reported.is_err() {
            self.wait_again(&[], &events);
        }
        recorded.and(reported)
    }

    fn wait_again(&self, rows: &[(RequestedChange, Outcome)], events: &[NewRow]) {
        let mut waiting = self.waiting();
        let newer = std::mem::take(&mut waiting.rows);
        waiting.rows = rows.iter().cloned().chain(newer).take(MOST_ROWS).collect();
        waiting.events.extend_from_slice(events);
        waiting.events.truncate(MOST_EVENTS);
    }

    /// Logs and stores what is left, at shutdown.
    pub async fn finish(&self) {
        {
            let mut waiting = self.waiting();
            for repeated in waiting.tally.take() {
                self.report(&mut waiting, &repeated.event, repeated.count);
            }
        }
        if let Err(trouble) = self.store().await {
            tracing::warn!(error = trouble.detail, "cannot store security events");
        }
    }
}

impl SecurityEvent {
    /// An event about an authenticated caller.
    pub(super) fn of(kind: SecurityKind, caller: &Caller, detail: String) -> Self {
        let (user, role) = (caller.name.clone(), Some(caller.role));
        Self { kind, user, role, address: caller.address.parse().ok(), detail }
    }
}
