//! Named users: their tokens, what revokes them, and the sessions that end with them.

use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::{Client, StatusCode};
use serde_json::Value;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;

use super::{ADMIN, Ground, OPERATOR, SOON, VIEWER, client};
use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::proxy::Proxy;
use crate::support::wait::eventually;

const SECRET: &str = "9b7d1f0c64e2a85310fd7c42e6b98a05";
/// A revocation, or another role, is in effect.
const IN_EFFECT: Duration = Duration::from_secs(1);

struct Users {
    ground: Ground,
    client: Client,
}

impl Users {
    async fn new(more: &[(&str, &str)]) -> Self {
        let mut settings = vec![("MONITOR_SECRET_KEY", SECRET)];
        settings.extend(more);
        let ground = Ground::with_tokens(&settings).await;
        let users = Self { ground, client: client() };
        users.ground.takes_changes().await;
        users
    }

    /// Runs `shepherd-monitor` with these arguments; exit code, output and errors.
    fn run_with(&self, secret: &str, arguments: &[&str]) -> (i32, String, String) {
        let mut program = Command::new(env!("CARGO_BIN_EXE_shepherd-monitor"));
        program.args(arguments).env_clear().env("DATABASE_URL", self.ground._database.url());
        program.env("MONITOR_SECRET_KEY", secret).stdin(Stdio::null());
        let output = program.output().unwrap();
        let [printed, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code().unwrap(), printed, errors)
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        self.run_with(SECRET, arguments)
    }

    /// Output of a command that succeeds.
    fn does(&self, arguments: &[&str]) -> String {
        let (code, printed, errors) = self.run(arguments);
        assert_eq!(code, 0, "{arguments:?}: {errors}");
        printed
    }

    fn add(&self, name: &str, role: &str) -> String {
        self.does(&["users", "add", name, "--role", role]).trim().to_owned()
    }

    /// Status and body of a request.
    async fn get(&self, path: &str, token: &str) -> (StatusCode, String) {
        let request = self.client.get(self.ground.monitor.url(path)).bearer_auth(token);
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    async fn login(&self, token: &str) -> (StatusCode, Option<String>) {
        let request = self.client.post(self.ground.monitor.url("/login"));
        let form = format!("token={token}&name=eve&next=%2F");
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(form);
        let answer = request.send().await.unwrap();
        let cookie = answer.headers().get("set-cookie").map(|value| value.to_str().unwrap().to_owned());
        (answer.status(), cookie.map(|cookie| cookie.split(';').next().unwrap().to_owned()))
    }

    async fn status_of(&self, monitor: &Monitor, path: &str, cookie: &str) -> StatusCode {
        self.client.get(monitor.url(path)).header("cookie", cookie).send().await.unwrap().status()
    }

    /// Completes when a websocket of this session is closed.
    async fn websocket(&self, cookie: &str) -> impl Future<Output = ()> + use<> {
        self.websocket_with("cookie", cookie).await
    }

    async fn websocket_with(&self, header: &'static str, value: &str) -> impl Future<Output = ()> + use<> {
        let mut request = format!("ws://{}/ws", self.ground.monitor.address()).into_client_request().unwrap();
        request.headers_mut().insert(header, HeaderValue::from_str(value).unwrap());
        let mut socket = tokio_tungstenite::connect_async(request).await.unwrap().0;
        async move { while socket.next().await.is_some_and(|message| message.is_ok_and(|m| !m.is_close())) {} }
    }

    async fn audit(&self, show: &str) -> Vec<Value> {
        let (_, text) = self.get(&format!("/api/admin/audit?show={show}"), ADMIN).await;
        serde_json::from_str::<Value>(&text).unwrap()["changes"].as_array().unwrap().clone()
    }
}

#[tokio::test]
async fn a_token_has_the_role_and_the_name_of_its_user_and_ends_when_revoked() {
    let users = Users::new(&[]).await;
    let token = users.add("ci-deploy", "operator");
    assert!(token.starts_with("smtoken_") && token.len() == 73, "{token}");
    assert_eq!(users.get("/api/admin/audit", &token).await.0, StatusCode::OK);
    let cleanup = users.client.post(users.ground.monitor.url("/api/admin/cleanup")).bearer_auth(&token).send().await;
    let (status, why) = {
        let answer = cleanup.unwrap();
        (answer.status(), answer.text().await.unwrap())
    };
    assert!(status == StatusCode::FORBIDDEN && why.contains("ci-deploy has the role operator"), "{status} {why}");
    // The first digit of the secret.
    let wrong = format!("{}{}", &token[..25], token[25..].replacen(|_: char| true, "x", 1));
    for wrong in [&wrong, &token[..72], "smtoken_0123456789abcdef_0123456789abcdef0123456789abcdef0123456789abcdef"] {
        assert_eq!(users.get("/api/health", wrong).await.0, StatusCode::UNAUTHORIZED, "{wrong}");
    }
    let reload = users.client.post(users.ground.monitor.url("/-/reload")).bearer_auth(&token).send().await.unwrap();
    assert_eq!(reload.status(), StatusCode::OK);
    let changes = users.audit("changes").await;
    let who: Vec<(&str, &str)> =
        changes.iter().map(|row| (row["who"].as_str().unwrap(), row["action"].as_str().unwrap())).collect();
    assert_eq!(who[0], ("ci-deploy", "reload rules"), "{who:?}");
    assert_eq!(who[1].1, "add user");
    assert_eq!(changes[1]["parameters"]["user"], "ci-deploy");
    assert!(!changes[1].to_string().contains(&token[30..]), "the secret is recorded nowhere");

    users.does(&["users", "role", "ci-deploy", "viewer"]);
    tokio::time::sleep(IN_EFFECT).await;
    let (status, why) = users.get("/api/admin/audit", &token).await;
    assert!(status == StatusCode::FORBIDDEN && why.contains("ci-deploy has the role viewer"), "{status} {why}");

    let renewed = users.does(&["users", "renew", "ci-deploy"]);
    tokio::time::sleep(IN_EFFECT).await;
    assert_eq!(users.get("/api/health", &token).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(users.get("/api/health", renewed.trim()).await.0, StatusCode::OK);

    let closed = users.websocket_with("authorization", &format!("Bearer {}", renewed.trim())).await;
    users.does(&["users", "revoke", "ci-deploy"]);
    tokio::time::timeout(IN_EFFECT, closed).await.expect("its websockets close");
    assert_eq!(users.get("/api/health", renewed.trim()).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(users.get("/api/health", VIEWER).await.0, StatusCode::OK);
    assert_eq!(users.audit("changes").await[0]["action"], "revoke user");
}

#[tokio::test]
async fn the_sessions_of_a_user_follow_its_role_and_end_with_its_token() {
    let users = Users::new(&[]).await;
    let second = Monitor::start(&[
        ("MONITOR_AUTH", "token"),
        ("MONITOR_VIEWER_TOKEN", VIEWER),
        ("MONITOR_OPERATOR_TOKEN", OPERATOR),
        ("MONITOR_ADMIN_TOKEN", ADMIN),
        ("MONITOR_SECRET_KEY", SECRET),
        ("REDIS_URL", &users.ground._redis.url()),
        ("DATABASE_URL", &users.ground._database.url()),
    ])
    .await;
    let token = users.add("ann", "operator");
    let (status, cookie) = users.login(&token).await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    let cookie = cookie.unwrap();
    for monitor in [&users.ground.monitor, &second] {
        assert_eq!(users.status_of(monitor, "/api/admin/audit", &cookie).await, StatusCode::OK);
    }
    // Not the name that was entered.
    eventually("the login is recorded", SOON, || async {
        let rows = users.audit("security").await;
        rows.iter().any(|row| {
            (&row["action"], &row["who"], &row["role"]) == (&"logged in".into(), &"ann".into(), &"operator".into())
        })
    })
    .await;
    let sessions = users.does(&["sessions", "list"]);
    assert!(sessions.contains("ann  operator  login 20"), "{sessions}");

    let closed = users.websocket(&cookie).await;
    users.does(&["users", "role", "ann", "viewer"]);
    tokio::time::timeout(IN_EFFECT, closed).await.expect("its websockets close");
    for monitor in [&users.ground.monitor, &second] {
        assert_eq!(users.status_of(monitor, "/api/admin/audit", &cookie).await, StatusCode::FORBIDDEN);
        assert_eq!(users.status_of(monitor, "/api/health", &cookie).await, StatusCode::OK);
    }

    let closed = users.websocket(&cookie).await;
    users.does(&["users", "revoke", "ann"]);
    tokio::time::timeout(IN_EFFECT, closed).await.expect("its websockets close");
    for monitor in [&users.ground.monitor, &second] {
        assert_eq!(users.status_of(monitor, "/api/health", &cookie).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(users.does(&["sessions", "list"]), "No sessions.\n");
}

#[tokio::test]
async fn sessions_are_revoked_by_id_by_user_and_all_at_once() {
    let users = Users::new(&[]).await;
    let (ann, bo) = (users.add("ann", "viewer"), users.add("bo", "viewer"));
    let mut cookies = Vec::new();
    for token in [&ann, &ann, &ann, &bo, VIEWER] {
        cookies.push(users.login(token).await.1.unwrap());
    }
    let open = async || {
        let mut open = Vec::new();
        for cookie in &cookies {
            open.push(users.status_of(&users.ground.monitor, "/api/health", cookie).await == StatusCode::OK);
        }
        open
    };
    assert_eq!(open().await, [true; 5]);
    let sessions = users.does(&["sessions", "list"]);
    let shared = sessions.lines().find(|line| line.contains("eve (viewer token)")).expect("the name is not verified");
    let id = shared.split(' ').next().unwrap();
    assert_eq!(users.does(&["sessions", "revoke", "--id", id]), "Revoked 1 session.\n");
    tokio::time::sleep(IN_EFFECT).await;
    assert_eq!(open().await, [true, true, true, true, false]);
    let closed = users.websocket(&cookies[0]).await;
    assert_eq!(users.does(&["sessions", "revoke", "--user", "ann"]), "Revoked 3 sessions.\n");
    tokio::time::timeout(IN_EFFECT, closed).await.expect("its websockets close");
    assert_eq!(open().await, [false, false, false, true, false]);
    for (arguments, expected) in
        [(["--user", "ann"], "there is no such session"), (["--id", "0000"], "expected 12 hexadecimal digits or more")]
    {
        let (code, _, errors) = users.run(&[&["sessions", "revoke"], &arguments[..]].concat());
        assert!(code == 1 && errors.contains(expected), "{errors}");
    }
    assert_eq!(users.does(&["sessions", "revoke", "--all"]), "Revoked 1 session.\n");
    tokio::time::sleep(IN_EFFECT).await;
    assert_eq!(open().await, [false; 5]);
    let revocations: Vec<Value> = users.audit("changes").await.into_iter().take(3).collect();
    assert!(revocations.iter().all(|row| row["action"] == "revoke sessions"), "{revocations:?}");
    assert_eq!(revocations[1]["parameters"]["users"], serde_json::json!(["ann"]));
}

#[tokio::test]
async fn a_token_expires_and_the_answer_says_so() {
    let users = Users::new(&[]).await;
    let token = users.does(&["users", "add", "ann", "--role", "viewer", "--expires", "3s"]).trim().to_owned();
    let cookie = users.login(&token).await.1.unwrap();
    let closed = users.websocket(&cookie).await;
    tokio::time::timeout(Duration::from_secs(5), closed).await.expect("the session ends with the token");
    let (status, why) = users.get("/api/health", &token).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(why.contains("the token of ann expired") && why.contains("users renew ann"), "{why}");
    assert!(users.does(&["users", "list"]).contains("EXPIRED"));
}

#[tokio::test]
async fn rows_that_were_not_made_with_the_secret_key_are_no_users() {
    let users = Users::new(&[]).await;
    let token = users.add("ann", "viewer");
    let sql = users.ground._database.connect().await;
    sql.batch_execute("UPDATE monitor_users SET role = 'admin' WHERE name = 'ann'").await.unwrap();
    assert_eq!(users.get("/api/health", &token).await.0, StatusCode::UNAUTHORIZED);
    let listed = users.does(&["users", "list"]);
    assert!(listed.contains("INVALID: not written with this MONITOR_SECRET_KEY"), "{listed}");
    sql.batch_execute("UPDATE monitor_users SET role = 'viewer' WHERE name = 'ann'").await.unwrap();
    assert_eq!(users.get("/api/health", &token).await.0, StatusCode::OK);
    let other = "5a41c8e97b02d6f3a1c4e5b7d8f90213";
    let (code, _, errors) = users.run_with(other, &["users", "role", "ann", "admin"]);
    assert!(code == 1 && errors.contains("was not written with this MONITOR_SECRET_KEY"), "{errors}");
    let (code, printed, errors) = users.run_with(other, &["users", "add", "eve", "--role", "admin"]);
    assert_eq!(code, 0, "{errors}");
    assert_eq!(users.get("/api/health", printed.trim()).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn wrong_arguments_are_named() {
    let users = Users::new(&[]).await;
    users.add("ann", "viewer");
    for (arguments, expected) in [
        (&["users", "add", "ann", "--role", "viewer"][..], "there is a user ann: users renew ann replaces the token"),
        (&["users", "add", "bo", "--role", "root"], "expected viewer, operator or admin"),
        (&["users", "add", "bo (x)", "--role", "viewer"], "expected 1 to 64 letters, digits"),
        (&["users", "add", "bo", "--role", "viewer", "--expires", "99999d"], "at most 3660d"),
        (&["users", "revoke", "bo"], "there is no user bo"),
        (&["users", "renew", "bo"], "there is no user bo"),
    ] {
        let (code, printed, errors) = users.run(arguments);
        assert!(code != 0 && printed.is_empty() && errors.contains(expected), "{arguments:?}: {code} {errors}");
    }
    let (code, _, errors) = users.run_with("", &["users", "list"]);
    assert!(code == 1 && errors.contains("MONITOR_SECRET_KEY is not set"), "{errors}");
    let (code, _, errors) = users.run_with("short", &["users", "list"]);
    assert!(code == 1 && errors.contains("MONITOR_SECRET_KEY is \"(secret)\": expected 32 characters"), "{errors}");
}

#[tokio::test]
async fn a_password_may_be_the_token_of_a_user_and_no_shared_token_is_needed() {
    let ground = Ground::new(&[("MONITOR_BIND", "127.0.0.1")]).await;
    let database = ground._database.url();
    let basic = Monitor::start(&[
        ("MONITOR_AUTH", "basic"),
        ("MONITOR_SECRET_KEY", SECRET),
        ("REDIS_URL", &ground._redis.url()),
        ("DATABASE_URL", &database),
    ])
    .await;
    let users = Users { ground, client: client() };
    let token = users.add("ann", "admin");
    let ask = async |password: &str| {
        let request = users.client.post(basic.url("/-/reload")).basic_auth("eve", Some(password));
        request.send().await.unwrap().status()
    };
    assert_eq!(ask("wrong-0123456789-wrong").await, StatusCode::UNAUTHORIZED);
    assert_eq!(ask(&token).await, StatusCode::OK);
    let sql = users.ground._database.connect().await;
    let rows = sql.query("SELECT who FROM monitor_audit WHERE action = 'reload rules'", &[]).await.unwrap();
    let who: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(who, ["ann"]);
}

#[tokio::test]
async fn verified_tokens_are_accepted_while_postgres_is_unreachable() {
    let database = TestDatabase::create();
    let proxy = Proxy::to(database.port());
    let through = database.url_through(proxy.port());
    let ground = Ground::of(&[("MONITOR_SECRET_KEY", SECRET)], database, &through).await;
    let users = Users { ground, client: client() };
    users.ground.takes_changes().await;
    let (used, unused) = (users.add("ann", "viewer"), users.add("bo", "viewer"));
    assert_eq!(users.get("/api/health", &used).await.0, StatusCode::OK);
    proxy.cut();
    tokio::time::sleep(IN_EFFECT).await;
    assert_eq!(users.get("/api/health", &used).await.0, StatusCode::OK);
    let wrong = format!("{}{}", &used[..used.len() - 4], "0000");
    assert_eq!(users.get("/api/health", &wrong).await.0, StatusCode::UNAUTHORIZED);
    let (status, why) = users.get("/api/health", &unused).await;
    assert!(
        status == StatusCode::SERVICE_UNAVAILABLE && why.contains("the token cannot be verified"),
        "{status} {why}"
    );
}
