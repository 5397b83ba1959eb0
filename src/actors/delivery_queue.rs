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
/// Pauses that double grow up to this, seconds.
const DOUBLED_PAUSE: f64 = 300.0;
/// A channel that refuses everything is tried again so often, seconds: it may have been repaired.
const BROKEN_PAUSE: f64 = 600.0;
/// No pause is shorter or longer, whatever a channel asks for, seconds.
const SHORTEST_PAUSE: f64 = 1.0;
const LONGEST_PAUSE: f64 = 600.0;
/// A channel that cannot be reached, or fails by itself, for so long is reported by the others.
const FAILING_FOR: Duration = Duration::from_secs(20);
/// The same for a channel that keeps putting off what it is sent.
const PUT_OFF_FOR: Duration = Duration::from_secs(900);
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
    /// Channels with an attempt under way, and since when.
    busy: BTreeMap<String, Mono>,
    /// Channels that asked for a pause (429), and until when.
    resting: BTreeMap<String, Mono>,
    /// What the answers of this term say of each channel.
    health: BTreeMap<String, Health>,
}

/// What the answers of a channel say of it.
#[derive(Debug, Default)]
struct Health {
    /// When it accepted a message last.
    accepted: Option<Mono>,
    /// Since when every message to it failed or was put off.
    failing_since: Option<Mono>,
    /// Whether it was reported as broken; `None`: nothing was reported.
    broken: Option<bool>,
}

/// An attempt to make.
#[derive(Debug)]
pub struct Begun {
    /// The row with the attempt counted.
    pub row: OutboxRow,
    /// How old it is, seconds.
    pub age: f64,
    /// The channel accepted another message after it refused this one.
    others_accepted: bool,
}

impl Begun {
    /// What the answer to this attempt means: a refusal is about this message if the channel accepts others.
    #[must_use]
    pub fn meaning(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Refused(why) if self.others_accepted => Outcome::Never(why),
            outcome => outcome,
        }
    }
}

/// A message on its way. Its timers run on the clock that never jumps.
#[derive(Debug)]
struct Queued {
    row: OutboxRow,
    /// Not before this moment.
    due: Mono,
    /// When it was handed in, and how old it was then, seconds.
    handed_in: (Mono, f64),
    /// When the channel refused it last, without saying why.
    refused: Option<Mono>,
}

impl Queued {
    /// Takes over the pause that the row has left by the wall clock, no longer than pauses are.
    fn new(row: OutboxRow, now: Mono, wall: f64) -> Self {
        let rest = row.next_attempt.map_or(0.0, |at| at - wall).clamp(0.0, BROKEN_PAUSE);
        let age = (wall - row.created).max(0.0);
        Self { due: now.plus(Duration::from_secs_f64(rest)), handed_in: (now, age), refused: None, row }
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
            self.health.clear();
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

    /// Attempts to make now. Each is under way until [`Self::attempted`] or [`Self::not_made`].
    pub fn begin(&mut self, now: Mono, wall: f64) -> Vec<Begun> {
        let mut begin: Vec<usize> = Vec::new();
        let mut taken: BTreeSet<&str> = self.busy.keys().map(String::as_str).collect();
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
        let begun: Vec<Begun> = begin
            .into_iter()
            .filter_map(|at| self.queue.get(at))
            .map(|Queued { row, handed_in: (since, age), refused, .. }| {
                let accepted = self.health.get(&row.channel).and_then(|health| health.accepted);
                let others_accepted = refused.zip(accepted).is_some_and(|(refused, accepted)| accepted > refused);
                let mut row = row.clone();
                row.attempts += 1;
                row.begun = Some(wall);
                Begun { row, age: age + now.since(*since).as_secs_f64(), others_accepted }
            })
            .collect();
        self.busy.extend(begun.iter().map(|begun| (begun.row.channel.clone(), now)));
        begun
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
        let began = self.busy.remove(&channel).unwrap_or(now);
        let result = match (row.state, outcome) {
            (Delivery::Sent, _) => Attempt::Sent,
            (Delivery::Dead, _) => Attempt::GivenUp,
            (Delivery::Waiting, Outcome::ChannelBroken(_) | Outcome::Refused(_)) => Attempt::ChannelBroken,
            (Delivery::Waiting, _) => Attempt::Failed,
        };
        if let Outcome::TryAgainAfter { channel_rests: Some(rest), .. } = outcome {
            self.resting.insert(channel.clone(), now.plus(bounded(*rest)));
        }
        match row.state {
            Delivery::Waiting => {
                if let Some(known) = self.queue.iter_mut().find(|known| known.is(&row.id, &row.channel)) {
                    (known.row, known.due) = (row, now.plus(pause));
                    if matches!(outcome, Outcome::Refused(_)) {
                        known.refused = Some(now);
                    }
                }
            }
            Delivery::Sent | Delivery::Dead => {
                self.queue.retain(|known| !known.is(&row.id, &row.channel));
                self.done.push_back((row.id, row.channel));
                let over = self.done.len().saturating_sub(DONE);
                self.done.drain(..over);
            }
        }
        let news = match outcome {
            Outcome::Sent(_) => self.works(&channel, now),
            _ => self.fails(&channel, outcome, began, now),
        };
        (result, news)
    }

    /// `channel` accepted a message, of the queue or a test: what waits for it is due. Whether that is news.
    pub fn works(&mut self, channel: &str, now: Mono) -> Option<ChannelState> {
        let health = self.health.entry(channel.to_owned()).or_default();
        health.accepted = Some(now);
        let failed = health.failing_since.take().is_some() || health.broken == Some(true);
        let is_news = health.broken.replace(false) != Some(false);
        if failed {
            self.resting.remove(channel);
            // One that it refuses for its own sake waits on.
            for queued in self.queue.iter_mut().filter(|q| q.row.channel == channel && q.refused.is_none()) {
                queued.due = queued.due.min(now);
            }
        }
        is_news.then(|| ChannelState { name: channel.to_owned(), broken: None })
    }

    /// What an attempt that did not succeed says of the channel, if that is news.
    fn fails(&mut self, channel: &str, outcome: &Outcome, began: Mono, now: Mono) -> Option<ChannelState> {
        let patience = match outcome {
            Outcome::ChannelBroken(_) | Outcome::Refused(_) => Duration::ZERO,
            Outcome::ChannelFailed { .. } => FAILING_FOR,
            Outcome::TryAgainAfter { .. } => PUT_OFF_FOR,
            // It is about this message.
            Outcome::Never(_) | Outcome::Sent(_) => return None,
        };
        let health = self.health.entry(channel.to_owned()).or_default();
        let since = *health.failing_since.get_or_insert(began);
        let is_news = now.since(since) >= patience && health.broken.replace(true) != Some(true);
        is_news.then(|| ChannelState { name: channel.to_owned(), broken: Some(outcome.answer().to_owned()) })
    }
}

/// Within the shortest and the longest pause.
fn bounded(pause: Duration) -> Duration {
    pause.clamp(Duration::from_secs_f64(SHORTEST_PAUSE), Duration::from_secs_f64(LONGEST_PAUSE))
}

/// Notes on the row, which is `age` seconds old, what came of an attempt that ended at `now`. The pause until the next
/// one, if there is to be one.
pub fn settle(row: &mut OutboxRow, outcome: &Outcome, now: f64, age: f64) -> Duration {
    row.begun = None;
    let doubled = |at_least: Duration| {
        let least = at_least.as_secs_f64();
        let pause = (least * 2_f64.powi(i32::try_from(row.attempts.min(12)).unwrap_or(12) - 1)).min(DOUBLED_PAUSE);
        // Spread, so that many do not come back in the same moment; never sooner than asked.
        pause.max(least) * (1.0 + 0.25 * spread(&row.id, row.attempts))
    };
    let (state, pause) = match outcome {
        Outcome::Sent(_) => (Delivery::Sent, 0.0),
        Outcome::Never(_) => (Delivery::Dead, 0.0),
        Outcome::ChannelBroken(_) | Outcome::Refused(_) => (Delivery::Waiting, BROKEN_PAUSE),
        Outcome::TryAgainAfter { channel_rests: Some(rest), .. } => (Delivery::Waiting, rest.as_secs_f64()),
        Outcome::TryAgainAfter { at_least, .. } | Outcome::ChannelFailed { at_least, .. } => {
            (Delivery::Waiting, doubled(*at_least))
        }
    };
    let pause = pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
    row.answer = Some(outcome.answer().to_owned());
    let given_up = state == Delivery::Waiting && age >= GIVEN_UP_AFTER;
    row.state = if given_up { Delivery::Dead } else { state };
    row.next_attempt = (row.state == Delivery::Waiting).then_some(now + pause);
    row.ended = (row.state != Delivery::Waiting).then_some(now);
    Duration::from_secs_f64(pause)
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

    fn failed() -> Outcome {
        Outcome::ChannelFailed { at_least: Duration::from_secs(2), why: "no connection".to_owned() }
    }

    fn rests(seconds: u64) -> Outcome {
        let rest = Duration::from_secs(seconds);
        Outcome::TryAgainAfter { channel_rests: Some(rest), at_least: rest, why: "429".to_owned() }
    }

    /// A queue for one channel, with its clock.
    struct Sending {
        queue: DeliveryQueue,
        now: f64,
    }

    impl Sending {
        fn new(names: &[&str]) -> Self {
            let mut sending = Self { queue: DeliveryQueue::default(), now: 0.0 };
            names.iter().for_each(|name| sending.add(name));
            sending
        }

        fn add(&mut self, name: &str) {
            let mut row = OutboxRow::new(&message::test(self.now, name), "slack");
            row.message.title = name.to_owned();
            let deliver = Deliver { rows: vec![row], instead_of_all: false, term: 1 };
            self.queue.deliver(deliver, self.mono(), self.now);
        }

        fn mono(&self) -> Mono {
            Mono::default().plus(Duration::from_secs_f64(self.now))
        }

        /// Waits for the next attempt and answers it: which message it was, when, and what is news of the channel.
        fn answer(&mut self, outcome: &Outcome) -> (String, f64, Delivery, Option<ChannelState>) {
            for _ in 0..200_000 {
                let mut begun = self.queue.begin(self.mono(), self.now);
                if let Some(mut begun) = begun.pop() {
                    let outcome = begun.meaning(outcome.clone());
                    let pause = settle(&mut begun.row, &outcome, self.now, begun.age);
                    let (name, state) = (begun.row.message.title.clone(), begun.row.state);
                    let (_, news) = self.queue.attempted(begun.row, &outcome, pause, self.mono());
                    return (name, self.now, state, news);
                }
                self.now += 0.5;
            }
            panic!("no attempt is due")
        }
    }

    #[test]
    fn a_channel_that_cannot_be_reached_is_reported_within_half_a_minute_and_once() {
        let mut sending = Sending::new(&["a"]);
        let mut reported = Vec::new();
        for _ in 0..8 {
            let (_, at, state, news) = sending.answer(&failed());
            assert_eq!(state, Delivery::Waiting);
            reported.extend(news.map(|news| (at, news.broken)));
        }
        let [(at, Some(why))] = &reported[..] else { panic!("{reported:?}") };
        assert!((20.0..=40.0).contains(at) && why == "no connection", "{reported:?}");
        let (.., state, news) = sending.answer(&Outcome::Sent("ok".to_owned()));
        assert_eq!((state, news.map(|news| news.broken)), (Delivery::Sent, Some(None)));
    }

    #[test]
    fn messages_that_wait_for_a_broken_channel_are_sent_as_soon_as_it_accepts_one() {
        let broken = Outcome::ChannelBroken("404".to_owned());
        let mut sending = Sending::new(&["a", "b", "c"]);
        for _ in 0..3 {
            sending.answer(&broken);
        }
        sending.now = 5.0;
        sending.add("new");
        assert_eq!(sending.answer(&Outcome::Sent("ok".to_owned())).0, "new");
        for name in ["a", "b", "c"] {
            let (sent, at, ..) = sending.answer(&Outcome::Sent("ok".to_owned()));
            assert!(sent == name && at < 7.0, "{sent} at {at}");
        }
        // A test that arrives is as good.
        let mut sending = Sending::new(&["a"]);
        sending.answer(&broken);
        sending.now = 5.0;
        let news = sending.queue.works("slack", sending.mono());
        assert_eq!(news.map(|news| news.broken), Some(None));
        assert!(sending.answer(&Outcome::Sent("ok".to_owned())).1 < 7.0);
    }

    #[test]
    fn a_refusal_without_a_reason_is_final_once_the_channel_accepts_other_messages() {
        let refused = Outcome::Refused("400 Bad Request".to_owned());
        let mut sending = Sending::new(&["a"]);
        let (.., state, news) = sending.answer(&refused);
        assert_eq!((state, news.is_some()), (Delivery::Waiting, true));
        let (.., state, _) = sending.answer(&refused);
        assert_eq!(state, Delivery::Waiting, "nothing else was accepted");
        sending.now += 1.0;
        sending.add("b");
        assert_eq!(sending.answer(&Outcome::Sent("ok".to_owned())).0, "b");
        let (name, _, state, news) = sending.answer(&refused);
        assert_eq!((name.as_str(), state, news.is_none()), ("a", Delivery::Dead, true));
    }

    #[test]
    fn no_pause_is_shorter_than_a_second_or_longer_than_ten_minutes() {
        for (asked, expected) in
            [(0, 1.0..=2.0), (4, 4.0..=4.5), (86_400, 600.0..=600.5), (u64::MAX / 2, 600.0..=600.5)]
        {
            let mut sending = Sending::new(&["a"]);
            sending.answer(&rests(asked));
            sending.add("b");
            let (_, at, ..) = sending.answer(&Outcome::Sent("ok".to_owned()));
            assert!(expected.contains(&at), "{asked} s became {at} s");
        }
        let mut row = OutboxRow::new(&message::test(0.0, "n"), "slack");
        row.attempts = u32::MAX;
        let least = Duration::from_secs(1_000_000);
        let pause = settle(&mut row, &Outcome::ChannelFailed { at_least: least, why: String::new() }, 0.0, 0.0);
        assert_eq!(pause, Duration::from_secs(600));
    }

    #[test]
    fn a_channel_that_keeps_putting_messages_off_is_reported_after_a_quarter_of_an_hour() {
        let later =
            Outcome::TryAgainAfter { channel_rests: None, at_least: Duration::from_secs(60), why: "452".to_owned() };
        let mut sending = Sending::new(&["a"]);
        let reported = (0..12).find_map(|_| sending.answer(&later).3.map(|news| (sending.now, news.broken)));
        assert!(
            reported.as_ref().is_some_and(|(at, broken)| (900.0..1400.0).contains(at) && broken.is_some()),
            "{reported:?}"
        );
    }
}
