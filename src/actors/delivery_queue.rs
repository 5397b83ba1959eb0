//! Which messages are sent next, and when again, without the I/O: [`super::alert_dispatcher`] sends them, the simulation
//! does so on models.
//!
//! What is sent about one alert stays in order in each channel.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::messages::{ChannelState, Deliver};
use crate::delivery::Outcome;
use crate::exposition::counters::Attempt;
use crate::fleet::time::Mono;
use crate::postgres::alerts::{Delivery, OutboxRow};

/// What is not delivered by then never will be.
const GIVEN_UP_AFTER: f64 = 24.0 * 3600.0;
/// The longest pause between two attempts.
const LONGEST_PAUSE: f64 = 300.0;
/// A broken channel is tried again so often: somebody may have mended it.
const BROKEN_PAUSE: f64 = 600.0;
/// So many messages that are done are known again.
const DONE: usize = 1000;
/// How soon an attempt that was not made is due again.
const NOT_MADE_PAUSE: Duration = Duration::from_secs(1);

/// The queue.
#[derive(Debug, Default)]
pub struct DeliveryQueue {
    /// On their way, in order.
    queue: Vec<Queued>,
    /// The term in which they are sent; see [`super::alert_ledger`].
    term: u64,
    /// Sent or given up by this monitor, by message and channel: what is handed over may have been
    /// read before that was written down.
    done: VecDeque<(String, String)>,
    /// Channels with an attempt under way.
    busy: BTreeSet<String>,
    /// Channels that asked for a pause (429), and until when.
    resting: BTreeMap<String, Mono>,
    /// Whether a channel refused everything when it last answered; without an answer in this term it is not known.
    refuses: BTreeMap<String, bool>,
}

/// A message on its way. Its timers run on the clock that never jumps.
#[derive(Debug)]
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

impl DeliveryQueue {
    /// Takes messages in that are written down.
    pub fn deliver(&mut self, deliver: Deliver, now: Mono, wall: f64) {
        self.term = deliver.term;
        if deliver.instead_of_all {
            self.queue.clear();
            self.refuses.clear();
        }
        for row in deliver.rows {
            let waits = self.queue.iter().any(|known| known.is(&row.id, &row.channel));
            let done = self.done.iter().any(|(id, channel)| *id == row.id && *channel == row.channel);
            if !waits && !done {
                self.queue.push(Queued::new(row, now, wall));
            }
        }
    }

    /// Whether nothing is on its way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The term in which attempts are made.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Attempts to make now: the row with the attempt counted, and its age in seconds. Each is under way until
    /// [`Self::attempted`] or [`Self::not_made`].
    pub fn begin(&mut self, now: Mono, wall: f64) -> Vec<(OutboxRow, f64)> {
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
        let rows: Vec<(OutboxRow, f64)> = begin
            .into_iter()
            .filter_map(|at| self.queue.get(at))
            .map(|Queued { row, handed_in: (since, age), .. }| {
                let mut row = row.clone();
                row.attempts += 1;
                row.begun = Some(wall);
                (row, age + now.since(*since).as_secs_f64())
            })
            .collect();
        self.busy.extend(rows.iter().map(|(row, _)| row.channel.clone()));
        rows
    }

    /// The attempt was not made: this monitor is not the leader, or that cannot be found out. The row stays as it was.
    pub fn not_made(&mut self, id: &str, channel: &str, now: Mono) {
        self.busy.remove(channel);
        if let Some(queued) = self.queue.iter_mut().find(|queued| queued.is(id, channel)) {
            queued.due = now.plus(NOT_MADE_PAUSE);
        }
    }

    /// Takes in what came of an attempt, as [`settle`] noted it on `row`: how it counts, and what it says of the channel
    /// if that is news.
    pub fn attempted(
        &mut self,
        row: OutboxRow,
        outcome: &Outcome,
        pause: Duration,
        now: Mono,
    ) -> (Attempt, Option<ChannelState>) {
        let channel = row.channel.clone();
        self.busy.remove(&channel);
        let result = match (row.state, outcome) {
            (Delivery::Sent, _) => Attempt::Sent,
            (Delivery::Dead, _) => Attempt::GivenUp,
            (Delivery::Waiting, Outcome::ChannelBroken(_)) => Attempt::ChannelBroken,
            (Delivery::Waiting, _) => Attempt::Failed,
        };
        let news = match outcome {
            Outcome::TryAgainAfter { channel_rests: Some(rest), .. } => {
                self.resting.insert(channel, now.plus(*rest));
                None
            }
            Outcome::ChannelBroken(why) if self.refuses.insert(channel.clone(), true) != Some(true) => {
                Some(ChannelState { name: channel, broken: Some(why.clone()) })
            }
            Outcome::Sent(_) if self.refuses.insert(channel.clone(), false) != Some(false) => {
                Some(ChannelState { name: channel, broken: None })
            }
            _ => None,
        };
        match row.state {
            Delivery::Waiting => {
                if let Some(known) = self.queue.iter_mut().find(|known| known.is(&row.id, &row.channel)) {
                    (known.row, known.due) = (row, now.plus(pause));
                }
            }
            Delivery::Sent | Delivery::Dead => {
                self.queue.retain(|known| !known.is(&row.id, &row.channel));
                self.done.push_back((row.id, row.channel));
                let over = self.done.len().saturating_sub(DONE);
                self.done.drain(..over);
            }
        }
        (result, news)
    }
}

/// Notes on the row, which is `age` seconds old, what came of an attempt that ended at `now`. The pause until the next
/// one, if there is to be one.
pub fn settle(row: &mut OutboxRow, outcome: &Outcome, now: f64, age: f64) -> Duration {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerting::message;

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
