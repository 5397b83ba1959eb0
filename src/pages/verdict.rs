//! Assessment of a worker type: the word and sentence on its card, and its level in the status line.

use serde::Serialize;

use super::figures::{about, counted};
use super::wording::{Label, MomentStyle, Sentence};
use crate::alerting::alert_manager::FiringAlert;
use crate::fleet::consumer::ConsumerState;
use crate::fleet::event::Severity;
use crate::fleet::snapshot::{StreamStatus, WorkerTypeStatus};
use crate::fleet::worker_type::TypeState;

/// Time for which a loss counts as a problem, seconds: the length of the chart. The card mentions it for an hour.
const LOSS_IS_NEWS: f64 = 10.0 * 60.0;

/// Pill of a type whose running consumers read nothing although messages wait.
pub(super) const NOT_CONSUMING: &str = "not consuming";

/// Level of an assessment, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    /// Healthy.
    Fine,
    /// Unknown, or nothing to assess.
    Unknown,
    /// Needs attention.
    Warning,
    /// Needs action.
    Critical,
}

impl From<Severity> for Level {
    fn from(severity: Severity) -> Self {
        match severity {
            Severity::Info => Self::Fine,
            Severity::Warning => Self::Warning,
            Severity::Critical => Self::Critical,
        }
    }
}

impl Level {
    /// Shape of the level.
    pub(super) fn shape(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// Whether it counts as a problem.
    pub(super) fn is_trouble(self) -> bool {
        self >= Self::Warning
    }
}

/// Assessment of a worker type.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Verdict {
    /// Level.
    pub(super) level: Level,
    /// Word on its pill.
    pub(super) pill: &'static str,
    /// Shape on its pill, because colour alone is not accessible.
    pub(super) shape: &'static str,
    /// Description with time.
    pub(super) sentence: Sentence,
    /// Whether the sentence is unimportant.
    pub(super) quiet: bool,
}

/// Pill of a type that is a problem only because of its alerts.
const ALERTING: &str = "alert firing";

impl Verdict {
    /// Raises the level to the severity of `alerts`, which fire for this type.
    pub(super) fn raise(&mut self, alerts: &[&FiringAlert]) {
        let Some(worst) = alerts.iter().max_by_key(|alert| alert.severity) else { return };
        let level = Level::from(worst.severity);
        if level <= self.level {
            return;
        }
        let calm = !self.level.is_trouble();
        self.level = level;
        if calm {
            let others = match alerts.len() - 1 {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            (self.pill, self.shape, self.quiet) = (ALERTING, level.shape(), false);
            self.sentence = Sentence::words(format!("{}{others} firing", Label::from_text(&worst.rule)));
        }
    }

    /// Whether the state alone is a problem, regardless of alerts.
    pub(super) fn is_told_by_its_state(&self) -> bool {
        self.level.is_trouble() && self.pill != ALERTING
    }
}

/// Assesses `status` at `ts` (Unix seconds); `stream` is the stream that it reads.
pub(super) fn of(status: &WorkerTypeStatus, stream: Option<&StreamStatus>, ts: f64) -> Verdict {
    let verdict = |level, pill, shape, sentence| Verdict { level, pill, shape, sentence, quiet: false };
    let waiting = status.backlog.unwrap_or(0);
    let since = |words: &str| Sentence::words(words).at(" since ", status.state_changed_at, MomentStyle::Clock);

    // A crash takes precedence over an unreadable stream.
    if stream.is_some_and(|s| s.error.is_some()) && status.state != TypeState::Crashed {
        return verdict(Level::Warning, "unreadable", "warning", Sentence::words("cannot read the stream; see Queues"));
    }
    match status.state {
        TypeState::Crashed => verdict(Level::Critical, "crashed", "critical", crashed(status)),
        TypeState::Alive => {
            let (pill, sentence) = match trouble(status, stream, ts) {
                Some(found) => found,
                None => return calm(status),
            };
            verdict(Level::Warning, pill, "warning", sentence)
        }
        TypeState::ScaledDown if waiting > 0 => {
            verdict(Level::Warning, "no workers", "warning", since("scaled to zero").then("; messages waiting"))
        }
        TypeState::ScaledDown => verdict(
            Level::Unknown,
            "scaled to zero",
            "idle",
            Sentence::words("graceful shutdown").at(" at ", status.state_changed_at, MomentStyle::Clock),
        ),
        TypeState::Unknown if status.last_alive_count > 0 && status.alive == 0 => {
            let sentence = since("0 running").then("; stopped while no monitor was running");
            verdict(
                if waiting > 0 { Level::Warning } else { Level::Unknown },
                "stopped, not observed",
                "unknown",
                sentence,
            )
        }
        TypeState::Unknown if status.unreadable > 0 => {
            let (pill, sentence) = unreadable(status);
            verdict(Level::Warning, pill, "warning", sentence)
        }
        TypeState::Unknown if status.without_heartbeat > 0 => {
            verdict(Level::Unknown, "no heartbeats", "unknown", presence_unknown(status))
        }
        TypeState::Unknown if waiting > 0 => {
            verdict(Level::Warning, "no workers", "warning", Sentence::words("never seen; messages waiting"))
        }
        TypeState::Unknown => verdict(Level::Unknown, "unknown", "unknown", Sentence::words("never seen")),
    }
}

fn crashed(status: &WorkerTypeStatus) -> Sentence {
    let sentence = Sentence::words("crashed").at(" ", status.state_changed_at, MomentStyle::Ago);
    sentence.then(format!("; 0 of {} running", status.last_alive_count.max(status.lost)))
}

/// Returns the most important problem of a type that is alive.
fn trouble(status: &WorkerTypeStatus, stream: Option<&StreamStatus>, ts: f64) -> Option<(&'static str, Sentence)> {
    if status.hung > 0 {
        return Some(("hung", hung(status)));
    }
    if status.lost > 0 && status.lost_at.is_some_and(|at| ts - at < LOSS_IS_NEWS) {
        return Some(("lost", lost(status)));
    }
    if status.not_consuming {
        return Some((NOT_CONSUMING, not_consuming(status, stream)));
    }
    (status.unreadable > 0).then(|| unreadable(status))
}

fn not_consuming(status: &WorkerTypeStatus, stream: Option<&StreamStatus>) -> Sentence {
    let waiting = stream.and_then(|s| s.oldest_waiting_sec);
    let since = waiting.map_or(String::new(), |sec| format!(" for {}", about(sec)));
    Sentence::words(format!("{} running, none reads; messages waiting{since}", status.alive))
}

fn hung(status: &WorkerTypeStatus) -> Sentence {
    let mut hung = status.consumers.iter().filter(|c| c.state == ConsumerState::Hung);
    let first = hung.next();
    let name = match (first, status.hung) {
        (Some(first), 1) => format!("consumer {} hung", Label::of(&first.consumer)),
        (_, n) => format!("{n} of {} consumers hung", status.alive.max(n)),
    };
    let pending = first.filter(|_| status.hung == 1).and_then(|c| c.pending);
    let sentence = Sentence::words(name).at(" since ", first.map(|c| c.state_since), MomentStyle::Clock);
    match pending {
        Some(pending) => sentence.then(format!(" with {pending} pending")),
        None => sentence,
    }
}

fn lost(status: &WorkerTypeStatus) -> Sentence {
    let consumers = counted(u64::from(status.lost), "consumer", "consumers");
    Sentence::words(format!("lost {consumers}"))
        .at(if status.lost == 1 { " " } else { ", last " }, status.lost_at, MomentStyle::Ago)
        .then(format!("; {} running", status.alive))
}

fn unreadable(status: &WorkerTypeStatus) -> (&'static str, Sentence) {
    let which = match status.unreadable {
        1 => "1 unreadable heartbeat".to_owned(),
        n => format!("{n} unreadable heartbeats"),
    };
    ("unreadable", Sentence::words(which))
}

/// Without heartbeats, the only known fact is the last command of a consumer.
fn presence_unknown(status: &WorkerTypeStatus) -> Sentence {
    let consumers = counted(u64::from(status.without_heartbeat), "consumer", "consumers");
    Sentence::words(format!("{consumers} without heartbeat: state unknown"))
}

/// Returns the assessment of a healthy type.
fn calm(status: &WorkerTypeStatus) -> Verdict {
    let (alive, draining) = (status.alive, status.draining);
    let healthy = |pill, sentence| Verdict { level: Level::Fine, pill, shape: "fine", sentence, quiet: false };
    if draining > 0 && draining == alive {
        return healthy("draining", Sentence::words("shutting down; takes no new tasks"));
    }
    if draining > 0 {
        return healthy("alive", Sentence::words(format!("{draining} of {alive} draining")));
    }
    if status.lost > 0 {
        return healthy("alive", lost(status));
    }
    if status.stale > 0 {
        let late = counted(u64::from(status.stale), "heartbeat", "heartbeats");
        return healthy("alive", Sentence::words(format!("{late} late")));
    }
    let since = Sentence::words("alive").at(" since ", status.state_changed_at, MomentStyle::Clock);
    Verdict { quiet: true, ..healthy("alive", since) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Name;
    use crate::pages::states::Fleet;

    const NOW: f64 = 1_795_456_871.0;

    /// Returns pill, whether it is a problem, and sentence of a type after `change`.
    fn verdict_of(change: impl FnOnce(&mut WorkerTypeStatus, &mut StreamStatus)) -> (&'static str, bool, String) {
        let mut fleet = Fleet::new(NOW);
        fleet.add("a", 3, 10, 5);
        fleet.change("a", change);
        let snapshot = fleet.finish();
        let name = Name::from("a");
        let verdict = of(&snapshot.workers[&name], snapshot.streams.get(&name), NOW);
        (verdict.pill, verdict.level.is_trouble(), verdict.sentence.plain())
    }

    #[test]
    fn crash_takes_precedence_over_an_unreadable_stream() {
        let crash = |w: &mut WorkerTypeStatus, s: &mut StreamStatus| {
            (w.state, w.alive, w.lost, w.state_changed_at) = (TypeState::Crashed, 0, 3, Some(NOW));
            s.error = Some("WRONGTYPE".to_owned());
        };
        assert_eq!(verdict_of(crash), ("crashed", true, "crashed 23 Nov 18:01 UTC; 0 of 3 running".to_owned()));
    }

    #[test]
    fn recent_loss_is_trouble_and_older_one_a_remark() {
        let lost = |ago: f64| verdict_of(move |w, _| (w.alive, w.lost, w.lost_at) = (2, 1, Some(NOW - ago)));
        assert_eq!(lost(60.0), ("lost", true, "lost 1 consumer 23 Nov 18:00 UTC; 2 running".to_owned()));
        assert_eq!(lost(1200.0), ("alive", false, "lost 1 consumer 23 Nov 17:41 UTC; 2 running".to_owned()));
    }

    #[test]
    fn type_that_does_not_consume_is_trouble() {
        let stalled = |w: &mut WorkerTypeStatus, s: &mut StreamStatus| {
            w.not_consuming = true;
            s.oldest_waiting_sec = Some(1200.0);
        };
        let sentence = "3 running, none reads; messages waiting for 20\u{202f}m".to_owned();
        assert_eq!(verdict_of(stalled), ("not consuming", true, sentence));
    }

    #[test]
    fn firing_alert_raises_the_verdict() {
        let alert = |severity| FiringAlert {
            rule: "pending_high".to_owned(),
            subject: Some("a".to_owned()),
            severity,
            silenced: false,
        };
        let (warning, critical) = (alert(Severity::Warning), alert(Severity::Critical));
        let mut fleet = Fleet::new(NOW);
        fleet.add("a", 3, 10, 5);
        let snapshot = fleet.finish();
        let fine = of(&snapshot.workers[&Name::from("a")], None, NOW);
        let mut raised = fine.clone();
        raised.raise(&[&alert(Severity::Info)]);
        assert_eq!(raised, fine);
        raised.raise(&[&warning, &critical]);
        assert_eq!((raised.level, raised.pill), (Level::Critical, ALERTING));
        assert_eq!(raised.sentence.plain(), "pending_high and 1 more firing");
        raised.raise(&[&warning]);
        assert_eq!(raised.level, Level::Critical);
    }

    #[test]
    fn type_is_draining_when_all_consumers_are() {
        assert_eq!(verdict_of(|w, _| w.draining = 1).0, "alive");
        assert_eq!(
            verdict_of(|w, _| w.draining = 3),
            ("draining", false, "shutting down; takes no new tasks".to_owned())
        );
    }

    #[test]
    fn no_workers_is_trouble_only_with_backlog() {
        let gone = |w: &mut WorkerTypeStatus, backlog| {
            (w.state, w.alive, w.backlog) = (TypeState::ScaledDown, 0, Some(backlog));
        };
        assert!(!verdict_of(|w, _| gone(w, 0)).1);
        assert!(verdict_of(|w, _| gone(w, 1)).1);
        assert!(!verdict_of(|w, _| (w.state, w.alive, w.backlog) = (TypeState::Unknown, 0, None)).1);
    }
}
