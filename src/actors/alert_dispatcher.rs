//! Sends notifications: records the start of each attempt, sends, and records the outcome.
//!
//! Delivery is at least once: after a crash between sending and recording, the notification is sent again with the same key.
//! [`super::delivery_queue`] decides which notification is next.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, ResponseActFuture, WrapFuture};

use super::alert_ledger::{Change, Ledger};
use super::delivery_queue::{Begun, DeliveryQueue, settle};
use super::io::Io;
use super::messages::{Attempted, ChannelState, Deliver, Fail, Report, Role, SendTest, TestAnswer};
use crate::alerting::message::{self, Message};
use crate::delivery::Outcome;
use crate::delivery::channels::Channels;
use crate::delivery::sparkline::{REACHES, Sketch, Sketches};
use crate::failpoint;
use crate::fleet::reading::SourceTrouble;
use crate::history::stored_name::stored_name;
use crate::postgres::alerts::OutboxRow;
use crate::redis_streams::recent_series;

/// Limit for one attempt including the writes to the database.
const ATTEMPT: Duration = Duration::from_secs(40);
/// A sketch needs at least this many samples.
const FEWEST: usize = 3;
/// Maximum number of alerts per notification that get a sketch.
const SKETCHED: usize = 3;
/// Time limit for reading samples; a notification is sent without sketches rather than delayed.
const SKETCHED_WITHIN: Duration = Duration::from_millis(300);
/// Interval between checks of the queue while it is not empty.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Sends the notifications of the leader; see the module documentation.
pub struct AlertDispatcher {
    io: Io,
    supervisor: Recipient<Report>,
    ledger: Arc<Ledger>,
    channels: Arc<Channels>,
    queue: DeliveryQueue,
    /// A timer for the next check is set.
    wakes: bool,
}

impl AlertDispatcher {
    /// Returns the actor. It sends through `channels` what `ledger` permits.
    #[must_use]
    pub fn new(io: Io, supervisor: Recipient<Report>, ledger: Arc<Ledger>, channels: Arc<Channels>) -> Self {
        Self { io, supervisor, ledger, channels, queue: DeliveryQueue::default(), wakes: false }
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        for begun in self.queue.begin(self.io.now(), self.io.wall()) {
            self.attempt(begun, ctx);
        }
        if !self.queue.is_empty() && !std::mem::replace(&mut self.wakes, true) {
            ctx.run_later(LOOK_EVERY, |this, ctx| {
                this.wakes = false;
                this.look(ctx);
            });
        }
    }

    fn attempt(&mut self, mut begun: Begun, ctx: &mut Context<Self>) {
        let term = self.queue.term();
        let (ledger, channels, io) = (Arc::clone(&self.ledger), Arc::clone(&self.channels), self.io.clone());
        let channel = begun.row.channel.clone();
        let key = (begun.row.id.clone(), begun.row.channel.clone());
        let attempt = self.io.run(ATTEMPT, "a channel timed out", async move {
            failpoint::reached("before-lease");
            let may = ledger.may_act().await
                && ledger.record(Change { outbox: vec![begun.row.clone()], ..Change::default() }, term).await
                && ledger.may_act().await;
            if !may {
                return Ok::<_, SourceTrouble>(None);
            }
            failpoint::reached("after-lease");
            let sketches = sketches(&io, &begun.row.message).await;
            let outcome = begun.meaning(channels.send(&channel, &begun.row.message, &sketches).await);
            failpoint::reached("after-send");
            let pause = settle(&mut begun.row, &outcome, io.wall(), begun.age);
            let row = begun.row;
            let said = (row.answer.clone().unwrap_or_default(), row.state);
            tracing::info!(
                channel, message = row.id, title = row.message.title, attempts = row.attempts, state = ?said.1,
                "notification: {}", said.0
            );
            ledger.note(row.clone(), term).await;
            failpoint::reached("after-mark");
            Ok(Some((row, outcome, pause)))
        });
        ctx.spawn(attempt.into_actor(self).map(move |done, this, ctx| {
            match done {
                Ok(Some((row, outcome, pause))) => this.attempted(row, &outcome, pause),
                // This instance is not the leader, or that is unknown.
                Ok(None) | Err(_) => this.queue.not_made(&key.0, &key.1, this.io.now()),
            }
            this.look(ctx);
        }));
    }

    fn attempted(&mut self, row: OutboxRow, outcome: &Outcome, pause: Duration) {
        let channel = row.channel.clone();
        let (result, news) = self.queue.attempted(row, outcome, pause, self.io.now());
        self.supervisor.do_send(Report::Attempted(Attempted { channel, result }));
        self.report(news);
    }

    fn report(&self, news: Option<ChannelState>) {
        if let Some(news) = news {
            self.supervisor.do_send(Report::Channel(news));
        }
    }
}

/// Returns sketches for the first alerts of a message. Alerts whose samples Redis does not return in time have none.
async fn sketches(io: &Io, message: &Message) -> Sketches {
    let (mut sketches, until) = (Sketches::new(), io.wall());
    let reading = async {
        let charted = message.alerts.iter().filter_map(|line| Some((line, line.chart.as_ref()?)));
        for (line, chart) in charted.take(SKETCHED) {
            let samples = recent_series::read(
                &io.redis,
                &stored_name(&chart.series),
                until - REACHES,
                (until, Duration::from_secs_f64(REACHES)),
            )
            .await?;
            if samples.len() < FEWEST {
                continue;
            }
            let (limit, unit) = (chart.limit, chart.unit.clone());
            sketches.insert(line.key.clone(), Sketch { samples, until, limit, unit });
        }
        Ok::<_, SourceTrouble>(())
    };
    if !matches!(tokio::time::timeout(SKETCHED_WITHIN, reading).await, Ok(Ok(()))) {
        tracing::debug!(message = message.id, "sent without some charts");
    }
    sketches
}

impl Actor for AlertDispatcher {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        // After a restart, the supervisor has the queue reloaded.
        self.supervisor.do_send(Report::DispatcherStarted);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.supervisor.do_send(Report::Ended(Role::AlertDispatcher));
    }
}

impl Handler<Deliver> for AlertDispatcher {
    type Result = ();

    fn handle(&mut self, deliver: Deliver, ctx: &mut Self::Context) {
        self.queue.deliver(deliver, self.io.now(), self.io.wall());
        self.look(ctx);
    }
}

impl Handler<SendTest> for AlertDispatcher {
    type Result = ResponseActFuture<Self, Vec<TestAnswer>>;

    fn handle(&mut self, test: SendTest, _: &mut Self::Context) -> Self::Result {
        let message = message::test(self.io.wall(), &test.nonce);
        let sending: Vec<_> = self
            .channels
            .names()
            .into_iter()
            .map(|channel| {
                let (channels, message) = (Arc::clone(&self.channels), message.clone());
                let name = channel.clone();
                let sent = self.io.run(ATTEMPT, "a channel timed out", async move {
                    Ok(channels.send(&name, &message, &Sketches::new()).await)
                });
                async move {
                    let (ok, answer) = match sent.await {
                        Ok(outcome) => (matches!(outcome, Outcome::Sent(_)), outcome.answer().to_owned()),
                        Err(trouble) => (false, trouble.detail),
                    };
                    TestAnswer { channel, ok, answer }
                }
            })
            .collect();
        let sending = futures_util::future::join_all(sending).into_actor(self);
        Box::pin(sending.map(|answers, this, ctx| {
            for answer in answers.iter().filter(|answer| answer.ok) {
                let news = this.queue.works(&answer.channel, this.io.now());
                this.report(news);
            }
            this.look(ctx);
            answers
        }))
    }
}

impl Handler<Fail> for AlertDispatcher {
    type Result = ();

    #[expect(clippy::panic, reason = "requested by a test")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the alert dispatcher failed on request");
    }
}
