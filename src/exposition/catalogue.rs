//! All metric families with name, labels and help, in output order.
//!
//! Names starting with `redis_stream`, and their labels, are those of redis_exporter, so that its dashboards work
//! unchanged. Metrics use base units; counters end in `_total`.

/// Metric type of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Current value.
    Gauge,
    /// Count that only increases, starting with the process.
    Counter,
    /// Cumulative buckets, sum and count.
    Histogram,
    /// Always 1; the information is in the labels.
    Info,
}

/// Aggregation of a family across monitors of the same fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// About the fleet and its servers: every monitor reports the same value. Aggregate with `max`.
    Fleet,
    /// Work of one monitor: aggregate with `sum`.
    Share,
    /// About the scraped monitor itself.
    Monitor,
}

/// A metric family.
#[derive(Debug)]
pub struct Family {
    /// Sample name; for a histogram without `_bucket`, `_sum` and `_count`.
    pub name: &'static str,
    /// Metric type.
    pub kind: Kind,
    /// Aggregation across monitors.
    pub of: Of,
    /// Label names.
    pub labels: &'static [&'static str],
    /// Help text, one line.
    pub help: &'static str,
}

impl Family {
    /// Name without the suffix of its type.
    pub(super) fn base(&self) -> &'static str {
        let ending = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        self.name.strip_suffix(ending).unwrap_or(self.name)
    }

    /// Unit, from the name.
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

        /// All families.
        pub static ALL: &[&Family] = &[$(&$ident),*];
    };
}

families! {
    STREAM_LENGTH: Gauge of Fleet, "redis_stream_length", ["db", "stream"],
        "Number of entries in the stream";
    STREAM_GROUPS: Gauge of Fleet, "redis_stream_groups", ["db", "stream"],
        "Number of consumer groups of the stream";
    GROUP_CONSUMERS: Gauge of Fleet, "redis_stream_group_consumers", ["db", "stream", "group"],
        "Number of consumers in the group";
    GROUP_PENDING: Gauge of Fleet, "redis_stream_group_messages_pending", ["db", "stream", "group"],
        "Entries delivered to the group and not acknowledged";
    GROUP_LAST_DELIVERED: Gauge of Fleet, "redis_stream_group_last_delivered_id", ["db", "stream", "group"],
        "ID of the last entry delivered to the group, timestamp part only: Unix milliseconds";
    GROUP_ENTRIES_READ: Gauge of Fleet, "redis_stream_group_entries_read", ["db", "stream", "group"],
        "Entries read by the group since it was created; absent if Redis does not report it";
    GROUP_LAG: Gauge of Fleet, "redis_stream_group_lag", ["db", "stream", "group"],
        "Entries not yet delivered to the group; absent if not known exactly";
    CONSUMER_PENDING: Gauge of Fleet, "redis_stream_group_consumer_messages_pending",
        ["db", "stream", "group", "consumer"],
        "Entries delivered to the consumer and not acknowledged";
    CONSUMER_IDLE: Gauge of Fleet, "redis_stream_group_consumer_idle_seconds", ["db", "stream", "group", "consumer"],
        "Seconds since the last command of the consumer";

    GROUP_LAG_LOWER_BOUND: Gauge of Fleet, "shepherd_monitor_stream_group_lag_lower_bound", ["stream", "group"],
        "Lower bound of the entries not yet delivered to the group; only if the exact number is unknown";
    GROUP_PHANTOM_PENDING: Gauge of Fleet, "shepherd_monitor_stream_group_phantom_pending", ["stream", "group"],
        "Pending IDs whose entry is no longer in the stream; a lower bound while a long pending list is being counted";
    OLDEST_WAITING: Gauge of Fleet, "shepherd_monitor_stream_oldest_waiting_seconds", ["stream"],
        "Age of the oldest undelivered entry; absent if there is none";
    STREAM_READABLE: Gauge of Fleet, "shepherd_monitor_stream_readable", ["stream"],
        "Whether the stream could be read; if 0, its other metrics are absent";
    TASK_DURATION: Histogram of Share, "shepherd_monitor_task_duration_seconds", ["stream"],
        "Run time of tasks";
    TASK_FAILURES: Counter of Fleet, "shepherd_monitor_task_failures_total", ["stream", "kind"],
        "Failed tasks as counted by workers, by kind: failed, malformed, dead_lettered; one task may count under \
         two kinds";

    TYPE_STATE: Gauge of Fleet, "shepherd_monitor_worker_type_state", ["worker_type", "state"],
        "State of the worker type: 1 for the current one of alive, scaled_down, crashed and unknown, 0 for the \
         others";
    WORKERS: Gauge of Fleet, "shepherd_monitor_workers", ["worker_type", "state"],
        "Workers by state; stopped workers are counted for one hour";
    CAPACITY: Gauge of Fleet, "shepherd_monitor_capacity", ["worker_type"],
        "Maximum number of concurrent tasks of all alive workers";
    BACKLOG: Gauge of Fleet, "shepherd_monitor_backlog", ["worker_type"],
        "Undelivered plus pending entries, without phantom pending; absent if not known exactly";
    UTILIZATION: Gauge of Fleet, "shepherd_monitor_utilization_ratio", ["worker_type"],
        "Backlog divided by capacity; 1 with backlog and no capacity; absent if the backlog is";
    UNREADABLE_HEARTBEATS: Gauge of Fleet, "shepherd_monitor_unreadable_heartbeats", [],
        "Heartbeat keys with an invalid value";
    TRANSITIONS: Counter of Fleet, "shepherd_monitor_transitions_total", ["worker_type", "transition"],
        "Events of the worker type, by event type";
    WORKERS_LOST: Counter of Fleet, "shepherd_monitor_workers_lost_total", ["worker_type"],
        "Workers whose heartbeat expired without a shutdown marker";
    TYPE_CRASHES: Counter of Fleet, "shepherd_monitor_worker_type_crashes_total", ["worker_type"],
        "Crashes of the worker type (transitions to zero)";

    ALERTS: Gauge of Fleet, "shepherd_monitor_alerts", ["state", "severity"],
        "Alerts by state: pending, firing, acknowledged or silenced";
    ALERTS_LEADER: Gauge of Monitor, "shepherd_monitor_alerts_leader", [],
        "Whether this instance is the leader, which evaluates and sends alerts";
    RULES_FILE_OK: Gauge of Monitor, "shepherd_monitor_rules_file_ok", [],
        "Whether the last reload of the rules file succeeded; if 0, it is missing, empty or invalid and the \
         previous rules are active";
    NOTIFICATIONS: Counter of Share, "shepherd_monitor_notifications_total", ["channel", "result"],
        "Delivery attempts by result: sent, failed (will be retried), given_up, channel_broken (the channel \
         rejects everything)";

    LOGINS: Counter of Share, "shepherd_monitor_logins_total", ["result"],
        "Logins on the login page (accepted), invalid credentials (wrong), attempts rejected after too many of them (slowed), requests with an insufficient role (denied)";
    SECURITY_EVENTS: Counter of Share, "shepherd_monitor_security_events_total", ["kind"],
        "Events of the security log by kind";
    CONNECTIONS_CLOSED: Counter of Share, "shepherd_monitor_connections_closed_total", [],
        "Client connections closed because of a limit or a deadline";

    JANITOR_PASSES: Counter of Share, "shepherd_monitor_janitor_passes_total", ["result"],
        "Cleanup runs by result: done, with_errors, cut_off";
    JANITOR_LAST_PASS: Gauge of Monitor, "shepherd_monitor_janitor_last_pass_timestamp_seconds", [],
        "Unix time of the last cleanup run of this instance; absent before the first";
    JANITOR_ENTRIES: Counter of Share, "shepherd_monitor_janitor_entries_removed_total", [],
        "Finished entries removed from streams";
    JANITOR_CONSUMERS: Counter of Share, "shepherd_monitor_janitor_consumers_removed_total", [],
        "Stale consumers removed from groups";
    JANITOR_PHANTOMS: Counter of Share, "shepherd_monitor_janitor_phantoms_acknowledged_total", [],
        "Phantom pending IDs acknowledged";
    JANITOR_CALLBACKS: Counter of Share, "shepherd_monitor_janitor_callbacks_deleted_total", [],
        "Callback rows deleted";
    JANITOR_ABANDONED: Counter of Share, "shepherd_monitor_janitor_queries_abandoned_total", [],
        "Queries marked as abandoned";
    JANITOR_OLD_QUERIES: Counter of Share, "shepherd_monitor_janitor_queries_deleted_total", [],
        "Final queries deleted by retention";

    SOURCE_UP: Gauge of Monitor, "shepherd_monitor_source_up", ["source"],
        "Whether the data source (redis, postgres) was readable in the last poll; if 0, its metrics are absent";
    SOURCE_STATE: Gauge of Monitor, "shepherd_monitor_source_state", ["source", "state"],
        "State of the data source: 1 for the current one of starting, ok, settling (missing heartbeats are \
         ignored) and frozen, 0 for the others";
    SOURCE_TRANSITIONS: Counter of Monitor, "shepherd_monitor_source_transitions_total", ["source", "transition"],
        "State changes of the data source: down, up";

    TICK_DURATION: Histogram of Monitor, "shepherd_monitor_tick_duration_seconds", [],
        "Duration of polls, from the first command to the finished snapshot";
    TICK_INTERVAL: Gauge of Monitor, "shepherd_monitor_tick_interval_seconds", [],
        "Configured poll interval";
    LAST_TICK_AGE: Gauge of Monitor, "shepherd_monitor_last_tick_age_seconds", [],
        "Time since the last poll finished; absent before the first";
    ACTOR_UP: Gauge of Monitor, "shepherd_monitor_actor_up", ["actor"],
        "Whether the actor is running; 0 while it restarts";
    ACTOR_RESTARTS: Counter of Monitor, "shepherd_monitor_actor_restarts_total", ["actor"],
        "Restarts of the actor after a failure";
    SESSIONS: Gauge of Monitor, "shepherd_monitor_sessions", [],
        "Connected websocket clients";
    SESSIONS_DROPPED: Counter of Monitor, "shepherd_monitor_sessions_dropped_total", [],
        "Websocket clients disconnected because they did not read";
    BUILD: Info of Monitor, "shepherd_monitor_build_info", ["version"],
        "Version of the monitor";

    REDIS: Info of Fleet, "shepherd_monitor_redis_info", ["version"],
        "Version of the Redis server";
    REDIS_MEMORY: Gauge of Fleet, "shepherd_monitor_redis_memory_used_bytes", [],
        "Memory used by Redis";
    REDIS_MEMORY_LIMIT: Gauge of Fleet, "shepherd_monitor_redis_memory_limit_bytes", [],
        "Value of maxmemory; absent without a limit";
    REDIS_CLIENTS: Gauge of Fleet, "shepherd_monitor_redis_connected_clients", [],
        "Client connections to Redis";
    REDIS_COMMANDS: Gauge of Fleet, "shepherd_monitor_redis_commands_per_second", [],
        "Commands processed per second, as averaged by Redis";
    REDIS_UPTIME: Gauge of Fleet, "shepherd_monitor_redis_uptime_seconds", [],
        "Time since Redis started";
    REDIS_EVICTED: Counter of Fleet, "shepherd_monitor_redis_evicted_keys_total", [],
        "Keys evicted due to maxmemory since Redis started";

    POSTGRES_CONNECTIONS: Gauge of Fleet, "shepherd_monitor_postgres_connections", [],
        "Client connections to Postgres";
    POSTGRES_DATABASE_SIZE: Gauge of Fleet, "shepherd_monitor_postgres_database_size_bytes", [],
        "Size of the database";
    POSTGRES_WAL_SIZE: Gauge of Fleet, "shepherd_monitor_postgres_wal_size_bytes", [],
        "Size of the write-ahead log; absent without the role pg_monitor";
    POSTGRES_DISK_CAPACITY: Gauge of Fleet, "shepherd_monitor_postgres_disk_capacity_bytes", [],
        "Size of the Postgres volume; absent without PG_VOLUME_CAPACITY";
    POSTGRES_DISK_USED: Gauge of Fleet, "shepherd_monitor_postgres_disk_used_bytes", [],
        "Size of database and write-ahead log; absent if the latter is unknown";
    POSTGRES_DISK_USED_RATIO: Gauge of Fleet, "shepherd_monitor_postgres_disk_used_ratio", [],
        "Used share of the Postgres volume; absent if either is unknown";
    QUERIES: Gauge of Fleet, "shepherd_monitor_queries", ["state"],
        "Queries by state";
    QUERIES_LAST_HOUR: Gauge of Fleet, "shepherd_monitor_queries_started_last_hour", [],
        "Queries started in the last hour";
    QUERIES_LAST_DAY: Gauge of Fleet, "shepherd_monitor_queries_started_last_day", ["ara"],
        "Queries started in the last 24 hours, by ARA";
    CALLBACKS: Gauge of Fleet, "shepherd_monitor_callbacks_pending", [],
        "Pending callbacks";
    OLDEST_CALLBACK: Gauge of Fleet, "shepherd_monitor_oldest_callback_age_seconds", [],
        "Age of the oldest query with pending callbacks; 0 without any";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
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
