//! Decides which notification is sent next and when it is retried, without I/O: [`super::alert_dispatcher`] sends them; the
//! simulation sends them on models.
//!
//! Notifications of an alert are sent in order in each channel.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::messages::{ChannelState, Deliver};
use crate::alerting::message;
use crate::delivery::Outcome;
use crate::exposition::counters::Attempt;
use crate::fleet::time::Mono;
use crate::postgres::alerts::{Delivery, OutboxRow};

/// Age at which an undelivered notification is given up, seconds.
const GIVEN_UP_AFTER: f64 = message::GIVEN_UP_AFTER_HOURS * 3600.0;
/// Maximum of the exponential backoff, seconds.
const DOUBLED_PAUSE: f64 = 300.0;
/// Retry interval for a channel that refuses everything, seconds: it may have been repaired.
const BROKEN_PAUSE: f64 = 600.0;
/// Minimum pause, whatever the channel requests, seconds.
const SHORTEST_PAUSE: f64 = 1.0;
const LONGEST_PAUSE: f64 = 600.0;
/// A channel that is unreachable or fails for this long is reported through the other channels.
const FAILING_FOR: Duration = Duration::from_secs(20);
/// The same for a channel that keeps deferring notifications.
const PUT_OFF_FOR: Duration = Duration::from_secs(900);
/// Maximum number of completed notifications to remember.
const DONE: usize = 1000;
/// Pause after an attempt that was not made.
const NOT_MADE_PAUSE: Duration = Duration::from_secs(1);

/// Queue of notifications for all channels.
#[derive(Debug, Default)]
pub struct DeliveryQueue {
    /// Waiting notifications, in order.
    queue: Vec<Queued>,
    /// Term in which they are sent; see [`super::alert_ledger`].
    term: u64,
    /// Message and channel of notifications that this instance sent or gave up: a hand-over may have been read before that was
    /// written.
    done: VecDeque<(String, String)>,
    /// Channels with an attempt in progress, and its start.
    busy: BTreeMap<String, Mono>,
    /// Channels that requested a pause (429), and its end.
    resting: BTreeMap<String, Mono>,
    /// State of each channel, from its answers in this term.
    health: BTreeMap<String, Health>,
}

/// State of a channel.
#[derive(Debug, Default)]
struct Health {
    /// Time of the last accepted notification.
    accepted: Option<Mono>,
    /// Start of the series of failed or deferred notifications.
    failing_since: Option<Mono>,
    /// Whether it was reported as broken; `None` before the first report.
    broken: Option<bool>,
}

/// An attempt to make.
#[derive(Debug)]
pub struct Begun {
    /// The row, with the attempt counted.
    pub row: OutboxRow,
    /// Age of the notification, seconds.
    pub age: f64,
    /// The channel accepted another notification after it refused this one.
    others_accepted: bool,
}

impl Begun {
    /// Interprets an outcome: a refusal concerns this notification only if the channel accepts others.
    #[must_use]
    pub fn meaning(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Refused(why) if self.others_accepted => Outcome::Never(why),
            outcome => outcome,
        }
    }
}

/// A waiting notification. Its timers use the monotonic clock.
#[derive(Debug)]
struct Queued {
    row: OutboxRow,
    /// Earliest time of the next attempt.
    due: Mono,
    /// Time at which it was queued, and its age then, seconds.
    handed_in: (Mono, f64),
    /// Time of the last refusal without a reason.
    refused: Option<Mono>,
}

impl Queued {
    /// Converts the remaining pause of a row from the wall clock, capped at the longest pause.
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
    /// Queues written notifications.
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

    /// Returns whether no notification waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Returns the term of the attempts.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Returns the attempts to make now. Each is in progress until [`Self::attempted`] or [`Self::not_made`].
    pub fn begin(&mut self, now: Mono, wall: f64) -> Vec<Begun> {
        // For each channel the position of the next notification, and whether it was attempted before.
        let mut next: BTreeMap<&str, (usize, bool)> = BTreeMap::new();
        let mut held: BTreeSet<(&str, &str)> = BTreeSet::new();
        for (at, Queued { row, due, .. }) in self.queue.iter().enumerate() {
            let channel = row.channel.as_str();
            let keys = || row.message.keys.iter().map(|key| (channel, key.as_str()));
            let in_order = keys().all(|key| !held.contains(&key));
            let rests = self.resting.get(channel).is_some_and(|until| now < *until);
            if in_order && !rests && now >= *due && !self.busy.contains_key(channel) {
                let this = (at, row.attempts > 0);
                let chosen = next.entry(channel).or_insert(this);
                // A new notification does not wait behind those that have piled up while the channel failed.
                if chosen.1 && !this.1 {
                    *chosen = this;
                }
            }
            held.extend(keys());
        }
        let begun: Vec<Begun> = next
            .into_values()
            .filter_map(|(at, _)| self.queue.get(at))
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

    /// Ends an attempt that was not made because this instance is not, or not known to be, the leader. The row is unchanged.
    pub fn not_made(&mut self, id: &str, channel: &str, now: Mono) {
        self.busy.remove(channel);
        if let Some(queued) = self.queue.iter_mut().find(|queued| queued.is(id, channel)) {
            queued.due = now.plus(NOT_MADE_PAUSE);
        }
    }

    /// Ends an attempt whose outcome [`settle`] recorded in `row`. Returns how it counts, and the state of the channel if that
    /// changed.
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
        if matches!(outcome, Outcome::ChannelFailed { .. }) {
            self.retry_in_time_to_report(&channel, now);
        }
        (result, news)
    }

    /// Records that `channel` accepted a message, of the queue or a test, and makes its waiting notifications due. Returns the
    /// state of the channel if it changed.
    pub fn works(&mut self, channel: &str, now: Mono) -> Option<ChannelState> {
        let health = self.health.entry(channel.to_owned()).or_default();
        // Notifications of an earlier term may wait because the channel failed then.
        let first_in_term = health.accepted.replace(now).is_none();
        let failed = health.failing_since.take().is_some() || health.broken == Some(true);
        let is_news = health.broken.replace(false) != Some(false);
        if failed || first_in_term {
            self.resting.remove(channel);
            // Notifications that are refused for their content keep waiting.
            for queued in self.queue.iter_mut().filter(|q| q.row.channel == channel && q.refused.is_none()) {
                queued.due = queued.due.min(now);
            }
        }
        is_news.then(|| ChannelState { name: channel.to_owned(), broken: None })
    }

    /// Records a failed attempt. Returns the state of the channel if it changed.
    fn fails(&mut self, channel: &str, outcome: &Outcome, began: Mono, now: Mono) -> Option<ChannelState> {
        let patience = match outcome {
            Outcome::ChannelBroken(_) | Outcome::Refused(_) => Duration::ZERO,
            Outcome::ChannelFailed { .. } => FAILING_FOR,
            Outcome::TryAgainAfter { .. } => PUT_OFF_FOR,
            // The outcome concerns this notification, not the channel.
            Outcome::Never(_) | Outcome::Sent(_) => return None,
        };
        let health = self.health.entry(channel.to_owned()).or_default();
        let since = *health.failing_since.get_or_insert(began);
        let is_news = now.since(since) >= patience && health.broken.replace(true) != Some(true);
        is_news.then(|| ChannelState { name: channel.to_owned(), broken: Some(outcome.answer().to_owned()) })
    }

    /// Shortens the pauses of a failing channel that is not reported yet: the attempt after [`FAILING_FOR`] reports it.
    fn retry_in_time_to_report(&mut self, channel: &str, now: Mono) {
        let unreported = self.health.get(channel).filter(|health| health.broken != Some(true));
        let Some(since) = unreported.and_then(|health| health.failing_since) else { return };
        let report = since.plus(FAILING_FOR).max(now.plus(Duration::from_secs_f64(SHORTEST_PAUSE)));
        for queued in self.queue.iter_mut().filter(|queued| queued.row.channel == channel) {
            queued.due = queued.due.min(report);
        }
    }
}

/// Limits a pause to the shortest and longest one.
fn bounded(pause: Duration) -> Duration {
    pause.clamp(Duration::from_secs_f64(SHORTEST_PAUSE), Duration::from_secs_f64(LONGEST_PAUSE))
}

/// Records in the row, which is `age` seconds old, the outcome of an attempt that ended at `now` (Unix seconds). Returns the pause
/// until the next attempt, if any.
pub fn settle(row: &mut OutboxRow, outcome: &Outcome, now: f64, age: f64) -> Duration {
    row.begun = None;
    let doubled = |at_least: Duration| {
        let least = at_least.as_secs_f64();
        let pause = (least * 2_f64.powi(i32::try_from(row.attempts.min(12)).unwrap_or(12) - 1)).min(DOUBLED_PAUSE);
        // Jitter, so that retries spread out; never sooner than the channel requested.
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

/// Returns a number from 0 to 1 derived from the message ID and the attempt.
fn spread(id: &str, attempt: u32) -> f64 {
    let sum = id.bytes().chain(attempt.to_le_bytes()).fold(7_u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte));
    f64::from(sum % 1000) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backs_off_with_jitter_and_gives_up_after_a_day() {
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

        /// Waits for the next attempt and answers it. Returns the message, the time, its state and the reported state of the
        /// channel.
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
    fn reports_an_unreachable_channel_once_within_30_s() {
        let mut sending = Sending::new(&["a"]);
        let mut reported = Vec::new();
        for _ in 0..8 {
            let (_, at, state, news) = sending.answer(&failed());
            assert_eq!(state, Delivery::Waiting);
            reported.extend(news.map(|news| (at, news.broken)));
        }
        let [(at, Some(why))] = &reported[..] else { panic!("{reported:?}") };
        assert!((20.0..=30.0).contains(at) && why == "no connection", "{reported:?}");
        let (.., state, news) = sending.answer(&Outcome::Sent("ok".to_owned()));
        assert_eq!((state, news.map(|news| news.broken)), (Delivery::Sent, Some(None)));
    }

    #[test]
    fn sends_waiting_messages_as_soon_as_a_broken_channel_accepts_one() {
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
        // An accepted test notification counts too.
        let mut sending = Sending::new(&["a"]);
        sending.answer(&broken);
        sending.now = 5.0;
        let news = sending.queue.works("slack", sending.mono());
        assert_eq!(news.map(|news| news.broken), Some(None));
        assert!(sending.answer(&Outcome::Sent("ok".to_owned())).1 < 7.0);
    }

    #[test]
    fn sends_messages_of_an_earlier_term_as_soon_as_the_channel_accepts_one() {
        let mut row = OutboxRow::new(&message::test(0.0, "n"), "slack");
        row.message.title = "waited".to_owned();
        row.attempts = 1;
        settle(&mut row, &Outcome::ChannelBroken("404".to_owned()), 0.0, 0.0);
        let mut sending = Sending::new(&[]);
        sending.queue.deliver(Deliver { rows: vec![row], instead_of_all: true, term: 2 }, sending.mono(), 0.0);
        sending.now = 5.0;
        sending.add("new");
        assert_eq!(sending.answer(&Outcome::Sent("ok".to_owned())).0, "new");
        let (sent, at, ..) = sending.answer(&Outcome::Sent("ok".to_owned()));
        assert!(sent == "waited" && at < 7.0, "{sent} at {at}");
    }

    #[test]
    fn sends_a_new_message_before_those_that_piled_up() {
        let mut sending = Sending::new(&["a", "b", "c"]);
        for _ in 0..3 {
            sending.answer(&Outcome::ChannelBroken("404".to_owned()));
        }
        let sent = Outcome::Sent("ok".to_owned());
        assert_eq!(sending.answer(&sent).0, "a");
        sending.add("new");
        assert_eq!([sending.answer(&sent).0, sending.answer(&sent).0, sending.answer(&sent).0], ["new", "b", "c"]);
    }

    #[test]
    fn refusal_without_reason_is_final_once_other_messages_are_accepted() {
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
    fn pauses_are_between_one_second_and_ten_minutes() {
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
    fn reports_a_channel_that_defers_messages_after_15_minutes() {
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
