//! Sends messages: writes down that an attempt begins, sends, writes down what came of it.
//!
//! At least once: a crash between sending and writing that down sends once more, under the same
//! key. What is sent about one alert stays in order in each channel.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Recipient, ResponseFuture, WrapFuture};

use super::alert_ledger::{Change, Ledger};
use super::io::Io;
use super::messages::{Attempted, ChannelState, Deliver, Fail, Report, Role, SendTest, TestAnswer};
use crate::alerting::message::{self, Message};
use crate::delivery::Outcome;
use crate::delivery::channels::Channels;
use crate::delivery::sketch::{REACHES, Sketch, Sketches};
use crate::exposition::counters::Attempt;
use crate::failpoint;
use crate::fleet::reading::SourceTrouble;
use crate::history::stored_name::stored_name;
use crate::postgres::alerts::{Delivery, OutboxRow};
use crate::redis_streams::recent_series;

/// What is not delivered by then never will be.
const GIVEN_UP_AFTER: f64 = 24.0 * 3600.0;
/// The longest pause between two attempts.
const LONGEST_PAUSE: f64 = 300.0;
/// A broken channel is tried again so often: somebody may have mended it.
const BROKEN_PAUSE: f64 = 600.0;
/// One attempt with what is written down of it takes no longer.
const ATTEMPT: Duration = Duration::from_secs(40);
/// So many messages that are done are known again.
const DONE: usize = 1000;
/// Fewer samples show nothing.
const FEWEST: usize = 3;
/// Alerts of a message that are drawn.
const SKETCHED: usize = 3;
/// What Redis has not said by then is not drawn.
const SKETCHED_WITHIN: Duration = Duration::from_millis(300);
/// How often the queue is looked at while there is something in it.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The actor.
pub struct AlertDispatcher {
    io: Io,
    supervisor: Recipient<Report>,
    ledger: Arc<Ledger>,
    channels: Arc<Channels>,
    /// On their way, in order.
    queue: Vec<OutboxRow>,
    /// Sent or given up by this monitor, by message and channel: what is handed over may have been
    /// read before that was written down.
    done: VecDeque<(String, String)>,
    /// Channels with an attempt under way.
    busy: BTreeSet<String>,
    /// Channels that asked to be left alone, until when.
    resting: BTreeMap<String, f64>,
    /// Channels that refused everything.
    broken: BTreeSet<String>,
    /// It will look again by itself.
    wakes: bool,
}

impl AlertDispatcher {
    /// Sends by `channels` what `ledger` lets it send.
    #[must_use]
    pub fn new(io: Io, supervisor: Recipient<Report>, ledger: Arc<Ledger>, channels: Arc<Channels>) -> Self {
        Self {
            io,
            supervisor,
            ledger,
            channels,
            queue: Vec::new(),
            done: VecDeque::new(),
            busy: BTreeSet::new(),
            resting: BTreeMap::new(),
            broken: BTreeSet::new(),
            wakes: false,
        }
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        let now = self.io.wall();
        let mut begin: Vec<usize> = Vec::new();
        let mut taken: BTreeSet<&str> = self.busy.iter().map(String::as_str).collect();
        let mut held: BTreeSet<(&str, &str)> = BTreeSet::new();
        for (at, row) in self.queue.iter().enumerate() {
            let channel = row.channel.as_str();
            let keys = || row.message.keys.iter().map(|key| (channel, key.as_str()));
            let in_order = keys().all(|key| !held.contains(&key));
            let rests = self.resting.get(channel).is_some_and(|until| now < *until);
            let due = row.next_attempt.is_none_or(|at| now >= at);
            if in_order && !rests && due && !taken.contains(channel) {
                taken.insert(channel);
                begin.push(at);
            }
            held.extend(keys());
        }
        for at in begin {
            if let Some(row) = self.queue.get(at).cloned() {
                self.attempt(row, now, ctx);
            }
        }
        if !self.queue.is_empty() && !std::mem::replace(&mut self.wakes, true) {
            ctx.run_later(LOOK_EVERY, |this, ctx| {
                this.wakes = false;
                this.look(ctx);
            });
        }
    }

    fn attempt(&mut self, mut row: OutboxRow, now: f64, ctx: &mut Context<Self>) {
        self.busy.insert(row.channel.clone());
        row.attempts += 1;
        row.begun = Some(now);
        let (ledger, channels, io) = (Arc::clone(&self.ledger), Arc::clone(&self.channels), self.io.clone());
        let channel = row.channel.clone();
        let key = (row.id.clone(), row.channel.clone());
        let attempt = self.io.run(ATTEMPT, "a channel takes too long", async move {
            failpoint::reached("before-lease");
            let may = ledger.may_act().await
                && ledger.record(Change { outbox: vec![row.clone()], ..Change::default() }).await
                && ledger.may_act().await;
            if !may {
                return Ok::<_, SourceTrouble>(None);
            }
            failpoint::reached("after-lease");
            let sketches = sketches(&io, &row.message).await;
            let outcome = channels.send(&channel, &row.message, &sketches).await;
            failpoint::reached("after-send");
            settle(&mut row, &outcome, io.wall());
            let said = (row.answer.clone().unwrap_or_default(), row.state);
            tracing::info!(
                channel, message = row.id, title = row.message.title, attempts = row.attempts, state = ?said.1,
                "alert message: {}", said.0
            );
            ledger.record(Change { outbox: vec![row.clone()], ..Change::default() }).await;
            failpoint::reached("after-mark");
            Ok(Some((row, outcome)))
        });
        ctx.spawn(attempt.into_actor(self).map(move |done, this, ctx| {
            this.busy.remove(&key.1);
            match done {
                Ok(Some((row, outcome))) => this.attempted(row, &outcome),
                // Not the leader, or no telling: the row stays as it was, and is looked at again.
                Ok(None) | Err(_) => {
                    let later = this.io.wall() + 1.0;
                    if let Some(row) = this.queue.iter_mut().find(|row| row.id == key.0 && row.channel == key.1) {
                        row.next_attempt = Some(later);
                    }
                }
            }
            this.look(ctx);
        }));
    }

    fn attempted(&mut self, row: OutboxRow, outcome: &Outcome) {
        let channel = row.channel.clone();
        let result = match (row.state, outcome) {
            (Delivery::Sent, _) => Attempt::Sent,
            (Delivery::Dead, _) => Attempt::GivenUp,
            (Delivery::Waiting, Outcome::ChannelBroken(_)) => Attempt::ChannelBroken,
            (Delivery::Waiting, _) => Attempt::Failed,
        };
        self.supervisor.do_send(Report::Attempted(Attempted { channel: channel.clone(), result }));
        match outcome {
            Outcome::TryAgainAfter { channel_rests: Some(rest), .. } => {
                self.resting.insert(channel, self.io.wall() + rest.as_secs_f64());
            }
            Outcome::ChannelBroken(why) if self.broken.insert(channel.clone()) => {
                self.supervisor.do_send(Report::Channel(ChannelState { name: channel, broken: Some(why.clone()) }));
            }
            Outcome::Sent(_) if self.broken.remove(&channel) => {
                self.supervisor.do_send(Report::Channel(ChannelState { name: channel, broken: None }));
            }
            _ => {}
        }
        match row.state {
            Delivery::Waiting => {
                if let Some(known) = self.queue.iter_mut().find(|k| k.id == row.id && k.channel == row.channel) {
                    *known = row;
                }
            }
            Delivery::Sent | Delivery::Dead => {
                self.queue.retain(|k| k.id != row.id || k.channel != row.channel);
                self.done.push_back((row.id, row.channel));
                let over = self.done.len().saturating_sub(DONE);
                self.done.drain(..over);
            }
        }
    }
}

/// What can be drawn of a message's first alerts, as far as Redis says it at once: no message waits for a picture.
async fn sketches(io: &Io, message: &Message) -> Sketches {
    let (mut sketches, until) = (Sketches::new(), io.wall());
    let reading = async {
        let charted = message.alerts.iter().filter_map(|line| Some((line, line.chart.as_ref()?)));
        for (line, chart) in charted.take(SKETCHED) {
            let samples = recent_series::read(&io.redis, &stored_name(&chart.series), until - REACHES).await?;
            if samples.len() < FEWEST {
                continue;
            }
            let (limit, unit) = (chart.limit, chart.unit.clone());
            sketches.insert(line.key.clone(), Sketch { samples, until, limit, unit });
        }
        Ok::<_, SourceTrouble>(())
    };
    if !matches!(tokio::time::timeout(SKETCHED_WITHIN, reading).await, Ok(Ok(()))) {
        tracing::debug!(message = message.id, "sent without all of its charts");
    }
    sketches
}

/// Notes on the row what came of an attempt that ended at `now`.
fn settle(row: &mut OutboxRow, outcome: &Outcome, now: f64) {
    row.begun = None;
    let (state, pause, answer) = match outcome {
        Outcome::Sent(answer) => (Delivery::Sent, 0.0, answer),
        Outcome::Never(why) => (Delivery::Dead, 0.0, why),
        Outcome::ChannelBroken(why) => (Delivery::Waiting, BROKEN_PAUSE, why),
        Outcome::TryAgainAfter { at_least, channel_rests, why } => {
            let doubled = 2_f64.powi(i32::try_from(row.attempts.min(12)).unwrap_or(12) - 1);
            let least = at_least.as_secs_f64();
            let pause = (least * doubled).min(LONGEST_PAUSE).max(least);
            // Spread, so that many do not come back in the same moment; never sooner than asked.
            let pause =
                if channel_rests.is_some() { least } else { pause * (1.0 + 0.25 * spread(&row.id, row.attempts)) };
            (Delivery::Waiting, pause, why)
        }
    };
    row.answer = Some(answer.clone());
    let given_up = state == Delivery::Waiting && now - row.created >= GIVEN_UP_AFTER;
    row.state = if given_up { Delivery::Dead } else { state };
    row.next_attempt = (row.state == Delivery::Waiting).then_some(now + pause);
    row.ended = (row.state != Delivery::Waiting).then_some(now);
}

/// A number from 0 to 1 that differs from message to message and from attempt to attempt.
fn spread(id: &str, attempt: u32) -> f64 {
    let sum = id.bytes().chain(attempt.to_le_bytes()).fold(7_u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte));
    f64::from(sum % 1000) / 1000.0
}

impl Actor for AlertDispatcher {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        // After a fall the queue is read back.
        self.supervisor.do_send(Report::DispatcherStarted);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.supervisor.do_send(Report::Ended(Role::AlertDispatcher));
    }
}

impl Handler<Deliver> for AlertDispatcher {
    type Result = ();

    fn handle(&mut self, deliver: Deliver, ctx: &mut Self::Context) {
        if deliver.instead_of_all {
            self.queue.clear();
        }
        for row in deliver.rows {
            let waits = self.queue.iter().any(|known| known.id == row.id && known.channel == row.channel);
            let done = self.done.iter().any(|(id, channel)| *id == row.id && *channel == row.channel);
            if !waits && !done {
                self.queue.push(row);
            }
        }
        self.look(ctx);
    }
}

impl Handler<SendTest> for AlertDispatcher {
    type Result = ResponseFuture<Vec<TestAnswer>>;

    fn handle(&mut self, test: SendTest, _: &mut Self::Context) -> Self::Result {
        let message = message::test(self.io.wall(), &test.nonce);
        let sending: Vec<_> = self
            .channels
            .names()
            .into_iter()
            .map(|channel| {
                let (channels, message) = (Arc::clone(&self.channels), message.clone());
                let name = channel.clone();
                let sent = self.io.run(ATTEMPT, "a channel takes too long", async move {
                    Ok(channels.send(&name, &message, &Sketches::new()).await)
                });
                async move {
                    let (ok, answer) = match sent.await {
                        Ok(Outcome::Sent(answer)) => (true, answer),
                        Ok(Outcome::TryAgainAfter { why, .. } | Outcome::Never(why) | Outcome::ChannelBroken(why)) => {
                            (false, why)
                        }
                        Err(trouble) => (false, trouble.detail),
                    };
                    TestAnswer { channel, ok, answer }
                }
            })
            .collect();
        Box::pin(futures_util::future::join_all(sending))
    }
}

impl Handler<Fail> for AlertDispatcher {
    type Result = ();

    #[expect(clippy::panic, reason = "a test asked for it")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the alert dispatcher was told to fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_are_spread_and_end_after_a_day() {
        let again = |least: u64| Outcome::TryAgainAfter {
            channel_rests: None,
            at_least: Duration::from_secs(least),
            why: "500".to_owned(),
        };
        let mut row = OutboxRow::new(&message::test(0.0, "n"), "slack");
        let mut pauses = Vec::new();
        for attempt in 1..=10 {
            row.attempts = attempt;
            settle(&mut row, &again(2), 100.0);
            pauses.push(row.next_attempt.unwrap() - 100.0);
        }
        assert!((2.0..=2.5).contains(&pauses[0]) && (4.0..=5.0).contains(&pauses[1]), "{pauses:?}");
        assert!((300.0..=375.0).contains(&pauses[9]), "{pauses:?}");
        settle(&mut row, &again(2), GIVEN_UP_AFTER);
        assert_eq!((row.state, row.next_attempt), (Delivery::Dead, None));
    }
}
