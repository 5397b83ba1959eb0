//! Conversion of a snapshot to the fragments of the live page, as comparable values.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::block::Draft;
use super::detail;
use super::figures::counted;
use super::headline::{self, Headline};
use super::panels::{cards, feed, notes, queries, queues, servers, unreadable};
use super::verdict::{Level, Verdict};
use super::wording::Sentence;
use crate::alerting::alert_manager::FiringAlert;
use crate::contract::Name;
use crate::fleet::event::{Event, Severity};
use crate::fleet::snapshot::Snapshot;

/// The part of a fragment that rarely changes, by kind of fragment.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Frame {
    Status(notes::StatusFrame),
    Note(notes::NoteFrame),
    Card(cards::CardFrame),
    Queue(queues::QueueFrame),
    Queries(queries::QueriesFrame),
    Aras(queries::ArasFrame),
    Redis(servers::RedisFrame),
    Postgres(servers::PostgresFrame),
    Event(feed::EventFrame),
    Unreadable(unreadable::UnreadableFrame),
    Stream(detail::StreamFrame),
    WorkerType(detail::WorkerTypeFrame),
}

impl Frame {
    /// Template name.
    pub(super) fn template(&self) -> &'static str {
        match self {
            Self::Status(_) => "fragments/status",
            Self::Note(_) => "fragments/note",
            Self::Card(_) => "fragments/card",
            Self::Queue(_) => "fragments/queue",
            Self::Queries(_) => "fragments/queries",
            Self::Aras(_) => "fragments/aras",
            Self::Redis(_) => "fragments/redis",
            Self::Postgres(_) => "fragments/postgres",
            Self::Event(_) => "fragments/event",
            Self::Unreadable(_) => "fragments/unreadable",
            Self::Stream(_) => "fragments/stream",
            Self::WorkerType(_) => "fragments/worker",
        }
    }
}

/// A list with changing members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct List {
    /// ID of its element.
    pub(super) id: &'static str,
    /// IDs of its members, in order.
    pub(super) members: Vec<String>,
}

/// Alerts shown on the page.
#[derive(Debug, Default)]
pub(super) struct Alerts {
    /// Firing alerts.
    pub(super) firing: Vec<FiringAlert>,
    /// Recently fired and resolved alerts, newest first.
    pub(super) recent: Vec<Arc<Event>>,
}

impl Alerts {
    /// Raises each verdict to the severity of the alerts that fire for its worker type.
    fn raise(&self, verdicts: &mut [(&Name, Verdict)]) {
        let mut by_subject: BTreeMap<Name, Vec<&FiringAlert>> = BTreeMap::new();
        for alert in self.loud() {
            if let Some(subject) = &alert.subject {
                by_subject.entry(Name::from(subject.as_str())).or_default().push(alert);
            }
        }
        for (name, verdict) in verdicts {
            if let Some(alerts) = by_subject.get(*name) {
                verdict.raise(alerts);
            }
        }
    }

    /// Adds firing alerts that are not silenced to the headline. `verdicts` are already raised.
    fn add_to(&self, headline: &mut Headline, verdicts: &[(&Name, Verdict)]) {
        let level = self.loud().map(|alert| Level::from(alert.severity)).max();
        let firing = self.loud().count();
        let silenced = self.firing.len() - firing;
        let words = |n: usize, said| Sentence::words(format!("{} {said}", counted(n as u64, "alert", "alerts")));
        match level {
            Some(level) if level.is_trouble() => {
                // Alerts for a type that is already in the headline do not count as another problem.
                let is_told = |alert: &&FiringAlert| {
                    let subject = alert.subject.as_deref().map(Name::from);
                    verdicts.iter().any(|(name, v)| Some(*name) == subject.as_ref() && v.is_told_by_its_state())
                };
                let problems = self.loud().filter(|alert| alert.severity != Severity::Info && !is_told(alert)).count();
                headline.add(level, problems, words(firing, "firing"), Some("/alerts".to_owned()));
            }
            Some(_) => headline.calm.push(words(firing, "firing")),
            None => {}
        }
        if silenced > 0 {
            headline.calm.push(words(silenced, "silenced"));
        }
    }

    fn loud(&self) -> impl Iterator<Item = &FiringAlert> {
        self.firing.iter().filter(|alert| !alert.silenced)
    }
}

/// The whole page of one snapshot.
pub(super) struct View {
    /// Title of the browser tab.
    pub(super) title: String,
    /// All fragments.
    pub(super) drafts: Vec<Draft>,
    /// All lists.
    pub(super) lists: Vec<List>,
}

/// State retained between snapshots, to keep the output stable.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// IDs of the events in the feed.
    pub(super) feed: feed::Numbers,
    /// Stabilized times.
    pub(super) moments: servers::Steady,
}

/// Returns the page of `snapshot`.
pub(super) fn compose(snapshot: &Snapshot, maturity: Option<&str>, alerts: &Alerts, memory: &mut Memory) -> View {
    let mut verdicts = headline::verdicts(snapshot);
    alerts.raise(&mut verdicts);
    let mut headline: Headline = headline::of(snapshot, &verdicts);
    alerts.add_to(&mut headline, &verdicts);
    let title = headline::title(headline.problems, maturity);
    let mut drafts = vec![notes::status(headline), notes::workers(snapshot), notes::queues(snapshot)];
    let mut lists = cards::compose(snapshot, verdicts, &mut drafts);
    lists.push(queues::compose(snapshot, &mut drafts));
    drafts.push(queries::queries(snapshot));
    drafts.push(queries::aras(snapshot));
    drafts.push(servers::redis(snapshot, &mut memory.moments));
    drafts.push(servers::postgres(snapshot));
    drafts.push(notes::feed(snapshot));
    lists.push(feed::compose(snapshot, &alerts.recent, &mut memory.feed, &mut drafts));
    drafts.push(unreadable::compose(snapshot));
    View { title, drafts, lists }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::states::Fleet;

    const NOW: f64 = 1_795_456_871.0;

    fn alert(subject: Option<&str>, severity: Severity, silenced: bool) -> FiringAlert {
        FiringAlert { rule: "pending_high".to_owned(), subject: subject.map(str::to_owned), severity, silenced }
    }

    /// Returns tab title, IDs of the problem cards, and level for three healthy types with these alerts.
    fn composed(firing: Vec<FiringAlert>) -> (String, Vec<String>, Level) {
        let mut fleet = Fleet::new(NOW);
        for name in ["a", "b", "c"] {
            fleet.add(name, 3, 10, 5);
        }
        let alerts = Alerts { firing, recent: Vec::new() };
        let view = compose(&fleet.finish(), None, &alerts, &mut Memory::default());
        let in_trouble = view.lists.into_iter().find(|list| list.id == "workers-trouble").unwrap().members;
        let level = view.drafts.iter().find_map(|draft| match &draft.frame {
            Frame::Status(status) => Some(status.level()),
            _ => None,
        });
        (view.title, in_trouble, level.unwrap())
    }

    #[test]
    fn headline_card_and_tab_show_the_alert_severity() {
        let firing = vec![alert(Some("b"), Severity::Critical, false), alert(None, Severity::Warning, false)];
        let (title, in_trouble, level) = composed(firing);
        assert_eq!((title.as_str(), in_trouble.len(), level), ("⚠ 2 · Shepherd", 1, Level::Critical));
    }

    #[test]
    fn silenced_and_informational_alerts_are_no_problem() {
        let firing = vec![alert(Some("b"), Severity::Critical, true), alert(Some("c"), Severity::Info, false)];
        assert_eq!(composed(firing), ("Shepherd".to_owned(), Vec::new(), Level::Fine));
    }
}
