//! Every family there is: its name, labels and meaning, in the order in which they are written.
//!
//! Names that begin with `redis_stream` are those of the widely used redis_exporter, with its labels, so that
//! dashboards made for it go on. Base units; `_total` for what only grows.

/// What a family's samples are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A figure as it is now.
    Gauge,
    /// A count that only grows, from the start on.
    Counter,
    /// Buckets, sum and count, which only grow.
    Histogram,
    /// Always 1: its labels say something.
    Info,
}

/// Of whom a family speaks, which matters where several monitors watch one fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// The fleet and its servers: every monitor says the same. Of several, take the greatest.
    Fleet,
    /// What one of the monitors did, each its share: add them up.
    Share,
    /// The monitor that is asked.
    Monitor,
}

/// One family.
#[derive(Debug)]
pub struct Family {
    /// Its samples' name; a histogram's without `_bucket`, `_sum` and `_count`.
    pub name: &'static str,
    /// What they are.
    pub kind: Kind,
    /// Of whom they speak.
    pub of: Of,
    /// The names of their labels.
    pub labels: &'static [&'static str],
    /// What they mean, in one line.
    pub help: &'static str,
}

impl Family {
    /// The name without what samples of its kind end with.
    pub(super) fn base(&self) -> &'static str {
        let ending = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        self.name.strip_suffix(ending).unwrap_or(self.name)
    }

    /// Its unit, as the name says it.
    pub(super) fn unit(&self) -> Option<&'static str> {
        ["seconds", "bytes", "ratio"].into_iter().find(|unit| self.base().ends_with(&format!("_{unit}")))
    }
}

macro_rules! families {
    ($($ident:ident: $kind:ident of $of:ident, $name:literal, $labels:expr, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $ident: Family =
                Family { name: $name, kind: Kind::$kind, of: Of::$of, labels: &$labels, help: $help };
        )*

        /// All of them.
        pub static ALL: &[&Family] = &[$(&$ident),*];
    };
}

families! {
    STREAM_LENGTH: Gauge of Fleet, "redis_stream_length", ["db", "stream"],
        "Entries in the stream";
    STREAM_GROUPS: Gauge of Fleet, "redis_stream_groups", ["db", "stream"],
        "Consumer groups of the stream";
    GROUP_CONSUMERS: Gauge of Fleet, "redis_stream_group_consumers", ["db", "stream", "group"],
        "Consumers that the group lists";
    GROUP_PENDING: Gauge of Fleet, "redis_stream_group_messages_pending", ["db", "stream", "group"],
        "Entries delivered to the group and not acknowledged";
    GROUP_LAST_DELIVERED: Gauge of Fleet, "redis_stream_group_last_delivered_id", ["db", "stream", "group"],
        "The id of the last entry delivered to the group, without what follows its dash: Unix milliseconds";
    GROUP_ENTRIES_READ: Gauge of Fleet, "redis_stream_group_entries_read", ["db", "stream", "group"],
        "Entries that the group has read since it exists; absent where Redis does not know";
    GROUP_LAG: Gauge of Fleet, "redis_stream_group_lag", ["db", "stream", "group"],
        "Entries not delivered to the group; absent where that is not known exactly";
    CONSUMER_PENDING: Gauge of Fleet, "redis_stream_group_consumer_messages_pending",
        ["db", "stream", "group", "consumer"],
        "Entries delivered to the consumer and not acknowledged";
    CONSUMER_IDLE: Gauge of Fleet, "redis_stream_group_consumer_idle_seconds", ["db", "stream", "group", "consumer"],
        "Since the consumer last asked Redis for anything";

    GROUP_LAG_LOWER_BOUND: Gauge of Fleet, "shepherd_monitor_stream_group_lag_lower_bound", ["stream", "group"],
        "Entries not delivered to the group, at least; only where the exact number is not known";
    GROUP_PHANTOM_PENDING: Gauge of Fleet, "shepherd_monitor_stream_group_phantom_pending", ["stream", "group"],
        "Pending IDs whose entry is no longer in the stream; a lower bound while a long pending list is being counted";
    OLDEST_WAITING: Gauge of Fleet, "shepherd_monitor_stream_oldest_waiting_seconds", ["stream"],
        "For how long the oldest undelivered entry has been waiting; absent when none is";
    STREAM_READABLE: Gauge of Fleet, "shepherd_monitor_stream_readable", ["stream"],
        "1: the stream could be read; 0: Redis answered otherwise, and its figures are absent";
    TASK_DURATION: Histogram of Share, "shepherd_monitor_task_duration_seconds", ["stream"],
        "How long tasks took";
    TASK_FAILURES: Counter of Fleet, "shepherd_monitor_task_failures_total", ["stream", "kind"],
        "Tasks that did not succeed, as workers count them in Redis: failed, malformed, dead_lettered; one task may count under two kinds";

    TYPE_STATE: Gauge of Fleet, "shepherd_monitor_worker_type_state", ["worker_type", "state"],
        "1 for the decided state of the worker type: alive, scaled_down, crashed or unknown; 0 for the others";
    WORKERS: Gauge of Fleet, "shepherd_monitor_workers", ["worker_type", "state"],
        "Workers by state; those that went are counted for an hour";
    CAPACITY: Gauge of Fleet, "shepherd_monitor_capacity", ["worker_type"],
        "Tasks that the alive workers run at once";
    BACKLOG: Gauge of Fleet, "shepherd_monitor_backlog", ["worker_type"],
        "Work not delivered and work delivered and not finished, without phantom pending; absent where that is not known exactly";
    UTILIZATION: Gauge of Fleet, "shepherd_monitor_utilization_ratio", ["worker_type"],
        "Backlog by capacity; 1 with backlog and no capacity; absent where the backlog is";
    UNREADABLE_HEARTBEATS: Gauge of Fleet, "shepherd_monitor_unreadable_heartbeats", [],
        "Heartbeat keys whose value cannot be used";
    TRANSITIONS: Counter of Fleet, "shepherd_monitor_transitions_total", ["worker_type", "transition"],
        "What happened to the worker type, by the types that events have in the history";
    WORKERS_LOST: Counter of Fleet, "shepherd_monitor_workers_lost_total", ["worker_type"],
        "Workers whose heartbeat expired without a shutdown marker";
    TYPE_CRASHES: Counter of Fleet, "shepherd_monitor_worker_type_crashes_total", ["worker_type"],
        "How often the type reached zero by a crash";

    ALERTS: Gauge of Fleet, "shepherd_monitor_alerts", ["state", "severity"],
        "Alerts: pending, firing, and of those that fire apart the acknowledged and the silenced";
    ALERTS_LEADER: Gauge of Monitor, "shepherd_monitor_alerts_leader", [],
        "1: this monitor evaluates and sends; 0: another one does";
    RULES_FILE_OK: Gauge of Monitor, "shepherd_monitor_rules_file_ok", [],
        "1: the file of alert rules is in force as it is; 0: it is missing, empty or wrong, and the rules before it stay in force";
    NOTIFICATIONS: Counter of Share, "shepherd_monitor_notifications_total", ["channel", "result"],
        "Attempts to tell somebody: sent, failed (tried again later), given_up, channel_broken (refuses everything)";

    JANITOR_PASSES: Counter of Share, "shepherd_monitor_janitor_passes_total", ["result"],
        "Passes of the janitor: done, with_errors, cut_off";
    JANITOR_LAST_PASS: Gauge of Monitor, "shepherd_monitor_janitor_last_pass_timestamp_seconds", [],
        "When this monitor last finished a pass, Unix time; absent before the first";
    JANITOR_ENTRIES: Counter of Share, "shepherd_monitor_janitor_entries_removed_total", [],
        "Finished entries that the janitor removed from streams";
    JANITOR_CONSUMERS: Counter of Share, "shepherd_monitor_janitor_consumers_removed_total", [],
        "Stale consumers that the janitor removed from groups";
    JANITOR_PHANTOMS: Counter of Share, "shepherd_monitor_janitor_phantoms_acknowledged_total", [],
        "Phantom pending IDs that the janitor acknowledged";
    JANITOR_CALLBACKS: Counter of Share, "shepherd_monitor_janitor_callbacks_deleted_total", [],
        "Callback rows that the janitor deleted";
    JANITOR_ABANDONED: Counter of Share, "shepherd_monitor_janitor_queries_abandoned_total", [],
        "Queries that the janitor called abandoned";
    JANITOR_OLD_QUERIES: Counter of Share, "shepherd_monitor_janitor_queries_deleted_total", [],
        "Final queries that the janitor deleted because of their age";

    SOURCE_UP: Gauge of Monitor, "shepherd_monitor_source_up", ["source"],
        "1: redis or postgres was read in the last tick; 0: not, and its figures are absent";
    SOURCE_STATE: Gauge of Monitor, "shepherd_monitor_source_state", ["source", "state"],
        "1 for how the source stands: starting, ok, settling (absent heartbeats do not count yet) or frozen; 0 for the others";
    SOURCE_TRANSITIONS: Counter of Monitor, "shepherd_monitor_source_transitions_total", ["source", "transition"],
        "How often the source went down and came up again";

    TICK_DURATION: Histogram of Monitor, "shepherd_monitor_tick_duration_seconds", [],
        "How long ticks took, from the first question to the finished snapshot";
    TICK_INTERVAL: Gauge of Monitor, "shepherd_monitor_tick_interval_seconds", [],
        "How often ticks are meant to come";
    LAST_TICK_AGE: Gauge of Monitor, "shepherd_monitor_last_tick_age_seconds", [],
        "Since the last tick was done; absent before the first";
    ACTOR_UP: Gauge of Monitor, "shepherd_monitor_actor_up", ["actor"],
        "1: this part of the monitor runs; 0: it is being started again";
    ACTOR_RESTARTS: Counter of Monitor, "shepherd_monitor_actor_restarts_total", ["actor"],
        "How often this part of the monitor failed and was started again";
    SESSIONS: Gauge of Monitor, "shepherd_monitor_sessions", [],
        "Browsers and scripts connected by websocket";
    SESSIONS_DROPPED: Counter of Monitor, "shepherd_monitor_sessions_dropped_total", [],
        "Websocket sessions that were dropped because they did not read";
    BUILD: Info of Monitor, "shepherd_monitor_build_info", ["version"],
        "The monitor's version";

    REDIS: Info of Fleet, "shepherd_monitor_redis_info", ["version"],
        "The Redis server's version";
    REDIS_MEMORY: Gauge of Fleet, "shepherd_monitor_redis_memory_used_bytes", [],
        "Memory that Redis uses";
    REDIS_MEMORY_LIMIT: Gauge of Fleet, "shepherd_monitor_redis_memory_limit_bytes", [],
        "The most that Redis may use; absent when it has no limit";
    REDIS_CLIENTS: Gauge of Fleet, "shepherd_monitor_redis_connected_clients", [],
        "Open client connections of Redis";
    REDIS_COMMANDS: Gauge of Fleet, "shepherd_monitor_redis_commands_per_second", [],
        "Commands that Redis works off, as it averages them";
    REDIS_UPTIME: Gauge of Fleet, "shepherd_monitor_redis_uptime_seconds", [],
        "Since Redis was started";
    REDIS_EVICTED: Counter of Fleet, "shepherd_monitor_redis_evicted_keys_total", [],
        "Keys that Redis evicted for lack of memory since its start";

    POSTGRES_CONNECTIONS: Gauge of Fleet, "shepherd_monitor_postgres_connections", [],
        "Client connections of Postgres";
    POSTGRES_DATABASE_SIZE: Gauge of Fleet, "shepherd_monitor_postgres_database_size_bytes", [],
        "Size of the database";
    POSTGRES_WAL_SIZE: Gauge of Fleet, "shepherd_monitor_postgres_wal_size_bytes", [],
        "Size of the write-ahead log; absent without the role pg_monitor";
    POSTGRES_DISK_CAPACITY: Gauge of Fleet, "shepherd_monitor_postgres_disk_capacity_bytes", [],
        "Size of the database's volume; absent without PG_VOLUME_CAPACITY";
    POSTGRES_DISK_USED: Gauge of Fleet, "shepherd_monitor_postgres_disk_used_bytes", [],
        "Database and write-ahead log; absent where the latter is";
    POSTGRES_DISK_USED_RATIO: Gauge of Fleet, "shepherd_monitor_postgres_disk_used_ratio", [],
        "What of the volume that is; absent where either is";
    QUERIES: Gauge of Fleet, "shepherd_monitor_queries", ["state"],
        "Queries in the table, by state";
    QUERIES_LAST_HOUR: Gauge of Fleet, "shepherd_monitor_queries_started_last_hour", [],
        "Queries started in the last hour";
    QUERIES_LAST_DAY: Gauge of Fleet, "shepherd_monitor_queries_started_last_day", ["ara"],
        "Queries started in the last 24 hours, by product";
    CALLBACKS: Gauge of Fleet, "shepherd_monitor_callbacks_pending", [],
        "Answers that queries still wait for";
    OLDEST_CALLBACK: Gauge of Fleet, "shepherd_monitor_oldest_callback_age_seconds", [],
        "Age of the oldest query that waits for one; 0 when none does";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_keep_the_rules() {
        let mut names = BTreeSet::new();
        for family in ALL {
            let name = family.name;
            assert!(names.insert(name), "{name} is there twice");
            assert!(name.starts_with("redis_stream") || name.starts_with("shepherd_monitor_"), "{name}");
            assert_eq!(family.kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert_eq!(family.kind == Kind::Info, name.ends_with("_info"), "{name}");
            assert!(!family.help.contains(['\\', '\n', '"', '|']) && !family.help.ends_with('.'), "{name}");
        }
    }
}
