//! `test-rules` on recorded data: three days of history, recent rows, and days without data.

use std::process::{Command, Output};

use serde_json::json;
use shepherd_monitor::postgres::history::{compaction, metrics};
use shepherd_monitor::postgres::{connection, migrate};

use super::*;

const RULES: &str = "
rules:
  - {name: backlog, type: threshold, metric: xlen, stream: arax, threshold: 500, duration: 60s, severity: critical}
  - {name: any_backlog, type: threshold, metric: xlen, stream: 'a*', threshold: 900}
  - {name: few_connections, type: threshold, metric: pg_connection_count, below: 5}
  - {name: slow, type: drain_time, stream: arax, threshold: 60}
  - {name: nobody, type: heartbeat_lost, worker: never.seen}
";

fn test_rules(arguments: &[&str], database: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shepherd-monitor"));
    command.arg("test-rules").args(arguments).env_clear().env("DATABASE_URL", database);
    command.output().unwrap()
}

fn unix() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

/// Three days of three series until now: arax exceeds 500 for ten minutes every day, on one day for longer, with
/// values above 900 in the middle; one hour of it was not recorded.
async fn filled(database: &TestDatabase) -> i64 {
    migrate::run(&database.url(), Duration::from_secs(10)).await.unwrap();
    let pool = connection::pool(&database.url(), Duration::from_secs(10)).unwrap();
    let now = unix() / 30 * 30;
    let mut ticks = Vec::new();
    for n in (0..3 * 2880_i64).rev() {
        let (at, into_day) = (now - n * 30, n % 2880);
        if (2880 + 1000..2880 + 1120).contains(&n) {
            continue;
        }
        let xlen = match into_day {
            1445..1455 => 950.0,
            1440..1460 => 700.0,
            100..102 => 600.0,
            _ => 20.0,
        };
        let series = [("xlen:arax", xlen), ("xlen:bte", 5000.0), ("pg:connection_count", 20.0)];
        ticks.push((at * 1_000_000, series.map(|(name, value)| (name.to_owned(), value)).into()));
    }
    for some in ticks.chunks(2000) {
        metrics::insert(&pool, some).await.unwrap();
    }
    while compaction::step(&pool, (now - 86_400) * 1_000_000).await.unwrap() > 0 {}
    now
}

#[tokio::test]
async fn rules_are_evaluated_on_recorded_data_and_firing_times_are_printed() {
    let ground = Ground::new();
    let now = filled(&ground.database).await;
    let file = ground.rules(RULES);
    let url = ground.database.url();

    let output = test_rules(&[&file, "--since", "4d", "--json"], &url);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |name: &str| told["rules"].as_array().unwrap().iter().find(|rule| rule["rule"] == name).unwrap().clone();
    // Ten minutes a day, firing after one minute; half a minute never fires.
    let backlog = of("backlog");
    let firings: Vec<[f64; 4]> = backlog["firings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| ["since", "fired", "lasted_sec", "worst"].map(|field| f[field].as_f64().unwrap()))
        .collect();
    let expected: Vec<[f64; 4]> = [2, 1, 0]
        .map(|day| {
            let since = (now - (day * 2880 + 1459) * 30) as f64;
            [since, since + 60.0, 540.0, 950.0]
        })
        .into();
    assert_eq!(firings, expected);
    assert!(backlog["firings"].as_array().unwrap().iter().all(|f| f["told"] == f["fired"]));
    let any = of("any_backlog");
    assert_eq!(any["firings"].as_array().unwrap().len(), 3, "of arax alone: {any}");
    assert_eq!(any["firings"][0]["subject"], "arax");
    assert_eq!(of("few_connections")["firings"], json!([]));
    assert_eq!(of("few_connections")["not_judged"], Value::Null);
    assert_eq!(of("slow")["not_judged"], "drain_seconds is not recorded, so this rule cannot be evaluated");
    assert_eq!(of("nobody")["not_judged"], "no recorded data for workers_alive of never.seen");
    let recorded = told["recorded_sec"].as_f64().unwrap() / 3600.0;
    assert!((70.9..71.2).contains(&recorded), "three days without the hour: {recorded}");

    let output = test_rules(&[&file, "--since", "4d"], &url);
    let text = String::from_utf8(output.stdout).unwrap();
    let row = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{text}"));
    assert!(text.contains("5 rules from "), "{text}");
    assert!(text.contains("2 would have fired, 6 times in total"), "{text}");
    assert_eq!(
        row("backlog ").split_whitespace().take(8).collect::<Vec<_>>().join(" "),
        "backlog critical 3 3 27 m 9 m"
    );
    assert!(row("slow ").ends_with("not recorded") && row("few_connections ").ends_with("never"), "{text}");
    assert!(text.contains("backlog: xlen of arax above 500 for 1 m"), "{text}");
    assert!(text.contains("  for 9 m  up to 950\n"), "{text}");

    // The last day contains one of them; a range without data is reported.
    let output = test_rules(&[&file, "--since", "1d"], &url);
    assert!(String::from_utf8(output.stdout).unwrap().contains("2 would have fired, 2 times in total"));
    let output = test_rules(&[&file, "--since", "30d", "--until", "20d"], &url);
    assert!(String::from_utf8(output.stdout).unwrap().contains("No data was recorded in this time range"));
}

#[tokio::test]
async fn errors_are_reported_with_exit_code_one() {
    let ground = Ground::new();
    let url = ground.database.url();
    let bad = ground.rules("rules:\n  - {name: x, type: treshold}");
    let output = test_rules(&[&bad], &url);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains(":2:21: type is \"treshold\""));
    let good = ground.rules(RULES);
    let output = test_rules(&[&good], "postgres://postgres@127.0.0.1:1/postgres?connect_timeout=1");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("cannot read the history"), "{told}");
    let output = test_rules(&[&good, "--since", "soon"], &url);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("expected a duration such as 30d"));
}
