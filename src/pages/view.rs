//! From a snapshot to what the live page shows: every fragment as a value that can be compared.

use std::sync::Arc;

use serde::Serialize;

use super::block::Draft;
use super::detail;
use super::figures::counted;
use super::headline::{self, Headline};
use super::panels::{cards, feed, notes, queries, queues, servers, unreadable};
use super::wording::Sentence;
use crate::fleet::event::Event;
use crate::fleet::snapshot::Snapshot;

/// The part of a fragment that seldom changes, per kind of fragment.
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
    /// Its template.
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

/// A list whose members come and go: its element's id, and its members' ids in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct List {
    /// The id of its element.
    pub(super) id: &'static str,
    /// The ids of its members.
    pub(super) members: Vec<String>,
}

/// What is shown of alerts.
#[derive(Debug, Default)]
pub(super) struct Alerts {
    /// How many fire.
    pub(super) firing: usize,
    /// What fired and was over lately, newest first.
    pub(super) recent: Vec<Arc<Event>>,
}

impl Alerts {
    fn sentence(&self) -> Option<Sentence> {
        match self.firing {
            0 => None,
            firing => Some(Sentence::words(format!("{} firing", counted(firing as u64, "alert", "alerts")))),
        }
    }
}

/// The whole page of one snapshot.
pub(super) struct View {
    /// The browser tab's title.
    pub(super) title: String,
    /// All fragments.
    pub(super) drafts: Vec<Draft>,
    /// All lists.
    pub(super) lists: Vec<List>,
}

/// What the page remembers from one snapshot to the next, so that it stays calm.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Ids of the events in the feed.
    pub(super) feed: feed::Numbers,
    /// Moments that are computed anew each tick and would tremble.
    pub(super) moments: servers::Steady,
}

/// What the page shows of `snapshot`.
pub(super) fn compose(snapshot: &Snapshot, maturity: Option<&str>, alerts: &Alerts, memory: &mut Memory) -> View {
    let verdicts = headline::verdicts(snapshot);
    let mut headline: Headline = headline::of(snapshot, &verdicts);
    headline.calm.extend(alerts.sentence());
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
