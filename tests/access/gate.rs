//! Cookies, path prefixes, proxies, pages for lower roles, and connection limits.

use reqwest::Response;
use reqwest::redirect::Policy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::support::wait::eventually;

const BROWSER: (&str, &str) = ("accept", "text/html,application/xhtml+xml");

/// Logs in like a browser on a page of `origin`.
async fn login(url: &str, token: &str, origin: Option<&str>) -> Response {
    let client = Client::builder().redirect(Policy::none()).build().unwrap();
    let form = format!("token={token}&name=bo&next=%2Fm%2Falerts");
    let mut request = client.post(url).header("content-type", "application/x-www-form-urlencoded").body(form);
    if let Some(origin) = origin {
        let host = origin.split_once("://").unwrap().1;
        request = request.header("origin", origin).header("host", host);
    }
    request.send().await.unwrap()
}

/// `name=value` and the attributes of the cookie.
fn cookie(answer: &Response) -> (String, Vec<String>) {
    let cookie = answer.headers()["set-cookie"].to_str().unwrap();
    let mut parts = cookie.split("; ").map(str::to_owned);
    (parts.next().unwrap(), parts.collect())
}

#[tokio::test]
async fn a_session_is_valid_only_for_monitors_with_the_same_database() {
    let first = Ground::with_tokens(&[("MONITOR_ROOT_PATH", "/m")]).await;
    let second = Ground::with_tokens(&[]).await;
    let answer = login(&first.monitor.url("/m/login"), VIEWER, None).await;
    assert_eq!(
        (answer.status(), &answer.headers()["location"]),
        (StatusCode::SEE_OTHER, &"/m/alerts".parse().unwrap())
    );
    let (session, told) = cookie(&answer);
    for part in ["HttpOnly", "SameSite=Strict", "Path=/m"] {
        assert!(told.iter().any(|other| other == part), "{part} in {told:?}");
    }
    assert!(!told.contains(&"Secure".to_owned()), "it came by plain HTTP: {told:?}");
    let encrypted = login(&first.monitor.url("/m/login"), VIEWER, Some("https://fleet.example")).await;
    assert!(cookie(&encrypted).1.contains(&"Secure".to_owned()));
    let says_so = Ground::with_tokens(&[("SERVER_URL", "https://fleet.example/")]).await;
    let secure = cookie(&login(&says_so.monitor.url("/login"), VIEWER, None).await).1;
    assert!(secure.contains(&"Secure".to_owned()) && secure.contains(&"Path=/".to_owned()), "{secure:?}");

    let (client, cookie) = (client(), [("cookie", session.as_str())]);
    for (monitor, path, known) in [(&first.monitor, "/m/alerts", true), (&second.monitor, "/alerts", false)] {
        let answer = status(&client, Method::GET, &monitor.url(path), &cookie).await;
        assert_eq!(answer != StatusCode::UNAUTHORIZED, known, "{path}: {answer}");
    }
}

#[tokio::test]
async fn access_control_applies_below_a_root_path_and_to_head() {
    let ground = Ground::with_tokens(&[("MONITOR_ROOT_PATH", "/m")]).await;
    let (monitor, client) = (&ground.monitor, client());
    let (viewer, admin) = (format!("Bearer {VIEWER}"), format!("Bearer {ADMIN}"));
    for root in ["", "/m"] {
        let url = |path: &str| monitor.url(&format!("{root}{path}"));
        let asked = |method: Method, path: &str, headers: Vec<(&'static str, String)>| {
            let (client, url) = (client.clone(), url(path));
            async move {
                let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
                status(&client, method, &url, &headers).await.as_u16()
            }
        };
        let by = |token: &str| vec![("authorization", token.to_owned())];
        for method in [Method::GET, Method::HEAD] {
            assert_eq!(asked(method.clone(), "/api/history", vec![]).await, 401, "{method} {root}");
            assert_eq!(asked(method.clone(), "/api/admin/audit", by(&viewer)).await, 403, "{method} {root}");
            assert_eq!(asked(method.clone(), "/api/history", by(&viewer)).await, 200, "{method} {root}");
            assert_eq!(asked(method.clone(), "/api/nothing", by(&admin)).await, 404, "{method} {root}");
            assert_eq!(asked(method.clone(), "/api/admin/cleanup", by(&admin)).await, 405, "{method} {root}");
        }
        let mut foreign = by(&admin);
        foreign.push(("origin", "https://evil.example".to_owned()));
        assert_eq!(asked(Method::POST, "/-/reload", foreign).await, 403, "{root}");
        let mut own = by(&admin);
        own.push(("origin", format!("http://{}", monitor.address())));
        assert_ne!(asked(Method::POST, "/-/reload", own).await, 403, "{root}");
        let page = client.get(url("/alerts?x=1")).header(BROWSER.0, BROWSER.1).send().await.unwrap();
        assert_eq!(page.headers()["location"], format!("/m/login?next={root}/alerts%3Fx%3D1"));
    }
}

#[tokio::test]
async fn only_trusted_proxies_set_the_client_address() {
    for (trusted, address) in [("127.0.0.1", "198.51.100.7"), ("10.0.0.0/8", "127.0.0.1"), ("", "127.0.0.1")] {
        let ground = Ground::with_tokens(&[("MONITOR_AUTH", "basic"), ("MONITOR_PROXY_TRUSTED", trusted)]).await;
        let client = client();
        // Users can choose any name.
        let name = "<img src=x onerror=alert(1)>";
        let audit = eventually("a change is written down", SOON, || async {
            let change = client.post(ground.monitor.url("/-/reload")).basic_auth(name, Some(ADMIN));
            let change = change.header("x-forwarded-for", "203.0.113.1, 198.51.100.7").send().await.unwrap();
            let page = client.get(ground.monitor.url("/admin/audit")).basic_auth(name, Some(ADMIN));
            let page = page.send().await.unwrap().text().await.unwrap();
            (change.status() == 200).then_some(page)
        });
        let audit = audit.await;
        assert!(audit.contains(address), "trusting {trusted:?}: {audit}");
        assert!(!audit.contains("203.0.113.1"), "anybody may have written it");
        assert!(audit.contains("&lt;img") && !audit.contains("<img"), "{audit}");
    }
}

#[tokio::test]
async fn pages_offer_only_permitted_actions_and_explain_refusals() {
    let ground = Ground::with_tokens(&[]).await;
    let (monitor, client) = (&ground.monitor, client());
    let page = |path: &'static str, token: &'static str| {
        let request = client.get(monitor.url(path)).bearer_auth(token).header(BROWSER.0, BROWSER.1);
        async move {
            let answer = eventually("it is answered", SOON, || async {
                let answer = request.try_clone().unwrap().send().await.unwrap();
                (answer.status() != StatusCode::SERVICE_UNAVAILABLE).then_some(answer)
            })
            .await;
            assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/html"), "{path}");
            (answer.status().as_u16(), answer.text().await.unwrap())
        }
    };
    for (token, silence, clean_up, bin) in
        [(VIEWER, false, false, false), (OPERATOR, true, false, true), (ADMIN, true, true, true)]
    {
        let alerts = page("/alerts", token).await.1;
        assert_eq!(alerts.contains("/api/silences"), silence, "{token}");
        assert_eq!(alerts.contains("/-/reload"), silence, "{token}");
        let admin = page("/admin", token).await.1;
        assert_eq!(admin.contains("/api/admin/forget_worker"), clean_up, "{token}");
        assert_eq!(admin.contains("/admin/recycle-bin"), bin, "{token}");
        let (status, told) = page("/admin/recycle-bin", token).await;
        assert_eq!(status, if bin { 200 } else { 403 }, "{token}");
        assert_eq!(told.contains("this requires the role operator"), !bin, "{told}");
        let (status, told) = page("/nowhere", token).await;
        assert!(status == 404 && told.contains("Not found"), "{told}");
    }
    // Programs get an error as JSON.
    let answer = client.get(monitor.url("/admin/recycle-bin")).bearer_auth(VIEWER).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
}

/// Status of a request on an open connection; 0 if it was closed.
async fn ask(stream: &mut TcpStream) -> u16 {
    let asked = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let mut answer = [0; 2048];
    match (asked, stream.read(&mut answer).await) {
        (Ok(()), Ok(n)) if n > 12 => String::from_utf8_lossy(&answer[9..12]).parse().unwrap(),
        _ => 0,
    }
}

#[tokio::test]
async fn connections_of_one_address_are_limited() {
    let most = ("MONITOR_MAX_CONNECTIONS_PER_ADDRESS", "12");
    for (trusted, some_too_many) in [("10.0.0.0/8", true), ("127.0.0.1", false)] {
        let ground = Ground::with_tokens(&[most, ("MONITOR_PROXY_TRUSTED", trusted)]).await;
        let (mut open, mut answers) = (Vec::new(), Vec::new());
        for _ in 0..30 {
            let mut stream = TcpStream::connect(ground.monitor.address()).await.unwrap();
            answers.push(ask(&mut stream).await);
            open.push(stream);
        }
        if !some_too_many {
            assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
            continue;
        }
        assert!(answers[..12].iter().all(|status| *status == 200), "{answers:?}");
        // Connections that get a 429 are closed, which makes room for the next.
        assert!(answers[12..].iter().all(|status| [429, 0].contains(status)), "{answers:?}");
        assert!(answers[12..].contains(&429), "{answers:?}");
        // Connections without a request are limited to twice the limit.
        let mut silent = Vec::new();
        for _ in 0..30 {
            silent.push(TcpStream::connect(ground.monitor.address()).await.unwrap());
        }
        let mut hung_up = 0;
        for stream in &mut silent {
            let waiting = tokio::time::timeout(Duration::from_millis(200), stream.read_u8());
            hung_up += u32::from(waiting.await.is_ok());
        }
        assert!(hung_up >= 18, "{hung_up}");
        drop((open, silent));
        eventually("they are forgotten", SOON, || async {
            ask(&mut TcpStream::connect(ground.monitor.address()).await.unwrap()).await == 200
        })
        .await;
    }
}
