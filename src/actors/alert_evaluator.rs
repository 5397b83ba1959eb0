//! Decides what is told: lets the board judge each snapshot, writes transitions and messages down
//! together, and only then hands the messages on.
//!
//! It does so while this monitor leads (see [`super::alert_ledger`]); else it shows what the
//! leader wrote down. It also keeps the rules: the file is read again when it changes, and a bad
//! file leaves the last good rules in force.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, ResponseActFuture, SpawnHandle, WrapFuture,
};
use arc_swap::ArcSwap;
use serde_json::json;
use uuid::Uuid;

use super::alert_ledger::{Change, Ledger, News, RENEW_EVERY};
use super::io::{Io, POSTGRES_LATE, REDIS_LATE};
use super::messages::{
    AlertOrder, AlertsNow, ChannelState, Deliver, Fail, FleetChanged, ReadBack, Report, Role, SnapshotTaken, Tick,
};
use super::rest;
use crate::alerting::abandoned;
use crate::alerting::board::{self, Board, BoardSettings, Shown};
use crate::alerting::in_force::{FileRead, InForce};
use crate::alerting::lifecycle::{Alert, Kind, Phase, Step};
use crate::alerting::rule::Severity;
use crate::alerting::worker_down;
use crate::failpoint;
use crate::fleet::cleanup::Finding;
use crate::fleet::event::{Event, EventKind};
use crate::fleet::snapshot::Snapshot;
use crate::fleet::time::Mono;
use crate::postgres::alerts::{self, OutboxRow};
use crate::postgres::events::NewRow;
use crate::postgres::janitor;
use crate::redis_streams::{self, older_monitor};
use crate::rules_file;

/// How long writing down may take, disk and all.
const WRITE_WITHIN: Duration = Duration::from_secs(4);
/// How often the rules' file is looked at: with the next tick, whose queries have the thread awake anyway.
const READ_FILE_EVERY: Duration = Duration::from_secs(10);
/// By so much a tick may come later than the one before: the lease is asked for once a tick all the same.
const TICKS_MAY_BE_LATE: Duration = Duration::from_millis(500);
/// A step of the wall clock, seconds; less is taken for the slow correction of a clock that runs fast or slow.
const STEP: f64 = 2.0;
/// Alert events shown in the feed.
const RECENT: usize = 50;
/// Cooldowns are taken over with the older monitor's state: at the start that follows, and not after later ones.
const TAKEN_OVER_JUST_NOW_SEC: f64 = 60.0;
/// Alerts that wait for Redis at most.
const UNREMEMBERED: usize = 200;

/// What the web front end shows of the alerts.
pub type ShownAlerts = Arc<ArcSwap<Shown>>;

/// What the evaluator needs to know beforehand.
#[derive(Debug, Clone)]
pub struct EvaluatorSettings {
    /// The file of the rules.
    pub file: PathBuf,
    /// That it is missing is a mistake.
    pub file_is_given: bool,
    /// How long after the monitor's start worker-down alerts are held back.
    pub grace: Duration,
    /// When the monitor started.
    pub started: Mono,
    /// For how long worker-down alerts are gathered.
    pub debounce: Duration,
    /// The channels there are.
    pub channels: Vec<String>,
}

/// The actor.
pub struct AlertEvaluator {
    io: Io,
    supervisor: Recipient<Report>,
    ledger: Arc<Ledger>,
    settings: EvaluatorSettings,
    board: Board,
    shown: ShownAlerts,
    /// This monitor leads.
    acting: bool,
    /// The term in which the board goes on; see [`super::alert_ledger`].
    term: u64,
    rules: InForce,
    file_read: Mono,
    /// By how many seconds the wall clock is ahead of the one that never jumps.
    ahead: f64,
    recent: VecDeque<Arc<Event>>,
    /// Alerts that Redis has not taken yet.
    unremembered: Vec<String>,
    /// The cooldowns of an older monitor were asked for, as is done once.
    cooldowns_read: bool,
    remembering: bool,
    wakes: Option<SpawnHandle>,
    lease: Lease,
    /// What the janitor found, as it was read last: the events about it say which queries.
    findings: Vec<Finding>,
}

/// When the lease is asked for: with a tick, whose other queries have the thread awake then; by itself if none comes.
#[derive(Default)]
struct Lease {
    asked: Mono,
    /// Nothing while it is being asked for.
    by_itself: Option<SpawnHandle>,
}

impl AlertEvaluator {
    /// An evaluator that writes into `ledger` and shows itself in `shown`. One that fell left there by which rules it
    /// judged: they are in force before anything else is known, or alerts would be over for want of their rules.
    #[must_use]
    pub fn new(
        io: Io,
        supervisor: Recipient<Report>,
        ledger: Arc<Ledger>,
        settings: EvaluatorSettings,
        shown: ShownAlerts,
    ) -> Self {
        let (wall, now) = (io.wall(), io.now());
        let grace_until = wall - now.since(settings.started).as_secs_f64() + settings.grace.as_secs_f64();
        let board_settings = BoardSettings {
            grace_until,
            debounce: settings.debounce.as_secs_f64(),
            channels: settings.channels.clone(),
        };
        let rules =
            InForce::new(settings.file.display().to_string(), settings.file_is_given, Arc::clone(&shown.load().rules));
        Self {
            board: Board::new(board_settings, Arc::clone(rules.rules())),
            rules,
            io,
            supervisor,
            ledger,
            settings,
            shown,
            acting: false,
            term: 0,
            file_read: Mono::default(),
            ahead: wall - now.since(Mono::default()).as_secs_f64(),
            recent: VecDeque::new(),
            unremembered: Vec::new(),
            cooldowns_read: false,
            remembering: false,
            wakes: None,
            lease: Lease::default(),
            findings: Vec::new(),
        }
    }

    /// Now, on the wall. If that clock was stepped (corrected, or the machine was suspended), the timers of the alerts
    /// are moved with it.
    fn read_clock(&mut self) -> f64 {
        let wall = self.io.wall();
        let ahead = wall - self.io.now().since(Mono::default()).as_secs_f64();
        let step = ahead - self.ahead;
        if step.abs() >= STEP {
            tracing::warn!("the clock was stepped by {step:.0} s; the timers of alerts are moved with it");
            self.board.shift_timers(step);
        }
        self.ahead = ahead;
        wall
    }

    /// Takes the rules from the file, or reports why not.
    fn take_file(&mut self, read: FileRead) {
        let before = self.rules.problems().to_vec();
        if self.rules.take(read) {
            let file = self.settings.file.display();
            tracing::info!(rules = self.rules.rules().rules.len(), "alert rules loaded from {file}");
            self.board.set_rules(Arc::clone(self.rules.rules()));
        }
        if self.rules.problems() != before {
            let rules = self.rules.rules().rules.len();
            for problem in self.rules.problems() {
                tracing::error!(rules, "{problem}; the rules in force stay in force");
            }
            if self.rules.problems().is_empty() {
                tracing::info!(rules, "{}: nothing is wrong any more", self.settings.file.display());
            }
        }
        self.show();
    }

    fn read_file(&self) -> impl Future<Output = FileRead> + use<> {
        let file = self.settings.file.clone();
        let reading = self.io.run(Duration::from_secs(2), "the rules file cannot be read in time", async move {
            let read = tokio::task::spawn_blocking(move || rules_file::read(&file)).await;
            Ok(match read {
                Ok(Ok(text)) => FileRead::Text(text),
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => FileRead::Missing,
                Ok(Err(error)) => FileRead::Unreadable(error.to_string()),
                Err(error) => FileRead::Unreadable(error.to_string()),
            })
        });
        async move { reading.await.unwrap_or_else(|trouble| FileRead::Unreadable(trouble.detail)) }
    }

    fn read_file_if_due(&mut self, ctx: &mut Context<Self>) {
        let now = self.io.now();
        if now.since(self.file_read) < READ_FILE_EVERY {
            return;
        }
        self.file_read = now;
        ctx.spawn(self.read_file().into_actor(self).map(|file, this, _| this.take_file(file)));
    }

    fn renew(&mut self, ctx: &mut Context<Self>) {
        self.lease.asked = self.io.now();
        if let Some(timer) = self.lease.by_itself.take() {
            ctx.cancel_future(timer);
        }
        let ledger = Arc::clone(&self.ledger);
        let renewing = self.io.run(WRITE_WITHIN * 2, POSTGRES_LATE, async move {
            let (news, findings) = ledger.renew().await;
            Ok((news, ledger.silences().await, ledger.may_act().await, findings))
        });
        ctx.spawn(renewing.into_actor(self).map(|renewed, this, ctx| {
            if let Ok((news, silences, may_act, findings)) = renewed {
                match news {
                    News::None => {}
                    News::Leads { term, alerts, waiting } => {
                        this.term = term;
                        this.board.replace(alerts);
                        this.deliver(waiting, true);
                        this.forget_old(ctx);
                    }
                    News::Follows(alerts) => {
                        if this.acting {
                            this.deliver(Vec::new(), true);
                        }
                        this.board.replace(alerts);
                    }
                }
                this.acting = may_act;
                let acknowledged = this.board.set_silences(silences);
                if this.acting && !acknowledged.is_empty() {
                    this.write(Change { alerts: acknowledged, ..Change::default() }, Announced::default(), ctx);
                }
                if this.acting {
                    this.take_findings(findings, ctx);
                }
            }
            this.show();
            this.lease.by_itself = Some(rest::later(ctx, RENEW_EVERY + TICKS_MAY_BE_LATE, Self::renew));
        }));
    }

    fn deliver(&self, rows: Vec<OutboxRow>, instead_of_all: bool) {
        self.supervisor.do_send(Report::Deliver(Deliver { rows, instead_of_all, term: self.term }));
    }

    fn renew_if_due(&mut self, ctx: &mut Context<Self>) {
        let due = self.io.now().since(self.lease.asked) + TICKS_MAY_BE_LATE >= RENEW_EVERY;
        if due && self.lease.by_itself.is_some() {
            self.renew(ctx);
        }
    }

    /// What the janitor found becomes an alert with the next snapshot; what is one already is noted
    /// as told.
    fn take_findings(&mut self, findings: Vec<Finding>, ctx: &mut Context<Self>) {
        self.findings.clone_from(&findings);
        let known = self.board.take_findings(findings);
        if known.is_empty() {
            return;
        }
        let passes: Vec<String> = known.into_iter().map(|finding| finding.pass).collect();
        let pool = self.io.postgres.clone();
        let noting =
            self.io.run(Duration::from_secs(5), POSTGRES_LATE, async move { janitor::told(&pool, &passes).await });
        ctx.spawn(noting.into_actor(self).map(|noted, _, _| {
            if let Err(trouble) = noted {
                tracing::debug!(error = trouble.detail, "a pass of the janitor is noted as told later");
            }
        }));
    }

    fn forget_old(&mut self, ctx: &mut Context<Self>) {
        let pool = self.io.postgres.clone();
        let forgetting =
            self.io.run(Duration::from_secs(10), POSTGRES_LATE, async move { alerts::forget_old(&pool).await });
        ctx.spawn(forgetting.into_actor(self).map(|forgotten, _, _| {
            if let Err(trouble) = forgotten {
                tracing::debug!(error = trouble.detail, "old alert messages are kept for now");
            }
        }));
    }

    /// Writes down what changed and what is due, then hands it on.
    fn settle(&mut self, changes: Vec<board::Change>, ctx: &mut Context<Self>) {
        let now = self.read_clock();
        let (due, told) = self.board.due(now);
        if let Some(handle) = self.wakes.take() {
            ctx.cancel_future(handle);
        }
        if let Some(next) = due.next {
            let rest = Duration::from_secs_f64((next - now).clamp(0.01, 3600.0));
            self.wakes = Some(ctx.run_later(rest, |this, ctx| {
                this.wakes = None;
                if this.acting {
                    this.settle(Vec::new(), ctx);
                }
            }));
        }
        let mut rows = Vec::new();
        let mut events = Vec::new();
        let fired = changes.iter().filter(|change| change.step == Step::Fired).map(|c| listed(&c.alert)).collect();
        for change in &changes {
            if let Some(event) = event(change, now) {
                let mut row = NewRow::from(&*event).of_alert(&change.alert.key);
                if let Some(finding) = self.findings.iter().find(|found| abandoned::key(found) == change.alert.key) {
                    row = row.with("queries", json!(finding.queries));
                }
                rows.push(row);
                events.push(event);
            }
        }
        let mut changed: std::collections::BTreeMap<String, Alert> =
            changes.into_iter().map(|change| (change.alert.key.clone(), change.alert)).collect();
        changed.extend(told.into_iter().map(|alert| (alert.key.clone(), alert)));
        let outbox: Vec<OutboxRow> = due
            .messages
            .iter()
            .flat_map(|outgoing| outgoing.channels.iter().map(|channel| OutboxRow::new(&outgoing.message, channel)))
            .collect();
        let change = Change { alerts: changed.into_values().collect(), outbox, events: rows };
        self.board.prune();
        if change.is_empty() {
            self.remember(ctx);
        } else {
            self.write(change, Announced { events, fired }, ctx);
        }
        self.tell_feed(Vec::new());
        self.show();
    }

    /// Nothing else is judged until this is written down; `announced` is what becomes known elsewhere then.
    fn write(&mut self, change: Change, announced: Announced, ctx: &mut Context<Self>) {
        let (ledger, term) = (Arc::clone(&self.ledger), self.term);
        let messages = change.outbox.clone();
        let writing = self.io.run(WRITE_WITHIN, POSTGRES_LATE, async move {
            failpoint::reached("before-commit");
            let may = ledger.record(change, term).await;
            failpoint::reached("after-commit");
            Ok(may)
        });
        ctx.wait(writing.into_actor(self).map(move |may, this, ctx| match may {
            // The board goes on from what is written down before it is asked again.
            Ok(false) => this.acting = false,
            // Written down or not, the message leaves.
            Ok(true) | Err(_) => {
                if !messages.is_empty() {
                    this.deliver(messages, false);
                }
                let Announced { events, fired } = announced;
                for event in events {
                    this.recent.push_front(event);
                }
                this.recent.truncate(RECENT);
                this.unremembered.extend(fired.iter().cloned());
                this.tell_feed(fired);
                this.remember(ctx);
            }
        }));
    }

    /// Keeps what fired in Redis; what Redis does not take waits.
    fn remember(&mut self, ctx: &mut Context<Self>) {
        if self.remembering || self.unremembered.is_empty() {
            return;
        }
        if self.io.observe_only {
            return self.unremembered.clear();
        }
        self.remembering = true;
        let (redis, alerts) = (self.io.redis.clone(), self.unremembered.clone());
        let count = alerts.len();
        let remembering = self.io.run(Duration::from_secs(2), REDIS_LATE, async move {
            redis_streams::alerts::remember(&redis, &alerts).await
        });
        ctx.spawn(remembering.into_actor(self).map(move |remembered, this, _| {
            this.remembering = false;
            if remembered.is_ok() {
                this.unremembered.drain(..count.min(this.unremembered.len()));
            }
            let over = this.unremembered.len().saturating_sub(UNREMEMBERED);
            this.unremembered.drain(..over);
        }));
    }

    /// With every tick, changed or not: a feed that was started again knows nothing.
    fn tell_feed(&self, fired: Vec<String>) {
        let firing = self.board.alerts().values().filter(|alert| alert.phase == Phase::Firing).count();
        let recent = self.recent.iter().cloned().collect();
        self.supervisor.do_send(Report::Alerts(AlertsNow { firing, recent, fired }));
    }

    /// Publishes what the page shows.
    fn show(&self) {
        let now = self.io.wall();
        self.shown.store(Arc::new(Shown {
            alerts: self.board.alerts().values().map(|a| (a.clone(), self.board.is_quiet(a, now))).collect(),
            rules: Arc::clone(self.board.rules()),
            silences: self.board.silences().to_vec(),
            mistakes: self.rules.problems().to_vec(),
            file: self.settings.file.display().to_string(),
            leads: self.acting,
            channels: self.settings.channels.clone(),
            at: now,
        }));
    }

    fn take_snapshot(&mut self, snapshot: &Arc<Snapshot>, ctx: &mut Context<Self>) {
        if !self.acting {
            return self.tell_feed(Vec::new());
        }
        if !std::mem::replace(&mut self.cooldowns_read, true) {
            return self.read_cooldowns(snapshot, ctx);
        }
        let now = self.read_clock();
        let changes = self.board.advance(snapshot, now);
        self.settle(changes, ctx);
    }

    /// Takes over which alerts an older monitor sent lately, before the first snapshot is judged.
    fn read_cooldowns(&mut self, snapshot: &Arc<Snapshot>, ctx: &mut Context<Self>) {
        let rules = self.board.rules().rules.iter().map(|rule| rule.name.clone());
        let types = snapshot.workers.keys().flat_map(worker_down::keys_at_zero);
        let keys: Vec<String> = rules.chain(types).collect();
        let (redis, now) = (self.io.redis.clone(), self.io.wall());
        let reading = self.io.run(Duration::from_secs(2), REDIS_LATE, async move {
            let taken_over_at = older_monitor::taken_over_at(&redis).await?;
            if taken_over_at.is_some_and(|at| now - at > TAKEN_OVER_JUST_NOW_SEC) {
                return Ok(Vec::new());
            }
            older_monitor::cooldowns(&redis, &keys).await
        });
        let snapshot = Arc::clone(snapshot);
        ctx.wait(reading.into_actor(self).map(move |cooldowns, this, ctx| {
            let now = this.read_clock();
            let until = |(key, left): (String, f64)| (key, now + left);
            this.board.take_over_cooldowns(cooldowns.unwrap_or_default().into_iter().map(until).collect());
            this.take_snapshot(&snapshot, ctx);
        }));
    }

    fn read_back(&mut self, ctx: &mut Context<Self>) {
        let ledger = Arc::clone(&self.ledger);
        let reading = self.io.run(WRITE_WITHIN, POSTGRES_LATE, async move { Ok(ledger.read_back().await) });
        ctx.wait(reading.into_actor(self).map(|kept, this, _| {
            if let Ok(Some((term, alerts, waiting))) = kept {
                if !this.acting {
                    this.term = term;
                    this.board.replace(alerts);
                    this.acting = true;
                }
                if this.term == term {
                    this.deliver(waiting, false);
                }
            }
        }));
    }
}

/// What becomes known beside the tables once a change is written there: by the feed, and by Redis, where alerts that
/// fired are listed.
#[derive(Default)]
struct Announced {
    events: Vec<Arc<Event>>,
    fired: Vec<String>,
}

/// An alert that fired, as Redis lists it.
fn listed(alert: &Alert) -> String {
    json!({
        "ts": alert.fired_at,
        "rule": alert.key,
        "severity": alert.severity,
        "detail": alert.detail,
        "message": alert.message,
    })
    .to_string()
}

/// What the archive and the feed say of a change; nothing of one that nobody has to know.
fn event(change: &board::Change, now: f64) -> Option<Arc<Event>> {
    let alert = &change.alert;
    let (type_name, severity, ts, detail) = match change.step {
        Step::Fired => ("alert", alert.severity, alert.fired_at.unwrap_or(now), alert.detail.clone()),
        Step::Resolved if alert.kind != Kind::Happening => {
            let lasted = crate::alerting::message::span(alert.lasted(now));
            let over = alert.resolved_at.unwrap_or(now);
            ("alert_resolved", Severity::Info, over, format!("{} is over after {lasted}", alert.key))
        }
        _ => return None,
    };
    let detail = match alert.kind {
        Kind::Rule if type_name == "alert" => format!("{}: {detail}", alert.rule),
        _ => detail,
    };
    let key = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{type_name}\n{}\n{ts}", alert.key).as_bytes()).to_string();
    let subject = alert.subject.clone().unwrap_or_else(|| alert.rule.clone());
    let kind = EventKind::Recorded { type_name: type_name.to_owned(), severity, detail };
    Some(Arc::new(Event { ts, subject, kind, key, running: (0, 0) }))
}

impl Actor for AlertEvaluator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.read_back(ctx);
        self.file_read = self.io.now();
        // The rules first: alerts that are read belong to them.
        ctx.spawn(self.read_file().into_actor(self).map(|file, this, ctx| {
            this.take_file(file);
            this.renew(ctx);
        }));
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.supervisor.do_send(Report::Ended(Role::AlertEvaluator));
    }
}

impl Handler<SnapshotTaken> for AlertEvaluator {
    type Result = ();

    fn handle(&mut self, SnapshotTaken(snapshot): SnapshotTaken, ctx: &mut Self::Context) {
        self.take_snapshot(&snapshot, ctx);
    }
}

impl Handler<Tick> for AlertEvaluator {
    type Result = ();

    /// What has nothing to do with the snapshot, while the sources are read for it.
    fn handle(&mut self, _: Tick, ctx: &mut Self::Context) {
        self.renew_if_due(ctx);
        self.read_file_if_due(ctx);
    }
}

impl Handler<FleetChanged> for AlertEvaluator {
    type Result = ();

    fn handle(&mut self, changed: FleetChanged, _: &mut Self::Context) {
        self.board.take_events(&changed.0);
    }
}

impl Handler<ChannelState> for AlertEvaluator {
    type Result = ();

    fn handle(&mut self, channel: ChannelState, _: &mut Self::Context) {
        self.board.channel(&channel.name, channel.broken.as_deref());
    }
}

impl Handler<ReadBack> for AlertEvaluator {
    type Result = ();

    fn handle(&mut self, _: ReadBack, ctx: &mut Self::Context) {
        self.read_back(ctx);
    }
}

impl Handler<AlertOrder> for AlertEvaluator {
    type Result = ResponseActFuture<Self, Result<String, String>>;

    fn handle(&mut self, order: AlertOrder, _: &mut Self::Context) -> Self::Result {
        if matches!(order, AlertOrder::Reload) {
            let file = self.read_file();
            return Box::pin(file.into_actor(self).map(|text, this, _| {
                this.take_file(text);
                let problems = this.rules.problems();
                if problems.is_empty() {
                    Ok(format!("{} rules in force", this.board.rules().rules.len()))
                } else {
                    Err(format!("the last good rules stay in force: {}", problems.join("; ")))
                }
            }));
        }
        let pool = self.io.postgres.clone();
        let doing = self.io.run(Duration::from_secs(5), POSTGRES_LATE, async move {
            let said = match order {
                AlertOrder::Silence(silence) => {
                    alerts::silence(&pool, &silence).await?;
                    format!("until {}", silence.until)
                }
                AlertOrder::EndSilence(id) => match alerts::end_silence(&pool, id).await? {
                    true => "ended".to_owned(),
                    false => "there is no such silence any more".to_owned(),
                },
                AlertOrder::Reload => String::new(),
            };
            Ok((said, alerts::silences(&pool).await?))
        });
        Box::pin(doing.into_actor(self).map(|done, this, ctx| {
            let (said, silences) = done.map_err(|trouble| trouble.detail)?;
            let acknowledged = this.board.set_silences(silences);
            if this.acting && !acknowledged.is_empty() {
                this.write(Change { alerts: acknowledged, ..Change::default() }, Announced::default(), ctx);
            }
            this.show();
            Ok(said)
        }))
    }
}

impl Handler<Fail> for AlertEvaluator {
    type Result = ();

    #[expect(clippy::panic, reason = "a test asked for it")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the alert evaluator was told to fail");
    }
}
