//! All client errors have one format: RFC 9457, with stable types.

use std::time::Duration;

use reqwest::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

const VIEWER: &str = "viewer-0123456789";
const OPERATOR: &str = "operator-0123456789";

struct Ground {
    monitor: Monitor,
    api: Api,
    client: reqwest::Client,
    _redis: TestRedis,
    _database: TestDatabase,
}

impl Ground {
    async fn new(more: &[(&str, &str)]) -> Self {
        let (redis, database) = (TestRedis::start(), TestDatabase::create());
        let (redis_url, database_url) = (redis.url(), database.url());
        let mut settings = vec![("REDIS_URL", redis_url.as_str()), ("DATABASE_URL", database_url.as_str())];
        settings.extend(more);
        let monitor = Monitor::start(&settings).await;
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { monitor, api: Api::new(), client, _redis: redis, _database: database }
    }

    /// Sends a request, checks status and type of the problem, and returns its detail.
    async fn problem(&self, what: &str, request: reqwest::RequestBuilder, status: u16, kind: &str) -> String {
        let answer = request.send().await.unwrap();
        let media = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
        let (got, body) = (answer.status().as_u16(), answer.text().await.unwrap());
        self.is_problem(what, got, media.as_deref().unwrap_or_default(), &body, status, kind)
    }

    fn is_problem(&self, what: &str, got: u16, media: &str, body: &str, status: u16, kind: &str) -> String {
        assert_eq!((got, media), (status, "application/problem+json"), "{what}: {body}");
        let told: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{what}: {error}: {body}"));
        let schema = json!({"$ref": "#/components/schemas/Problem"});
        assert_eq!(self.api.mistakes(&schema, &told), Vec::<String>::new(), "{what}: {body}");
        assert_eq!(told["type"], format!("urn:shepherd-monitor:problem:{kind}"), "{what}: {body}");
        assert_eq!(told["status"], status, "{what}");
        told["detail"].as_str().unwrap().to_owned()
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, self.monitor.url(path))
    }

    /// Response to a raw request that no HTTP client would send: status, media type and body.
    async fn raw(&self, head: &[u8]) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.monitor.address()).await.unwrap();
        stream.write_all(head).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let media = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-type: ").map(str::to_owned));
        (status, media.unwrap_or_default(), body.to_owned())
    }
}

#[tokio::test]
async fn errors_about_invalid_requests_contain_the_expected_value() {
    let ground = Ground::new(&[]).await;
    ground.monitor.takes_orders().await;
    // Queries: each parameter with limits, and a repeated parameter.
    for (path, names) in [
        ("/api/alerts?limit=0", "limit"),
        ("/api/alerts?limit=201", "limit"),
        ("/api/alerts?limit=5&limit=6", "limit"),
        ("/api/history/xlen:a?since=soon", "since"),
        ("/api/historical/metrics", "metric"),
        ("/api/historical/metrics?metric=a&bucket_seconds=0", "bucket_seconds"),
        ("/api/historical/metrics?metric=a&minmax=2", "minmax"),
        ("/api/historical/metrics?metric=a&since=1&since=2", "since"),
        ("/api/historical/metrics_by_prefix?prefix=", "prefix"),
        ("/api/historical/latency?streams=", "streams"),
        ("/api/historical/queries?format=xml", "format"),
        ("/api/historical/events?type=nonsense", "type"),
        ("/api/historical/events?limit=5001", "limit"),
        ("/api/historical/incidents?since=9&until=5", "since"),
        ("/api/historical/summary?since=9&until=5", "since"),
        ("/api/admin/passes?limit=501", "limit"),
        ("/api/admin/audit?limit=501", "limit"),
        ("/api/admin/audit?before=x", "before"),
        ("/api/admin/audit?show=x", "show"),
        ("/api/admin/recycle_bin?batch=x", "batch"),
        ("/api/admin/recycle_bin?state=x", "state"),
        ("/api/admin/dead_consumers?min_idle_seconds=-1", "min_idle_seconds"),
        ("/api/streams/a/messages?state=x", "state"),
        ("/api/streams/a/messages?id=x", "id"),
        ("/api/streams/a/messages?limit=201", "limit"),
    ] {
        let detail = ground.problem(path, ground.request(Method::GET, path), 400, "bad-request").await;
        assert!(detail.contains(names), "{path}: {detail}");
    }
    // Bodies: invalid JSON, JSON of another shape, invalid values; then the same as forms.
    let json = |path: &str, body: &str| {
        ground.request(Method::POST, path).header("content-type", "application/json").body(body.to_owned())
    };
    for (path, body, names) in [
        ("/api/silences", "{", "EOF"),
        ("/api/silences", "[1]", "invalid"),
        ("/api/silences", r#"{"rule": "a", "duration": "1h"}"#, "owner"),
        ("/api/silences", r#"{"rule": "a", "duration": "soon", "owner": "bo"}"#, "duration"),
        ("/api/silences", r#"{"rule": 5, "duration": "1h", "owner": "bo"}"#, "invalid type"),
        ("/api/alerts/acknowledge", r#"{"key": "none", "owner": "bo"}"#, "none"),
        ("/api/alerts/acknowledge", "\u{0}", "expected value"),
        ("/api/streams/a/messages/preview", "[]", "JSON object"),
        ("/api/streams/a/messages/preview", r#"{"action": "eat"}"#, "action"),
        ("/api/streams/a/messages/preview", r#"{"action": {"a": 1}}"#, "action"),
        ("/api/streams/a/messages/apply", "{}", "token"),
        ("/api/streams/a/messages/apply", r#"{"token": "x"}"#, "token"),
        ("/api/admin/dead_consumers/preview", r#"{"action": "retry", "min_idle_seconds": "x"}"#, "min_idle_seconds"),
        ("/api/admin/recycle_bin/restore", r#"{"id": ["x"]}"#, "id"),
        ("/api/admin/recycle_bin/restore", "{}", "batch"),
        ("/api/admin/forget_worker", "{}", "name"),
        ("/api/admin/reclaim_dead_consumers?dry_run=maybe", "{}", "dry_run"),
    ] {
        let detail = ground.problem(body, json(path, body), 400, "bad-request").await;
        assert!(detail.contains(names), "{path} {body}: {detail}");
    }
    let form = |path: &str, body: &str| {
        let request = ground.request(Method::POST, path).header("content-type", "application/x-www-form-urlencoded");
        request.body(body.to_owned())
    };
    for (path, body, names) in [
        ("/api/silences", "rule=a", "duration"),
        ("/api/silences", "rule=a&rule=b&duration=1h&owner=bo", "rule"),
        ("/api/alerts/acknowledge", "", "key"),
        ("/api/streams/a/messages/preview", "action=eat", "action"),
        ("/api/admin/forget_worker", "", "name"),
    ] {
        let detail = ground.problem(body, form(path, body), 400, "bad-request").await;
        assert!(detail.contains(names), "{path} {body}: {detail}");
    }
    // Some routes read other media types as JSON, others reject them.
    let text = ground.request(Method::POST, "/api/silences").header("content-type", "text/plain").body("hello");
    ground.problem("text", text, 400, "bad-request").await;
    // Too large for every route.
    let long = "x".repeat(300 << 10);
    for path in ["/api/silences", "/api/alerts/acknowledge", "/api/streams/a/messages/preview"] {
        ground.problem(path, json(path, &format!("{{\"rule\": \"{long}\"}}")), 413, "too-large").await;
    }
    for path in ["/api/silences", "/api/streams/a/messages/preview", "/api/admin/forget_worker"] {
        ground.problem(path, form(path, &format!("rule={long}")), 413, "too-large").await;
    }
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods_are_problems() {
    let ground = Ground::new(&[("MONITOR_ROOT_PATH", "/m")]).await;
    for root in ["", "/m"] {
        let at = |path: &str| format!("{root}{path}");
        for path in ["/api/", "/api/nothing", "/api/snapshot/", "/api/historical", "/ws/", "/-/", "/metrics/x"] {
            let path = at(path);
            ground.problem(&path, ground.request(Method::GET, &path), 404, "not-found").await;
        }
        let silence = at("/api/silences/%FF%00/end");
        ground.problem(&silence, ground.request(Method::POST, &silence), 404, "not-found").await;
        for (method, path) in [
            (Method::POST, "/api/snapshot"),
            (Method::PUT, "/api/alerts"),
            (Method::DELETE, "/api/silences"),
            (Method::GET, "/api/silences"),
            (Method::OPTIONS, "/api/admin/cleanup"),
            (Method::PATCH, "/-/reload"),
            (Method::GET, "/-/reload"),
            (Method::POST, "/ws"),
            (Method::TRACE, "/api/health"),
        ] {
            let path = at(path);
            ground.problem(&path, ground.request(method, &path), 405, "wrong-method").await;
        }
        // Unsupported encoding.
        let path = at("/api/health");
        let strange = ground.request(Method::GET, &path).header("accept-encoding", "zstd, identity;q=0");
        ground.problem("406", strange, 406, "not-acceptable").await;
        // A page of another site.
        let path = at("/-/reload");
        let foreign = ground.request(Method::POST, &path).header("origin", "https://evil.example");
        ground.problem("403", foreign, 403, "forbidden").await;
    }
    // Invalid handshakes.
    for (headers, status, kind) in [
        (&[][..], 400, "bad-request"),
        (&[("upgrade", "websocket")], 400, "bad-request"),
        (&[("upgrade", "websocket"), ("connection", "upgrade")], 400, "bad-request"),
        (&[("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-version", "13")], 400, "bad-request"),
        (
            &[
                ("upgrade", "websocket"),
                ("connection", "upgrade"),
                ("sec-websocket-version", "1"),
                ("sec-websocket-key", "eA=="),
            ],
            426,
            "upgrade-required",
        ),
    ] {
        let mut head = "GET /ws HTTP/1.1\r\nhost: localhost\r\n".to_owned();
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !head.contains("connection") {
            head.push_str("connection: close\r\n");
        }
        head.push_str("\r\n");
        let mut stream = TcpStream::connect(ground.monitor.address()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let (got, media, body) = read_one(&mut stream).await;
        ground.is_problem(&format!("{headers:?}"), got, &media, &body, status, kind);
    }
    // Paths and queries that are not text.
    for (path, status, kind) in [
        (&b"/api/history/%ff%fe"[..], 200, ""),
        (b"/api/streams/%ff/messages?state=%ff", 400, "bad-request"),
        (b"/api/alerts?limit=%ff", 400, "bad-request"),
        (b"/api/%ff", 404, "not-found"),
        (b"/api/%", 404, "not-found"),
        (b"/api/%zz?%", 404, "not-found"),
        (b"//api//", 404, "not-found"),
        (b"/api/../api/nothing", 404, "not-found"),
    ] {
        let head = [b"GET ", path, b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"].concat();
        let (got, media, body) = ground.raw(&head).await;
        let what = String::from_utf8_lossy(path).into_owned();
        if status == 200 {
            assert_eq!(got, 200, "{what}: {body}");
        } else {
            ground.is_problem(&what, got, &media, &body, status, kind);
        }
    }
}

/// One response on an open connection.
async fn read_one(stream: &mut TcpStream) -> (u16, String, String) {
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let field = |name: &str| {
                head.lines().find_map(|line| line.to_lowercase().strip_prefix(name).map(|rest| rest.trim().to_owned()))
            };
            let length: usize = field("content-length:").and_then(|length| length.parse().ok()).unwrap_or(0);
            if body.len() >= length {
                let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                return (status, field("content-type:").unwrap_or_default(), body.to_owned());
            }
        }
        let mut some = [0; 4096];
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut some)).await.unwrap().unwrap();
        assert!(read > 0, "it ended: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&some[..read]);
    }
}

#[tokio::test]
async fn every_operation_reports_missing_permissions() {
    let ground = Ground::new(&[
        ("MONITOR_AUTH", "token"),
        ("MONITOR_VIEWER_TOKEN", VIEWER),
        ("MONITOR_OPERATOR_TOKEN", OPERATOR),
        ("MONITOR_ADMIN_TOKEN", "admin-0123456789"),
    ])
    .await;
    let mut seen = (0, 0);
    for operation in Api::new().operations() {
        let method = if operation.method == "get" { Method::GET } else { Method::POST };
        let path = operation.path.replace("{name}", "a").replace("{id}", "b").replace("{series}", "c");
        let role = operation.told["security"][0]["bearer"][0].as_str();
        let Some(role) = role else {
            assert_ne!(ground.request(method, &path).send().await.unwrap().status(), 401, "{path}");
            continue;
        };
        let what = format!("{method} {path}");
        ground.problem(&what, ground.request(method.clone(), &path), 401, "unauthorized").await;
        seen.0 += 1;
        let less = match role {
            "operator" => VIEWER,
            "admin" => OPERATOR,
            _ => continue,
        };
        let asked = ground.request(method, &path).bearer_auth(less);
        let detail = ground.problem(&what, asked, 403, "forbidden").await;
        assert!(detail.contains(role), "{what}: {detail}");
        seen.1 += 1;
    }
    assert!(seen.0 > 30 && seen.1 > 15, "{seen:?}");
    ground.problem("why", ground.request(Method::GET, "/readyz?verbose"), 401, "unauthorized").await;
    for n in 0..=100 {
        let wrong = ground.request(Method::GET, "/api/snapshot").bearer_auth("wrong-0123456789");
        if n < 100 {
            assert_eq!(wrong.send().await.unwrap().status(), 401);
        } else {
            ground.problem("too many", wrong, 429, "too-many").await;
        }
    }
}

#[tokio::test]
async fn an_unreachable_data_source_is_a_problem() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (redis, database) = (format!("redis://127.0.0.1:{gone}"), format!("postgres://postgres@127.0.0.1:{gone}/x"));
    let ground = Ground::new(&[("REDIS_URL", &redis), ("DATABASE_URL", &database)]).await;
    for operation in Api::new().operations() {
        let Some(when) = operation.told["responses"]["503"]["description"].as_str() else { continue };
        let (method, path) = (operation.method.as_str(), operation.path.as_str());
        // The snapshot and metrics remain available; an unknown worker type is a 404; the probe has its own format; and
        // an acknowledgement is validated before it needs a data source.
        if ["/api/snapshot", "/metrics", "/api/autoscale/{name}", "/readyz", "/api/alerts/acknowledge"].contains(&path)
        {
            continue;
        }
        let query: Vec<(&str, String)> = operation.told["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|parameter| parameter["in"] == "query" && !parameter["example"].is_null())
            .map(|parameter| {
                let example = &parameter["example"];
                (
                    parameter["name"].as_str().unwrap(),
                    example.as_str().map_or_else(|| example.to_string(), str::to_owned),
                )
            })
            .collect();
        let path = path
            .replace("{name}", "a")
            .replace("{series}", "c")
            .replace("{id}", "0b6dbe30-45c4-4f2e-9a3b-6d7f0c1e2a3b");
        let query = query.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
        let mut request = ground.request(method.to_uppercase().parse().unwrap(), &format!("{path}?{query}"));
        let body = &operation.told["requestBody"]["content"]["application/json"]["example"];
        if !body.is_null() {
            request = request.json(body);
        }
        ground.problem(&format!("{method} {path} ({when})"), request, 503, "unavailable").await;
    }
}
