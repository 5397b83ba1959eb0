//! The admin page: preview of the next cleanup run, recorded runs, and the entries that were kept with the reason.

use serde::Serialize;

use super::figures::{MISSING, count, counted, duration, exact};
use super::link::About;
use super::site::{Head, Site};
use super::templates::PagesError;
use super::wording::{Label, MomentStyle, Sentence, visible};
use crate::contract::Name;
use crate::fleet::cleanup::{Need, Outcome, PassRecord, Preview, ReasonKept, Removable, StreamOutcome};

/// Reload interval without JavaScript, seconds.
const REFRESH: u32 = 30;
/// Maximum number of streams listed for a run or a preview; streams with removals come first.
const STREAMS: usize = 60;
/// Maximum number of abandoned queries listed for one cleanup run.
const QUERIES: usize = 100;

/// Data of the page.
#[derive(Debug)]
pub struct AdminPage<'a> {
    /// Preview of the next cleanup run, or why there is none.
    pub preview: Result<Preview, String>,
    /// Latest cleanup runs, newest first, or why they are unavailable.
    pub passes: Result<&'a [PassRecord], String>,
}

#[derive(Serialize)]
struct View<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    headline: Sentence,
    level: &'static str,
    notes: Vec<String>,
    todo: Vec<String>,
    todo_streams: Vec<TodoRow>,
    todo_more: Option<String>,
    nothing_to_do: bool,
    why_not: Option<String>,
    button: String,
    streams: Vec<StreamRow>,
    streams_more: Option<String>,
    passes: Vec<PassRow>,
}

#[derive(Serialize)]
struct TodoRow {
    name: Label,
    href: String,
    removable: String,
    of: String,
    because: Sentence,
}

#[derive(Serialize)]
struct StreamRow {
    name: Label,
    href: String,
    removed: String,
    removed_exact: String,
    kept: String,
    kept_exact: String,
    because: Sentence,
    level: &'static str,
}

#[derive(Serialize)]
struct PassRow {
    began: Sentence,
    took: String,
    asked_by: Label,
    entries: String,
    consumers: String,
    callbacks: String,
    abandoned: String,
    old_queries: String,
    level: &'static str,
    result: String,
    problems: Vec<Label>,
    abandoned_queries: Vec<Label>,
    abandoned_more: Option<String>,
}

impl AdminPage<'_> {
    /// Renders the page.
    ///
    /// # Errors
    /// When rendering the template fails.
    pub fn html(&self, site: &Site) -> Result<String, PagesError> {
        let title = site.title("Admin");
        let passes = self.passes.as_deref().unwrap_or_default();
        let last = passes.iter().find_map(|pass| Some((pass, pass.outcome.as_ref()?)));
        let mut view = View {
            head: Head::of(
                &site.environment,
                (&site.pages, "/admin"),
                &title,
                &["shell.js", "clock.js"],
                Some(REFRESH),
            ),
            headline: Sentence::words("No cleanup has run yet; the first run starts when Redis is available"),
            level: "unknown",
            notes: Vec::new(),
            todo: Vec::new(),
            todo_streams: Vec::new(),
            todo_more: None,
            nothing_to_do: false,
            why_not: None,
            button: "Refresh and clean up".to_owned(),
            streams: Vec::new(),
            streams_more: None,
            passes: passes.iter().map(pass_row).collect(),
        };
        if let Err(why) = &self.passes {
            view.headline = Sentence::words("Cannot load earlier cleanup runs");
            view.notes.push(
                visible(&format!("Postgres: {why}. Cleanup continues; see the log for its results.")).into_owned(),
            );
        }
        if let Some((pass, outcome)) = last {
            let troubled = trouble_of(outcome);
            view.level = if troubled { "warning" } else { "fine" };
            view.headline = Sentence::words(format!("{}, ", summary(outcome))).at("", pass.ended, MomentStyle::Ago);
            self.list_streams(outcome, &mut view);
        }
        match &self.preview {
            Ok(preview) => list_todo(preview, &mut view),
            Err(why) => view.why_not = Some(visible(why).into_owned()),
        }
        site.pages.render("pages/admin", &view)
    }

    fn list_streams(&self, outcome: &Outcome, view: &mut View<'_>) {
        let mut streams: Vec<(&String, &StreamOutcome)> = outcome.streams.iter().collect();
        let all = streams.len();
        streams.retain(|(_, stream)| stream.removed + stream.length > 0 || stream.error.is_some());
        let empty = all - streams.len();
        streams.sort_by_key(|(_, stream)| (stream.error.is_none(), std::cmp::Reverse((stream.removed, stream.length))));
        let more = streams.len().saturating_sub(STREAMS);
        let rest = [(more, "with fewer messages"), (empty, "that were empty")];
        let rest = rest.into_iter().filter(|(n, _)| *n > 0);
        let rest: Vec<String> =
            rest.map(|(n, how)| format!("{} {how}", counted(n as u64, "stream", "streams"))).collect();
        view.streams_more = (!rest.is_empty()).then(|| format!("and {}", rest.join(", ")));
        view.streams = streams.into_iter().take(STREAMS).map(|(name, stream)| stream_row(name, stream)).collect();
    }
}

fn trouble_of(outcome: &Outcome) -> bool {
    !outcome.errors.is_empty() || outcome.streams.values().any(|stream| stream.error.is_some())
}

/// Describes the result of a cleanup run.
fn summary(outcome: &Outcome) -> String {
    let mut parts = Vec::new();
    let mut add = |n: u64, one: &str, many: &str, did: &str| {
        if n > 0 {
            parts.push(format!("{} {did}", counted(n, one, many)));
        }
    };
    add(outcome.entries_removed(), "finished message", "finished messages", "removed");
    add(outcome.consumers_removed(), "stale consumer", "stale consumers", "deleted");
    add(outcome.phantoms_cleared(), "phantom pending ID", "phantom pending IDs", "acknowledged");
    let queries = outcome.queries.clone().unwrap_or_default();
    add(queries.callbacks_deleted, "callback", "callbacks", "deleted");
    add(queries.abandoned_count(), "query", "queries", "abandoned");
    add(outcome.query_retention.unwrap_or(0), "old query", "old queries", "deleted");
    if trouble_of(outcome) {
        parts.push("partially completed".to_owned());
    }
    match parts.is_empty() {
        true => "Last cleanup: nothing to clean up".to_owned(),
        false => format!("Last cleanup: {}", parts.join(", ")),
    }
}

fn list_todo(preview: &Preview, view: &mut View<'_>) {
    let least = preview.streams.iter().map(|(_, stream)| stream.removable.most()).sum::<u64>();
    let exactly = preview.streams.iter().all(|(_, stream)| matches!(stream.removable, Removable::Exactly(_)));
    let upto = |exact: bool| if exact { "" } else { "up to " };
    if least > 0 {
        view.todo.push(format!("remove {}{}", upto(exactly), counted(least, "finished message", "finished messages")));
    }
    if preview.consumers > 0 {
        let stale = counted(preview.consumers as u64, "stale consumer", "stale consumers");
        let later = if preview.consumers_left > 0 {
            format!(", {} more in later runs", exact(preview.consumers_left as u64))
        } else {
            String::new()
        };
        view.todo.push(format!("delete up to {stale}{later}"));
    }
    if preview.phantoms > 0 {
        let phantoms = counted(preview.phantoms, "phantom pending ID", "phantom pending IDs");
        view.todo.push(format!("acknowledge up to {phantoms}"));
    }
    if let Some(sec) = preview.settling_sec {
        view.notes.push(format!("Stale consumers are skipped for another {sec:.0} s, until heartbeats count again."));
    }
    if let Some(queries) = &preview.queries {
        let n = |n: u64, one: &str, many: &str| match n >= preview.counted_to {
            true => format!("≥ {}", counted(n, one, many)),
            false => counted(n, one, many),
        };
        if queries.callbacks > 0 {
            view.todo.push(format!("delete {} of finished queries", n(queries.callbacks, "callback", "callbacks")));
        }
        if queries.abandoned > 0 {
            view.todo.push(format!("mark {} as abandoned", n(queries.abandoned, "query", "queries")));
        }
    } else if let Some(why) = &preview.without_queries {
        view.notes.push(visible(&format!("Queries are skipped: {why}.")).into_owned());
    }
    view.nothing_to_do = view.todo.is_empty();
    if !view.todo.is_empty() {
        view.button = format!("Clean up: {}", view.todo.join(", "));
    }
    let mut streams: Vec<_> = preview.streams.iter().filter(|(_, stream)| stream.removable.most() > 0).collect();
    streams.sort_by_key(|(_, stream)| std::cmp::Reverse(stream.removable.most()));
    let more = streams.len().saturating_sub(STREAMS) + preview.streams_not_looked_at;
    view.todo_more = (more > 0).then(|| format!("and {} more", counted(more as u64, "stream", "streams")));
    view.todo_streams = streams
        .into_iter()
        .take(STREAMS)
        .map(|(name, stream)| TodoRow {
            name: Label::of(name),
            href: About::Stream.of(name),
            removable: match stream.removable {
                Removable::Exactly(n) => exact(n),
                Removable::AtMost(n) => format!("up to {}", exact(n)),
            },
            of: exact(stream.length),
            because: because(stream.kept_because.as_ref()),
        })
        .collect();
}

fn stream_row(name: &str, stream: &StreamOutcome) -> StreamRow {
    let mut because = because(stream.kept_because.as_ref());
    if stream.unfinished {
        because = because.then("; continues in the next run");
    }
    if let Some(error) = &stream.error {
        because = Sentence::words(Label::from_text(error).text);
    }
    StreamRow {
        name: Label::from_text(name),
        href: About::Stream.of(&Name::from(name)),
        removed: count(stream.removed),
        removed_exact: exact(stream.removed),
        kept: count(stream.length),
        kept_exact: exact(stream.length),
        because,
        level: if stream.error.is_some() { "warning" } else { "fine" },
    }
}

/// Describes why entries are kept.
fn because(kept: Option<&ReasonKept>) -> Sentence {
    match kept {
        None => Sentence::words("—"),
        Some(ReasonKept::NoGroups) => Sentence::words("no consumer group, so nothing is trimmed"),
        Some(ReasonKept::Group { group, need, since, pending, undelivered, idle_sec, consumer }) => {
            let group = Label::from_text(group).text;
            let words = match need {
                Need::Unread => {
                    let lag = undelivered
                        .map_or("unknown number of messages".to_owned(), |n| counted(n, "message", "messages"));
                    format!("{lag} undelivered to group {group}")
                }
                Need::Pending => {
                    let holder = consumer
                        .as_deref()
                        .map_or(String::new(), |name| format!(" on {}", Label::from_text(name).text));
                    let idle = idle_sec.map_or(String::new(), |sec| format!(", idle for {}", duration(sec)));
                    format!(
                        "{} pending in group {group}, oldest{holder}{idle}",
                        counted(*pending, "message", "messages")
                    )
                }
            };
            match since {
                Some(since) => Sentence::words(words).then("; added ").at("", Some(*since), MomentStyle::Ago),
                None => Sentence::words(words),
            }
        }
    }
}

fn pass_row(pass: &PassRecord) -> PassRow {
    let outcome = pass.outcome.as_ref();
    let figure = |n: Option<u64>| n.map_or_else(|| MISSING.to_owned(), exact);
    let queries = outcome.and_then(|outcome| outcome.queries.as_ref());
    let problems: Vec<Label> = outcome
        .into_iter()
        .flat_map(|outcome| outcome.errors.iter().chain(&outcome.left_out))
        .map(|text| Label::from_text(text))
        .collect();
    let (level, result) = match outcome {
        None if pass.ended.is_none() => ("unknown", "running, or interrupted"),
        Some(outcome) if trouble_of(outcome) => ("warning", "partially completed"),
        _ => ("fine", "completed"),
    };
    let result = match pass.resumed {
        0 => result.to_owned(),
        n => format!("{result}; interrupted {}", counted(u64::from(n), "time", "times")),
    };
    let listed = pass.abandoned_queries.get(..QUERIES).unwrap_or(&pass.abandoned_queries);
    let all = queries.map_or(pass.abandoned_queries.len() as u64, |queries| queries.abandoned_count());
    let more = all.saturating_sub(listed.len() as u64);
    PassRow {
        began: Sentence::default().at("", Some(pass.began), MomentStyle::Clock),
        took: pass.ended.map_or_else(|| MISSING.to_owned(), |ended| duration(ended - pass.began)),
        asked_by: Label::from_text(pass.asked_by.as_deref().unwrap_or("scheduled")),
        entries: figure(outcome.map(Outcome::entries_removed)),
        consumers: figure(outcome.map(Outcome::consumers_removed)),
        callbacks: figure(queries.map(|queries| queries.callbacks_deleted)),
        abandoned: figure(queries.map(|queries| queries.abandoned_count())),
        old_queries: figure(outcome.and_then(|outcome| outcome.query_retention)),
        level,
        result,
        problems,
        abandoned_queries: listed.iter().map(|query| Label::from_text(&query.described())).collect(),
        abandoned_more: (more > 0).then(|| format!("and {} more", exact(more))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::fleet::cleanup::{AbandonedQuery, QueriesOutcome, QueriesPreview, StreamPreview};
    use crate::pages::{Environment, Pages};

    const HOSTILE: &str = "<img src=x onerror=alert(1)>";

    fn html(page: &AdminPage<'_>) -> String {
        let pages = Pages::below("").unwrap();
        page.html(&Site::new(Arc::new(pages), Environment::default())).unwrap()
    }

    fn group() -> ReasonKept {
        ReasonKept::Group {
            group: HOSTILE.to_owned(),
            need: Need::Pending,
            since: Some(1_700_000_000.0),
            pending: 3,
            undelivered: None,
            idle_sec: Some(200.0),
            consumer: Some(HOSTILE.to_owned()),
        }
    }

    #[test]
    fn admin_page_shows_preview_and_results_and_escapes_names() {
        let stream =
            StreamOutcome { removed: 1234, length: 7, kept_because: Some(group()), ..StreamOutcome::default() };
        let broken = StreamOutcome { error: Some(HOSTILE.to_owned()), ..StreamOutcome::default() };
        let outcome = Outcome {
            streams: BTreeMap::from([(HOSTILE.to_owned(), stream), ("b".to_owned(), broken)]),
            consumers: BTreeMap::from([(HOSTILE.to_owned(), 2)]),
            queries: Some(QueriesOutcome {
                callbacks_deleted: 1,
                abandoned: BTreeMap::from([("bte".to_owned(), 4)]),
                ..QueriesOutcome::default()
            }),
            left_out: vec![HOSTILE.to_owned()],
            ..Outcome::default()
        };
        let record = PassRecord {
            id: "1".to_owned(),
            began: 1_700_000_000.0,
            ended: Some(1_700_000_002.0),
            asked_by: Some(HOSTILE.to_owned()),
            resumed: 1,
            outcome: Some(outcome),
            abandoned_queries: vec![AbandonedQuery {
                qid: HOSTILE.to_owned(),
                ara: "bte".to_owned(),
                age_sec: 700.0,
                callbacks_deleted: 2,
                last_stream: None,
            }],
        };
        let todo = StreamPreview { removable: Removable::AtMost(90), length: 100, kept_because: Some(group()) };
        let preview = Preview {
            streams: vec![(Name::from(HOSTILE), todo)],
            consumers: 5,
            queries: Some(QueriesPreview { callbacks: 3, abandoned: 10_000 }),
            counted_to: 10_000,
            ..Preview::default()
        };
        let page = html(&AdminPage { preview: Ok(preview), passes: Ok(&[record]) });
        assert!(!page.contains("<img"), "{page}");
        for words in [
            "1,234 finished messages removed, 2 stale consumers deleted, 1 callback deleted, 4 queries abandoned",
            "partially completed",
            "remove up to 90 finished messages",
            "delete up to 5 stale consumers",
            "mark ≥ 10,000 queries as abandoned",
            "interrupted 1 time",
            "(bte, 12 m old, 2 callbacks outstanding, last stream unknown)",
            "and 3 more",
        ] {
            assert!(page.contains(words), "{words} in {page}");
        }
    }

    #[test]
    fn admin_page_renders_without_runs_and_data_sources() {
        let page = html(&AdminPage { preview: Ok(Preview::default()), passes: Ok(&[]) });
        assert!(page.contains("No cleanup runs recorded") && page.contains("Nothing to clean up."), "{page}");
        let away =
            html(&AdminPage { preview: Err("Redis is away".to_owned()), passes: Err("no connection".to_owned()) });
        assert!(away.contains("Redis is away") && away.contains("no connection"), "{away}");
        assert!(!away.contains("/api/admin/cleanup"), "no button that does nothing: {away}");
    }
}
