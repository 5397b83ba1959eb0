//! The rules, the dashboard and the documentation name what there is, and nothing else.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;
use shepherd_monitor::exposition::catalogue::{ALL, Kind, Of};

use super::*;

fn file(name: &str) -> String {
    std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn dashboard() -> Value {
    serde_json::from_str(&file("deploy/grafana/shepherd-monitor.json")).unwrap()
}

/// Every expression of the dashboard, with values for its variables.
fn expressions() -> Vec<String> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut found: Vec<String> = targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    let asked = &dashboard["templating"]["list"][1]["query"]["query"];
    let asked = asked.as_str().unwrap().trim_start_matches("label_values(").trim_end_matches(')');
    let (metric, label) = asked.split_once(", ").unwrap();
    found.push(format!("group by ({label}) ({metric})"));
    found.iter().map(|e| e.replace("$__rate_interval", "5m").replace("$worker_type", ".*")).collect()
}

/// The metrics of ours that a text names; what it records itself has a colon.
fn named(text: &str) -> BTreeSet<String> {
    let word = |c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':';
    let ours = |word: &&str| word.starts_with("shepherd_monitor_") || word.starts_with("redis_stream");
    text.split(word).filter(ours).map(str::to_owned).collect()
}

/// The names in an answer of a monitor that watches a fleet with all there can be.
async fn there_are() -> BTreeSet<String> {
    let ground = Ground::new(&[]).await;
    let mut connection = ground.connection().await;
    for command in [
        "CONFIG SET maxmemory 200mb",
        "LPUSH monitor:task_durations:arax 40",
        "XGROUP CREATE waits g 0 MKSTREAM",
        "XADD waits * f v",
        "XADD arax * f v",
    ] {
        run(&mut connection, command).await;
    }
    let sql = ground._database.connect().await;
    eventually("a query is in the table", SOON, || async {
        let insert =
            "INSERT INTO shepherd_brain (qid, start_time, domain, state) VALUES ('q', now(), 'arax', 'QUEUED')";
        sql.batch_execute(insert).await
    })
    .await;
    let found = until(&ground.monitor, "all is there", |samples| {
        let of = |name| samples.iter().any(|sample| sample.name == name);
        of("shepherd_monitor_queries")
            && of("shepherd_monitor_task_duration_seconds_bucket")
            && of("shepherd_monitor_redis_memory_limit_bytes")
            && of("shepherd_monitor_postgres_disk_used_ratio")
            && of("shepherd_monitor_stream_oldest_waiting_seconds")
            && of("shepherd_monitor_alerts")
            && of("redis_stream_group_entries_read")
            && of("redis_stream_group_consumer_idle_seconds")
    })
    .await;
    found.into_iter().map(|sample| sample.name).collect()
}

#[tokio::test]
async fn every_metric_that_rules_and_dashboard_name_is_in_a_real_answer() {
    let there = there_are().await;
    let rules = file("deploy/prometheus/rules.yml");
    let in_rules: BTreeSet<String> =
        rules.lines().filter(|line| !line.trim().starts_with('#')).flat_map(named).collect();
    let in_dashboard: BTreeSet<String> = expressions().iter().flat_map(|e| named(e)).collect();
    assert!(in_rules.len() > 15 && in_dashboard.len() > 25, "{in_rules:?} {in_dashboard:?}");
    let missing: Vec<&String> =
        in_rules.union(&in_dashboard).filter(|name| !name.contains(':') && !there.contains(*name)).collect();
    assert!(missing.is_empty(), "{missing:?} of {there:?}");
    // And nothing is answered that the catalogue does not have.
    let ours: BTreeSet<String> = ALL
        .iter()
        .flat_map(|family| match family.kind {
            Kind::Histogram => ["_bucket", "_sum", "_count"].map(|ending| format!("{}{ending}", family.name)).to_vec(),
            _ => vec![family.name.to_owned()],
        })
        .collect();
    assert_eq!(there.difference(&ours).collect::<Vec<_>>(), Vec::<&String>::new());
    // Of all there can be, these alone were not to be had here.
    let absent: Vec<&String> = ours.difference(&there).collect();
    let may_be =
        ["shepherd_monitor_janitor_last_pass_timestamp_seconds", "shepherd_monitor_stream_group_lag_lower_bound"];
    assert!(absent.iter().all(|name| may_be.contains(&name.as_str())), "{absent:?}");
}

#[test]
fn promtool_accepts_the_rules_and_they_fire_when_they_should() {
    let said = promtool(&["check", "rules", "--lint-fatal", "deploy/prometheus/rules.yml"], "").unwrap();
    assert!(said.contains("SUCCESS"), "{said}");
    let said = promtool(&["test", "rules", "deploy/prometheus/rules_test.yml"], "").unwrap();
    assert!(said.contains("SUCCESS"), "{said}");
}

#[test]
fn the_dashboard_is_whole_and_promtool_understands_its_expressions() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
    assert_eq!(dashboard["uid"], "shepherd-monitor");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
    }
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (n, expression) in expressions().iter().enumerate() {
        _ = writeln!(rules, "  - record: a:b{n}:c\n    expr: {}", serde_json::to_string(expression).unwrap());
    }
    let folder = folder();
    let file = folder.folder().join("rules.yml");
    let check = |rules: &str| {
        std::fs::write(&file, rules).unwrap();
        promtool(&["check", "rules", file.to_str().unwrap()], "")
    };
    check(&rules).unwrap();
    // It would notice.
    check(&rules.replacen("sum(", "sum((", 1)).unwrap_err();
}

#[test]
fn the_documentation_has_a_row_for_each_family() {
    let mut table = "| name | type | labels | scope | meaning |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for family in ALL {
        let kind = format!("{:?}", family.kind).to_lowercase();
        let of = match family.of {
            Of::Fleet => "fleet",
            Of::Share => "share",
            Of::Monitor => "monitor",
        };
        _ = writeln!(table, "| `{}` | {kind} | {} | {of} | {} |", family.name, family.labels.join(", "), family.help);
    }
    let documentation = file("docs/prometheus.md");
    assert!(documentation.contains(&table), "docs/prometheus.md should have this table:\n{table}");
}
