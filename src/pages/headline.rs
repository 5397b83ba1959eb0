//! The status line: is anything wrong, what, since when. In words, worst first.

use super::condition::{self, Condition, Level};
use super::figures::{counted, percent};
use super::wording::{Label, MomentStyle, Sentence};
use crate::contract::Name;
use crate::fleet::snapshot::{Snapshot, SourceStatus};
use crate::fleet::worker_type::TypeState;

/// Names told in one sentence; the rest are counted.
const NAMED: usize = 3;
/// From this share on, a disk or a memory limit is worth a look, and worth acting on.
pub(super) const NEARLY_FULL: f64 = 0.8;
pub(super) const FULL: f64 = 0.9;

/// What is wrong, worst first, and what is not.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Headline {
    /// The worst of it.
    pub(super) level: Level,
    /// How many things are wrong.
    pub(super) problems: usize,
    /// One sentence for each kind of trouble, worst first, then what is fine.
    pub(super) sentences: Vec<(Level, Sentence)>,
}

/// The headline of `snapshot`, with the condition of each of its worker types.
pub(super) fn of(snapshot: &Snapshot, conditions: &[(&Name, Condition)]) -> Headline {
    let mut told = Troubles::default();
    told.sources(snapshot);
    told.worker_types(snapshot, conditions);
    told.streams(snapshot);
    told.limits(snapshot);
    told.sentences.sort_by_key(|(level, _)| std::cmp::Reverse(*level));
    let level = told.sentences.first().map_or(Level::Fine, |(level, _)| *level);
    let (calm_level, calm) = what_is_fine(snapshot, conditions);
    let level = if told.sentences.is_empty() { calm_level } else { level };
    told.sentences.extend(calm.into_iter().map(|sentence| (Level::Fine, sentence)));
    Headline { level, problems: told.problems, sentences: told.sentences }
}

/// The browser tab's title.
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
    sentences: Vec<(Level, Sentence)>,
}

impl Troubles {
    fn add(&mut self, level: Level, problems: usize, sentence: Sentence) {
        self.problems += problems;
        self.sentences.push((level, sentence));
    }

    fn sources(&mut self, snapshot: &Snapshot) {
        for (name, source, frozen) in [
            ("Redis", &snapshot.redis.source, ", workers and queues are shown as they were"),
            ("Postgres", &snapshot.postgres.source, ""),
        ] {
            if let SourceStatus::Down { since, trouble } = source {
                let sentence = Sentence::words(format!("{name} not readable"))
                    .at(" since ", Some(*since), MomentStyle::Clock)
                    .then(format!(" ({}){frozen}", Label::from_text(&trouble.detail)));
                self.add(Level::Critical, 1, sentence);
            } else if name == "Postgres" && snapshot.postgres.error.is_some() {
                self.add(Level::Warning, 1, Sentence::words("Postgres answers only in part"));
            }
        }
    }

    fn worker_types(&mut self, snapshot: &Snapshot, conditions: &[(&Name, Condition)]) {
        // Within one level the order below is the order of the sentences.
        for pill in ["crashed", "lost", "hung", "no worker", "unreadable"] {
            let names: Vec<&Name> = conditions
                .iter()
                .filter(|(_, c)| c.level.is_trouble() && c.pill == pill)
                .map(|(name, _)| *name)
                .collect();
            let Some(first) = names.first() else { continue };
            let level = if pill == "crashed" { Level::Critical } else { Level::Warning };
            let sentence = match (pill, names.as_slice()) {
                ("unreadable", _) => continue,
                ("crashed", [only]) => Sentence::words(format!("{} crashed", Label::of(only))).at(
                    " ",
                    snapshot.workers.get(*first).and_then(|w| w.state_changed_at),
                    MomentStyle::Clock,
                ),
                ("crashed", many) => Sentence::words(format!("{} worker types crashed: {}", many.len(), listed(many))),
                ("lost", many) => {
                    let lost: u64 =
                        many.iter().filter_map(|n| snapshot.workers.get(*n)).map(|w| u64::from(w.lost)).sum();
                    Sentence::words(format!("{} lost: {}", counted(lost, "consumer", "consumers"), listed(many)))
                }
                ("hung", many) => {
                    let hung: u64 =
                        many.iter().filter_map(|n| snapshot.workers.get(*n)).map(|w| u64::from(w.hung)).sum();
                    let verb = if hung == 1 { "hangs" } else { "hang" };
                    Sentence::words(format!("{} {verb}: {}", counted(hung, "consumer", "consumers"), listed(many)))
                }
                (_, many) => Sentence::words(format!("work waits and no worker is there: {}", listed(many))),
            };
            self.add(level, names.len(), sentence);
        }
        let unreadable = snapshot.unreadable_heartbeats.len();
        if unreadable > 0 {
            let which = counted(unreadable as u64, "heartbeat", "heartbeats");
            self.add(Level::Warning, 1, Sentence::words(format!("{which} cannot be read")));
        }
    }

    fn streams(&mut self, snapshot: &Snapshot) {
        let names: Vec<&Name> = snapshot.streams.iter().filter(|(_, s)| s.error.is_some()).map(|(n, _)| n).collect();
        if !names.is_empty() {
            let which = counted(names.len() as u64, "stream", "streams");
            let sentence = Sentence::words(format!("{which} cannot be read: {}", listed(&names)));
            self.add(Level::Warning, names.len(), sentence);
        }
    }

    fn limits(&mut self, snapshot: &Snapshot) {
        let disk = snapshot.postgres.disk_used_pct.map(|percent| percent / 100.0);
        let server = &snapshot.redis.server;
        let memory = super::panels::servers::share(server.used_memory_bytes, server.maxmemory_bytes);
        for (what, share) in [("the database's disk is", disk), ("Redis' memory is", memory)] {
            if let Some(share) = share.filter(|share| *share >= NEARLY_FULL) {
                let level = if share >= FULL { Level::Critical } else { Level::Warning };
                self.add(level, 1, Sentence::words(format!("{what} {} full", percent(share))));
            }
        }
    }
}

/// What is as it should be; and whether that is anything at all.
fn what_is_fine(snapshot: &Snapshot, conditions: &[(&Name, Condition)]) -> (Level, Vec<Sentence>) {
    let mut sentences = Vec::new();
    let mut level = Level::Fine;
    if !matches!(snapshot.redis.source, SourceStatus::Starting) {
        let (types_level, types) = worker_types(snapshot, conditions);
        level = level.max(types_level);
        sentences.push(types);
    }
    let sources = [("Redis", &snapshot.redis.source), ("Postgres", &snapshot.postgres.source)];
    let names = |wanted: fn(&SourceStatus) -> bool| -> Vec<&str> {
        sources.iter().filter(|(_, s)| wanted(s)).map(|(name, _)| *name).collect()
    };
    let fine = names(|s| matches!(s, SourceStatus::Ok));
    let settling = names(|s| matches!(s, SourceStatus::Settling { .. }));
    let starting = names(|s| matches!(s, SourceStatus::Starting));
    if !starting.is_empty() {
        level = level.max(Level::Unknown);
    }
    for (names, said) in [(fine, "fine"), (settling, "settling"), (starting, "not answered yet")] {
        if !names.is_empty() {
            sentences.push(Sentence::words(format!("{} {said}", names.join(", "))));
        }
    }
    (level, sentences)
}

fn worker_types(snapshot: &Snapshot, conditions: &[(&Name, Condition)]) -> (Level, Sentence) {
    let all = conditions.len();
    let states = || snapshot.workers.values().map(|w| (w.state, w.without_heartbeat));
    let count = |wanted: TypeState| states().filter(|(state, _)| *state == wanted).count();
    let alive = count(TypeState::Alive);
    let silent = states().filter(|(state, silent)| *state == TypeState::Unknown && *silent > 0).count();
    let never = count(TypeState::Unknown) - silent;
    let reported = alive + count(TypeState::Crashed) + count(TypeState::ScaledDown) + silent;
    if reported == 0 {
        return (Level::Unknown, Sentence::words("No worker has reported yet"));
    }
    let mut words = match (alive, all) {
        (1, 1) => "1 worker type alive".to_owned(),
        (alive, all) if alive == all => format!("All {all} worker types alive"),
        (alive, all) => format!("{alive} of {all} worker types alive"),
    };
    for (n, said) in
        [(count(TypeState::ScaledDown), "scaled down"), (silent, "without heartbeats"), (never, "never seen")]
    {
        if n > 0 {
            words.push_str(&format!(", {n} {said}"));
        }
    }
    (Level::Fine, Sentence::words(words))
}

fn listed(names: &[&Name]) -> String {
    let mut words: Vec<String> = names.iter().take(NAMED).map(|name| Label::of(name).text).collect();
    if names.len() > NAMED {
        words.push(format!("{} more", names.len() - NAMED));
    }
    words.join(", ")
}

/// The headline of `snapshot` alone.
pub(super) fn conditions(snapshot: &Snapshot) -> Vec<(&Name, Condition)> {
    let of = |(name, status)| (name, condition::of(status, snapshot.streams.get(name), snapshot.ts));
    snapshot.workers.iter().map(of).collect()
}
