//! The security log: logins, failures and denied requests leave a log line, a counter and a row, however many there are.

use serde_json::Value;
use shepherd_monitor::postgres::{audit_trail, connection};

use super::*;
use crate::support::wait::eventually;

const WRONG: &str = "wrong-0123456789";

impl Ground {
    async fn send(&self, path: &str, headers: &[(&str, &str)], body: &str) -> reqwest::Response {
        let mut request = client().post(self.monitor.url(path)).body(body.to_owned());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    async fn login_as(&self, name: &str, token: &str) -> reqwest::Response {
        let form = [("content-type", "application/x-www-form-urlencoded")];
        self.send("/login", &form, &format!("token={token}&name={name}&next=%2F")).await
    }
}

/// Lines of the security log of one kind.
fn lines(monitor: &Monitor, kind: &str) -> Vec<Value> {
    let all = monitor.log();
    let lines = all.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "security" && line["kind"] == kind).collect()
}

/// Rows of the audit log: kind, user, role, address, outcome and number of events.
async fn rows(ground: &Ground) -> Vec<(String, String, String, String, String, i64)> {
    let rows = "SELECT coalesce(parameters->>'kind', 'change'), who, role, address, outcome, \
        coalesce((parameters->>'count')::int8, 1) FROM monitor_audit ORDER BY id";
    let sql = ground._database.connect().await;
    let rows = sql.query(rows, &[]).await.unwrap_or_default();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4), row.get(5))).collect()
}

#[tokio::test]
async fn logins_denied_requests_and_changes_leave_a_line_a_counter_and_a_row() {
    let ground = Ground::with_tokens(&[("MONITOR_STREAMS", "s*")]).await;
    let admin = [("authorization", format!("Bearer {ADMIN}"))];
    let admin = [(admin[0].0, admin[0].1.as_str())];
    eventually("the tables are there", SOON, || async {
        ground.send("/-/reload", &admin, "").await.status().is_success()
    })
    .await;
    let entered = ground.login_as("bo%1B%5B2J", VIEWER).await;
    let cookie = entered.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let url = |path: &str| ground.monitor.url(path);
    assert_eq!(status(&client(), Method::GET, &url("/api/admin/audit"), &[("cookie", &cookie)]).await, 403);
    assert_eq!(ground.send("/logout", &[("cookie", &cookie)], "").await.status(), 303);
    // No credentials, another site, and a stream out of scope.
    assert_eq!(status(&client(), Method::GET, &url("/api/health"), &[]).await, 401);
    let foreign = [admin[0], ("origin", "https://evil.example")];
    assert_eq!(ground.send("/-/reload", &foreign, "").await.status(), 403);
    assert_eq!(status(&client(), Method::GET, &url("/api/streams/other/messages"), &admin).await, 403);
    for _ in 0..30 {
        ground.login_as("eve", WRONG).await;
    }

    let home = "127.0.0.1".to_owned();
    let row = |kind: &str, who: &str, role: &str, outcome: &str| {
        (kind.to_owned(), who.to_owned(), role.to_owned(), home.clone(), outcome.to_owned(), 1)
    };
    let bo = "bo\u{1b}[2J (viewer token)";
    let expected = [
        row("token_first_use", "admin token", "admin", "done"),
        row("login", bo, "viewer", "done"),
        row("denied", bo, "viewer", "refused"),
        row("logout", bo, "viewer", "done"),
        row("denied", "unknown", "none", "refused"),
        row("denied", "admin token", "admin", "refused"),
        row("failed_login", "eve", "none", "refused"),
    ];
    eventually("the rows are stored", SOON, || async {
        let found = rows(&ground).await;
        let missing: Vec<_> = expected.iter().filter(|row| !found.contains(row)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} in {found:?}")) }
    })
    .await;
    for (kind, who, role, ..) in &expected {
        let user = if who == "unknown" { "" } else { who };
        let lines = lines(&ground.monitor, kind);
        let is_it = |line: &&Value| line["user"] == user && line["role"] == role.as_str() && line["mode"] == "token";
        assert_eq!(lines.iter().filter(is_it).count(), 1, "{kind} of {who}: {lines:?}");
    }
    let reload = lines(&ground.monitor, "change");
    let change = reload.iter().find(|line| line["outcome"] == "done").unwrap();
    assert!(change["action"] == "reload rules" && change["row"].is_i64(), "{change}");
    assert!(change["head"].as_str().unwrap().parse::<shepherd_monitor::access::audit_chain::Head>().is_ok());

    let (_, metrics) = ground.get_as("/metrics", ADMIN).await;
    for (kind, count) in [("login", 1), ("logout", 1), ("failed_login", 30), ("denied", 4), ("token_first_use", 1)] {
        let line = format!("shepherd_monitor_security_events_total{{kind=\"{kind}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    // Changes are listed without them, unless asked for.
    let (_, listed) = ground.get_as("/api/admin/audit", ADMIN).await;
    assert!(listed.contains("reload rules") && !listed.contains("failed login"), "{listed}");
    let (_, listed) = ground.get_as("/api/admin/audit?show=security", ADMIN).await;
    assert!(!listed.contains("reload rules") && listed.contains("failed login"), "{listed}");
    let (status, page) = ground.get_as("/admin/audit?show=security", ADMIN).await;
    assert!(status == 200 && page.contains("failed login") && !page.contains('\u{1b}'), "{page}");
    // 20 failures of an address are an event.
    eventually("the event is stored", SOON, || async {
        let (_, events) = ground.get_as("/api/historical/events?type=failed_logins", ADMIN).await;
        let found: Value = serde_json::from_str(&events).unwrap_or_default();
        let details: Vec<&Value> = found["events"].as_array().into_iter().flatten().map(|e| &e["detail"]).collect();
        if details == ["20 failed logins from 127.0.0.1 within a minute"] { Ok(()) } else { Err(events) }
    })
    .await;

    // The repetitions are one row and one line; nothing is lost at the end.
    ground.monitor.send("TERM");
    eventually("the monitor ends", SOON, || async { !ground.monitor.is_running() }).await;
    let failed: Vec<i64> = rows(&ground).await.iter().filter(|row| row.0 == "failed_login").map(|row| row.5).collect();
    assert_eq!(failed, [1, 29]);
    let counts: Vec<Value> = lines(&ground.monitor, "failed_login").iter().map(|line| line["count"].clone()).collect();
    assert_eq!(counts, [1, 29]);
    let pool = connection::pool(&ground._database.url(), SOON).unwrap();
    assert!(audit_trail::verify(&pool, None).await.unwrap().is_ok());
}

impl Ground {
    async fn get_as(&self, path: &str, token: &str) -> (u16, String) {
        let answer = client().get(self.monitor.url(path)).bearer_auth(token).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }
}

#[tokio::test]
async fn without_postgres_the_log_lines_remain_and_no_request_waits() {
    let redis = TestRedis::start();
    let monitor = Monitor::start(&[
        ("REDIS_URL", &redis.url()),
        ("DATABASE_URL", "postgres://postgres@127.0.0.1:1/none"),
        ("MONITOR_AUTH", "token"),
        ("MONITOR_ADMIN_TOKEN", ADMIN),
    ])
    .await;
    let begun = std::time::Instant::now();
    let answer = client().get(monitor.url("/api/health")).bearer_auth(WRONG).send().await.unwrap();
    assert_eq!(answer.status(), 401);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let change = client().post(monitor.url("/-/reload")).bearer_auth(ADMIN).send().await.unwrap();
    assert_eq!(change.status(), 503);
    assert_eq!(lines(&monitor, "failed_login").len(), 1, "{}", monitor.log());
    let changes = lines(&monitor, "change");
    assert!(changes.len() == 1 && changes[0]["outcome"] == "rejected", "{changes:?}");
}
