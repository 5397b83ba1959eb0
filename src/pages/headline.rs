//! The status line: a summary of current problems with their start, most severe first.

use super::figures::{counted, percent};
use super::link::About;
use super::verdict::{self, Level, NOT_CONSUMING, Verdict};
use super::wording::{Label, MomentStyle, Sentence};
use crate::contract::Name;
use crate::fleet::older_monitor::OlderMonitor;
use crate::fleet::snapshot::{Snapshot, SourceStatus};
use crate::fleet::worker_type::TypeState;

/// Maximum number of names in one sentence; the rest are counted.
const NAMED: usize = 3;
/// Used shares of a disk or memory limit that are a warning and a critical problem.
pub(super) const NEARLY_FULL: f64 = 0.8;
pub(super) const FULL: f64 = 0.9;

/// Current problems, most severe first, and what is fine.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Headline {
    /// Highest level.
    pub(super) level: Level,
    /// Number of problems.
    pub(super) problems: usize,
    /// One sentence per kind of problem, most severe first.
    pub(super) troubles: Vec<Trouble>,
    /// Sentences about what is fine.
    pub(super) calm: Vec<Sentence>,
}

/// One problem of the status line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Trouble {
    /// Level.
    pub(super) level: Level,
    /// Description.
    pub(super) sentence: Sentence,
    /// Link to details: a path below the root, or an anchor of this page.
    pub(super) href: Option<String>,
}

impl Headline {
    /// Adds a problem after those of the same level.
    pub(super) fn add(&mut self, level: Level, problems: usize, sentence: Sentence, href: Option<String>) {
        self.problems += problems;
        self.level = self.level.max(level);
        let at = self.troubles.partition_point(|trouble| trouble.level >= level);
        self.troubles.insert(at, Trouble { level, sentence, href });
    }
}

/// Returns the headline of `snapshot` with the verdicts of its worker types.
pub(super) fn of(snapshot: &Snapshot, verdicts: &[(&Name, Verdict)]) -> Headline {
    let mut troubles = Troubles::default();
    troubles.sources(snapshot);
    troubles.older_monitor(snapshot);
    troubles.worker_types(snapshot, verdicts);
    troubles.streams(snapshot);
    troubles.limits(snapshot);
    troubles.sentences.sort_by_key(|trouble| std::cmp::Reverse(trouble.level));
    let (calm_level, calm) = what_is_fine(snapshot, verdicts);
    let level = troubles.sentences.first().map_or(calm_level, |trouble| trouble.level);
    Headline { level, problems: troubles.problems, troubles: troubles.sentences, calm }
}

/// Returns the title of the browser tab.
pub(super) fn title(problems: usize, maturity: Option<&str>) -> String {
    let name = match maturity {
        Some(maturity) => format!("Shepherd · {maturity}"),
        None => "Shepherd".to_owned(),
    };
    if problems == 0 { name } else { format!("⚠ {problems} · {name}") }
}

#[derive(Default)]
struct Troubles {
    problems: usize,
    sentences: Vec<Trouble>,
}

impl Troubles {
    fn add(&mut self, level: Level, problems: usize, sentence: Sentence, href: Option<String>) {
        self.problems += problems;
        self.sentences.push(Trouble { level, sentence, href });
    }

    fn sources(&mut self, snapshot: &Snapshot) {
        for (name, source, write_error, frozen) in [
            (
                "Redis",
                &snapshot.redis.source,
                &snapshot.redis.write_error,
                "; workers and queues show the last known state",
            ),
            ("Postgres", &snapshot.postgres.source, &snapshot.postgres.write_error, ""),
        ] {
            if let SourceStatus::Down { since, trouble } = source {
                let sentence = Sentence::words(format!("{name} {}", trouble.kind.state()))
                    .at(" since ", Some(*since), MomentStyle::Clock)
                    .then(format!(": {}{frozen}", Label::from_text(&trouble.detail)));
                self.add(Level::Critical, 1, sentence, at("#servers"));
            } else if let Some(trouble) = write_error {
                let detail = trouble.detail.strip_prefix("Redis rejects writes: ").unwrap_or(&trouble.detail);
                let words = format!("{name} rejects writes: {}", Label::from_text(detail));
                self.add(Level::Critical, 1, Sentence::words(words), at("#servers"));
            } else if name == "Postgres" && snapshot.postgres.error.is_some() {
                self.add(Level::Warning, 1, Sentence::words("Some Postgres queries fail"), at("#servers"));
            }
        }
    }

    fn older_monitor(&mut self, snapshot: &Snapshot) {
        if snapshot.older_monitor == OlderMonitor::Active && !snapshot.observe_only {
            let sentence = Sentence::words(
                "An older monitor is also active on this Redis: both send alerts, and only the older one runs scheduled \
                 cleanup. Stop one of them, or restart this one with MONITOR_OBSERVE_ONLY=yes",
            );
            self.add(Level::Warning, 1, sentence, None);
        }
    }

    fn worker_types(&mut self, snapshot: &Snapshot, verdicts: &[(&Name, Verdict)]) {
        // Within one level, the sentences keep this order.
        for pill in ["crashed", "lost", "hung", NOT_CONSUMING, "no workers", "unreadable"] {
            let names: Vec<&Name> = verdicts
                .iter()
                .filter(|(_, c)| c.level.is_trouble() && c.pill == pill)
                .map(|(name, _)| *name)
                .collect();
            let Some(sentence) = told_of(pill, &names, snapshot) else { continue };
            let matching = verdicts.iter().filter(|(name, _)| names.contains(name));
            let level = matching.map(|(_, verdict)| verdict.level).max().unwrap_or(Level::Warning);
            self.add(level, names.len(), sentence, page_of(&names, About::WorkerType, "#workers"));
        }
        let unreadable = snapshot.unreadable_heartbeats.len();
        if unreadable > 0 {
            let which = counted(unreadable as u64, "unreadable heartbeat", "unreadable heartbeats");
            self.add(Level::Warning, 1, Sentence::words(which), at("#workers"));
        }
    }

    fn streams(&mut self, snapshot: &Snapshot) {
        let names: Vec<&Name> = snapshot.streams.iter().filter(|(_, s)| s.error.is_some()).map(|(n, _)| n).collect();
        if !names.is_empty() {
            let words = match names.as_slice() {
                [only] => format!("cannot read stream {}", Label::of(only)),
                many => format!("cannot read {} streams: {}", many.len(), listed(many)),
            };
            let sentence = Sentence::words(words);
            self.add(Level::Warning, names.len(), sentence, page_of(&names, About::Stream, "#queues"));
        }
    }

    fn limits(&mut self, snapshot: &Snapshot) {
        let disk = snapshot.postgres.disk_used_pct.map(|percent| percent / 100.0);
        let server = &snapshot.redis.server;
        let memory = super::panels::servers::share(server.used_memory_bytes, server.maxmemory_bytes);
        for (what, share) in [("Postgres disk", disk), ("Redis memory", memory)] {
            if let Some(share) = share.filter(|share| *share >= NEARLY_FULL) {
                let level = if share >= FULL { Level::Critical } else { Level::Warning };
                self.add(level, 1, Sentence::words(format!("{what} {} used", percent(share))), at("#servers"));
            }
        }
    }
}

/// Returns an anchor of the live page.
fn at(anchor: &str) -> Option<String> {
    Some(format!("/{anchor}"))
}

/// Returns the page of a single name, or the place that lists all.
fn page_of(names: &[&Name], about: About, all: &str) -> Option<String> {
    match names {
        [only] => Some(about.of(only)),
        _ => at(all),
    }
}

/// Returns sentences about what is fine, and `Unknown` if there is nothing to judge.
fn what_is_fine(snapshot: &Snapshot, verdicts: &[(&Name, Verdict)]) -> (Level, Vec<Sentence>) {
    let mut sentences = Vec::new();
    let mut level = Level::Fine;
    if !matches!(snapshot.redis.source, SourceStatus::Starting) {
        let (types_level, types) = worker_types(snapshot, verdicts);
        level = level.max(types_level);
        sentences.push(types);
    }
    let in_part = snapshot.postgres.error.is_some();
    let sources = [("Redis", &snapshot.redis.source), ("Postgres", &snapshot.postgres.source)];
    let names = |wanted: &dyn Fn(&str, &SourceStatus) -> bool| {
        sources.iter().filter(|(name, s)| wanted(name, s)).map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    };
    let fine = names(&|name, s| matches!(s, SourceStatus::Ok) && !(name == "Postgres" && in_part));
    let refuses = snapshot.redis.write_error.is_some();
    let settling = names(&|name, s| matches!(s, SourceStatus::Settling { .. }) && !(name == "Redis" && refuses));
    let starting = names(&|_, s| matches!(s, SourceStatus::Starting));
    if snapshot.observe_only {
        let beside = snapshot.older_monitor == OlderMonitor::Active;
        sentences.push(Sentence::words(if beside {
            "Observe only: an older monitor is active"
        } else {
            "Observe only"
        }));
    }
    if !starting.is_empty() {
        level = level.max(Level::Unknown);
        sentences.push(Sentence::words(format!("waiting for {starting}")));
    }
    for (names, state) in [(fine, "OK"), (settling, "recovering")] {
        if !names.is_empty() {
            sentences.push(Sentence::words(format!("{names} {state}")));
        }
    }
    (level, sentences)
}

fn worker_types(snapshot: &Snapshot, verdicts: &[(&Name, Verdict)]) -> (Level, Sentence) {
    let all = verdicts.len();
    let states = || snapshot.workers.values().map(|w| (w.state, w.without_heartbeat));
    let count = |wanted: TypeState| states().filter(|(state, _)| *state == wanted).count();
    let alive = count(TypeState::Alive);
    let silent = states().filter(|(state, silent)| *state == TypeState::Unknown && *silent > 0).count();
    let never = count(TypeState::Unknown) - silent;
    let reported = alive + count(TypeState::Crashed) + count(TypeState::ScaledDown) + silent;
    if reported == 0 {
        return (Level::Unknown, Sentence::words("No worker has reported yet"));
    }
    if silent == all {
        let types = counted(all as u64, "worker type", "worker types");
        return (Level::Unknown, Sentence::words(format!("{types} without heartbeats: state unknown")));
    }
    let mut words = match (alive, all) {
        (1, 1) => "1 worker type alive".to_owned(),
        (alive, all) if alive == all => format!("All {all} worker types alive"),
        (alive, all) => format!("{alive} of {all} worker types alive"),
    };
    for (n, state) in
        [(count(TypeState::ScaledDown), "scaled to zero"), (silent, "without heartbeats"), (never, "never seen")]
    {
        if n > 0 {
            words.push_str(&format!(", {n} {state}"));
        }
    }
    (Level::Fine, Sentence::words(words))
}

/// Describes the types `names` with the same pill; `None` if another sentence covers them.
fn told_of(pill: &str, names: &[&Name], snapshot: &Snapshot) -> Option<Sentence> {
    let statuses = || names.iter().filter_map(|name| snapshot.workers.get(*name));
    let lost: u64 = statuses().map(|w| u64::from(w.lost)).sum();
    let hung: u64 = statuses().map(|w| u64::from(w.hung)).sum();
    let only = match names {
        [] => return None,
        [only] => snapshot.workers.get(*only).map(|status| (Label::of(only), status)),
        _ => None,
    };
    let many = names.len();
    Some(match (pill, only) {
        ("crashed", Some((name, status))) => {
            Sentence::words(format!("{name} crashed")).at(" at ", status.state_changed_at, MomentStyle::Clock)
        }
        ("crashed", None) => Sentence::words(format!("{many} worker types crashed: {}", listed(names))),
        ("lost", Some((name, status))) => {
            let consumers = counted(lost, "consumer", "consumers");
            let when = if lost == 1 { " at " } else { " in the last hour, the latest at " };
            Sentence::words(format!("{name} lost {consumers}")).at(when, status.lost_at, MomentStyle::Clock)
        }
        ("lost", None) => {
            Sentence::words(format!("{} lost: {}", counted(lost, "consumer", "consumers"), listed(names)))
        }
        ("hung", Some((name, _))) if hung == 1 => Sentence::words(format!("1 consumer of {name} hung")),
        ("hung", _) => Sentence::words(format!("{} hung: {}", counted(hung, "consumer", "consumers"), listed(names))),
        (NOT_CONSUMING, Some((name, _))) => {
            Sentence::words(format!("{name}: messages waiting, running workers read none"))
        }
        (NOT_CONSUMING, None) => {
            Sentence::words(format!("messages waiting, running workers read none: {}", listed(names)))
        }
        // No count, because screen readers would announce this line again with every message.
        ("no workers", Some((name, _))) => Sentence::words(format!("{name}: messages waiting, no workers running")),
        ("no workers", None) => Sentence::words(format!("messages waiting, no workers running: {}", listed(names))),
        _ => return None,
    })
}

fn listed(names: &[&Name]) -> String {
    let mut words: Vec<String> = names.iter().take(NAMED).map(|name| Label::of(name).text).collect();
    if names.len() > NAMED {
        words.push(format!("{} more", names.len() - NAMED));
    }
    words.join(", ")
}

/// Returns the verdict of each worker type, based on its state alone.
pub(super) fn verdicts(snapshot: &Snapshot) -> Vec<(&Name, Verdict)> {
    let of = |(name, status)| (name, verdict::of(status, snapshot.streams.get(name), snapshot.ts));
    snapshot.workers.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::reading::{SourceTrouble, TroubleKind};
    use crate::pages::states::{self, Fleet};

    const NOW: f64 = 1_795_456_871.0;

    /// Returns the sentences as shown without JavaScript, and the tab title.
    fn headline_of(snapshot: &Snapshot) -> (String, String) {
        let headline = of(snapshot, &verdicts(snapshot));
        let troubles = headline.troubles.iter().map(|trouble| &trouble.sentence);
        let sentences: Vec<String> = troubles.chain(&headline.calm).map(Sentence::plain).collect();
        (sentences.join(" · "), title(headline.problems, None))
    }

    fn fleet() -> Fleet {
        let mut fleet = Fleet::new(NOW);
        for name in ["a", "b", "c"] {
            fleet.add(name, 3, 10, 5);
        }
        fleet
    }

    #[test]
    fn healthy_fleet_has_one_line() {
        let (line, tab) = headline_of(&fleet().finish());
        assert_eq!(line, "All 3 worker types alive · Redis, Postgres OK");
        assert_eq!(tab, "Shepherd");
    }

    #[test]
    fn crashed_type_precedes_lost_consumer_and_healthy_ones() {
        let mut fleet = fleet();
        fleet.change("b", |w, _| {
            (w.state, w.alive, w.state_changed_at) = (TypeState::Crashed, 0, Some(NOW - 11.0));
        });
        fleet.change("a", |w, _| (w.lost, w.lost_at) = (2, Some(NOW - 60.0)));
        let (line, tab) = headline_of(&fleet.finish());
        assert_eq!(
            line,
            "b crashed at 18:01:00 UTC · a lost 2 consumers in the last hour, the latest at 18:00:11 UTC · 2 of 3 worker types alive · \
             Redis, Postgres OK"
        );
        assert_eq!(tab, "⚠ 2 · Shepherd");
    }

    #[test]
    fn each_problem_links_to_its_page() {
        let mut fleet = fleet();
        fleet.change("b", |w, _| (w.state, w.alive) = (TypeState::Crashed, 0));
        for name in ["a", "c"] {
            fleet.change(name, |w, _| w.not_consuming = true);
        }
        let snapshot = fleet.finish();
        let headline = of(&snapshot, &verdicts(&snapshot));
        let clauses: Vec<(String, Option<&str>)> =
            headline.troubles.iter().map(|t| (t.sentence.plain(), t.href.as_deref())).collect();
        assert_eq!(
            clauses,
            [
                ("b crashed".to_owned() + &clauses[0].0["b crashed".len()..], Some("/workers/b")),
                ("messages waiting, running workers read none: a, c".to_owned(), Some("/#workers")),
            ]
        );
    }

    #[test]
    fn many_names_are_counted_and_the_first_are_listed() {
        let mut fleet = Fleet::new(NOW);
        for name in ["a", "b", "c", "d", "e"] {
            fleet.add(name, 3, 10, 5);
            fleet.change(name, |w, _| w.state = TypeState::Crashed);
        }
        let (line, tab) = headline_of(&fleet.finish());
        assert!(line.starts_with("5 worker types crashed: a, b, c, 2 more · 0 of 5"), "{line}");
        assert_eq!(tab, "⚠ 5 · Shepherd");
    }

    #[test]
    fn loss_is_no_problem_after_ten_minutes() {
        let mut fleet = fleet();
        fleet.change("a", |w, _| (w.lost, w.lost_at) = (1, Some(NOW - 11.0 * 60.0)));
        assert_eq!(headline_of(&fleet.finish()).1, "Shepherd");
    }

    #[test]
    fn headline_lists_hung_consumers_waiting_messages_and_unreadable_keys() {
        let mut fleet = fleet();
        fleet.change("a", |w, _| w.hung = 2);
        fleet.change("b", |w, _| (w.state, w.alive, w.backlog) = (TypeState::ScaledDown, 0, Some(1)));
        fleet.change("c", |_, s| s.error = Some("WRONGTYPE".to_owned()));
        fleet.snapshot.unreadable_heartbeats = states::hostile(NOW).unreadable_heartbeats;
        let (line, tab) = headline_of(&fleet.finish());
        assert_eq!(
            line,
            "2 consumers hung: a · b: messages waiting, no workers running · 1 unreadable heartbeat · \
             cannot read stream c · 2 of 3 worker types alive, 1 scaled to zero · Redis, Postgres OK"
        );
        assert_eq!(tab, "⚠ 4 · Shepherd");
    }

    #[test]
    fn unreachable_data_source_comes_first_with_start_and_reason() {
        let mut fleet = fleet();
        fleet.change("a", |w, _| (w.state, w.alive) = (TypeState::Crashed, 0));
        let trouble = SourceTrouble::new(TroubleKind::Unreachable, "connection refused");
        fleet.snapshot.redis.source = SourceStatus::Down { since: NOW, trouble };
        let (line, _) = headline_of(&fleet.finish());
        assert!(
            line.starts_with(
                "Redis unreachable since 18:01:11 UTC: connection refused; workers and queues show the last known state · a crashed"
            ),
            "{line}"
        );
        assert!(line.ends_with("Postgres OK"), "{line}");
    }

    #[test]
    fn nothing_is_fine_before_the_first_poll() {
        let mut snapshot = Fleet::new(NOW).finish();
        assert_eq!(headline_of(&snapshot).0, "No worker has reported yet · Redis, Postgres OK");
        snapshot.redis.source = SourceStatus::Starting;
        snapshot.postgres.source = SourceStatus::Starting;
        assert_eq!(headline_of(&snapshot), ("waiting for Redis, Postgres".to_owned(), "Shepherd".to_owned()));
        assert_eq!(of(&snapshot, &[]).level, Level::Unknown);
    }

    #[test]
    fn fleet_without_heartbeats_is_unknown() {
        let (line, tab) = headline_of(&states::other_fleet(NOW));
        assert_eq!(line, "4 worker types without heartbeats: state unknown · Redis, Postgres OK");
        assert_eq!(tab, "Shepherd");
    }

    #[test]
    fn nearly_reached_limits_are_reported() {
        let mut snapshot = fleet().finish();
        snapshot.postgres.disk_used_pct = Some(93.0);
        snapshot.redis.server.used_memory_bytes = snapshot.redis.server.maxmemory_bytes.map(|limit| limit / 100 * 85);
        let headline = of(&snapshot, &verdicts(&snapshot));
        let levels: Vec<Level> = headline.troubles.iter().map(|trouble| trouble.level).collect();
        assert_eq!(levels, [Level::Critical, Level::Warning]);
        assert!(headline_of(&snapshot).0.starts_with("Postgres disk 93\u{202f}% used · Redis memory 85\u{202f}% used"));
    }
}
