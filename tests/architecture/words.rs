//! Retired words and phrases (STYLE.md) must not return to text that users read: pages, notifications, `--help`, errors, logs,
//! documentation.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;
use shepherd_monitor::commands::command;

use super::docs::{parts, root, texts};

/// Phrases with their replacement; matched as whole words, ignoring case.
const RETIRED: &[(&str, &str)] = &[
    ("goodbye", "graceful shutdown"),
    ("in good order", "graceful shutdown"),
    ("left on purpose", "graceful shutdown"),
    ("scaled down to none", "scaled to zero"),
    ("scaled down to zero", "scaled to zero"),
    ("none left of", "0 of n running"),
    ("moves again", "making progress again"),
    ("nobody is told", "not sent"),
    ("told nobody", "not sent"),
    ("tell somebody", "send notifications"),
    ("told lately", "cooldown"),
    ("is told of", "notified"),
    ("asked for quiet", "no active silences"),
    ("silence something", "new silence"),
    ("is over after", "resolved after"),
    ("up again", "running again"),
    ("came back", "flapped, recovered"),
    ("good rules", "valid rules"),
    ("in force", "active, loaded"),
    ("read the file again", "reload"),
    ("not readable", "unreachable"),
    ("is away", "is unreachable"),
    ("was away", "was unreachable"),
    ("are away", "are unreachable"),
    ("does not answer", "is unreachable, timed out"),
    ("believed", "recovering"),
    ("left alone", "idle, skipped"),
    ("a pass", "a cleanup run"),
    ("the pass", "the cleanup run"),
    ("next pass", "next cleanup run"),
    ("last pass", "last cleanup run"),
    ("passes of the janitor", "cleanup runs"),
    ("called abandoned", "marked as abandoned"),
    ("put back", "restored"),
    ("given back", "rolled back, released"),
    ("the way back", "rollback"),
    ("oldest waiting", "oldest message age"),
    ("drains in", "time to drain"),
    ("work is waiting", "messages waiting"),
    ("work waits", "messages waiting"),
    ("holds nothing", "no pending messages"),
    ("written down", "recorded, stored"),
    ("wrote down", "stored"),
    ("wins over", "overrides"),
    ("what happened when", "timeline"),
    ("is no moment", "invalid time"),
    ("further on", "next page"),
    ("before you say yes", "before you confirm"),
    ("a quarter of an hour", "15 minutes"),
    ("goes on every", "refreshes every"),
    ("up to the highest", "maximum"),
    ("cannot be had", "is not available"),
    ("not known here", "invalid"),
    ("who asks", "user, client, authentication"),
    ("nobody is asked", "no authentication"),
    ("nobody guards", "access control"),
    ("looked over", "checked"),
    ("worth knowing", "note"),
    ("an absent heartbeat", "a missing heartbeat"),
    ("absent heartbeats", "missing heartbeats"),
    ("nobody was seen", "never seen"),
    ("who takes care", "acknowledged by"),
];

/// Returns the retired phrases in a text.
fn retired(text: &str) -> Vec<&'static str> {
    let letters = |c: char| if c.is_alphanumeric() || matches!(c, '\'' | '-') { c.to_ascii_lowercase() } else { ' ' };
    // Phrases do not extend across sentences.
    let sentences = text.split(['.', ';', ':', '!', '?', '|', '(', ')']);
    let sentences = sentences.map(|sentence| {
        let words: String = sentence.chars().map(letters).collect();
        format!(" {} ", words.split_whitespace().collect::<Vec<_>>().join(" "))
    });
    let sentences: Vec<String> = sentences.collect();
    let is_in = |phrase: &str| sentences.iter().any(|sentence| sentence.contains(&format!(" {phrase} ")));
    RETIRED.iter().map(|(phrase, _)| *phrase).filter(|phrase| is_in(phrase)).collect()
}

/// Returns the files below a folder with this extension.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == extension) {
                found.push(path);
            }
        }
    }
    found
}

/// Returns the string literals of a source file, without its tests, that are phrases and not names.
fn literals(source: &str) -> String {
    let source = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let (mut phrases, mut chars) = (String::new(), code.chars().peekable());
    while let Some(c) = chars.next() {
        if c == '\'' {
            // A character literal, possibly `'"'`, or a lifetime.
            let mut ahead = chars.clone();
            let first = ahead.next();
            if first == Some('\\') || ahead.next() == Some('\'') {
                chars.next();
                chars.next();
            }
        } else if c == '"' {
            let mut literal = String::new();
            while let Some(c) = chars.next().filter(|c| *c != '"') {
                match (c, chars.peek()) {
                    ('\\', Some('\n')) => {}
                    ('\\', Some(_)) => literal.extend(chars.next()),
                    _ => literal.push(c),
                }
            }
            if literal.contains(' ') {
                phrases.push_str(&literal);
                phrases.push_str(".\n");
            }
        }
    }
    phrases
}

/// Returns the visible text of a template, with the labels of its elements.
fn visible(template: &str) -> String {
    let mut text = String::new();
    for piece in template.split(['<', '>']) {
        let label = ["title=\"", "aria-label=\"", "placeholder=\"", "alt=\""];
        let labels = label.iter().filter_map(|name| piece.split_once(name)?.1.split('"').next());
        match labels.collect::<Vec<_>>() {
            labels if !labels.is_empty() => text.push_str(&labels.join(". ")),
            _ if piece.contains("=\"") => {}
            _ => text.push_str(piece),
        }
        text.push_str(".\n");
    }
    text
}

fn help(mut command: Command) -> String {
    let mut text = command.render_long_help().to_string();
    for subcommand in command.get_subcommands() {
        text.push_str(&help(subcommand.clone()));
    }
    text
}

/// Returns a document without its code.
fn prose(text: &str) -> String {
    parts(text).0.split('`').step_by(2).collect::<Vec<_>>().join(" ")
}

fn found(what: impl AsRef<Path>, text: &str) -> Vec<String> {
    let what = what.as_ref().strip_prefix(root()).unwrap_or(what.as_ref()).display().to_string();
    let instead = |phrase: &str| RETIRED.iter().find(|(retired, _)| *retired == phrase).map_or("", |(_, term)| term);
    retired(text).into_iter().map(|phrase| format!("{what}: {phrase:?}; write {:?}", instead(phrase))).collect()
}

#[test]
fn retired_phrases_are_not_on_pages() {
    let mut wrong = Vec::new();
    for file in files("templates", "hbs") {
        wrong.extend(found(&file, &visible(&fs::read_to_string(&file).unwrap())));
    }
    for file in files("templates/assets", "js") {
        if !file.ends_with("uplot.js") {
            wrong.extend(found(&file, &literals(&fs::read_to_string(&file).unwrap())));
        }
    }
    assert!(wrong.is_empty(), "see STYLE.md:\n{}", wrong.join("\n"));
}

#[test]
fn retired_phrases_are_not_in_messages_errors_and_logs() {
    // Only used by tests, or covered by another check.
    let other = ["src/simulation", "src/settings", "tests.rs", "properties.rs"];
    let mut wrong = Vec::new();
    for file in files("src", "rs") {
        let below = file.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        if !other.iter().any(|part| below.starts_with(part) || below.ends_with(part)) {
            wrong.extend(found(&file, &literals(&fs::read_to_string(&file).unwrap())));
        }
    }
    assert!(wrong.is_empty(), "see STYLE.md:\n{}", wrong.join("\n"));
}

#[test]
fn retired_phrases_are_not_in_help_texts() {
    let wrong = found("--help", &help(command()));
    assert!(wrong.is_empty(), "see STYLE.md:\n{}", wrong.join("\n"));
}

#[test]
fn retired_phrases_are_not_in_the_documentation() {
    let wrong: Vec<String> = texts().into_iter().flat_map(|(file, text)| found(file, &prose(&text))).collect();
    assert!(wrong.is_empty(), "see STYLE.md:\n{}", wrong.join("\n"));
}

#[test]
fn retired_phrases_are_detected_in_all_visible_text() {
    assert_eq!(retired("Nobody is told: 2 left. In good order"), ["in good order", "nobody is told"]);
    assert_eq!(retired("The pass-through. A passenger; put. Back"), Vec::<&str>::new());
    assert_eq!(retired(&prose("a `goodbye`\n```sh\ngoodbye\n```\n")), Vec::<&str>::new());
    let template = "<p class=\"who asks\" title=\"Further on\">{{x}} goodbye</p>";
    assert_eq!(retired(&visible(template)), ["goodbye", "further on"]);
    let source = "let c = '\"'; // goodbye\nsay(\"no \\\n    goodbye\");\n#[cfg(test)]\nmod tests { \"put back \" }";
    assert_eq!(retired(&literals(source)), ["goodbye"]);
}
