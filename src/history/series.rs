//! Selection and names of the snapshot values that are recorded.
//!
//! Values that could not be read are omitted, never recorded as zero.

use std::borrow::Cow;

use super::stored_name::stored_name;
use crate::contract::Name;
use crate::fleet::snapshot::Snapshot;

/// Series name (`xlen:arax`, `pg:connection_count`) and current value.
pub type Sample = (String, f64);

/// Returns the samples of a snapshot. Names of streams and types that are not UTF-8 are escaped as on the pages; long
/// ones are shortened ([`stored_name`]).
#[must_use]
pub fn of(snapshot: &Snapshot) -> Vec<Sample> {
    let mut samples = Samples(Vec::new());
    if snapshot.redis.source.is_current() {
        of_streams(snapshot, &mut samples);
        of_workers(snapshot, &mut samples);
        let server = &snapshot.redis.server;
        samples.add("redis:used_memory_bytes", server.used_memory_bytes);
        samples.add("redis:connected_clients", server.connected_clients);
        samples.add("redis:ops_per_sec", server.instantaneous_ops_per_sec);
    }
    if snapshot.postgres.source.is_current() {
        of_postgres(snapshot, &mut samples);
    }
    samples.0
}

fn of_streams(snapshot: &Snapshot, samples: &mut Samples) {
    for (name, stream) in snapshot.streams.iter().filter(|(_, stream)| stream.error.is_none()) {
        samples.add_for("xlen", name, stream.xlen);
        samples.add_for("pending", name, stream.pending);
        samples.add_for("phantom_pending", name, stream.phantom_pending.filter(|_| !stream.phantom_pending_at_least));
        samples.add_for("consumers", name, Some(stream.consumer_count as u64));
        // A lower bound is not a measurement.
        samples.add_for("lag", name, stream.undelivered.filter(|_| !stream.undelivered_at_least));
        samples.push(format!("oldest_waiting_sec:{name}"), stream.oldest_waiting_sec);
        samples.add_for("failures", name, stream.failures.as_ref().map(|failures| failures.last_5m));
    }
}

fn of_workers(snapshot: &Snapshot, samples: &mut Samples) {
    for (name, worker_type) in &snapshot.workers {
        samples.add_for("workers_alive", name, Some(u64::from(worker_type.alive)));
        samples.add_for("backlog", name, worker_type.backlog.filter(|_| !worker_type.backlog_at_least));
        samples.add_for("capacity", name, Some(worker_type.capacity));
    }
}

fn of_postgres(snapshot: &Snapshot, samples: &mut Samples) {
    let postgres = snapshot.postgres.current();
    samples.add("pg:callbacks_pending", postgres.callbacks_pending);
    samples.add("pg:queries_last_1h", postgres.queries_last_1h);
    samples.push("pg:oldest_callback_age_sec".to_owned(), postgres.oldest_callback_age_sec);
    samples.add("pg:connection_count", postgres.connection_count);
    samples.add("pg:db_size_bytes", postgres.db_size_bytes);
    samples.add("pg:wal_size_bytes", postgres.wal_size_bytes);
    samples.add("pg:disk_capacity_bytes", Some(postgres.disk_capacity_bytes).filter(|bytes| *bytes > 0));
    samples.add("pg:disk_used_bytes", postgres.disk_used_bytes);
    samples.push("pg:disk_used_pct".to_owned(), postgres.disk_used_pct);
    for (state, count) in postgres.state_counts.iter().flatten() {
        samples.add(&format!("pg:state:{state}"), Some(*count));
    }
}

struct Samples(Vec<Sample>);

impl Samples {
    fn add(&mut self, series: &str, value: Option<impl Whole>) {
        self.push(series.to_owned(), value.map(Whole::to_f64));
    }

    fn add_for(&mut self, kind: &str, name: &Name, value: Option<u64>) {
        self.push(format!("{kind}:{name}"), value.map(Whole::to_f64));
    }

    fn push(&mut self, series: String, value: Option<f64>) {
        let Some(value) = value.filter(|value| value.is_finite()) else { return };
        let name = match stored_name(&series) {
            Cow::Borrowed(_) => None,
            Cow::Owned(name) => Some(name),
        };
        self.0.push((name.unwrap_or(series), value));
    }
}

trait Whole {
    fn to_f64(self) -> f64;
}

impl Whole for u64 {
    #[expect(clippy::cast_precision_loss, reason = "counts and bytes far below 2^53")]
    fn to_f64(self) -> f64 {
        self as f64
    }
}

impl Whole for i64 {
    #[expect(clippy::cast_precision_loss, reason = "counts and bytes far below 2^53")]
    fn to_f64(self) -> f64 {
        self as f64
    }
}
