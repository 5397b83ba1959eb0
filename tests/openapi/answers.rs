//! Responses of a fully populated monitor, and the examples of the document and of docs/api.md.

use std::collections::BTreeMap;
use std::process::Stdio;

use futures_util::StreamExt as _;

use super::fixtures::{SOON, World};
use super::*;

/// A recorded response.
struct Given {
    operation: String,
    status: u16,
    media: String,
    body: Value,
}

/// Sends requests and records the responses.
struct Asker {
    api: Api,
    address: String,
    client: reqwest::Client,
    given: Vec<Given>,
    wrong: Vec<String>,
}

impl Asker {
    fn new(monitor: &Monitor) -> Self {
        crate::support::tls();
        let client = reqwest::Client::builder().timeout(SOON).build().unwrap();
        Self { api: Api::new(), address: monitor.url(""), client, given: Vec::new(), wrong: Vec::new() }
    }

    /// The operation of a URL.
    fn operation(&self, method: &str, address: &str) -> Operation {
        let path = address.split('?').next().unwrap();
        let fits = |pattern: &str| {
            let (pattern, path): (Vec<&str>, Vec<&str>) = (pattern.split('/').collect(), path.split('/').collect());
            pattern.len() == path.len()
                && pattern.iter().zip(path).all(|(pattern, part)| pattern.starts_with('{') || *pattern == part)
        };
        let mut all: Vec<Operation> = self.api.operations().filter(|o| o.method == method && fits(&o.path)).collect();
        // Literal segments take precedence over parameters.
        all.sort_by_key(|operation| operation.path.matches('{').count());
        all.into_iter().next().unwrap_or_else(|| panic!("{method} {address} is not told"))
    }

    fn take(&mut self, operation: &Operation, what: &str, status: u16, media: &str, body: &str) -> Value {
        let media = media.split(';').next().unwrap_or_default().trim().to_owned();
        let answer = serde_json::from_str(body).unwrap_or_else(|_| json!(body));
        if operation.told["responses"].get(status.to_string()).is_none() {
            self.wrong.push(format!("{what}: the answer {status} is not told: {body}"));
        }
        match operation.schema(status, &media) {
            Some(schema) => {
                let mistakes = self.api.mistakes(schema, &answer);
                if !mistakes.is_empty() {
                    self.wrong.push(format!("{what}: {mistakes:#?}\n{body:.2000}"));
                }
            }
            None if body.is_empty() => {}
            None => self.wrong.push(format!("{what}: {media} is not told for {status}")),
        }
        self.given.push(Given { operation: operation.id().to_owned(), status, media, body: answer.clone() });
        answer
    }

    async fn get(&mut self, address: &str) -> Value {
        let request = self.client.get(format!("{}{address}", self.address));
        self.ask("get", address, request).await
    }

    async fn post(&mut self, address: &str, body: Value) -> Value {
        let request = self.client.post(format!("{}{address}", self.address)).json(&body);
        self.ask("post", address, request).await
    }

    async fn ask(&mut self, method: &str, address: &str, request: reqwest::RequestBuilder) -> Value {
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let media = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
        let body = answer.text().await.unwrap();
        let operation = self.operation(method, address);
        self.take(&operation, &format!("{method} {address}"), status, &media.unwrap_or_default(), &body)
    }

    /// Runs the example of an operation in a shell.
    async fn example(&mut self, operation: &Operation, known: &BTreeMap<&str, String>) -> Value {
        let mut command = operation.sample().to_owned();
        for (example, real) in known {
            command = command.replace(example, real);
        }
        let output = shell(&command, &self.address).await;
        let (rest, head) = output.rsplit_once('\n').unwrap_or_else(|| panic!("{command}: {output}"));
        let (status, media) = head.split_once(' ').unwrap();
        let status: u16 = status.parse().unwrap_or_else(|_| panic!("{command}: {output}"));
        let body = if status == 101 { "" } else { rest };
        let answer = self.take(operation, &command, status, media, body);
        if ![101, 200].contains(&status) {
            self.wrong.push(format!("{command}: {output:.2000}"));
        }
        answer
    }
}

/// Output of a command with the monitor's address and a token in its environment. curl appends a line with status and
/// media type.
async fn shell(command: &str, address: &str) -> String {
    let folder = std::env::temp_dir().join(format!("shepherd-curl-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join(".curlrc"), "silent\nwrite-out = \"\\n%{http_code} %{content_type}\"\n").unwrap();
    let output = tokio::process::Command::new("sh")
        .args(["-c", command])
        .env("CURL_HOME", &folder)
        .env("MONITOR", address)
        .env("TOKEN", "viewer-0123456789")
        .stdin(Stdio::null())
        .output();
    let output = tokio::time::timeout(SOON, output).await.unwrap().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Fields that no response here has a value for, with the reason.
const NEED_NOT_BE_SEEN: [(&str, &str); 26] = [
    ("AbandonedQuery/properties/last_stream", "a query is abandoned whose task still stands in a stream"),
    ("Event/properties/unread_sec", "tasks failed while no monitor ran"),
    ("Event/properties/first_reading", "a monitor starts beside tasks that failed before"),
    ("Event/properties/entry", "the newest failure names its entry"),
    ("Event/properties/reason", "the newest failure says why"),
    ("Event/properties/count", "tasks fail while somebody looks"),
    ("Freshness/properties/error", "one figure of Postgres fails"),
    ("properties/write_error", "Redis or Postgres takes no writes"),
    ("Readiness/properties/redis_write_error", "Redis takes no writes"),
    ("Readiness/properties/postgres_write_error", "Postgres takes no writes"),
    ("SourceTrouble/properties/", "Postgres takes no writes"),
    ("Applied/properties/left_alone/properties/", "each reason is told alike, and one is seen"),
    ("Applied/properties/ended_early", "a source fails in the middle of it"),
    ("AbandonedQueries/properties/", "whichever pass comes first finds them"),
    ("Retention/properties/", "once a day, by whichever pass comes first"),
    ("GroupStatus/oneOf/3/", "a lag is not known, and more is undelivered than is counted"),
    ("GroupStatus/oneOf/4/", "Redis and everything else fail to say a lag"),
    ("Readiness/properties/reason", "an actor is down"),
    ("SourceStatus/oneOf/0/", "before the first answer"),
    ("StreamConsumer/properties/inactive_ms", "from Redis 7.2 on"),
    ("StreamOutcome/properties/error", "Redis fails in the middle of a pass"),
    ("SentSnapshot/properties/new_alerts", "an alert fires while somebody listens"),
    ("PassOutcome/properties/retry_after_sec", "during the first seconds after a start"),
    ("Reclaimed/properties/not_dropped/properties/", "something changes in the middle of it"),
    ("Reclaimed/properties/refused", "Redis refuses in the middle of it"),
    ("StreamConsumer/properties/phantom_pending", "somebody deleted an entry that was pending"),
];

#[tokio::test]
async fn responses_match_their_schemas_and_every_example_runs() {
    let mut world = World::new().await;
    let mut asker = Asker::new(&world.monitor);
    let now = "since=1795456800&until=1795460400";

    // Formats and states that the examples do not cover.
    let at = "/api/streams/aragorn.lookup/messages";
    for state in ["pending", "unread", "dead"] {
        asker.get(&format!("{at}?state={state}")).await;
    }
    let first = asker.get(&format!("{at}?limit=1")).await;
    assert!(first["next"].is_string(), "{first}");
    asker.get(&format!("{at}?id={}", first["messages"][0]["id"].as_str().unwrap())).await;
    asker.get("/api/streams/orders/messages?group=billing").await;
    let mut dropped_before = Value::Null;
    for (action, state, contains) in [("bury", "pending", "q-16"), ("drop", "dead", "q-16")] {
        let preview =
            asker.post(&format!("{at}/preview"), json!({"action": action, "state": state, "contains": contains})).await;
        assert_eq!(preview["messages"], 1, "{preview}");
        let applied = asker.post(&format!("{at}/apply"), json!({"token": preview["token"], "why": "a test"})).await;
        assert_eq!(applied["done"], 1, "{applied}");
        dropped_before = applied["batch"].clone();
    }
    // One message that disappears before apply, and one that is restored at once.
    let preview = asker.post(&format!("{at}/preview"), json!({"action": "drop", "state": "unread"})).await;
    let dropped = asker.post(&format!("{at}/apply"), json!({"token": preview["token"]})).await;
    let batch = dropped["batch"].as_str().unwrap().to_owned();
    asker.post("/api/admin/recycle_bin/restore", json!({"batch": batch})).await;
    let preview = asker.post("/api/streams/few/messages/preview", json!({"action": "drop", "state": "unread"})).await;
    world.run("DEL few").await;
    let applied = asker.post("/api/streams/few/messages/apply", json!({"token": preview["token"]})).await;
    assert!(applied["left_alone"]["gone"].as_u64() > Some(0), "{applied}");
    // Redis is out of memory and rejects writes.
    let preview = asker.post(&format!("{at}/preview"), json!({"action": "retry", "state": "pending"})).await;
    world.run("CONFIG SET maxmemory 1").await;
    let refused = asker.post(&format!("{at}/apply"), json!({"token": preview["token"]})).await;
    assert!(refused["refused"]["messages"].as_u64() > Some(0), "{refused}");
    asker.get("/api/admin/recycle_bin?limit=1").await;
    let refused = asker.post("/api/admin/recycle_bin/restore", json!({"batch": dropped_before})).await;
    assert!(refused["refused"]["messages"].as_u64() > Some(0), "{refused}");
    world.run("CONFIG SET maxmemory 500mb").await;
    let reclaimed = asker.post("/api/admin/reclaim_dead_consumers?min_idle_seconds=0", json!({})).await;
    assert!(reclaimed["by_stream"]["orders"].is_object(), "{reclaimed}");
    world.run("XADD aragorn.lookup * query_id q-17").await;
    world.run("XREADGROUP GROUP consumer gone COUNT 10 STREAMS aragorn.lookup >").await;
    asker.get("/api/admin/dead_consumers?min_idle_seconds=0").await;
    for path in [
        "metrics?metric=backlog:aragorn.lookup&",
        "metrics_by_prefix?prefix=x&",
        "latency?",
        "queries?",
        "events?",
        "incidents?",
    ] {
        for more in [now, &format!("{now}&format=csv")] {
            asker.get(&format!("/api/historical/{path}{more}")).await;
        }
    }
    asker.get("/api/historical/latency").await;
    asker.get("/api/historical/summary").await;
    asker.get("/api/historical/events").await;
    asker.get("/readyz").await;
    let tagged = asker.client.get(format!("{}/api/history", asker.address)).send().await.unwrap();
    let etag = tagged.headers()["etag"].to_str().unwrap().to_owned();
    let again = asker.client.get(format!("{}/api/history", asker.address)).header("if-none-match", etag);
    asker.ask("get", "/api/history", again).await;
    assert_eq!(asker.given.last().map(|given| given.status), Some(304));

    // Workers crash, shut down and restart; a data source is unreachable for a while.
    world.fleet.crash(&["arax"]).await;
    world.happens("consumers_lost").await;
    world.fleet.up(&["arax"]).await;
    world.fleet.leave("bte").await;
    world.happens("scale_up").await;
    asker.get("/api/snapshot").await;
    world.run("XACK sipr consumer 0-0").await;
    world.postgres.cut();
    let down = |s: &Value| s["postgres"]["source"]["status"] == "down";
    world.monitor.until("Postgres is away", SOON, down).await;
    asker.get("/api/snapshot").await;
    asker.get("/readyz?verbose=1").await;
    asker.get("/api/historical/summary").await;
    assert_eq!(asker.given.last().map(|given| given.status), Some(503));
    asker.post("/-/reload", json!({})).await;
    world.postgres.pass();
    world.happens("source_up").await;
    world.monitor.takes_orders().await;
    asker.get("/api/snapshot").await;

    // The examples in order: tokens, IDs and batches come from earlier responses.
    let mut known = BTreeMap::from([("6f8f3c0e-52a5-4f63-8f7b-0d6d7c1b9a10", batch)]);
    for operation in Api::new().operations() {
        let answer = asker.example(&operation, &known).await;
        for (field, example) in
            [("token", "1f0c6b1e-7f0e-4b7e-9d55-0c8f6a0d7e21"), ("silenced", "0b6dbe30-45c4-4f2e-9a3b-6d7f0c1e2a3b")]
        {
            if let Some(real) = answer[field].as_str() {
                known.insert(example, real.to_owned());
            }
        }
    }
    asker.get("/api/admin/audit?limit=100").await;
    asker.get("/api/admin/passes").await;

    // Messages of the websocket.
    let url = asker.address.replace("http://", "ws://") + "/ws";
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let message = socket.next().await.unwrap().unwrap().into_text().unwrap();
    let message: Value = serde_json::from_str(&message).unwrap();
    let schema = asker.operation("get", "/ws").told["x-message"].clone();
    asker.wrong.extend(asker.api.mistakes(&schema, &message));
    drop(socket);

    world.redis.cut();
    let down = |s: &Value| s["redis"]["source"]["status"] == "down";
    world.monitor.until("Redis is away", SOON, down).await;
    asker.get("/api/snapshot").await;
    asker.get("/api/alerts").await;
    world.redis.pass();
    let settling = |s: &Value| s["redis"]["source"]["status"] == "settling";
    world.monitor.until("Redis is back", SOON, settling).await;
    asker.get("/api/snapshot").await;

    assert!(asker.wrong.is_empty(), "{}", asker.wrong.join("\n"));
    every_field_was_seen_and_a_wrong_type_would_be_found(&asker, &message);
}

fn every_field_was_seen_and_a_wrong_type_would_be_found(asker: &Asker, message: &Value) {
    let api = &asker.api;
    let socket = asker.operation("get", "/ws");
    let mut answers: Vec<(Value, &Value)> = vec![(socket.told["x-message"].clone(), message)];
    for given in &asker.given {
        let operation = api.operations().find(|operation| operation.id() == given.operation);
        let schema = operation.and_then(|operation| operation.schema(given.status, &given.media).cloned());
        answers.extend(schema.map(|schema| (schema, &given.body)));
    }
    // First response and schema of each field.
    let mut seen: BTreeMap<String, &(Value, &Value)> = BTreeMap::new();
    for told in &answers {
        let mut found = BTreeSet::new();
        fields_in(api, &told.0, "", told.1, &mut found);
        for field in found {
            seen.entry(field).or_insert(told);
        }
    }
    let unseen: Vec<String> = all_fields(api)
        .into_iter()
        .filter(|field| !seen.contains_key(field) && !NEED_NOT_BE_SEEN.iter().any(|(part, _)| field.contains(part)))
        .collect();
    assert!(unseen.is_empty(), "no answer has a value for {unseen:#?}");
    let mut passed = Vec::new();
    for (field, (schema, answer)) in &seen {
        let mut broken = Api::new();
        // Responses with inlined schemas have no place in the document; named ones do.
        let Some(place) = broken.document.pointer_mut(field) else { continue };
        *place = json!({"not": {}});
        if broken.mistakes(schema, answer).is_empty() {
            passed.push(field);
        }
    }
    assert!(passed.is_empty(), "a wrong type is not found in {passed:#?}");
    assert!(seen.len() > 200, "{}", seen.len());
}

/// Fields of the older monitor: each keeps its name and type.
#[test]
fn fields_of_the_contract_keep_their_names_and_types() {
    let api = Api::new();
    let samples = [
        (
            "FiredAlerts",
            json!({"alerts": [{"ts": 1.5, "rule": "r", "severity": "critical", "detail": "d", "message": "m"}]}),
        ),
        (
            "Snapshot",
            json!({
                "ts": 1.5,
                "workers": {"a": {
                    "alive": 1, "stale": 0, "task_limit_total": 50, "state": "alive", "state_changed_at": 1.5,
                    "consumers": [{"consumer": "8ce80905", "started_at": 1.5, "last_seen": 2.5, "task_limit": 10, "stale": false}],
                    "last_seen_alive": 1.5, "last_alive_count": 5, "backlog": 50, "pending": 0, "capacity": 50, "utilization": 1.0,
                }},
                "streams": {"a": {
                    "xlen": 50, "pending": 0, "consumer_count": 5, "max_idle_ms": 115_643,
                    "consumers": [{"name": "3132e717", "pending": 1, "idle_ms": 115_643}],
                }},
                "postgres": {
                    "state_counts": {"QUEUED": 1}, "status_counts": {"OK": 1}, "queries_last_1h": 0, "queries_last_24h": 0,
                    "callbacks_pending": 0, "oldest_callback_age_sec": 0.0, "per_ara_24h": {"arax": 1}, "connection_count": 6,
                    "db_size_bytes": 3_629_235_559_u64, "wal_size_bytes": 1_073_741_824, "disk_capacity_bytes": 0,
                    "disk_used_bytes": 4_702_977_383_u64, "disk_used_pct": 0.0,
                },
                "redis": {
                    "used_memory_human": "1.80M", "used_memory_bytes": 1_891_920, "connected_clients": 9,
                    "instantaneous_ops_per_sec": 74, "uptime_in_seconds": 249,
                },
                "events": [{"type": "scale_down", "worker": "a", "from": 1, "to": 0, "kind": "crashed"}],
                "aras": ["aragorn"],
            }),
        ),
        ("RecentSamples", json!({"metric": "xlen:a", "samples": [[1.5, 2.0]]})),
        ("SeriesOver", json!({"series": {"xlen:a": [[1.5, 2.0]]}, "since": 1.5, "until": 2.5})),
        (
            "TaskTimesByStreamOver",
            json!({"series": {"a": [{
                "ts": 1.5, "count": 51, "mean_ms": 20.1, "p50_ms": 14.1, "p90_ms": 40.3, "p95_ms": 60.5, "p99_ms": 161.5,
                "min_ms": 2.0, "max_ms": 403.7,
            }]}}),
        ),
        (
            "Events",
            json!({"events": [{
                "id": 1, "ts": 1.5, "type": "scale_up", "worker": "a", "severity": "info", "detail": "d",
                "payload": {"to": 5, "from": 0, "recovered_from": "unknown"},
            }]}),
        ),
        (
            "Summary",
            json!({
                "since": 1.5, "until": 2.5, "queries_started": 0, "crashes": 0, "scale_events": 22, "alert_count": 1,
                "peak_backlog": {"a": 401}, "task_volume": {"a": 1036},
            }),
        ),
        (
            "Reclaimed",
            json!({
                "dry_run": true, "min_idle_seconds": 0, "dropped_messages": 0, "consumers_removed": 0,
                "by_stream": {"a": {"messages": 1, "consumers": 1}},
            }),
        ),
        ("Forgot", json!({"forgot": "a"})),
        ("Health", json!({"ok": true})),
    ];
    for (name, sample) in samples {
        let mut lenient = Api::new();
        forget_required(&mut lenient.document["components"]["schemas"]);
        let schema = json!({"$ref": format!("#/components/schemas/{name}")});
        assert_eq!(lenient.mistakes(&schema, &sample), Vec::<String>::new(), "{name}");
        assert!(!lenient.mistakes(&schema, &json!({"something": 1})).is_empty(), "{name} lets anything pass");
        assert!(api.named(name).is_object());
    }
}

fn forget_required(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("required").is_some_and(Value::is_array) {
                fields.shift_remove("required");
            }
            fields.values_mut().for_each(forget_required);
        }
        Value::Array(parts) => parts.iter_mut().for_each(forget_required),
        _ => {}
    }
}

#[tokio::test]
async fn the_scripts_of_the_documentation_run() {
    let manual = include_str!("../../docs/api.md");
    let scripts: Vec<&str> = manual.split("```sh\n").skip(1).map(|part| part.split("```").next().unwrap()).collect();
    assert!(scripts.len() > 3, "{}", scripts.len());
    let mut world = World::new().await;
    world.run("XADD aragorn.lookup * query_id q-17").await;
    let together = scripts.iter().filter(|script| !script.contains("export MONITOR")).copied().collect::<Vec<_>>();
    for script in together {
        let output = tokio::process::Command::new("bash")
            .args([
                "-euo",
                "pipefail",
                "-c",
                &format!("curl() {{ command curl -s --fail-with-body \"$@\"; }}\n{script}"),
            ])
            .env("MONITOR", world.monitor.url(""))
            .env("TOKEN", "viewer-0123456789")
            .output();
        let output = tokio::time::timeout(SOON, output).await.unwrap().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{script}\n{out}\n{err}");
    }
}
