//! Login by OpenID Connect, at a real provider and at one that sends forged, expired and foreign tokens.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::{Client, Response, Url};
use serde_json::{Value, json};
use shepherd_monitor::demo::servers::HeldPort;
use thirtyfour::prelude::*;

use super::{ADMIN, SOON, client};
use crate::support::browser::Browser;
use crate::support::identity_provider::{RealProvider, ScriptedProvider, SigningKey, unsigned};
use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::TestRedis;
use crate::support::wait::eventually;

const SECRET: &str = "9b7d1f0c64e2a85310fd7c42e6b98a05";

/// A monitor at which users of an identity provider log in.
struct Ground {
    monitor: Monitor,
    server_url: String,
    client: Client,
    _redis: TestRedis,
    _database: TestDatabase,
}

/// A started login, as the browser has it.
struct PendingLogin {
    cookie: String,
    /// Parameters of the authorization request.
    parameters: Vec<(String, String)>,
}

impl PendingLogin {
    fn parameter(&self, name: &str) -> &str {
        &self.parameters.iter().find(|(known, _)| known == name).unwrap().1
    }
}

impl Ground {
    async fn new(port: &HeldPort, issuer: &str, more: &[(&str, &str)]) -> Self {
        let (redis, database) = (TestRedis::start(), TestDatabase::create());
        let (redis_url, database_url) = (redis.url(), database.url());
        let (server_url, number) = (format!("http://127.0.0.1:{}", port.number()), port.number().to_string());
        let mut settings = vec![
            ("REDIS_URL", redis_url.as_str()),
            ("DATABASE_URL", &database_url),
            ("MONITOR_PORT", &number),
            ("SERVER_URL", &server_url),
            ("MONITOR_AUTH", "oidc"),
            ("MONITOR_SECRET_KEY", SECRET),
            ("MONITOR_ADMIN_TOKEN", ADMIN),
            ("MONITOR_OIDC_ISSUER", issuer),
            ("MONITOR_OIDC_CLIENT_ID", "monitor"),
            ("MONITOR_OIDC_CLIENT_SECRET", "of-the-monitor"),
            ("MONITOR_OIDC_SCOPES", "email,groups"),
            ("MONITOR_OIDC_ROLES", "sre=admin,staff=viewer"),
        ];
        settings.extend(more);
        let monitor = Monitor::start(&settings).await;
        Self { monitor, server_url, client: client(), _redis: redis, _database: database }
    }

    async fn get(&self, path: &str, cookie: &str) -> Response {
        self.client.get(self.monitor.url(path)).header("cookie", cookie).send().await.unwrap()
    }

    /// Starts a login.
    async fn start_login(&self) -> PendingLogin {
        let answer = self.get("/login/start?next=%2Falerts%3Fx%3D1", "").await;
        assert_eq!(answer.status(), 303, "{}", self.monitor.log());
        let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
        let address = Url::parse(answer.headers()["location"].to_str().unwrap()).unwrap();
        let parameters = address.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        PendingLogin { cookie: cookie.split(';').next().unwrap().to_owned(), parameters }
    }

    /// The response to the redirect of the provider, with this code.
    async fn callback(&self, login: &PendingLogin, code: &str) -> Response {
        self.get(&format!("/login/callback?code={code}&state={}", login.parameter("state")), &login.cookie).await
    }

    /// The recorded security events, newest first.
    async fn security(&self) -> Vec<Value> {
        let request = self.client.get(self.monitor.url("/api/admin/audit?show=security")).bearer_auth(ADMIN);
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        answer["changes"].as_array().cloned().unwrap_or_default()
    }
}

/// Session cookie that an answer sets.
fn session(answer: &Response) -> Option<String> {
    let set = answer.headers().get_all("set-cookie").iter().map(|value| value.to_str().unwrap());
    let session = set.into_iter().find(|cookie| cookie.starts_with("shepherd_session="))?;
    Some(session.split(';').next().unwrap().to_owned())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn people_log_in_with_a_browser_at_a_real_provider() {
    let port = HeldPort::take().unwrap();
    for claims in ["id_token", "userinfo"] {
        let callback = format!("http://127.0.0.1:{}/login/callback", port.number());
        let provider = RealProvider::start(&callback, claims).await;
        let ground = Ground::new(&port, &provider.issuer(), &[]).await;
        let browser = Browser::start(1000, 800).await;
        let driver = browser.driver();
        let log_in_as = async |account: &str| {
            driver.goto(&format!("{}/alerts?x=1", ground.server_url)).await.unwrap();
            browser.until("the login page", "document.title.startsWith('Log in')").await;
            driver.find(By::LinkText("Log in at localhost")).await.unwrap().click().await.unwrap();
            browser.until("the page of the provider", "document.title === 'Provider'").await;
            driver.find(By::Name("account")).await.unwrap().send_keys(account).await.unwrap();
            driver.find(By::Tag("button")).await.unwrap().click().await.unwrap();
        };
        log_in_as("ann").await;
        // A link from another site reaches the page as well, although the cookie is SameSite=Strict.
        browser.until("back where she wanted to go", "location.href.endsWith('/alerts?x=1')").await;
        browser.until("logged in", "document.querySelector('.who')?.textContent === 'ann@example.org'").await;
        assert_eq!(browser.value("document.body.dataset.role").await, "admin");
        assert_eq!(browser.value("document.cookie").await, "", "scripts read no cookie");
        eventually("the login is recorded with the ID of the user", SOON, || async {
            ground.security().await.into_iter().find(|row| {
                (&row["action"], &row["who"], &row["role"])
                    == (&json!("logged in"), &json!("ann@example.org"), &json!("admin"))
                    && row.to_string().contains(&format!("subject ann of {}", provider.issuer()))
            })
        })
        .await;
        browser.driver().execute("document.querySelector('form[action$=logout]').submit()", Vec::new()).await.unwrap();
        browser.until("logged out", "document.title.startsWith('Log in')").await;
        // The provider would let her in again by itself.
        driver.goto(&provider.issuer()).await.unwrap();
        driver.delete_all_cookies().await.unwrap();

        log_in_as("vic").await;
        browser.until("back", "location.href.endsWith('/alerts?x=1')").await;
        browser.until("a viewer", "document.body.dataset.role === 'viewer'").await;
        driver.delete_all_cookies().await.unwrap();
        driver.goto(&provider.issuer()).await.unwrap();
        driver.delete_all_cookies().await.unwrap();

        log_in_as("eve").await;
        browser.until("refused", "document.body.textContent.includes('eve@example.org has no role')").await;
        assert_eq!(browser.value("document.body.textContent.includes('MONITOR_OIDC_ROLES')").await, true);
        driver.goto(&provider.issuer()).await.unwrap();
        driver.delete_all_cookies().await.unwrap();

        log_in_as("refuse").await;
        browser.until("refused there", "document.body.textContent.includes('access_denied (not <today>)')").await;
        browser.quit().await;
    }
}

/// Makes an ID token for a login.
type Forge<'a> = &'a dyn Fn(&PendingLogin) -> String;

#[tokio::test]
async fn tokens_that_are_expired_forged_or_for_others_are_rejected_and_counted() {
    let (port, key) = (HeldPort::take().unwrap(), SigningKey::generate("1"));
    let provider = ScriptedProvider::start(&key).await;
    let ground = Ground::new(&port, provider.issuer(), &[]).await;
    let other = SigningKey::generate("1");
    let claims = |login: &PendingLogin| {
        json!({
            "iss": provider.issuer(), "aud": "monitor", "sub": "7", "nonce": login.parameter("nonce"),
            "iat": now(), "exp": now() + 60, "email": "ann@example.org", "groups": ["sre"],
        })
    };
    let with = |login: &PendingLogin, name: &str, value: Value| {
        let mut claims = claims(login);
        claims[name] = value;
        key.sign(&claims)
    };
    let by_secret = |login: &PendingLogin| {
        use base64::Engine as _;
        let text = unsigned(&json!({"alg": "HS256"}), &claims(login));
        let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"of-the-monitor"), text.as_bytes());
        format!("{text}.{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(tag))
    };
    let forgeries: [(&str, &str, Forge<'_>); 11] = [
        ("expired", "expired before it arrived", &|login| with(login, "exp", json!(now() - 1))),
        ("signed by another key", "is not signed by the provider", &|login| other.sign(&claims(login))),
        ("for another application", "is for another application", &|login| with(login, "aud", json!("wiki"))),
        ("for several applications, without a party", "is for another application", &|login| {
            with(login, "aud", json!(["monitor", "wiki"]))
        }),
        ("for several applications, of another", "is for another application", &|login| {
            let mut claims = claims(login);
            claims["aud"] = json!(["monitor", "wiki"]);
            claims["azp"] = json!("wiki");
            key.sign(&claims)
        }),
        ("of another issuer", "is invalid", &|login| with(login, "iss", json!("https://evil.example"))),
        ("of another login", "belongs to another login", &|login| with(login, "nonce", json!("x"))),
        ("without a nonce", "belongs to another login", &|login| with(login, "nonce", Value::Null)),
        ("without a signature", "is not signed by the provider", &|login| {
            format!("{}.", unsigned(&json!({"alg": "none"}), &claims(login)))
        }),
        ("signed with the client secret", "is not signed by the provider", &by_secret),
        ("changed after signing", "is not signed by the provider", &|login| {
            let signed = key.sign(&claims(login));
            let (_, signature) = signed.rsplit_once('.').unwrap();
            let mut claims = claims(login);
            claims["sub"] = json!("8");
            format!("{}.{signature}", unsigned(&json!({"alg": "ES256", "kid": "1"}), &claims))
        }),
    ];
    for (name, why, forge) in &forgeries {
        let login = ground.start_login().await;
        provider.issue(&forge(&login));
        let answer = ground.callback(&login, "c").await;
        assert_eq!((answer.status().as_u16(), session(&answer)), (401, None), "{name}");
        let text = answer.text().await.unwrap();
        assert!(text.contains(why), "{name}: {text}");
    }
    let failed = |text: &str| {
        let line = text.lines().find(|line| line.contains("security_events") && line.contains("failed_login"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or_default()
    };
    let metrics = ground.client.get(ground.monitor.url("/metrics")).bearer_auth(ADMIN).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(failed(&metrics) >= 10.0, "counted as failed logins: {metrics}");

    // The same with a proper token, signed by a key that is new, and for several services of one project.
    let new = SigningKey::generate("2");
    provider.rotate(&new);
    // The keys are read again five seconds after the last time at the earliest.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let login = ground.start_login().await;
    let mut several = claims(&login);
    several["aud"] = json!(["monitor", "wiki"]);
    several["azp"] = json!("monitor");
    provider.issue(&new.sign(&several));
    let answer = ground.callback(&login, "c").await;
    assert_eq!(answer.status(), 200, "{}", ground.monitor.log());
    let cookie = session(&answer).unwrap();
    let page = answer.text().await.unwrap();
    assert!(page.contains("content=\"0;url=/alerts?x"), "{page}");
    assert_eq!(ground.get("/api/admin/audit", &cookie).await.status(), 200);

    // Callbacks of logins that this browser did not start.
    let strangers = ground.start_login().await;
    for (cookie, state) in
        [("", strangers.parameter("state")), (&login.cookie, strangers.parameter("state")), (&login.cookie, "")]
    {
        let answer = ground.get(&format!("/login/callback?code=c&state={state}"), cookie).await;
        assert_eq!(answer.status(), 400, "{cookie} {state}");
        assert!(answer.text().await.unwrap().contains("was not started by this browser"));
    }
    let elsewhere = format!("/login/callback?code=c&state={}&iss=https://evil.example", login.parameter("state"));
    let answer = ground.get(&elsewhere, &login.cookie).await;
    assert_eq!(answer.status(), 401);
    // Never to another site.
    let answer = ground.get("/login/start?next=https://evil.example", "").await;
    let cookie = answer.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let address = Url::parse(answer.headers()["location"].to_str().unwrap()).unwrap();
    let parameters = address.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
    let login = PendingLogin { cookie, parameters };
    assert_eq!(
        (login.parameter("code_challenge_method"), login.parameter("redirect_uri")),
        ("S256", &*format!("{}/login/callback", ground.server_url))
    );
    provider.issue(&new.sign(&claims(&login)));
    let page = ground.callback(&login, "c").await.text().await.unwrap();
    assert!(page.contains("content=\"0;url=/\""), "{page}");
}

#[tokio::test]
async fn a_provider_that_fails_is_named_with_the_remedy_and_tokens_go_on() {
    let (port, key) = (HeldPort::take().unwrap(), SigningKey::generate("1"));
    let provider = ScriptedProvider::start(&key).await;
    provider.publish("issuer", json!("https://id.example"));
    let ground = Ground::new(&port, provider.issuer(), &[]).await;
    let problem = async |answer: Response| (answer.status().as_u16(), answer.text().await.unwrap());
    let (status, why) = problem(ground.get("/login/start", "").await).await;
    assert!(status == 503 && why.contains("reports another issuer") && why.contains("MONITOR_OIDC_ISSUER"), "{why}");
    eventually("a token is accepted", SOON, || async {
        let request = ground.client.get(ground.monitor.url("/api/admin/audit")).bearer_auth(ADMIN);
        (request.send().await.unwrap().status() == 200).then_some(())
    })
    .await;
    let wrong = ground.client.get(ground.monitor.url("/api/health")).bearer_auth("x".repeat(20)).send().await.unwrap();
    assert_eq!(wrong.status(), 401);

    provider.publish("issuer", json!(provider.issuer()));
    eventually("it is asked again", SOON, || async {
        (ground.get("/login/start", "").await.status() == 303).then_some(())
    })
    .await;
    for (error, status, named) in [
        ("invalid_client", 503, "MONITOR_OIDC_CLIENT_SECRET"),
        ("invalid_grant", 401, "refused the login code (invalid_grant: refused by the test)"),
    ] {
        provider.refuse(error);
        let login = ground.start_login().await;
        let (found, why) = problem(ground.callback(&login, "c").await).await;
        assert!(found == status && why.contains(named), "{found} {why}");
    }
    let (status, why) = problem(ground.get("/login/callback", "").await).await;
    assert!(status == 400 && why.contains("log in again"), "{why}");
    drop(ground);

    let closed = HeldPort::take().unwrap();
    let ground = Ground::new(&port, &format!("http://127.0.0.1:{}", closed.number()), &[]).await;
    let (status, why) = problem(ground.get("/login/start", "").await).await;
    assert!(status == 503 && why.contains("cannot be reached") && why.contains("token"), "{status} {why}");
}
