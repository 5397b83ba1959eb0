//! Alerts about abandoned queries, one per cleanup run that found any. Such an alert reports an event, not a condition,
//! so no resolved notification is sent.

use super::lifecycle::{Identity, Kind, Seen};
use super::rule::Severity;
use super::worker_down::WorkerTypeView;
use crate::fleet::cleanup::{self, AbandonedQuery, Finding};

/// Seconds for which the alert is displayed as firing.
pub const SHOWN_FOR: f64 = 600.0;

/// Key of the alert about a cleanup run, equal each time the run is read.
#[must_use]
pub fn key(finding: &Finding) -> String {
    let pass: String = finding.pass.chars().take(8).collect();
    format!("queries_abandoned:{pass}")
}

/// Returns the alert's input for a cleanup run.
#[must_use]
pub fn sighting(finding: &Finding) -> WorkerTypeView {
    let count = finding.count();
    let queries = if count == 1 { "query" } else { "queries" };
    let by: Vec<String> = finding.abandoned.iter().map(|(product, count)| format!("{product} {count}")).collect();
    #[expect(clippy::cast_precision_loss, reason = "a count of queries")]
    let value = count as f64;
    let (by, were) = (by.join(", "), if count == 1 { "was" } else { "were" });
    let ids = cleanup::named(&finding.queries, count, |query| query.qid.chars().take(64).collect());
    let ids = if ids.is_empty() { ids } else { format!(": {ids}") };
    let described = cleanup::named(&finding.queries, count, AbandonedQuery::described);
    let described = if described.is_empty() { described } else { format!(": {described}") };
    WorkerTypeView {
        identity: Identity {
            key: key(finding),
            rule: "queries_abandoned".to_owned(),
            subject: None,
            kind: Kind::Happening,
            severity: Severity::Warning,
        },
        seen: Seen::Holds(Some(value)),
        detail: format!("{count} {queries} abandoned ({by}){ids}"),
        message: format!("{count} {queries} timed out and {were} marked abandoned ({by}){described}"),
    }
}
