//! The summary at the end.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::canary::Delays;
use crate::fleet::{End, Fleet};
use crate::invariants;
use crate::observe::Observed;
use crate::receiver::Receiver;
use crate::tasks::Tasks;

/// Writes the events and the notifications into the folder.
pub(crate) fn keep(folder: &Path, observed: &Observed, receiver: &Receiver) {
    let mut events = File::create(folder.join("events.log")).unwrap();
    for event in observed.events.lock().unwrap().iter() {
        writeln!(events, "{event:?}").unwrap();
    }
    let mut posts = File::create(folder.join("notifications.log")).unwrap();
    for post in receiver.posts() {
        writeln!(posts, "{:.3} accepted: {} {}", post.at, post.accepted, post.body).unwrap();
    }
}

/// Prints the summary; answers whether nothing was violated.
pub(crate) fn print(fleet: &Fleet, tasks: &Tasks, observed: &Observed, delays: &Delays, seed: u64) -> bool {
    let journal = &fleet.journal;
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
    row("seed", seed.to_string());
    row("duration", format!("{:.0} s", journal.elapsed()));
    for (act, count) in journal.acts() {
        row(&format!("act: {act}"), count.to_string());
    }
    let (added, unknown, median, longest) = tasks.figures();
    row("tasks acknowledged, all ended as they had to", (added - (tasks.unfinished().len() as u64)).to_string());
    row("tasks acknowledged, not ended", tasks.unfinished().len().to_string());
    row("tasks added, not acknowledged", unknown.to_string());
    row("time from added to ended: median, longest", format!("{median:.1} s, {longest:.1} s"));
    let killed = fleet.processes().iter().filter(|p| matches!(p.ended, Some((_, End::Killed)))).count();
    row("workers started, killed", format!("{}, {killed}", fleet.processes().len()));
    for (name, value) in journal.figures() {
        row(name, value.to_string());
    }
    let delays = delays.0.lock().unwrap();
    let longest = |part: fn(&(f64, f64)) -> f64| delays.iter().map(part).fold(0.0, f64::max);
    row(
        "canary alerts; longest time to the notification, to that of the end",
        format!("{}; {:.0} s, {:.0} s", delays.len(), longest(|d| d.0), longest(|d| d.1)),
    );
    for (monitor, samples) in fleet.monitors.iter().zip(&observed.samples) {
        let samples = samples.lock().unwrap();
        let memory = invariants::memory(&samples).map_or("too few samples".to_owned(), |(before, after)| {
            format!("{:.1} MiB, {:.1} MiB", before as f64 / 1024.0, after as f64 / 1024.0)
        });
        row(&format!("RSS of monitor {}: first quarter, last", monitor.name), memory);
        let most = |figure: fn(&crate::observe::Sample) -> u64| samples.iter().map(figure).max().unwrap_or(0);
        row(
            &format!("threads, open files of monitor {}: most", monitor.name),
            format!("{}, {}", most(|s| s.threads), most(|s| s.files)),
        );
    }
    if let Some((_, samples)) = observed.series.lock().unwrap().last() {
        row("samples in the recorded series", samples.to_string());
    }
    let violations = journal.violations();
    row("violations", violations.len().to_string());
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    journal.say("summary");
    for (name, value) in &rows {
        println!("  {name:width$}  {value}");
    }
    for (at, violation) in violations.iter().enumerate() {
        println!("  violation {}: {violation}", at + 1);
    }
    violations.is_empty()
}
