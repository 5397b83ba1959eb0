//! Queries that were called abandoned: an alert for each pass of the janitor that found any. It is
//! something that happened, not something that holds: its end is not told.

use super::lifecycle::{Identity, Kind, Seen};
use super::rule::Severity;
use super::worker_down::Sighting;
use crate::fleet::cleanup::Finding;

/// For so long it is shown as firing.
pub const SHOWN_FOR: f64 = 600.0;

/// The key of the alert about a pass: the same however often it is found.
#[must_use]
pub fn key(finding: &Finding) -> String {
    let pass: String = finding.pass.chars().take(8).collect();
    format!("queries_abandoned:{pass}")
}

/// What is told of a pass.
#[must_use]
pub fn sighting(finding: &Finding) -> Sighting {
    let count = finding.count();
    let (queries, were) = if count == 1 { ("query", "was") } else { ("queries", "were") };
    let by: Vec<String> = finding.abandoned.iter().map(|(product, count)| format!("{product} {count}")).collect();
    #[expect(clippy::cast_precision_loss, reason = "a count of queries")]
    let value = count as f64;
    Sighting {
        identity: Identity {
            key: key(finding),
            rule: "queries_abandoned".to_owned(),
            subject: None,
            kind: Kind::Happening,
            severity: Severity::Warning,
        },
        seen: Seen::Holds(Some(value)),
        detail: format!("{count} {queries} abandoned ({})", by.join(", ")),
        message: format!(
            "{count} {queries} never reached an end and {were} called abandoned ({}). Nobody waits for their answers any more.",
            by.join(", ")
        ),
    }
}
