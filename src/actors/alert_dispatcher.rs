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
use crate::fleet::time::Mono;
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
    queue: Vec<Queued>,
    /// The term in which they are sent; see [`super::alert_ledger`].
    term: u64,
    /// Sent or given up by this monitor, by message and channel: what is handed over may have been
    /// read before that was written down.
    done: VecDeque<(String, String)>,
    /// Channels with an attempt under way.
    busy: BTreeSet<String>,
    /// Channels that asked to be left alone, until when.
    resting: BTreeMap<String, Mono>,
    /// Whether a channel refused everything when it last answered; without an answer in this term it is not known.
    refuses: BTreeMap<String, bool>,
    /// It will look again by itself.
    wakes: bool,
}

/// A message on its way. Its timers run on the clock that never jumps.
struct Queued {
    row: OutboxRow,
    /// Not before this moment.
    due: Mono,
    /// When it was handed in, and how old it was then, seconds.
    handed_in: (Mono, f64),
}

impl Queued {
    /// Takes over the pause that the row has left by the wall clock, no longer than pauses are.
    fn new(row: OutboxRow, now: Mono, wall: f64) -> Self {
        let rest = row.next_attempt.map_or(0.0, |at| at - wall).clamp(0.0, BROKEN_PAUSE);
        let age = (wall - row.created).max(0.0);
        Self { due: now.plus(Duration::from_secs_f64(rest)), handed_in: (now, age), row }
    }

    fn is(&self, id: &str, channel: &str) -> bool {
        self.row.id == id && self.row.channel == channel
    }
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
            term: 0,
            done: VecDeque::new(),
            busy: BTreeSet::new(),
            resting: BTreeMap::new(),
            refuses: BTreeMap::new(),
            wakes: false,
        }
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        let now = self.io.now();
        let mut begin: Vec<usize> = Vec::new();
        let mut taken: BTreeSet<&str> = self.busy.iter().map(String::as_str).collect();
        let mut held: BTreeSet<(&str, &str)> = BTreeSet::new();
        for (at, Queued { row, due, .. }) in self.queue.iter().enumerate() {
            let channel = row.channel.as_str();
            let keys = || row.message.keys.iter().map(|key| (channel, key.as_str()));
            let in_order = keys().all(|key| !held.contains(&key));
            let rests = self.resting.get(channel).is_some_and(|until| now < *until);
            if in_order && !rests && now >= *due && !taken.contains(channel) {
                taken.insert(channel);
                begin.push(at);
            }
            held.extend(keys());
        }
        for at in begin {
            if let Some(Queued { row, handed_in: (since, age), .. }) = self.queue.get(at) {
                let age = age + now.since(*since).as_secs_f64();
                self.attempt(row.clone(), age, ctx);
            }
        }
        if !self.queue.is_empty() && !std::mem::replace(&mut self.wakes, true) {
            ctx.run_later(LOOK_EVERY, |this, ctx| {
                this.wakes = false;
                this.look(ctx);
            });
        }
    }

    /// Sends `row`, which is `age` seconds old.
    fn attempt(&mut self, mut row: OutboxRow, age: f64, ctx: &mut Context<Self>) {
        self.busy.insert(row.channel.clone());
        row.attempts += 1;
        row.begun = Some(self.io.wall());
        let term = self.term;
        let (ledger, channels, io) = (Arc::clone(&self.ledger), Arc::clone(&self.channels), self.io.clone());
        let channel = row.channel.clone();
        let key = (row.id.clone(), row.channel.clone());
        let attempt = self.io.run(ATTEMPT, "a channel takes too long", async move {
            failpoint::reached("before-lease");
            let may = ledger.may_act().await
                && ledger.record(Change { outbox: vec![row.clone()], ..Change::default() }, term).await
                && ledger.may_act().await;
            if !may {
                return Ok::<_, SourceTrouble>(None);
            }
            failpoint::reached("after-lease");
            let sketches = sketches(&io, &row.message).await;
            let outcome = channels.send(&channel, &row.message, &sketches).await;
            failpoint::reached("after-send");
            let pause = settle(&mut row, &outcome, io.wall(), age);
            let said = (row.answer.clone().unwrap_or_default(), row.state);
            tracing::info!(
                channel, message = row.id, title = row.message.title, attempts = row.attempts, state = ?said.1,
                "alert message: {}", said.0
            );
            ledger.note(row.clone()).await;
            failpoint::reached("after-mark");
            Ok(Some((row, outcome, pause)))
        });
        ctx.spawn(attempt.into_actor(self).map(move |done, this, ctx| {
            this.busy.remove(&key.1);
            match done {
                Ok(Some((row, outcome, pause))) => this.attempted(row, &outcome, pause),
                // Not the leader, or no telling: the row stays as it was, and is looked at again.
                Ok(None) | Err(_) => {
                    let later = this.io.now().plus(Duration::from_secs(1));
                    if let Some(queued) = this.queue.iter_mut().find(|queued| queued.is(&key.0, &key.1)) {
                        queued.due = later;
                    }
                }
            }
            this.look(ctx);
        }));
    }

    fn attempted(&mut self, row: OutboxRow, outcome: &Outcome, pause: Duration) {
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
                self.resting.insert(channel, self.io.now().plus(*rest));
            }
            Outcome::ChannelBroken(why) if self.refuses.insert(channel.clone(), true) != Some(true) => {
                self.supervisor.do_send(Report::Channel(ChannelState { name: channel, broken: Some(why.clone()) }));
            }
            Outcome::Sent(_) if self.refuses.insert(channel.clone(), false) != Some(false) => {
                self.supervisor.do_send(Report::Channel(ChannelState { name: channel, broken: None }));
            }
            _ => {}
        }
        match row.state {
            Delivery::Waiting => {
                let due = self.io.now().plus(pause);
                if let Some(known) = self.queue.iter_mut().find(|known| known.is(&row.id, &row.channel)) {
                    (known.row, known.due) = (row, due);
                }
            }
            Delivery::Sent | Delivery::Dead => {
                self.queue.retain(|known| !known.is(&row.id, &row.channel));
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
        tracing::debug!(message = message.id, "sent without all of its charts");
    }
    sketches
}

/// Notes on the row, which is `age` seconds old, what came of an attempt that ended at `now`. The pause until the next
/// one, if there is to be one.
fn settle(row: &mut OutboxRow, outcome: &Outcome, now: f64, age: f64) -> Duration {
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
    let given_up = state == Delivery::Waiting && age >= GIVEN_UP_AFTER;
    row.state = if given_up { Delivery::Dead } else { state };
    row.next_attempt = (row.state == Delivery::Waiting).then_some(now + pause);
    row.ended = (row.state != Delivery::Waiting).then_some(now);
    Duration::from_secs_f64(pause.max(0.0))
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
        self.term = deliver.term;
        if deliver.instead_of_all {
            self.queue.clear();
            self.refuses.clear();
        }
        for row in deliver.rows {
            let waits = self.queue.iter().any(|known| known.is(&row.id, &row.channel));
            let done = self.done.iter().any(|(id, channel)| *id == row.id && *channel == row.channel);
            if !waits && !done {
                self.queue.push(Queued::new(row, self.io.now(), self.io.wall()));
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
            settle(&mut row, &again(2), 100.0, 0.0);
            pauses.push(row.next_attempt.unwrap() - 100.0);
        }
        assert!((2.0..=2.5).contains(&pauses[0]) && (4.0..=5.0).contains(&pauses[1]), "{pauses:?}");
        assert!((300.0..=375.0).contains(&pauses[9]), "{pauses:?}");
        settle(&mut row, &again(2), 100.0, GIVEN_UP_AFTER);
        assert_eq!((row.state, row.next_attempt), (Delivery::Dead, None));
    }
}
