//! Queries that were called abandoned: an alert for each pass of the janitor that found any. It is
//! something that happened, not something that holds: its end is not told.

use super::lifecycle::{Identity, Kind, Seen};
use super::rule::Severity;
use super::worker_down::Sighting;
use crate::fleet::cleanup::{self, AbandonedQuery, Finding};

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
    let queries = if count == 1 { "query" } else { "queries" };
    let by: Vec<String> = finding.abandoned.iter().map(|(product, count)| format!("{product} {count}")).collect();
    #[expect(clippy::cast_precision_loss, reason = "a count of queries")]
    let value = count as f64;
    let (by, were) = (by.join(", "), if count == 1 { "was" } else { "were" });
    let ids = cleanup::named(&finding.queries, count, |query| query.qid.chars().take(64).collect());
    let ids = if ids.is_empty() { ids } else { format!(": {ids}") };
    let described = cleanup::named(&finding.queries, count, AbandonedQuery::described);
    let described = if described.is_empty() { described } else { format!(": {described}") };
    Sighting {
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
