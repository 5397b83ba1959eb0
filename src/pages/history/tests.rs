//! Tests of the history pages, including hostile names.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use serde_json::json;

use super::parts::{Part, Summary};
use super::{Found, HistoryRange};
use crate::contract::Name;
use crate::fleet::event::Severity;
use crate::fleet::incident::Happened;
use crate::pages::link::About;
use crate::pages::site::{Environment, Site};
use crate::pages::tests::{PAGES, any_name, fleet_named, ids, tags, vocabulary};
use crate::pages::{assets, states};

const NOW: f64 = 1_795_456_871.0;

static SITE: LazyLock<Site> = LazyLock::new(|| {
    Site::new(Arc::clone(&PAGES), Environment { maturity: Some("test".to_owned()), ..Environment::default() })
});

fn event(ago: f64, subject: &str, type_name: &str, severity: Severity, payload: serde_json::Value) -> Happened {
    let (type_name, detail) = (type_name.to_owned(), format!("{type_name} of <{subject}>"));
    Happened { ts: NOW - ago, type_name, subject: subject.to_owned(), severity, detail, payload }
}

fn happened(subject: &str) -> Vec<Happened> {
    vec![
        event(60.0, "redis", "source_down", Severity::Critical, json!({})),
        event(600.0, subject, "scale_up", Severity::Info, json!({"recovered_from": "crashed"})),
        event(4000.0, subject, "scale_down", Severity::Critical, json!({"kind": "crashed"})),
        event(5000.0, subject, "consumers_lost", Severity::Warning, json!({"consumers": ["a"], "remaining": 2})),
    ]
}

fn found(subject: &str) -> Found {
    let named = |n: f64| vec![(subject.to_owned(), n)];
    Found {
        summary: Part::Known(Summary {
            queries_started: Some(12_345),
            crashes: 1,
            scale_events: 2,
            alert_count: 0,
            peak_backlog: named(419.0),
            task_volume: named(8200.0),
        }),
        happened: Part::Known(happened(subject)),
    }
}

fn asked(from: &str) -> HistoryRange {
    HistoryRange::of(Some(from), None, NOW)
}

fn history(from: &str, found: &Found) -> String {
    SITE.history(&asked(from), found).unwrap()
}

/// Returns the main element without the page's shell.
fn main_of(html: &str) -> String {
    let main = html.split("<main id=\"main\">").nth(1).unwrap().split("</main>").next().unwrap();
    main.replace(&assets::version(), "VERSION")
}

#[test]
fn history_page_matches_its_snapshot() {
    insta::assert_snapshot!("history", main_of(&history("now-6h", &found("arax"))));
}

#[test]
fn detail_pages_match_their_snapshots() {
    let snapshot = states::small(NOW);
    let name = Name::from("bte.lookup");
    for about in [About::Stream, About::WorkerType] {
        let html = SITE.detail((about, &name), &snapshot, &asked("now-6h"), &found("bte.lookup")).unwrap();
        insta::assert_snapshot!(format!("detail_{about:?}"), main_of(&html));
    }
}

#[test]
fn late_and_failed_parts_do_not_affect_the_rest() {
    let late = history("now-30d", &Found { summary: Part::Late, happened: Part::Late });
    assert_eq!(late.matches("data-state=\"loading\"").count(), 3 + 7, "three parts, seven charts");
    let why = Part::Failed("connection <refused>".to_owned());
    let failed = history("now-30d", &Found { summary: why, happened: Part::Failed("gone".to_owned()) });
    assert!(failed.contains("Cannot load the summary: connection &lt;refused&gt;"));
    assert_eq!(failed.matches("data-state=\"failed\"").count(), 3);
    assert!(failed.contains("format&#x3D;csv"));
}

#[test]
fn invalid_range_is_reported_and_replaced() {
    let html = history("yesterday", &found("a"));
    assert!(html.contains("yesterday is not a time") && html.contains("data-from=\"now-24h\""), "{html}");
    assert!(!history("now-1h", &found("a")).contains("is not a time"));
}

#[test]
fn ids_are_unique_and_no_code_is_inline() {
    for html in [history("now-1h", &found("a")), SITE.nothing(About::Stream, &Name::from("a")).unwrap()] {
        let all = ids(&html);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        for (tag, attributes) in tags(&html) {
            assert!(tag != "style" && (tag != "script" || attributes.iter().any(|(key, _)| key == "src")));
            for (key, value) in attributes {
                assert!(key != "style" && !key.starts_with("on"), "{key}={value}");
                assert!(key != "href" || value.starts_with(['/', '#', '?']), "it links to {value}");
            }
        }
    }
}

#[test]
fn names_are_found_by_bytes_and_by_series_text() {
    let snapshot = fleet_named(&[b"caf\xe9".to_vec(), b"caf\\xe8".to_vec()].into());
    let find = |name: &[u8]| Site::find(&snapshot, About::WorkerType, &Name::from(name));
    assert_eq!(find(b"caf\xe9"), Some(Name::from(&b"caf\xe9"[..])));
    assert_eq!(find(b"caf\\xe9"), Some(Name::from(&b"caf\xe9"[..])));
    assert_eq!(find(b"caf\\xe8"), Some(Name::from(&b"caf\\xe8"[..])));
    assert_eq!(find(b"cafe"), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn names_cannot_inject_html_into_history_pages(name in any_name()) {
        let plain = fleet_named(&[b"plain".to_vec()].into());
        let snapshot = fleet_named(&[name.clone()].into());
        let (name, other) = (Name::from(name), Name::from("plain"));
        let pages = |name: &Name, snapshot: &crate::fleet::snapshot::Snapshot| {
            let found = found(&name.to_text());
            let mut html = SITE.history(&asked("now-6h"), &found).unwrap();
            for about in [About::Stream, About::WorkerType] {
                html += &SITE.detail((about, name), snapshot, &asked("now-6h"), &found).unwrap();
                html += &SITE.nothing(about, name).unwrap();
            }
            vocabulary(&html)
        };
        let mut known = pages(&other, &plain);
        // Long names are shown with a `title` attribute.
        known.insert("@title".to_owned());
        let strange: Vec<String> = pages(&name, &snapshot).difference(&known).cloned().collect();
        prop_assert!(strange.is_empty(), "{strange:?}");
    }
}
