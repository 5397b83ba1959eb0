//! Cleans up every five minutes and on request: [`Plan`] decides, then the janitor acknowledges phantom pending IDs, trims streams,
//! deletes stale consumers, marks timed-out queries as abandoned, and records the result.
//!
//! One instance runs a cleanup at a time; it renews a lease in Redis during the run. Every step is complete in itself, so an
//! interrupted run is continued by the next one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, ResponseActFuture, WrapFuture};
use uuid::Uuid;

use super::io::{Io, OBSERVES_ONLY, REDIS_LATE};
use super::kernel_timer;
use super::messages::{CleanUp, Fail, PassEnded, Report, Role, SnapshotTaken};
use crate::contract::{Name, heartbeat, hung_thresholds};
use crate::failpoint;
use crate::fleet::cleanup::{AbandonedQuery, Outcome, PendingGroup, Plan, QueriesOutcome, STALE_AFTER};
use crate::fleet::reading::SourceTrouble;
use crate::fleet::snapshot::Snapshot;
use crate::fleet::watched::WatchedStreams;
use crate::operator::{Sources, recycle};
use crate::postgres::janitor;
use crate::redis_streams::cleanup::{self, PhantomRules, Turn};
use crate::redis_streams::{query_search, retention_schedule};

/// Interval of scheduled cleanup runs.
const EVERY: Duration = Duration::from_secs(300);
/// Interval of checks whether a run is due, if that time is unknown.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// No step starts later than this in a run; the next run does the rest.
const BUDGET: Duration = Duration::from_secs(240);
/// Time limit for a run.
const PASS_WITHIN: Duration = Duration::from_secs(290);
/// Time limit for finding the last streams of abandoned queries.
const SEARCH_WITHIN: Duration = Duration::from_secs(10);
/// Interval at which the lease is renewed during a run.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// Pending IDs to examine in a group without signs of phantoms.
const UNSUSPECTED: u64 = 10_000;
/// Retry time reported to clients, seconds.
const RETRY_AFTER_SEC: u64 = 5;
/// Interval of deletions of old queries, seconds.
const RETENTION_EVERY_SEC: f64 = 86_400.0;

/// Settings of the janitor.
#[derive(Debug, Clone)]
pub struct JanitorSettings {
    /// Age at which a query without a result is marked as abandoned.
    pub abandoned_after: Duration,
    /// Retention of final queries, days; 0 keeps them.
    pub query_days: u32,
    /// Streams that it may change.
    pub may_touch: WatchedStreams,
    /// Reclaim threshold of streams without a configured one.
    pub default_floor: Duration,
}

/// Runs the cleanup; see the module documentation.
pub struct Janitor {
    io: Io,
    supervisor: Recipient<Report>,
    settings: Arc<JanitorSettings>,
    /// Identifies this instance as the holder of the lease.
    holder: String,
    newest: Option<Arc<Snapshot>>,
    running: bool,
}

/// Result of requesting a run.
enum RunOutcome {
    Done(Box<Outcome>),
    NotDue(Duration),
    Taken,
    /// The lease was lost during the run.
    Lost,
}

impl Janitor {
    /// Returns the actor.
    #[must_use]
    pub fn new(io: Io, supervisor: Recipient<Report>, settings: Arc<JanitorSettings>) -> Self {
        Self { io, supervisor, settings, holder: Uuid::new_v4().to_string(), newest: None, running: false }
    }

    /// Starts a run if one is due, and schedules the next check.
    fn look(&mut self, ctx: &mut Context<Self>) {
        if self.running {
            kernel_timer::later(ctx, LOOK_EVERY, Self::look);
            return;
        }
        let plan = match Plan::scheduled(self.newest.as_deref()) {
            Ok(plan) => plan,
            Err(why) => {
                kernel_timer::later(ctx, LOOK_EVERY, Self::look);
                return tracing::debug!(%why, "cleanup is not possible for now");
            }
        };
        let passing = self.pass(plan, None);
        ctx.spawn(passing.into_actor(self).map(|went, this, ctx| {
            this.running = false;
            let rest = if let Ok(RunOutcome::NotDue(rest)) = went { rest } else { Duration::ZERO };
            drop(this.log(went));
            kernel_timer::later(ctx, rest.clamp(LOOK_EVERY, EVERY), Self::look);
        }));
    }

    fn pass(
        &mut self,
        plan: Plan,
        asked_by: Option<String>,
    ) -> impl Future<Output = Result<RunOutcome, SourceTrouble>> + use<> {
        self.running = true;
        let (io, settings, holder) = (self.io.clone(), Arc::clone(&self.settings), self.holder.clone());
        self.io.run(PASS_WITHIN, REDIS_LATE, async move {
            let leased = match cleanup::take_turn(&io.redis, &holder, EVERY, asked_by.is_some()).await? {
                Turn::Mine => true,
                Turn::WithoutLease => false,
                Turn::NotDue(rest) => return Ok(RunOutcome::NotDue(rest)),
                Turn::Taken => return Ok(RunOutcome::Taken),
            };
            tokio::select! {
                outcome = clean_up(&io, &settings, plan, asked_by.as_deref()) => {
                    // Without a lease too: by now there may be memory for when it was.
                    if let Err(trouble) = cleanup::end_turn(&io.redis, &holder).await {
                        tracing::debug!(error = trouble.detail, "cannot release the cleanup lock; it will expire");
                    }
                    Ok(RunOutcome::Done(Box::new(outcome)))
                }
                () = keep_turn(&io, &holder), if leased => Ok(RunOutcome::Lost),
            }
        })
    }

    fn log(&self, went: Result<RunOutcome, SourceTrouble>) -> Result<Outcome, String> {
        match went {
            Ok(RunOutcome::Done(outcome)) => {
                say(&outcome);
                self.supervisor.do_send(Report::Passed(PassEnded(Some(outcome.clone()))));
                Ok(*outcome)
            }
            Ok(RunOutcome::NotDue(_)) => {
                tracing::debug!("the last cleanup run was too recent");
                Err("the last cleanup run was too recent".to_owned())
            }
            Ok(RunOutcome::Taken) => {
                tracing::debug!("another instance is running the cleanup");
                Err("another instance is running the cleanup; its result will appear on the Admin page".to_owned())
            }
            Ok(RunOutcome::Lost) => {
                self.supervisor.do_send(Report::Passed(PassEnded(None)));
                tracing::warn!("the cleanup run lost its lock; another instance continues it");
                Err("the cleanup run lost its lock; another instance continues it".to_owned())
            }
            Err(trouble) => {
                self.supervisor.do_send(Report::Passed(PassEnded(None)));
                tracing::warn!(error = trouble.detail, "the cleanup run was interrupted; the next run continues it");
                Err(trouble.detail)
            }
        }
    }
}

/// Renews the lease; returns when another instance holds it.
async fn keep_turn(io: &Io, holder: &str) {
    loop {
        tokio::time::sleep(KEEP_EVERY).await;
        if matches!(cleanup::keep_turn(&io.redis, holder).await, Ok(false)) {
            return;
        }
    }
}

async fn clean_up(io: &Io, settings: &JanitorSettings, plan: Plan, asked_by: Option<&str>) -> Outcome {
    let until = Instant::now() + BUDGET;
    let mut outcome = Outcome { consumers_left: plan.consumers_left as u64, ..Outcome::default() };
    let pass = if io.archive_is_ready() {
        match janitor::begin(&io.postgres, asked_by).await {
            Ok(pass) => Some(pass),
            Err(trouble) => {
                outcome.left_out.push(format!("queries and callbacks: {}", trouble.detail));
                None
            }
        }
    } else {
        outcome.left_out.push("queries and callbacks: the tables in Postgres are not ready yet".to_owned());
        outcome.retry_after_sec = Some(RETRY_AFTER_SEC);
        None
    };
    if let Some(seconds) = plan.settling_sec {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds of a heartbeat's life")]
        let seconds = seconds.ceil().max(1.0) as u64;
        outcome.left_out.push(format!(
            "stale consumers, and phantom pending IDs of consumers without heartbeat: skipped for another {seconds} \
             s, because Redis was unreachable until a moment ago"
        ));
        outcome.retry_after_sec = outcome.retry_after_sec.max(Some(seconds));
    }
    failpoint::reached("janitor.begun");
    if let Err(trouble) = tidy_redis(io, settings, &plan, until, &mut outcome).await {
        outcome.errors.push(trouble.detail);
    }
    failpoint::reached("janitor.tidied");
    if pass.is_some() {
        // Determines for interrupted moves to the recycle bin whether the stream or the bin has the message.
        let sources = Sources { redis: io.redis.clone(), postgres: io.postgres.clone() };
        if let Err(trouble) = recycle::settle_overdue(&sources).await {
            outcome.errors.push(format!("the recycle bin: {}", trouble.detail));
        }
    }
    if let Some(pass) = pass {
        if plan.queries {
            if let Err(trouble) = end_queries(io, settings, (pass, &plan), until, &mut outcome).await {
                outcome.errors.push(trouble.detail);
            }
        } else if let Ok(false) = janitor::has_queries(&io.postgres).await {
            // The fleet has no query tables: nothing to report.
        } else {
            outcome.left_out.push("queries and callbacks: Postgres is unreachable".to_owned());
        }
        failpoint::reached("janitor.ended_queries");
        if let Err(trouble) = janitor::end(&io.postgres, pass, &outcome).await {
            outcome.errors.push(format!("this cleanup run could not be recorded: {}", trouble.detail));
        }
    }
    outcome
}

async fn tidy_redis(
    io: &Io,
    settings: &JanitorSettings,
    plan: &Plan,
    until: Instant,
    outcome: &mut Outcome,
) -> Result<(), SourceTrouble> {
    for pending in plan.pending.iter().filter(|pending| settings.may_touch.contains(&pending.stream)) {
        if Instant::now() >= until {
            outcome.left_out.push("phantom pending IDs: timed out".to_owned());
            break;
        }
        clear_phantoms(io, settings, plan, pending, until, outcome).await?;
    }
    if outcome.phantoms_kept > 0 {
        outcome.left_out.push(format!(
            "{} phantom pending IDs: a worker may still be processing them. They are removed when it has nothing in \
             flight or has been gone for longer than the reclaim threshold",
            outcome.phantoms_kept
        ));
    }
    for stream in plan.streams.iter().filter(|stream| settings.may_touch.contains(stream)) {
        if Instant::now() >= until {
            outcome.left_out.push(format!("{stream} and later streams: timed out"));
            break;
        }
        let trimmed = cleanup::trim(&io.redis, stream, until).await?;
        outcome.streams.insert(stream.to_text(), trimmed);
    }
    for (stream, group, consumers) in &plan.consumers {
        if !settings.may_touch.contains(stream) || Instant::now() >= until {
            continue;
        }
        let retired = cleanup::retire(&io.redis, stream, group, consumers, STALE_AFTER, until).await?;
        if retired.deleted > 0 {
            *outcome.consumers.entry(stream.to_text()).or_default() += retired.deleted;
        }
        outcome.consumers_spared += retired.spared;
    }
    Ok(())
}

async fn clear_phantoms(
    io: &Io,
    settings: &JanitorSettings,
    plan: &Plan,
    pending: &PendingGroup,
    until: Instant,
    outcome: &mut Outcome,
) -> Result<(), SourceTrouble> {
    let PendingGroup { stream, group, suspected, may_return } = pending;
    let floor = hung_thresholds::reclaim_floor(stream, settings.default_floor);
    let rules = PhantomRules {
        without_heartbeat: match (plan.settling_sec, may_return) {
            (Some(_), _) => None,
            (None, true) => Some(floor.max(heartbeat::TTL)),
            (None, false) => Some(heartbeat::TTL),
        },
        in_flight: floor.max(STALE_AFTER),
    };
    let most = if *suspected { u64::MAX } else { UNSUSPECTED };
    let cleared = cleanup::clear_phantoms(&io.redis, stream, group, rules, (until, most)).await?;
    if cleared.acknowledged > 0 {
        *outcome.phantoms.entry(stream.to_text()).or_default() += cleared.acknowledged;
    }
    outcome.phantoms_kept += cleared.kept;
    outcome.errors.extend(cleared.error.map(|error| format!("phantom pending IDs of {stream}: {error}")));
    if cleared.unfinished && Instant::now() >= until {
        outcome.left_out.push(format!("phantom pending IDs of {stream}: timed out"));
    }
    Ok(())
}

async fn end_queries(
    io: &Io,
    settings: &JanitorSettings,
    (pass, plan): (Uuid, &Plan),
    until: Instant,
    outcome: &mut Outcome,
) -> Result<(), SourceTrouble> {
    let pool = &io.postgres;
    let mut callbacks = 0;
    while Instant::now() < until {
        let deleted = janitor::delete_callbacks(pool).await?;
        failpoint::reached("janitor.callbacks");
        callbacks += deleted;
        if deleted == 0 {
            break;
        }
    }
    outcome.queries = Some(QueriesOutcome { callbacks_deleted: callbacks, ..QueriesOutcome::default() });
    while Instant::now() < until {
        let abandoned = janitor::abandon(pool, pass, settings.abandoned_after).await?;
        failpoint::reached("janitor.abandoned");
        if abandoned.queries == 0 {
            break;
        }
    }
    // Results of an earlier, interrupted attempt at this run are reported too.
    let mut counted = janitor::counted(pool, pass).await?;
    if let Err(trouble) = find_last_streams(io, settings, (pass, plan), &mut counted.queries, until).await {
        outcome.left_out.push(format!("the last streams of abandoned queries: {}", trouble.detail));
    }
    outcome.queries = Some(QueriesOutcome {
        callbacks_deleted: callbacks + counted.callbacks,
        abandoned: counted.abandoned,
        abandoned_queries: counted.queries,
    });
    let now = io.wall();
    if settings.query_days == 0 || !retention_schedule::query_sweep_is_due(&io.redis, now, RETENTION_EVERY_SEC).await? {
        return Ok(());
    }
    let mut old = 0;
    loop {
        let deleted = janitor::delete_old_queries(pool, settings.query_days).await?;
        old += deleted;
        outcome.query_retention = Some(old);
        failpoint::reached("janitor.old_queries");
        if deleted == 0 {
            return retention_schedule::query_sweep_is_done(&io.redis, now).await;
        }
        if Instant::now() >= until {
            return Ok(());
        }
    }
}

/// Finds and stores the streams that the abandoned queries reached last.
async fn find_last_streams(
    io: &Io,
    settings: &JanitorSettings,
    (pass, plan): (Uuid, &Plan),
    queries: &mut [AbandonedQuery],
    until: Instant,
) -> Result<(), SourceTrouble> {
    let unknown: Vec<&str> = queries.iter().filter(|q| q.last_stream.is_none()).map(|q| q.qid.as_str()).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let streams: Vec<Name> =
        plan.streams.iter().filter(|stream| settings.may_touch.contains(stream)).cloned().collect();
    let until = until.min(Instant::now() + SEARCH_WITHIN);
    let found = query_search::last_streams(&io.redis, &streams, &unknown, until).await?;
    for query in queries.iter_mut() {
        if let Some(stream) = found.get(&query.qid) {
            query.last_stream = Some(stream.to_text());
        }
    }
    janitor::describe_abandoned(&io.postgres, pass, queries).await
}

fn say(outcome: &Outcome) {
    let queries = outcome.queries.clone().unwrap_or_default();
    if outcome.did_something() {
        tracing::info!(
            entries = outcome.entries_removed(),
            consumers = outcome.consumers_removed(),
            phantoms = outcome.phantoms_cleared(),
            callbacks = queries.callbacks_deleted,
            abandoned = queries.abandoned_count(),
            old_queries = outcome.query_retention.unwrap_or(0),
            "cleanup run: {} finished messages, {} stale consumers, {} phantom pending IDs, {} callbacks, {} queries abandoned",
            outcome.entries_removed(),
            outcome.consumers_removed(),
            outcome.phantoms_cleared(),
            queries.callbacks_deleted,
            queries.abandoned_count(),
        );
    } else {
        tracing::debug!("nothing to clean up");
    }
    for query in &queries.abandoned_queries {
        tracing::info!(
            qid = query.qid,
            ara = query.ara,
            age_sec = query.age_sec,
            callbacks = query.callbacks_deleted,
            last_stream = query.last_stream,
            "marked as abandoned: {}",
            query.described(),
        );
    }
    for what in &outcome.left_out {
        tracing::debug!("skipped in cleanup: {what}");
    }
    for error in outcome.errors.iter().chain(outcome.streams.values().filter_map(|stream| stream.error.as_ref())) {
        tracing::warn!(error, "cleanup partially completed; the next run retries");
    }
}

impl Actor for Janitor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if !self.io.observe_only {
            self.look(ctx);
        }
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.supervisor.do_send(Report::Ended(Role::Janitor));
    }
}

impl Handler<SnapshotTaken> for Janitor {
    type Result = ();

    fn handle(&mut self, SnapshotTaken(snapshot): SnapshotTaken, _: &mut Self::Context) {
        self.newest = Some(snapshot);
    }
}

impl Handler<CleanUp> for Janitor {
    type Result = ResponseActFuture<Self, Result<Outcome, String>>;

    fn handle(&mut self, asked: CleanUp, _: &mut Self::Context) -> Self::Result {
        if self.running {
            let said = "a cleanup run is in progress; its result will appear on the Admin page".to_owned();
            return Box::pin(actix::fut::ready(Err(said)));
        }
        if self.io.observe_only {
            return Box::pin(actix::fut::ready(Err(OBSERVES_ONLY.to_owned())));
        }
        let plan = match Plan::from(self.newest.as_deref()) {
            Ok(plan) => plan,
            Err(why) => return Box::pin(actix::fut::ready(Err(why.to_string()))),
        };
        let passing = self.pass(plan, Some(asked.asked_by));
        Box::pin(passing.into_actor(self).map(|went, this, _| {
            this.running = false;
            this.log(went)
        }))
    }
}

impl Handler<Fail> for Janitor {
    type Result = ();

    #[expect(clippy::panic, reason = "requested by a test")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the janitor failed on request");
    }
}
