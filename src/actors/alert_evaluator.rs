//! Evaluates alerts: applies the rules to each snapshot, writes alert states and notifications in one transaction, and then passes
//! the notifications to the dispatcher.
//!
//! It evaluates only while this instance is the leader (see [`super::alert_ledger`]); otherwise it shows what the leader wrote.
//! [`super::alert_evaluation`] makes the decisions. This actor also reloads the rules file when it changes; if the new file is
//! invalid, the previous rules stay in force.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::alert_evaluation::{Announced, Decision, Evaluation};
use super::alert_ledger::{Change, Ledger, RENEW_EVERY};
use super::io::{Io, POSTGRES_LATE, REDIS_LATE};
use super::kernel_timer;
use super::messages::{
    AlertOrder, AlertingWorks, AlertsNow, ChannelState, Fail, FleetChanged, ReadBack, Report, Role, SnapshotTaken, Tick,
};
use crate::alerting::active_rules::{FileRead, InForce};
use crate::alerting::alert_manager::{AlertManager, AlertManagerSettings, FiringAlert, Shown};
use crate::alerting::lifecycle::Phase;
use crate::alerting::worker_down;
use crate::failpoint;
use crate::fleet::event::Event;
use crate::fleet::snapshot::Snapshot;
use crate::fleet::time::Mono;
use crate::postgres::alerts;
use crate::postgres::audit::{self, Outcome, RequestedChange};
use crate::postgres::janitor;
use crate::redis_streams::{self, older_monitor};
use crate::regular_file;
use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, ResponseActFuture, SpawnHandle, WrapFuture,
};
use arc_swap::ArcSwap;
use serde_json::json;

/// Time limit for a write, including the fallback to disk.
const WRITE_WITHIN: Duration = Duration::from_secs(4);
/// Interval of checks of the rules file. They are made with a tick, when the thread is awake anyway.
const READ_FILE_EVERY: Duration = Duration::from_secs(10);
/// A changed rules file is applied when it stays the same for this long.
const WRITTEN_WITHIN: Duration = Duration::from_secs(1);
/// Tolerance for late ticks, so that the lease is still renewed by the tick and not by a timer.
const TICKS_MAY_BE_LATE: Duration = Duration::from_millis(500);
/// Maximum number of alert events in the feed.
const RECENT: usize = 50;
/// Cooldowns of the older monitor are imported only at the start that follows the takeover of its state.
const TAKEN_OVER_JUST_NOW_SEC: f64 = 60.0;
/// Maximum number of alerts buffered for Redis.
const UNREMEMBERED: usize = 200;

/// Alerts and rules as the web front end shows them.
pub type ShownAlerts = Arc<ArcSwap<Shown>>;

/// Settings of the evaluator.
#[derive(Debug, Clone)]
pub struct EvaluatorSettings {
    /// Path of the rules file.
    pub file: PathBuf,
    /// The path was configured, so a missing file is an error.
    pub file_is_given: bool,
    /// Time after the start of the monitor in which worker-down alerts are held back.
    pub grace: Duration,
    /// Start of the monitor.
    pub started: Mono,
    /// Window in which worker-down alerts are grouped.
    pub debounce: Duration,
    /// Configured channels.
    pub channels: Vec<String>,
}

/// Evaluates alerts; see the module documentation.
pub struct AlertEvaluator {
    io: Io,
    supervisor: Recipient<Report>,
    ledger: Arc<Ledger>,
    settings: EvaluatorSettings,
    evaluation: Evaluation,
    shown: ShownAlerts,
    rules: InForce,
    file_read: Mono,
    recent: VecDeque<Arc<Event>>,
    /// Fired alerts that are not yet written to Redis.
    unremembered: Vec<String>,
    /// The cooldowns of an older monitor were requested; that happens once.
    cooldowns_read: bool,
    remembering: bool,
    wakes: Option<SpawnHandle>,
    lease: Lease,
}

/// Renewal of the lease: with a tick, when the thread is awake anyway, or by a timer if no tick comes.
#[derive(Default)]
struct Lease {
    asked: Mono,
    /// `None` during a renewal.
    by_itself: Option<SpawnHandle>,
}

impl AlertEvaluator {
    /// Returns an evaluator that writes to `ledger` and publishes to `shown`. After a restart of the actor, `shown` still holds the
    /// rules: they are in force from the beginning, since alerts without their rules would resolve.
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
        let board_settings = AlertManagerSettings {
            grace_until,
            debounce: settings.debounce.as_secs_f64(),
            channels: settings.channels.clone(),
        };
        let rules =
            InForce::new(settings.file.display().to_string(), settings.file_is_given, Arc::clone(&shown.load().rules));
        Self {
            evaluation: Evaluation::new(AlertManager::new(board_settings, Arc::clone(rules.rules())), wall, now),
            rules,
            io,
            supervisor,
            ledger,
            settings,
            shown,
            file_read: Mono::default(),
            recent: VecDeque::new(),
            unremembered: Vec::new(),
            cooldowns_read: false,
            remembering: false,
            wakes: None,
            lease: Lease::default(),
        }
    }

    /// Applies the rules file, or reports why it is invalid. Returns whether the rules changed.
    fn take_file(&mut self, read: FileRead) -> bool {
        let before = self.rules.problems().to_vec();
        let changed = self.rules.take(read);
        if changed {
            let file = self.settings.file.display();
            tracing::info!(rules = self.rules.rules().rules.len(), "alert rules loaded from {file}");
            self.evaluation.manager.set_rules(Arc::clone(self.rules.rules()));
        }
        if self.rules.problems() != before {
            let rules = self.rules.rules().rules.len();
            for problem in self.rules.problems() {
                tracing::error!(rules, "{problem}; the current rules stay active");
            }
            if self.rules.problems().is_empty() {
                tracing::info!(rules, "{}: valid again", self.settings.file.display());
            }
        }
        self.show();
        changed
    }

    fn read_file(&self) -> impl Future<Output = FileRead> + use<> {
        let file = self.settings.file.clone();
        let reading = self.io.run(Duration::from_secs(2), "reading the rules file timed out", async move {
            let read = tokio::task::spawn_blocking(move || regular_file::read(&file, regular_file::RULES)).await;
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
        ctx.spawn(self.read_file().into_actor(self).map(|file, this, ctx| {
            if !this.rules.is_new(&file) {
                this.take_file(file);
                return;
            }
            // What an editor has written so far may be valid, and would end the alerts of the rules that follow.
            ctx.run_later(WRITTEN_WITHIN, move |this, ctx| {
                ctx.spawn(this.read_file().into_actor(this).map(move |read_again, this, ctx| {
                    if read_again == file && this.take_file(file) {
                        this.record_file(ctx);
                    }
                }));
            });
        }));
    }

    /// Records in the audit log that the changed rules file is active.
    fn record_file(&self, ctx: &mut Context<Self>) {
        let change = RequestedChange {
            who: "rules file".to_owned(),
            role: "none",
            address: String::new(),
            action: "load rules",
            parameters: json!({
                "file": self.settings.file.display().to_string(), "rules": self.rules.rules().rules.len(),
            }),
        };
        let pool = self.io.postgres.clone();
        let recording = async move { audit::record(&pool, &[(change, Outcome::Done)]).await };
        let recorded = self.io.run(WRITE_WITHIN, POSTGRES_LATE, recording);
        ctx.spawn(recorded.into_actor(self).map(|recorded, _, _| {
            if let Err(trouble) = recorded {
                tracing::warn!(error = trouble.detail, "the changed rules are not recorded in the audit log");
            }
        }));
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
                let renewed = this.evaluation.renewed(news, silences, may_act, findings);
                if let Some(deliver) = renewed.deliver {
                    this.supervisor.do_send(Report::Deliver(deliver));
                }
                if renewed.begins {
                    this.forget_old(ctx);
                }
                if !renewed.acknowledged.is_empty() {
                    this.write(renewed.acknowledged, Announced::default(), ctx);
                }
                this.note_alerted(renewed.alerted, ctx);
            }
            this.show();
            this.lease.by_itself = Some(kernel_timer::later(ctx, RENEW_EVERY + TICKS_MAY_BE_LATE, Self::renew));
        }));
    }

    fn renew_if_due(&mut self, ctx: &mut Context<Self>) {
        let due = self.io.now().since(self.lease.asked) + TICKS_MAY_BE_LATE >= RENEW_EVERY;
        if due && self.lease.by_itself.is_some() {
            self.renew(ctx);
        }
    }

    /// Records which cleanup runs have their alert.
    fn note_alerted(&mut self, passes: Vec<String>, ctx: &mut Context<Self>) {
        if passes.is_empty() {
            return;
        }
        let pool = self.io.postgres.clone();
        let noting =
            self.io.run(Duration::from_secs(5), POSTGRES_LATE, async move { janitor::told(&pool, &passes).await });
        ctx.spawn(noting.into_actor(self).map(|noted, _, _| {
            if let Err(trouble) = noted {
                tracing::debug!(error = trouble.detail, "cannot mark a cleanup run as reported; retrying");
            }
        }));
    }

    fn forget_old(&mut self, ctx: &mut Context<Self>) {
        let pool = self.io.postgres.clone();
        let forgetting =
            self.io.run(Duration::from_secs(10), POSTGRES_LATE, async move { alerts::forget_old(&pool).await });
        ctx.spawn(forgetting.into_actor(self).map(|forgotten, _, _| {
            if let Err(trouble) = forgotten {
                tracing::debug!(error = trouble.detail, "cannot delete old notifications; retrying later");
            }
        }));
    }

    /// Writes a decision and then passes it on.
    fn settle(&mut self, decision: Decision, ctx: &mut Context<Self>) {
        if let Some(handle) = self.wakes.take() {
            ctx.cancel_future(handle);
        }
        if let Some(next_in) = decision.next_in {
            let rest = Duration::from_secs_f64(next_in.clamp(0.01, 3600.0));
            self.wakes = Some(ctx.run_later(rest, |this, ctx| {
                this.wakes = None;
                if this.evaluation.acting() {
                    let decision = this.evaluation.wake(this.io.wall(), this.io.now());
                    this.settle(decision, ctx);
                }
            }));
        }
        if decision.change.is_empty() {
            self.remember(ctx);
        } else {
            self.write(decision.change, decision.announced, ctx);
        }
        self.tell_feed(Vec::new());
        self.show();
    }

    /// Writes `change`; no evaluation runs until it is written. `announced` is published afterwards.
    fn write(&mut self, change: Change, announced: Announced, ctx: &mut Context<Self>) {
        let (ledger, term) = (Arc::clone(&self.ledger), self.evaluation.term());
        let messages = change.outbox.clone();
        let writing = self.io.run(WRITE_WITHIN, POSTGRES_LATE, async move {
            failpoint::reached("before-commit");
            let may = ledger.record(change, term).await;
            failpoint::reached("after-commit");
            Ok(may)
        });
        ctx.wait(writing.into_actor(self).map(move |may, this, ctx| match may {
            Ok(false) => this.evaluation.refused(),
            // The message is sent whether or not this was written.
            Ok(true) | Err(_) => {
                if !messages.is_empty() {
                    let deliver = this.evaluation.to_deliver(messages, false);
                    this.supervisor.do_send(Report::Deliver(deliver));
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

    /// Writes fired alerts to Redis; retries those that Redis did not accept.
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

    /// With every tick, even if unchanged: a restarted feed has no state.
    fn tell_feed(&self, fired: Vec<String>) {
        let now = self.io.wall();
        let manager = &self.evaluation.manager;
        let firing = manager.alerts().values().filter(|alert| alert.phase == Phase::Firing);
        let firing = firing.map(|alert| FiringAlert {
            rule: alert.rule.clone(),
            subject: alert.subject.clone(),
            severity: alert.severity,
            silenced: manager.is_quiet(alert, now),
        });
        let firing = firing.collect();
        let recent = self.recent.iter().cloned().collect();
        self.supervisor.do_send(Report::Alerts(AlertsNow { firing, recent, fired }));
    }

    /// Publishes the state for the web front end.
    fn show(&self) {
        let now = self.io.wall();
        self.shown.store(Arc::new(Shown {
            alerts: self
                .evaluation
                .manager
                .alerts()
                .values()
                .map(|a| (a.clone(), self.evaluation.manager.is_quiet(a, now)))
                .collect(),
            rules: Arc::clone(self.evaluation.manager.rules()),
            silences: self.evaluation.manager.silences().to_vec(),
            mistakes: self.rules.problems().to_vec(),
            file: self.settings.file.display().to_string(),
            leads: self.evaluation.acting(),
            channels: self.settings.channels.clone(),
            at: now,
        }));
    }

    fn take_snapshot(&mut self, snapshot: &Arc<Snapshot>, ctx: &mut Context<Self>) {
        if !self.evaluation.acting() {
            return self.tell_feed(Vec::new());
        }
        if !std::mem::replace(&mut self.cooldowns_read, true) {
            return self.read_cooldowns(snapshot, ctx);
        }
        let decision = self.evaluation.judge(snapshot, self.io.wall(), self.io.now());
        self.settle(decision, ctx);
        if self.evaluation.manager.can_notify() {
            self.supervisor.do_send(Report::AlertingWorks(AlertingWorks));
        }
    }

    /// Imports the cooldowns of an older monitor before the first evaluation.
    fn read_cooldowns(&mut self, snapshot: &Arc<Snapshot>, ctx: &mut Context<Self>) {
        let rules = self.evaluation.manager.rules().rules.iter().map(|rule| rule.name.clone());
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
            let (wall, now) = (this.io.wall(), this.io.now());
            this.evaluation.take_over_cooldowns(cooldowns.unwrap_or_default(), wall, now);
            this.take_snapshot(&snapshot, ctx);
        }));
    }

    fn read_back(&mut self, ctx: &mut Context<Self>) {
        let ledger = Arc::clone(&self.ledger);
        let reading = self.io.run(WRITE_WITHIN, POSTGRES_LATE, async move { Ok(ledger.read_back().await) });
        ctx.wait(reading.into_actor(self).map(|kept, this, _| {
            if let Ok(Some(kept)) = kept
                && let Some(deliver) = this.evaluation.read_back(kept)
            {
                this.supervisor.do_send(Report::Deliver(deliver));
            }
        }));
    }
}

impl Actor for AlertEvaluator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.read_back(ctx);
        self.file_read = self.io.now();
        // The rules are loaded first, because restored alerts refer to them.
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

    /// Work that does not depend on the snapshot, done while the data sources are read.
    fn handle(&mut self, _: Tick, ctx: &mut Self::Context) {
        self.renew_if_due(ctx);
        self.read_file_if_due(ctx);
    }
}

impl Handler<FleetChanged> for AlertEvaluator {
    type Result = ();

    fn handle(&mut self, changed: FleetChanged, _: &mut Self::Context) {
        self.evaluation.manager.take_events(&changed.0);
    }
}

impl Handler<ChannelState> for AlertEvaluator {
    type Result = ();

    fn handle(&mut self, channel: ChannelState, _: &mut Self::Context) {
        self.evaluation.manager.channel(&channel.name, channel.broken.as_deref());
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
                    Ok(format!("{} rules loaded", this.evaluation.manager.rules().rules.len()))
                } else {
                    Err(format!("the last valid rules stay active: {}", problems.join("; ")))
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
                    false => "no such silence, or already expired".to_owned(),
                },
                AlertOrder::Reload => String::new(),
            };
            Ok((said, alerts::silences(&pool).await?))
        });
        Box::pin(doing.into_actor(self).map(|done, this, ctx| {
            let (said, silences) = done.map_err(|trouble| trouble.detail)?;
            let acknowledged = this.evaluation.silenced(silences);
            if !acknowledged.is_empty() {
                this.write(acknowledged, Announced::default(), ctx);
            }
            this.show();
            Ok(said)
        }))
    }
}

impl Handler<Fail> for AlertEvaluator {
    type Result = ();

    #[expect(clippy::panic, reason = "requested by a test")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the alert evaluator failed on request");
    }
}
