//! Incidents: failures with their start and end, reconstructed from archived events.

use std::collections::BTreeMap;

use serde_json::Value;

use super::event::Severity;

/// An archived event, from any monitor version.
#[derive(Debug, Clone, PartialEq)]
pub struct Happened {
    /// Time, Unix seconds.
    pub ts: f64,
    /// The `type` column.
    pub type_name: String,
    /// Worker type or data source.
    pub subject: String,
    /// Severity.
    pub severity: Severity,
    /// One-line summary.
    pub detail: String,
    /// Payload fields.
    pub payload: Value,
}

impl Happened {
    fn text(&self, field: &str) -> &str {
        self.payload.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether the type went to zero and at least one consumer did not shut down gracefully.
    fn is_crash(&self) -> bool {
        self.type_name == "scale_down" && self.text("kind") == "crashed"
    }
}

/// Kind of an incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum IncidentKind {
    /// All workers of a type stopped and at least one did not shut down gracefully.
    Crash,
    /// A consumer had pending entries and made no progress.
    Hung,
    /// Consumers were lost while others kept running.
    Lost,
    /// Redis or Postgres was unreachable.
    SourceDown,
}

/// End of an incident.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Over {
    /// At this time (Unix seconds).
    At(f64),
    /// Momentary, without a duration.
    AtOnce,
    /// Ongoing as of the last known event.
    NotYet,
}

/// An incident.
#[derive(Debug, Clone, PartialEq)]
pub struct Incident {
    /// Kind.
    pub kind: IncidentKind,
    /// Worker type or data source.
    pub subject: String,
    /// Start, Unix seconds; `None` if it began before the first known event.
    pub since: Option<f64>,
    /// End.
    pub over: Over,
    /// Summary of the event.
    pub what: String,
}

/// Returns the incidents in `events` (in any order), newest first.
#[must_use]
pub fn incidents(events: &[Happened]) -> Vec<Incident> {
    let mut events: Vec<&Happened> = events.iter().collect();
    events.sort_by(|a, b| a.ts.total_cmp(&b.ts));
    let mut found: Vec<Incident> = Vec::new();
    // Index into `found` of the ongoing incident, by kind, subject and consumer.
    let mut open: BTreeMap<(IncidentKind, &str, &str), usize> = BTreeMap::new();
    for event in events {
        let (subject, consumer) = (event.subject.as_str(), event.text("consumer"));
        let mut begin = |kind, consumer, over| {
            open.entry((kind, subject, consumer)).or_insert_with(|| {
                let what = event.detail.clone();
                found.push(Incident { kind, subject: subject.to_owned(), since: Some(event.ts), over, what });
                found.len() - 1
            });
        };
        match event.type_name.as_str() {
            _ if event.is_crash() => {
                begin(IncidentKind::Crash, "", Over::NotYet);
                end_hung(&mut open, &mut found, subject, |_| true, event.ts);
            }
            "consumer_hung" => begin(IncidentKind::Hung, consumer, Over::NotYet),
            "source_down" => begin(IncidentKind::SourceDown, "", Over::NotYet),
            "consumers_lost" => {
                let gone: Vec<&str> = event
                    .payload
                    .get("consumers")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .collect();
                // The loss of the last consumer is reported as a crash.
                if event.payload.get("remaining").and_then(Value::as_u64) != Some(0) {
                    begin(IncidentKind::Lost, "", Over::AtOnce);
                }
                open.remove(&(IncidentKind::Lost, subject, ""));
                end_hung(&mut open, &mut found, subject, |consumer| gone.contains(&consumer), event.ts);
            }
            "consumer_recovered" => end(&mut open, &mut found, (IncidentKind::Hung, subject, consumer), event, None),
            "scale_up" => {
                let before = (event.text("recovered_from") == "crashed").then_some(None);
                end(&mut open, &mut found, (IncidentKind::Crash, subject, ""), event, before);
            }
            "source_up" => {
                let away = event.payload.get("away_sec").and_then(Value::as_f64);
                let before = Some(away.map(|away| event.ts - away));
                end(&mut open, &mut found, (IncidentKind::SourceDown, subject, ""), event, before);
            }
            _ => {}
        }
    }
    found.sort_by(|a, b| b.began().total_cmp(&a.began()));
    found
}

impl Incident {
    /// Sort key: incidents that began before the first known event come last.
    fn began(&self) -> f64 {
        self.since.unwrap_or(f64::MIN)
    }
}

/// Ends the open incident of `key`; without one, adds an incident with the text `before` that began before the first
/// known event.
fn end<'a>(
    open: &mut BTreeMap<(IncidentKind, &'a str, &'a str), usize>,
    found: &mut Vec<Incident>,
    key: (IncidentKind, &'a str, &'a str),
    event: &Happened,
    before: Option<Option<f64>>,
) {
    match (open.remove(&key).and_then(|place| found.get_mut(place)), before) {
        (Some(incident), _) => incident.over = Over::At(event.ts),
        (None, Some(since)) => found.push(Incident {
            kind: key.0,
            subject: event.subject.clone(),
            since,
            over: Over::At(event.ts),
            what: event.detail.clone(),
        }),
        (None, None) => {}
    }
}

/// Ends the hang of a consumer that stopped.
fn end_hung<'a>(
    open: &mut BTreeMap<(IncidentKind, &'a str, &'a str), usize>,
    found: &mut [Incident],
    subject: &str,
    gone: impl Fn(&str) -> bool,
    at: f64,
) {
    open.retain(|(kind, of, consumer), place| {
        let ends = *kind == IncidentKind::Hung && *of == subject && gone(consumer);
        if let Some(incident) = found.get_mut(*place).filter(|_| ends) {
            incident.over = Over::At(at);
        }
        !ends
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(ts: f64, subject: &str, type_name: &str, payload: Value) -> Happened {
        let (subject, type_name) = (subject.to_owned(), type_name.to_owned());
        Happened { ts, subject, type_name, severity: Severity::Info, detail: String::new(), payload }
    }

    fn summary(events: &[Happened]) -> Vec<(IncidentKind, String, Option<f64>, Over)> {
        incidents(events).into_iter().map(|i| (i.kind, i.subject, i.since, i.over)).collect()
    }

    #[test]
    fn crash_lasts_until_a_worker_runs_again() {
        let events = [
            event(90.0, "a", "scale_up", json!({"recovered_from": "crashed"})),
            event(10.0, "a", "scale_down", json!({"kind": "crashed"})),
            event(50.0, "b", "scale_up", json!({})),
            event(60.0, "a", "scale_down", json!({"kind": "alive"})),
        ];
        assert_eq!(summary(&events), [(IncidentKind::Crash, "a".to_owned(), Some(10.0), Over::At(90.0))]);
    }

    #[test]
    fn incident_with_unknown_start_or_end() {
        let events = [
            event(10.0, "a", "scale_up", json!({"recovered_from": "crashed"})),
            event(20.0, "redis", "source_up", json!({"away_sec": 15})),
            event(30.0, "postgres", "source_down", json!({})),
        ];
        assert_eq!(
            summary(&events),
            [
                (IncidentKind::SourceDown, "postgres".to_owned(), Some(30.0), Over::NotYet),
                (IncidentKind::SourceDown, "redis".to_owned(), Some(5.0), Over::At(20.0)),
                (IncidentKind::Crash, "a".to_owned(), None, Over::At(10.0)),
            ]
        );
    }

    #[test]
    fn hang_lasts_until_progress_or_exit() {
        let hung = |ts, consumer: &str| event(ts, "a", "consumer_hung", json!({"consumer": consumer}));
        let events = [
            hung(1.0, "x"),
            hung(2.0, "y"),
            hung(3.0, "z"),
            event(4.0, "a", "consumer_recovered", json!({"consumer": "x"})),
            event(5.0, "a", "consumers_lost", json!({"consumers": ["y"]})),
            event(6.0, "a", "consumers_lost", json!({"consumers": ["w"]})),
        ];
        let a = || "a".to_owned();
        assert_eq!(
            summary(&events),
            [
                (IncidentKind::Lost, a(), Some(6.0), Over::AtOnce),
                (IncidentKind::Lost, a(), Some(5.0), Over::AtOnce),
                (IncidentKind::Hung, a(), Some(3.0), Over::NotYet),
                (IncidentKind::Hung, a(), Some(2.0), Over::At(5.0)),
                (IncidentKind::Hung, a(), Some(1.0), Over::At(4.0)),
            ]
        );
    }
}
