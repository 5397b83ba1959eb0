//! Malicious clients: floods, unread responses, endless texts, unwatched streams, guessed sessions.

use std::collections::BTreeSet;
use std::time::Instant;

use futures_util::StreamExt;
use reqwest::Response;
use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Error as WebsocketError;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::*;
use crate::support::wait::eventually;

impl Ground {
    async fn post(&self, path: &str, body: Value) -> (u16, String) {
        let request = client().post(self.monitor.url(path)).bearer_auth(OPERATOR);
        let answer = request.header("content-type", "application/json").body(body.to_string()).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn get(&self, path: &str, token: &str) -> (u16, String) {
        let answer = client().get(self.monitor.url(path)).bearer_auth(token).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    fn resident_mb(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.monitor.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() / 1024.0
    }
}

#[tokio::test]
async fn a_flood_of_requests_without_bodies_neither_blocks_other_clients_nor_exhausts_descriptors() {
    const MOST: usize = 40;
    const FORM: &[u8] = b"POST /login HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\n\
        content-length: 1000\r\n\r\n";
    let ground = Ground::with_tokens(&[("MONITOR_MAX_CONNECTIONS_PER_ADDRESS", "40")]).await;
    let address = ground.monitor.address().to_owned();
    let flood: Vec<_> = (0..200)
        .map(|n| {
            let address = address.clone();
            tokio::spawn(async move {
                loop {
                    let Ok(mut stream) = TcpStream::connect(&address).await else { continue };
                    let begin: &[u8] = match n % 3 {
                        0 => FORM,
                        // Rejected at once, but the client keeps the connection open.
                        1 => b"POST /login HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n",
                        _ => b"G",
                    };
                    let _ = stream.write_all(begin).await;
                    let mut answer = [0; 512];
                    while stream.read(&mut answer).await.is_ok_and(|n| n > 0) {}
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut slowest = Duration::ZERO;
    // Another address than that of the flood.
    let honest = Client::builder().local_address(std::net::IpAddr::from([127, 0, 0, 2])).build().unwrap();
    for n in 0..20 {
        let begun = Instant::now();
        let answer = honest.get(ground.monitor.url("/api/snapshot")).bearer_auth(VIEWER).send().await;
        slowest = slowest.max(begun.elapsed());
        assert_eq!(answer.map(|answer| answer.status().as_u16()).ok(), Some(200), "request {n}");
    }
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    // In a burst up to twice the limit, two descriptors per connection, plus those of the monitor itself.
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", ground.monitor.pid())).unwrap().count();
    let few = || async { Some(descriptors()).filter(|open| *open <= 4 * MOST + 100).ok_or_else(descriptors) };
    eventually("there are few connections", SOON, few).await;
    flood.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Age of the oldest sample in [`with_a_long_history`], seconds: within the retention.
const BEGAN: u64 = 7200;

/// Start of the history, Unix seconds, rounded down to a minute.
fn began(ago: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    (now - ago) / 3600 * 3600
}

/// A monitor with so much history that a response with all of it would be large, and the time range.
async fn with_a_long_history() -> (Ground, String) {
    let ground = Ground::with_tokens(&[]).await;
    ground.takes_changes().await;
    let sql = ground._database.connect().await;
    let since = began(BEGAN);
    sql.batch_execute(&format!(
        "INSERT INTO monitor_metrics SELECT to_timestamp({since} + n * 30), 'backlog:stream-' || s, n % 100 + 0.123456
         FROM generate_series(0, 169) n, generate_series(1, 700) s"
    ))
    .await
    .unwrap();
    (ground, format!("since={since}&until={}", since + 5100))
}

#[tokio::test]
async fn responses_with_too_many_points_use_longer_buckets_or_are_rejected_with_a_remedy() {
    let (ground, window) = with_a_long_history().await;
    let all = format!("/api/historical/metrics_by_prefix?prefix=backlog:&minmax=1&{window}");
    let (status, why) = ground.get(&format!("{all}&bucket_seconds=30"), VIEWER).await;
    assert_eq!(status, 400, "{why}");
    for part in ["100000 points", "series", "buckets of 30 s", "bucket_seconds", "shorter window"] {
        assert!(why.contains(part), "{part} in {why}");
    }
    let (status, answer) = ground.get(&all, VIEWER).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let series = answer["series"].as_object().map(|series| series.len());
    assert_eq!((status, series, answer["bucket_seconds"].as_u64()), (200, Some(700), Some(60)));
}

#[tokio::test]
async fn clients_that_never_read_neither_exhaust_memory_nor_delay_changes() {
    let (ground, window) = with_a_long_history().await;
    let (before, address) = (ground.resident_mb(), ground.monitor.address().parse().unwrap());
    let request = format!(
        "GET /api/historical/metrics_by_prefix?prefix=backlog:stream-1&minmax=1&{window} HTTP/1.1\r\n\
         host: localhost\r\nauthorization: Bearer {VIEWER}\r\n\r\n"
    );
    let mut readers = Vec::new();
    for _ in 0..30 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        readers.push(stream);
    }
    for n in 0..5 {
        let begun = Instant::now();
        let (status, why) = ground.post("/-/reload", json!({})).await;
        assert!(status == 200 && begun.elapsed() < Duration::from_secs(8), "{n}: {status} {why} {:?}", begun.elapsed());
        assert_eq!(ground.get("/readyz", VIEWER).await.0, 200);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let grown = ground.resident_mb() - before;
    assert!(grown < 80.0, "{before} MB grew by {grown} MB");
    // Each got a response, or an explanation why not.
    for mut reader in readers {
        let mut head = [0; 12];
        let read = tokio::time::timeout(SOON, reader.read_exact(&mut head)).await;
        if matches!(read, Ok(Ok(_))) {
            let status = String::from_utf8_lossy(&head[9..12]).into_owned();
            assert!(["200", "429", "503"].contains(&status.as_str()), "{status}");
        }
    }
}

#[tokio::test]
async fn stored_and_searched_texts_are_bounded_and_errors_contain_the_limit() {
    let ground = Ground::with_tokens(&[]).await;
    ground.takes_changes().await;
    let silence = |rule: &str, reason: &str| json!({"rule": rule, "duration": "90d", "owner": "bo", "reason": reason});
    let long = |n: usize| "x".repeat(n);
    for (path, body, told) in [
        ("/api/silences", silence(&"?".repeat(201), ""), "201 characters; the limit is 200"),
        ("/api/silences", silence("x", &long(1025)), "reason has 1025 bytes: expected at most 1024"),
        (
            "/api/silences",
            json!({"rule": "x", "duration": format!("{}m", "0".repeat(99)), "owner": "bo"}),
            "duration has 100",
        ),
        ("/api/alerts/acknowledge", json!({"key": "x", "owner": "bo", "reason": long(5000)}), "reason has 5000 bytes"),
        (
            "/api/streams/s/messages/preview",
            json!({"action": "retry", "contains": long(257)}),
            "contains has 257 bytes: expected at most 256",
        ),
        ("/api/streams/s/messages/preview", json!({"action": "retry", "field": long(257)}), "field has 257 bytes"),
        ("/api/streams/s/messages/preview", json!({"action": "retry", "why": long(1025)}), "why has 1025 bytes"),
        ("/api/admin/dead_consumers/preview", json!({"action": "retry", "why": long(9999)}), "why has 9999 bytes"),
    ] {
        let (status, why) = ground.post(path, body).await;
        assert!(status == 400 && why.contains(told), "{path}: {status} {why}");
    }
    for (path, told) in [
        (format!("/api/streams/s/messages?contains={}", long(257)), "contains has 257 bytes"),
        (format!("/api/streams/s/messages?owner={}", long(2000)), "owner has 2000 bytes"),
        (format!("/api/streams/{}/messages", long(1025)), "stream has 1025 bytes"),
    ] {
        let (status, why) = ground.get(&path, OPERATOR).await;
        assert!(status == 400 && why.contains(told), "{status} {why}");
    }
    let client = client();
    let mut refused = None;
    for n in 0..=200 {
        let request = client.post(ground.monitor.url("/api/silences")).bearer_auth(OPERATOR);
        let body = silence(&format!("rule-{n}-*"), "").to_string();
        let answer = request.header("content-type", "application/json").body(body).send().await.unwrap();
        if answer.status() != 200 {
            refused = Some((n, answer.status().as_u16(), answer.text().await.unwrap()));
            break;
        }
    }
    let (n, status, why) = refused.unwrap();
    assert!((n, status) == (200, 400) && why.contains("200 silences are active: expected fewer than 200"), "{n} {why}");
}

#[tokio::test]
async fn operators_cannot_read_or_change_unwatched_streams() {
    let ground = Ground::with_tokens(&[("MONITOR_STREAMS", "s*"), ("MONITOR_STREAMS_EXCLUDE", "secret")]).await;
    ground.takes_changes().await;
    let mut redis = ground._redis.connection().await;
    for stream in ["s1", "other", "secret"] {
        crate::support::redis::run(&mut redis, &format!("XADD {stream} 1-1 field value")).await;
    }
    for (stream, expected) in [("s1", 200), ("other", 403), ("secret", 403)] {
        let (status, told) = ground.get(&format!("/api/streams/{stream}/messages?state=unread"), OPERATOR).await;
        assert_eq!(status, expected, "{stream}: {told}");
        assert!(expected == 200 || told.contains("MONITOR_STREAMS"), "{told}");
        assert_eq!(ground.get(&format!("/streams/{stream}/messages"), OPERATOR).await.0, expected, "{stream}");
        let preview = json!({"action": "retry", "state": "pending"});
        let (status, told) = ground.post(&format!("/api/streams/{stream}/messages/preview"), preview).await;
        assert_eq!(status == 403, expected == 403, "{stream}: {status} {told}");
    }
}

#[tokio::test]
async fn an_unwatched_worker_type_cannot_be_forgotten() {
    let ground = Ground::with_tokens(&[("MONITOR_STREAMS", "s*")]).await;
    ground.takes_changes().await;
    let mut redis = ground._redis.connection().await;
    crate::support::redis::run(&mut redis, "HSET worker:failures other 7").await;
    let request = client().post(ground.monitor.url("/api/admin/forget_worker?name=other")).bearer_auth(ADMIN);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    let failures: i64 = redis::cmd("HGET").arg(&["worker:failures", "other"]).query_async(&mut redis).await.unwrap();
    assert_eq!(failures, 7);
}

#[tokio::test]
async fn acknowledgements_are_bounded() {
    use shepherd_monitor::alerting::silences::Silence;
    use shepherd_monitor::postgres::{alerts, connection::pool, migrate};
    let database = TestDatabase::create();
    migrate::run(&database.url(), SOON).await.unwrap();
    let (pool, sql) = (pool(&database.url(), SOON).unwrap(), database.connect().await);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let acknowledge = async |alert: &str, n: u32| {
        let given = Silence {
            id: uuid::Uuid::new_v4().to_string(),
            rule: alert.to_owned(),
            subject: "*".to_owned(),
            owner: "bo".to_owned(),
            reason: format!("{n}"),
            starts: now - 100.0 + f64::from(n),
            until: now + 1e6,
            acknowledges: true,
        };
        alerts::silence(&pool, &given).await.unwrap();
    };
    for n in 0..20 {
        acknowledge("backlog_high:a", n).await;
    }
    let active = alerts::silences(&pool).await.unwrap();
    assert_eq!(active.iter().map(|one| one.reason.as_str()).collect::<Vec<_>>(), ["19"], "the last one replaces them");
    sql.batch_execute(
        "INSERT INTO monitor_silences (id, rule, subject, owner, reason, starts, until, acknowledges)
         SELECT gen_random_uuid(), 'rule:' || n, '*', 'bo', '', now() - interval '1 day', now() + interval '1 day', true
         FROM generate_series(1, 1500) n",
    )
    .await
    .unwrap();
    acknowledge("backlog_high:b", 0).await;
    let active = alerts::silences(&pool).await.unwrap();
    assert_eq!(active.len(), 1000);
    assert!(active.iter().any(|one| one.rule == "backlog_high:b"));
}

async fn login(ground: &Ground, token: &str) -> Response {
    let request = client().post(ground.monitor.url("/login"));
    let form = format!("token={token}&name=bo&next=%2F");
    request.header("content-type", "application/x-www-form-urlencoded").body(form).send().await.unwrap()
}

/// `name=value` of the session cookie.
fn cookie(answer: &Response) -> String {
    answer.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_logout_ends_the_session_at_once_and_closes_its_websockets() {
    let ground = Ground::with_tokens(&[]).await;
    let (client, mut ids) = (client(), BTreeSet::new());
    let (session, other) = (cookie(&login(&ground, VIEWER).await), cookie(&login(&ground, VIEWER).await));
    for cookie in [&session, &other] {
        let id = cookie.split_once('=').unwrap().1;
        assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "random bits alone: {id}");
        ids.insert(id.to_owned());
    }
    assert_eq!(ids.len(), 2, "nothing of the token is in it");
    let known = |cookie: String| {
        let request = client.get(ground.monitor.url("/api/health")).header("cookie", cookie);
        async move { request.send().await.unwrap().status() == 200 }
    };
    assert!(known(session.clone()).await && known(other.clone()).await);
    let socket = async |path: &str| {
        let mut request = format!("ws://{}{path}", ground.monitor.address()).into_client_request().unwrap();
        request.headers_mut().insert("cookie", HeaderValue::from_str(&session).unwrap());
        tokio_tungstenite::connect_async(request).await.unwrap().0
    };
    let sockets = [socket("/ws").await, socket("/live/ws?epoch=0&tick=0").await];
    let logout = client.post(ground.monitor.url("/logout")).header("cookie", &session).send().await.unwrap();
    assert_eq!(logout.status(), StatusCode::SEE_OTHER);
    assert!(!known(session).await && known(other).await);
    for mut socket in sockets {
        let closed = async { while socket.next().await.is_some_and(|message| message.is_ok_and(|m| !m.is_close())) {} };
        tokio::time::timeout(Duration::from_secs(1), closed).await.expect("closed within a second");
    }
}

#[tokio::test]
async fn a_session_is_no_oracle_for_tokens() {
    let ground = Ground::with_tokens(&[]).await;
    let session = cookie(&login(&ground, VIEWER).await);
    let audit = ground.monitor.url("/api/admin/audit");
    for token in [ADMIN, "a-wrong-guess-0123456789"] {
        let bearer = format!("Bearer {token}");
        let headers = [("cookie", session.as_str()), ("authorization", bearer.as_str())];
        assert_eq!(status(&client(), Method::GET, &audit, &headers).await, StatusCode::FORBIDDEN, "{token}");
    }
}

#[tokio::test]
async fn a_logout_ends_the_sessions_of_all_cookies_that_would_be_accepted() {
    let ground = Ground::with_tokens(&[]).await;
    let session = cookie(&login(&ground, VIEWER).await);
    let planted = format!("shepherd_session={}; {session}", "0".repeat(64));
    let url = ground.monitor.url("/api/health");
    assert_eq!(status(&client(), Method::GET, &url, &[("cookie", &planted)]).await, StatusCode::OK);
    let logout = status(&client(), Method::POST, &ground.monitor.url("/logout"), &[("cookie", &planted)]).await;
    assert_eq!(logout, StatusCode::SEE_OTHER);
    assert_eq!(status(&client(), Method::GET, &url, &[("cookie", &session)]).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_login_form_is_small() {
    let ground = Ground::with_tokens(&[]).await;
    assert_eq!(login(&ground, &"x".repeat(7000)).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(login(&ground, &"x".repeat(9000)).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn monitors_with_the_same_database_share_sessions() {
    let ground = Ground::with_tokens(&[]).await;
    ground.takes_changes().await;
    let (redis, database) = (ground._redis.url(), ground._database.url());
    let start = async |admin: &str| {
        Monitor::start(&[
            ("MONITOR_AUTH", "token"),
            ("MONITOR_VIEWER_TOKEN", VIEWER),
            ("MONITOR_OPERATOR_TOKEN", OPERATOR),
            ("MONITOR_ADMIN_TOKEN", admin),
            ("REDIS_URL", &redis),
            ("DATABASE_URL", &database),
        ])
        .await
    };
    let (second, changed) = (start(ADMIN).await, start("another-9876543210").await);
    let (client, session) = (client(), cookie(&login(&ground, VIEWER).await));
    let known = async |monitor: &Monitor| {
        let answer = client.get(monitor.url("/api/health")).header("cookie", &session).send().await.unwrap();
        answer.status() == 200
    };
    assert!(known(&ground.monitor).await && known(&second).await);
    assert!(!known(&changed).await, "a token was changed");
    let mut request = format!("ws://{}/ws", second.address()).into_client_request().unwrap();
    request.headers_mut().insert("cookie", HeaderValue::from_str(&session).unwrap());
    let mut socket = tokio_tungstenite::connect_async(request).await.unwrap().0;
    let logout = client.post(ground.monitor.url("/logout")).header("cookie", &session).send().await.unwrap();
    assert_eq!(logout.status(), StatusCode::SEE_OTHER);
    let closed = async { while socket.next().await.is_some_and(|message| message.is_ok_and(|m| !m.is_close())) {} };
    tokio::time::timeout(Duration::from_secs(2), closed).await.expect("closed at the other monitor");
    assert!(!known(&ground.monitor).await && !known(&second).await);
}

#[tokio::test]
async fn an_idle_session_ends() {
    let ground = Ground::with_tokens(&[("MONITOR_SESSION_IDLE_SEC", "3s")]).await;
    let session = cookie(&login(&ground, VIEWER).await);
    let known =
        || async { status(&client(), Method::GET, &ground.monitor.url("/api/health"), &[("cookie", &session)]).await };
    assert_eq!(known().await, StatusCode::OK);
    tokio::time::sleep(Duration::from_millis(4100)).await;
    assert_eq!(known().await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn with_https_the_cookie_is_host_only_and_hsts_is_sent() {
    let ground = Ground::with_tokens(&[("SERVER_URL", "https://fleet.example")]).await;
    let answer = login(&ground, VIEWER).await;
    let session = cookie(&answer);
    assert!(session.starts_with("__Host-shepherd_session="), "{session}");
    let url = ground.monitor.url("/api/health");
    assert_eq!(status(&client(), Method::GET, &url, &[("cookie", &session)]).await, StatusCode::OK);
    let plain = session.trim_start_matches("__Host-").to_owned();
    let answer_to_plain = status(&client(), Method::GET, &url, &[("cookie", &plain)]).await;
    assert_eq!(answer_to_plain, StatusCode::UNAUTHORIZED, "anybody on the way could have set it");
    let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(header("strict-transport-security").as_deref(), Some("max-age=31536000"));
    for name in ["cross-origin-opener-policy", "cross-origin-resource-policy"] {
        assert_eq!(header(name).as_deref(), Some("same-origin"), "{name}");
    }
    let by_http = Ground::with_tokens(&[]).await;
    assert!(login(&by_http, VIEWER).await.headers().get("strict-transport-security").is_none());
}

#[tokio::test]
async fn logins_and_denied_requests_are_logged_and_counted() {
    let ground = Ground::with_tokens(&[]).await;
    drop((login(&ground, VIEWER).await, login(&ground, "wrong-wrong-wrong-1").await));
    assert_eq!(ground.get("/api/admin/audit", VIEWER).await.0, 403);
    let metrics = eventually("metrics are written", SOON, || async {
        let (status, metrics) = ground.get("/metrics", VIEWER).await;
        (status == 200).then_some(metrics)
    })
    .await;
    for result in ["accepted", "wrong", "denied"] {
        let line = format!("shepherd_monitor_logins_total{{result=\"{result}\"}} 1");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    let log = ground.monitor.log();
    for said in ["logged in", "failed login", "request denied"] {
        assert!(log.contains(said), "{said} in {log}");
    }
}

#[tokio::test]
async fn non_text_bytes_in_forwarded_for_hide_no_address() {
    let ground = Ground::with_tokens(&[("MONITOR_AUTH", "basic"), ("MONITOR_PROXY_TRUSTED", "127.0.0.1")]).await;
    let client = client();
    eventually("a change is written down", SOON, || async {
        let change = client.post(ground.monitor.url("/-/reload")).basic_auth("bo", Some(ADMIN));
        let strange = HeaderValue::from_bytes(b"\xe9vil, 198.51.100.7").unwrap();
        drop(change.header("x-forwarded-for", strange).send().await.unwrap());
        let audit = client.get(ground.monitor.url("/api/admin/audit")).basic_auth("bo", Some(ADMIN));
        let audit = audit.send().await.unwrap().text().await.unwrap();
        assert!(!audit.contains("\"address\":\"127.0.0.1\""), "{audit}");
        audit.contains("\"address\":\"198.51.100.7\"")
    })
    .await;
}

/// A websocket with a viewer's token, of a client that a trusted proxy names.
async fn websocket(ground: &Ground, client: &str) -> Result<WebSocketStream<MaybeTlsStream<TcpStream>>, u16> {
    let mut request = format!("ws://{}/ws", ground.monitor.address()).into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("authorization", format!("Bearer {VIEWER}").parse().unwrap());
    headers.insert("x-forwarded-for", client.parse().unwrap());
    match tokio_tungstenite::connect_async(request).await {
        Ok((socket, _)) => Ok(socket),
        Err(WebsocketError::Http(answer)) => Err(answer.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn websockets_of_a_client_are_limited_behind_a_proxy_too() {
    let limited = [("MONITOR_PROXY_TRUSTED", "127.0.0.1"), ("MONITOR_MAX_CONNECTIONS_PER_ADDRESS", "3")];
    let ground = Ground::with_tokens(&limited).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(websocket(&ground, "203.0.113.7").await.unwrap());
    }
    assert_eq!(websocket(&ground, "203.0.113.7").await.err(), Some(429));
    let _other = websocket(&ground, "203.0.113.8").await.unwrap();
    open.pop();
    eventually("one that closed makes room", SOON, || async { websocket(&ground, "203.0.113.7").await.ok() }).await;
}

#[tokio::test]
async fn readers_of_the_page_and_of_metrics_do_not_delay_ticks() {
    let streams: Vec<String> = (0..200).map(|n| format!("stream-{n}")).collect();
    let seeds = streams.join(",");
    let ground = Ground::with_tokens(&[("MONITOR_SEED_STREAMS", &seeds)]).await;
    let mut watched = websocket(&ground, "").await.unwrap();
    let mut longest_gap = async |seconds: u64| {
        let (begun, mut last, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
        while begun.elapsed() < Duration::from_secs(seconds) {
            watched.next().await.unwrap().unwrap();
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        longest
    };
    longest_gap(2).await;
    let undisturbed = longest_gap(5).await;
    let urls = ["/metrics", "/", "/metrics?x"].map(|path| ground.monitor.url(path));
    let readers: Vec<_> = (0..150)
        .map(|n| {
            let (client, url) = (client(), urls[n % urls.len()].clone());
            tokio::spawn(async move {
                loop {
                    let _ = client.get(&url).bearer_auth(VIEWER).send().await;
                }
            })
        })
        .collect();
    longest_gap(2).await;
    let disturbed = longest_gap(10).await;
    for reader in readers {
        reader.abort();
    }
    eprintln!("longest gap between ticks: {undisturbed:?}, with readers {disturbed:?}");
    assert!(disturbed < undisturbed + Duration::from_millis(750), "{undisturbed:?}, with readers {disturbed:?}");
}

/// Measures the largest responses with 64 clients that never read.
#[tokio::test]
#[ignore = "measures for half a minute; run by name with --ignored --nocapture"]
async fn measure_64_clients_that_never_read() {
    let ground = Ground::with_tokens(&[]).await;
    ground.takes_changes().await;
    let sql = ground._database.connect().await;
    let since = began(26 * 3600);
    sql.batch_execute(&format!(
        "INSERT INTO monitor_metrics SELECT to_timestamp({since} + n * 30), 'backlog:stream-' || s, n % 100 + 0.123456
         FROM generate_series(0, 2999) n, generate_series(1, 33) s"
    ))
    .await
    .unwrap();
    let request = format!(
        "GET /api/historical/metrics_by_prefix?prefix=backlog:&minmax=1&since={since}&until={}&bucket_seconds=30 \
         HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {VIEWER}\r\n\r\n",
        since + 90_000
    );
    let (before, address) = (ground.resident_mb(), ground.monitor.address().parse().unwrap());
    let mut readers = Vec::new();
    for _ in 0..64 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        readers.push(stream);
    }
    let (mut most, mut slowest, begun) = (before, Duration::ZERO, Instant::now());
    while begun.elapsed() < Duration::from_secs(30) {
        let begun = Instant::now();
        assert_eq!(ground.post("/-/reload", json!({})).await.0, 200);
        assert_eq!(ground.get("/readyz", VIEWER).await.0, 200);
        slowest = slowest.max(begun.elapsed());
        most = most.max(ground.resident_mb());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    eprintln!("resident {before:.0} MB, at most {most:.0} MB; slowest change and readiness together {slowest:?}");
    assert!(most < 120.0, "{most} MB");
}
