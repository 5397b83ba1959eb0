//! Whether a source is there, and whether Redis may be believed: the judge before every conclusion.
//!
//! A tick without a good reading, a gap between two readings, a step of Redis' clock, or another
//! server behind the same address freezes every state. After that the fleet gets [`SETTLING`] to
//! write its heartbeats again before absence means anything.

use std::time::Duration;

use super::consumer::SETTLING;
use super::reading::{SourceTrouble, TroubleKind};
use super::snapshot::SourceStatus;
use super::time::Mono;
use crate::contract::{heartbeat, marker};

/// A difference between Redis' clock and the monotonic clock that changed by more than this is a step: keys may have
/// expired early. Up to here every heartbeat that is rewritten in time stays, and slow answers differ by less.
const CLOCK_STEP: f64 = 5.0;

/// For how long no marker was read when one may have expired unread: a heartbeat that came after the marker can hide
/// it for as long as that lives. Ticks that come at most twice as far apart as a marker lives see most markers; with
/// longer intervals an exit is rarely seen to be graceful, and stays unknown.
#[must_use]
pub fn marker_gap(interval: Duration) -> Duration {
    let gap = marker::TTL.saturating_sub(heartbeat::TTL);
    if interval <= marker::TTL * 2 { gap.max(interval + interval / 10) } else { gap }
}

/// Whether a source answers, over time.
#[derive(Debug, Clone)]
pub struct Availability {
    started_unix: f64,
    /// When it was last read well, and the same in Unix seconds.
    last_good: Option<(Mono, f64)>,
    down: Option<Down>,
}

#[derive(Debug, Clone)]
struct Down {
    since: Mono,
    since_unix: f64,
    trouble: SourceTrouble,
    /// It was told. One answer that came late is shown, but not told.
    told: bool,
}

/// What a reading changed about a source.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceChange {
    /// It was good and is not any more.
    WentDown(SourceTrouble),
    /// It is good again after this long.
    CameBack(Duration),
}

impl Availability {
    /// A source that was never read by a monitor that started at `now_unix`.
    #[must_use]
    pub fn new(now_unix: f64) -> Self {
        Self { started_unix: now_unix, last_good: None, down: None }
    }

    /// Takes note of a good reading.
    pub fn good(&mut self, now: Mono, now_unix: f64) -> Option<SourceChange> {
        self.last_good = Some((now, now_unix));
        let down = self.down.take()?;
        down.told.then(|| SourceChange::CameBack(now.since(down.since)))
    }

    /// Takes note of a tick in which it could not be read.
    pub fn bad(&mut self, now: Mono, trouble: SourceTrouble) -> Option<SourceChange> {
        let (since, since_unix) = self.last_good.unwrap_or((now, self.started_unix));
        let late_once = trouble.kind == TroubleKind::TimedOut && self.down.is_none();
        let down = self.down.get_or_insert(Down { since, since_unix, trouble: trouble.clone(), told: false });
        down.trouble = trouble.clone();
        if down.told || late_once {
            return None;
        }
        down.told = true;
        Some(SourceChange::WentDown(trouble))
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> SourceStatus {
        match (&self.down, self.last_good) {
            (Some(down), _) => SourceStatus::Down { since: down.since_unix, trouble: down.trouble.clone() },
            (None, None) => SourceStatus::Starting,
            (None, Some(_)) => SourceStatus::Ok,
        }
    }
}

/// Redis as a source: whether it answers, and from when on a missing heartbeat means something.
#[derive(Debug, Clone)]
pub struct RedisSource {
    /// How often ticks are meant to come.
    interval: Duration,
    availability: Availability,
    run_id: String,
    /// Redis' clock minus the monotonic one at the last good reading, seconds.
    clock_offset: Option<f64>,
    absence_counts_from: Mono,
}

impl RedisSource {
    /// A source that was never read; ticks are meant to come every `interval`.
    #[must_use]
    pub fn new(interval: Duration, now: Mono, now_unix: f64) -> Self {
        Self {
            interval,
            availability: Availability::new(now_unix),
            run_id: String::new(),
            clock_offset: None,
            absence_counts_from: now,
        }
    }

    /// Takes note of a good reading made at `now`, when Redis' clock said `redis_time`, from the server `run_id`.
    pub fn good(&mut self, now: Mono, now_unix: f64, redis_time: f64, run_id: &str) -> Option<SourceChange> {
        let gap = self.availability.last_good.map_or(Duration::MAX, |(at, _)| now.since(at));
        // One late answer keeps no worker from writing: Redis that is slow now and then would never settle.
        let was_down = self.availability.down.as_ref().is_some_and(|down| down.told);
        let change = self.availability.good(now, now_unix);
        let offset = redis_time - now.seconds();
        let stepped = self.clock_offset.replace(offset).is_some_and(|last| (offset - last).abs() > CLOCK_STEP);
        let looked_away = gap > (self.interval * 2).max(heartbeat::INTERVAL);
        if looked_away || stepped || self.run_id != run_id || was_down {
            self.absence_counts_from = now.plus(SETTLING);
        }
        run_id.clone_into(&mut self.run_id);
        change
    }

    /// Takes note of a tick in which it could not be read.
    pub fn bad(&mut self, now: Mono, trouble: SourceTrouble) -> Option<SourceChange> {
        self.availability.bad(now, trouble)
    }

    /// Until this moment a missing heartbeat means nothing.
    #[must_use]
    pub fn absence_counts_from(&self) -> Mono {
        self.absence_counts_from
    }

    /// How it stands now.
    #[must_use]
    pub fn status(&self, now: Mono) -> SourceStatus {
        match self.availability.status() {
            SourceStatus::Ok if now < self.absence_counts_from => {
                SourceStatus::Settling { remaining_sec: self.absence_counts_from.since(now).as_secs_f64().ceil() }
            }
            status => status,
        }
    }
}

/// Reads a server's role and loading flag as trouble, if they are.
#[must_use]
pub fn server_trouble(role: &str, loading: bool) -> Option<SourceTrouble> {
    if loading {
        Some(SourceTrouble::new(TroubleKind::Loading, "Redis is loading its data"))
    } else if role == "slave" || role == "replica" {
        Some(SourceTrouble::new(TroubleKind::Replica, "Redis is a replica: point the monitor at the primary"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(kind: TroubleKind) -> SourceTrouble {
        SourceTrouble::new(kind, "trouble")
    }

    #[test]
    fn one_late_answer_is_shown_and_not_told_two_are() {
        let mut source = Availability::new(0.0);
        source.good(Mono(0), 0.0);
        assert_eq!(source.bad(Mono(1000), trouble(TroubleKind::TimedOut)), None);
        assert!(!source.status().is_current());
        assert_eq!(source.good(Mono(2000), 2.0), None);
        source.bad(Mono(3000), trouble(TroubleKind::TimedOut));
        let told = source.bad(Mono(4000), trouble(TroubleKind::TimedOut));
        assert!(matches!(told, Some(SourceChange::WentDown(_))));
        assert_eq!(source.bad(Mono(5000), trouble(TroubleKind::Unreachable)), None);
        assert_eq!(source.good(Mono(6000), 6.0), Some(SourceChange::CameBack(Duration::from_secs(4))));
    }

    #[test]
    fn a_late_answer_now_and_then_does_not_keep_absence_from_counting() {
        let mut redis = RedisSource::new(Duration::from_secs(1), Mono(0), 0.0);
        for second in 0..60_u32 {
            let now = Mono(u64::from(second) * 1000);
            if second % 7 == 6 {
                redis.bad(now, trouble(TroubleKind::TimedOut));
            } else {
                redis.good(now, f64::from(second), f64::from(second), "run");
            }
        }
        assert_eq!(redis.absence_counts_from(), Mono(0).plus(SETTLING));
        redis.bad(Mono(60_000), trouble(TroubleKind::Unreachable));
        redis.good(Mono(61_000), 61.0, 61.0, "run");
        assert_eq!(redis.absence_counts_from(), Mono(61_000).plus(SETTLING));
    }

    #[test]
    fn a_refused_connection_is_told_at_once() {
        let mut source = Availability::new(0.0);
        assert!(matches!(source.bad(Mono(0), trouble(TroubleKind::Unreachable)), Some(SourceChange::WentDown(_))));
    }
}
