//! A condition that comes and goes by hand, so that it is known from outside when an alert has to arrive: an entry on
//! a stream that no worker reads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::fleet::Fleet;
use crate::journal::{Journal, now};
use crate::random::Dice;
use crate::receiver::Receiver;

pub(crate) const RULE: &str = "canary";
/// What the streams' names begin with.
pub(crate) const STREAMS: &str = "chaos.canary.";
/// One is used again long after its last alert, so that none is damped as flapping.
const COUNT: usize = 40;
/// Longer than every fault and the takeover that follows it.
const HEARD_WITHIN: f64 = 180.0;

/// The streams, for the monitors to look at before they exist.
pub(crate) fn seeds() -> String {
    (0..COUNT).map(stream).collect::<Vec<_>>().join(",")
}

fn stream(at: usize) -> String {
    format!("{STREAMS}{at}")
}

/// How long it took from the condition's beginning, and from its end, to the accepted message, seconds.
#[derive(Default)]
pub(crate) struct Delays(pub(crate) Mutex<Vec<(f64, f64)>>);

/// Raises one condition after another, until `stop`.
pub(crate) fn run(
    fleet: &Fleet,
    receiver: &Receiver,
    delays: &Delays,
    mut dice: Dice,
    from: usize,
    stop: &AtomicBool,
) -> usize {
    let journal = Arc::clone(&fleet.journal);
    let mut at = from;
    while !stop.load(Ordering::SeqCst) {
        let name = stream(at % COUNT);
        at += 1;
        let raised = now();
        until_done(fleet, &["XADD", &name, "*", "a", "b"]);
        let fired = heard(&journal, receiver, &name, false, raised);
        let cleared = now();
        until_done(fleet, &["XTRIM", &name, "MAXLEN", "0"]);
        let Some(fired) = fired else { continue };
        let Some(resolved) = heard(&journal, receiver, &name, true, cleared) else { continue };
        journal.say(format!("canary {name}: notified after {fired:.1} s, its end after {resolved:.1} s"));
        delays.0.lock().unwrap().push((fired, resolved));
        let mut pause = dice.seconds(3.0, 12.0);
        while !pause.is_zero() && !stop.load(Ordering::SeqCst) {
            std::thread::sleep(pause.min(Duration::from_millis(500)));
            pause = pause.saturating_sub(Duration::from_millis(500));
        }
    }
    at
}

/// Waits until a message about the stream's alert was accepted. Answers how many seconds after `since` that was.
fn heard(journal: &Journal, receiver: &Receiver, stream: &str, resolved: bool, since: f64) -> Option<f64> {
    loop {
        let is_it = |line: &crate::receiver::Line| {
            line.accepted
                && line.at >= since
                && line.rule == RULE
                && line.subject == stream
                && line.resolved == resolved
        };
        if receiver.lines().iter().any(is_it) {
            return Some(now() - since);
        }
        if now() - since > HEARD_WITHIN {
            let what = if resolved { "the end of the alert" } else { "the alert" };
            journal.violation(format!("{what} {RULE} of {stream} was not notified within {HEARD_WITHIN} s"));
            return None;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Repeats a command until Redis has done it.
fn until_done(fleet: &Fleet, words: &[&str]) {
    loop {
        let done = fleet.redis_now().and_then(|mut redis| redis::cmd(words[0]).arg(&words[1..]).exec(&mut redis));
        if done.is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}
