//! Availability of the data sources, and whether the absence of a heartbeat in Redis is meaningful.
//!
//! A poll without a good reading, a gap between two readings, a step of Redis' clock, or a different server at the same
//! address freezes every state. After that, workers get [`SETTLING`] to rewrite their heartbeats before absence counts
//! again.

use std::time::Duration;

use super::consumer::SETTLING;
use super::reading::{RedisServer, SourceTrouble, TroubleKind};
use super::snapshot::SourceStatus;
use super::time::Mono;
use crate::contract::{heartbeat, marker};

/// A change of the difference between Redis' clock and the monotonic clock beyond this many seconds is a step: keys may
/// have expired early. Below it, every heartbeat that is rewritten in time survives, and slow replies differ by less.
const CLOCK_STEP: f64 = 5.0;

/// Gap without readings after which a marker may have expired unread. A heartbeat that arrives after the marker hides
/// it for up to its own TTL. Poll intervals of up to twice the marker TTL see most markers; with longer intervals, most
/// exits stay unknown.
#[must_use]
pub fn marker_gap(interval: Duration) -> Duration {
    let gap = marker::TTL.saturating_sub(heartbeat::TTL);
    if interval <= marker::TTL * 2 { gap.max(interval + interval / 10) } else { gap }
}

/// Availability of a data source over time.
#[derive(Debug, Clone)]
pub struct Availability {
    started_unix: f64,
    /// Time of the last good reading, also in Unix seconds.
    last_good: Option<(Mono, f64)>,
    down: Option<Down>,
}

#[derive(Debug, Clone)]
struct Down {
    since: Mono,
    since_unix: f64,
    trouble: SourceTrouble,
    /// Whether the outage was reported. A single late reply is displayed but not reported.
    reported: bool,
}

/// Change of a data source caused by a reading.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceChange {
    /// It became unreachable.
    WentDown(SourceTrouble),
    /// It became reachable after this long.
    CameBack(Duration),
}

impl Availability {
    /// Returns a data source without readings, for a monitor that started at `now_unix`.
    #[must_use]
    pub fn new(now_unix: f64) -> Self {
        Self { started_unix: now_unix, last_good: None, down: None }
    }

    /// Records a good reading.
    pub fn good(&mut self, now: Mono, now_unix: f64) -> Option<SourceChange> {
        self.last_good = Some((now, now_unix));
        let down = self.down.take()?;
        down.reported.then(|| SourceChange::CameBack(now.since(down.since)))
    }

    /// Records a poll that could not read the data source.
    pub fn bad(&mut self, now: Mono, trouble: SourceTrouble) -> Option<SourceChange> {
        let (since, since_unix) = self.last_good.unwrap_or((now, self.started_unix));
        let late_once = trouble.kind == TroubleKind::TimedOut && self.down.is_none();
        let down = self.down.get_or_insert(Down { since, since_unix, trouble: trouble.clone(), reported: false });
        down.trouble = trouble.clone();
        if down.reported || late_once {
            return None;
        }
        down.reported = true;
        Some(SourceChange::WentDown(trouble))
    }

    /// Current status.
    #[must_use]
    pub fn status(&self) -> SourceStatus {
        match (&self.down, self.last_good) {
            (Some(down), _) => SourceStatus::Down { since: down.since_unix, trouble: down.trouble.clone() },
            (None, None) => SourceStatus::Starting,
            (None, Some(_)) => SourceStatus::Ok,
        }
    }
}

/// Redis as a data source: its availability, and the time from which a missing heartbeat counts.
#[derive(Debug, Clone)]
pub struct RedisSource {
    /// Configured poll interval.
    interval: Duration,
    availability: Availability,
    run_id: String,
    /// Redis' clock minus the monotonic clock at the last good reading, seconds.
    clock_offset: Option<f64>,
    absence_counts_from: Mono,
}

impl RedisSource {
    /// Returns a data source without readings, polled every `interval`.
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

    /// Records a good reading made at `now`, with Redis' clock at `redis_time`, from the server `server`. A server that
    /// rejects writes takes no heartbeats either: while that lasts, a missing one means nothing.
    pub fn good(&mut self, now: Mono, now_unix: f64, redis_time: f64, server: &RedisServer) -> Option<SourceChange> {
        let gap = self.availability.last_good.map_or(Duration::MAX, |(at, _)| now.since(at));
        // A single late reply does not stop workers from writing heartbeats. Without this exception, an occasionally
        // slow Redis would never finish recovering.
        let was_down = self.availability.down.as_ref().is_some_and(|down| down.reported);
        let change = self.availability.good(now, now_unix);
        let offset = redis_time - now.seconds();
        let stepped = self.clock_offset.replace(offset).is_some_and(|last| (offset - last).abs() > CLOCK_STEP);
        let looked_away = gap > (self.interval * 2).max(heartbeat::INTERVAL);
        if looked_away || stepped || self.run_id != server.run_id || was_down || server.write_trouble.is_some() {
            self.absence_counts_from = now.plus(SETTLING);
        }
        server.run_id.clone_into(&mut self.run_id);
        change
    }

    /// Records a poll that could not read Redis.
    pub fn bad(&mut self, now: Mono, trouble: SourceTrouble) -> Option<SourceChange> {
        self.availability.bad(now, trouble)
    }

    /// Time before which a missing heartbeat is ignored.
    #[must_use]
    pub fn absence_counts_from(&self) -> Mono {
        self.absence_counts_from
    }

    /// Current status.
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

/// Returns the trouble that a server's role or loading flag means, if any.
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
    fn one_late_reply_is_displayed_and_two_are_reported() {
        let mut source = Availability::new(0.0);
        source.good(Mono(0), 0.0);
        assert_eq!(source.bad(Mono(1000), trouble(TroubleKind::TimedOut)), None);
        assert!(!source.status().is_current());
        assert_eq!(source.good(Mono(2000), 2.0), None);
        source.bad(Mono(3000), trouble(TroubleKind::TimedOut));
        let change = source.bad(Mono(4000), trouble(TroubleKind::TimedOut));
        assert!(matches!(change, Some(SourceChange::WentDown(_))));
        assert_eq!(source.bad(Mono(5000), trouble(TroubleKind::Unreachable)), None);
        assert_eq!(source.good(Mono(6000), 6.0), Some(SourceChange::CameBack(Duration::from_secs(4))));
    }

    #[test]
    fn occasional_late_reply_does_not_prolong_recovery() {
        let mut redis = RedisSource::new(Duration::from_secs(1), Mono(0), 0.0);
        for second in 0..60_u32 {
            let now = Mono(u64::from(second) * 1000);
            if second % 7 == 6 {
                redis.bad(now, trouble(TroubleKind::TimedOut));
            } else {
                redis.good(now, f64::from(second), f64::from(second), &server(None));
            }
        }
        assert_eq!(redis.absence_counts_from(), Mono(0).plus(SETTLING));
        redis.bad(Mono(60_000), trouble(TroubleKind::Unreachable));
        redis.good(Mono(61_000), 61.0, 61.0, &server(None));
        assert_eq!(redis.absence_counts_from(), Mono(61_000).plus(SETTLING));
    }

    fn server(write_trouble: Option<SourceTrouble>) -> RedisServer {
        RedisServer { run_id: "run".to_owned(), write_trouble, ..RedisServer::default() }
    }

    #[test]
    fn absence_does_not_count_while_redis_refuses_writes_nor_for_a_heartbeats_life_after_it() {
        let mut redis = RedisSource::new(Duration::from_secs(1), Mono(0), 0.0);
        for second in 0..120_u32 {
            let refused = (40..100).contains(&second).then(|| trouble(TroubleKind::OutOfMemory));
            let now = Mono(u64::from(second) * 1000);
            redis.good(now, f64::from(second), f64::from(second), &server(refused));
            let counts = now >= redis.absence_counts_from();
            let last_refusal = Mono(99_000).plus(SETTLING);
            assert_eq!(counts, second < 40 && now >= Mono(0).plus(SETTLING) || now >= last_refusal, "{second}");
        }
    }

    #[test]
    fn refused_connection_is_reported_immediately() {
        let mut source = Availability::new(0.0);
        assert!(matches!(source.bad(Mono(0), trouble(TroubleKind::Unreachable)), Some(SourceChange::WentDown(_))));
    }
}
