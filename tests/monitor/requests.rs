//! Request IDs: in the response header, in the body of an error, and in the log.

use std::time::Duration;

use reqwest::{Client, Response};
use serde_json::Value;

use crate::support::monitor::Monitor;
use crate::support::wait::eventually;

/// Both are unreachable; these requests need neither.
const REDIS: (&str, &str) = ("REDIS_URL", "redis://127.0.0.1:1");
const POSTGRES: (&str, &str) = ("DATABASE_URL", "postgres://postgres@127.0.0.1:1/postgres");
const TOKEN: &str = "admin-0123456789";
const SOON: Duration = Duration::from_secs(10);

fn id(answer: &Response) -> &str {
    answer.headers()["x-request-id"].to_str().unwrap()
}

/// Returns the lines of the log as JSON; others are output of the program.
fn lines(monitor: &Monitor) -> Vec<Value> {
    monitor.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn is_of(line: &Value, id: &str) -> bool {
    line["spans"].as_array().is_some_and(|spans| spans.iter().any(|span| span["request_id"] == id))
}

/// Returns the lines logged for the request `id`, once there are any.
async fn lines_of(monitor: &Monitor, id: &str) -> Vec<Value> {
    eventually(&format!("{id} is in the log"), SOON, || async {
        let found: Vec<Value> = lines(monitor).into_iter().filter(|line| is_of(line, id)).collect();
        if found.is_empty() { Err(monitor.log()) } else { Ok(found) }
    })
    .await
}

#[tokio::test]
async fn responses_and_errors_contain_the_request_id() {
    let monitor = Monitor::start(&[REDIS, POSTGRES, ("MONITOR_ROOT_PATH", "/fleet")]).await;
    let client = Client::new();
    let mut seen = Vec::new();
    for (method, path, status) in [
        ("GET", "/livez", 200),
        ("GET", "/fleet/livez", 200),
        ("GET", "/login", 404),
        ("GET", "/assets/none", 404),
        ("GET", "/api/health", 200),
        ("HEAD", "/api/health", 200),
        ("GET", "/api/historical/events?limit=x", 400),
        ("GET", "/api/historical/summary", 503),
        ("POST", "/api/health", 405),
        ("GET", "/nothing/here", 404),
        ("DELETE", "/", 405),
    ] {
        let asked = client.request(method.parse().unwrap(), monitor.url(path));
        let answer = asked.send().await.unwrap();
        assert_eq!(answer.status(), status, "{method} {path}");
        let id = id(&answer).to_owned();
        assert_eq!(uuid::Uuid::parse_str(&id).unwrap().get_version_num(), 7, "{method} {path}: {id}");
        let is_problem = answer.headers().get("content-type").is_some_and(|t| t == "application/problem+json");
        let body = answer.text().await.unwrap();
        if is_problem {
            let problem: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(problem["request_id"], id, "{method} {path}: {body}");
        } else {
            assert!(status < 400, "{method} {path}: {body}");
        }
        seen.push(id);
    }
    let (_socket, answer) = tokio_tungstenite::connect_async(format!("ws://{}/ws", monitor.address())).await.unwrap();
    seen.push(answer.headers()["x-request-id"].to_str().unwrap().to_owned());
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all, "each has its own");
}

#[tokio::test]
async fn valid_request_ids_of_proxies_are_used_invalid_ones_not() {
    let monitor = Monitor::start(&[REDIS, POSTGRES]).await;
    let client = Client::new();
    let ask = async |given: &str| {
        let answer =
            client.get(monitor.url("/api/nothing")).header("x-request-id", given.as_bytes()).send().await.unwrap();
        let header = id(&answer).to_owned();
        let problem: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(problem["request_id"], header);
        header
    };
    let longest = "x".repeat(128);
    for given in ["abc", "Root=1-67891233-abcdef012345678912345678", longest.as_str()] {
        assert_eq!(ask(given).await, given);
    }
    for given in ["", "a b", &format!("{longest}x"), "\u{e4}"] {
        let header = ask(given).await;
        assert_eq!(uuid::Uuid::parse_str(&header).unwrap().get_version_num(), 7, "{given}: {header}");
    }
}

#[tokio::test]
async fn requests_are_logged_with_user_and_duration_without_secrets() {
    let settings = [REDIS, POSTGRES, ("MONITOR_AUTH", "token"), ("MONITOR_ADMIN_TOKEN", TOKEN)];
    let monitor = Monitor::start(&settings).await;
    let client = Client::new();
    let ask = async |path: &str, id: &str, token: &str| {
        let asked = client.get(monitor.url(path)).header("x-request-id", id).bearer_auth(token);
        asked.send().await.unwrap().status()
    };
    assert_eq!(ask("/livez", "probe-1", TOKEN).await, 200);
    ask("/readyz?verbose", "probe-2", TOKEN).await;
    // The first use of a token is logged as well.
    ask("/api/health", "first", TOKEN).await;
    assert_eq!(ask("/api/health?key=s3cret", "known", TOKEN).await, 200);
    assert_eq!(ask("/api/health?key=s3cret", "stranger", "wrong-0123456789").await, 401);
    let known = lines_of(&monitor, "known").await;
    let [line] = known.as_slice() else { panic!("{known:?}") };
    let text = |name: &str| line[name].as_str().unwrap_or_default();
    assert_eq!((text("method"), text("path"), text("caller")), ("GET", "/api/health", "admin token"), "{line}");
    assert_eq!((line["status"].as_u64(), text("level")), (Some(200), "DEBUG"), "{line}");
    assert!(line["took_ms"].is_u64(), "{line}");
    // Other lines have the ID too, such as a failed login.
    let stranger = eventually("the stranger's lines are there", SOON, || async {
        let found = lines_of(&monitor, "stranger").await;
        if found.len() == 2 { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await;
    assert_eq!((stranger[0]["message"].as_str(), stranger[0]["level"].as_str()), (Some("failed login"), Some("WARN")));
    assert_eq!((stranger[1]["status"].as_u64(), &stranger[1]["caller"]), (Some(401), &Value::Null));
    // The probes came first, and are not logged.
    let log = monitor.log();
    for absent in ["probe-1", "probe-2", "livez", "readyz", "s3cret", TOKEN, "wrong-0123456789"] {
        assert!(!log.contains(absent), "{absent} is in the log");
    }
}

#[tokio::test]
async fn warnings_have_the_request_id_at_every_log_level() {
    let settings = [REDIS, POSTGRES, ("LOG_LEVEL", "warn"), ("MONITOR_AUTH", "token"), ("MONITOR_ADMIN_TOKEN", TOKEN)];
    let monitor = Monitor::start(&settings).await;
    let client = Client::new();
    let asked = client.get(monitor.url("/api/health")).header("x-request-id", "abc").bearer_auth("wrong-0123456789");
    assert_eq!(asked.send().await.unwrap().status(), 401);
    let lines = lines_of(&monitor, "abc").await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["message"], "failed login");
}

#[tokio::test]
async fn lines_are_human_readable_on_a_terminal() {
    use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};

    let reaper = Reaper::start("shepherd-terminal", ShutdownSpec { signal: "TERM", epilogue: "" }).unwrap();
    let program = env!("CARGO_BIN_EXE_shepherd-monitor");
    let settings = "MONITOR_PORT=0 MONITOR_SPOOL_DIR=spool REDIS_URL=redis://127.0.0.1:1 \
                    DATABASE_URL=postgres://postgres@127.0.0.1:1/postgres";
    reaper.serve(&["script", "-qfec", &format!("exec env -i {settings} {program} serve"), "/dev/null"]).unwrap();
    let line = eventually("it logs", SOON, || async {
        let log = reaper.log_from(0);
        log.lines().find(|line| line.contains("WARN") || line.contains("INFO")).map(str::to_owned).ok_or(log)
    })
    .await;
    assert!(!line.starts_with('{') && line.contains("\u{1b}["), "{line:?}");
}
