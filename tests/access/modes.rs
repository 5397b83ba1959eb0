//! Each authentication mode, and settings that would provide no protection.

use std::process::Command;

use super::*;

fn refused(settings: &[(&str, &str)]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shepherd-monitor"));
    command.arg("serve").env_clear().env("MONITOR_PORT", "0").envs(settings.iter().copied());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{settings:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told.trim_end().lines().count(), 1, "{told}");
    told
}

#[test]
fn settings_without_protection_prevent_startup_with_one_line() {
    let file = std::env::temp_dir().join("no-such-token").display().to_string();
    for (settings, told) in [
        (vec![("MONITOR_BIND", "0.0.0.0")], vec!["MONITOR_AUTH", "none", "MONITOR_BIND is 0.0.0.0"]),
        (vec![("MONITOR_AUTH", "maybe")], vec!["MONITOR_AUTH", "maybe", "none, token, basic, proxy or oidc"]),
        (vec![("MONITOR_AUTH", "token")], vec!["MONITOR_ADMIN_TOKEN", "a token"]),
        (vec![("MONITOR_AUTH", "token"), ("MONITOR_ADMIN_TOKEN", "short")], vec!["MONITOR_ADMIN_TOKEN", "16"]),
        (
            vec![("MONITOR_AUTH", "basic"), ("MONITOR_ADMIN_TOKEN", ADMIN), ("MONITOR_VIEWER_TOKEN", ADMIN)],
            vec!["MONITOR_ADMIN_TOKEN", "another token"],
        ),
        (
            vec![("MONITOR_AUTH", "token"), ("MONITOR_VIEWER_TOKEN_FILE", &file)],
            vec!["MONITOR_VIEWER_TOKEN_FILE", "no-such-token"],
        ),
        (vec![("MONITOR_AUTH", "proxy")], vec!["MONITOR_PROXY_TRUSTED", "10.0.0.0/8"]),
        (vec![("MONITOR_AUTH", "oidc")], vec!["MONITOR_SECRET_KEY", "as MONITOR_AUTH is oidc"]),
        (vec![("MONITOR_AUTH", "proxy"), ("MONITOR_PROXY_TRUSTED", "here")], vec!["MONITOR_PROXY_TRUSTED", "here"]),
    ] {
        let said = refused(&settings);
        assert!(told.iter().all(|word| said.contains(word)) && said.contains("expected"), "{said}");
        assert!(!said.contains(ADMIN), "{said}");
    }
}

#[tokio::test]
async fn without_authentication_requests_for_other_host_names_are_rejected() {
    let ground = Ground::new(&[("SERVER_URL", "https://fleet.example/m")]).await;
    let (client, url) = (client(), ground.monitor.url("/api/snapshot"));
    for (host, expected) in
        [("fleet.example", 200), ("localhost:1", 200), ("evil.example", 403), ("127.0.0.1.evil.example", 403)]
    {
        assert_eq!(status(&client, Method::GET, &url, &[("host", host)]).await, expected, "{host}");
    }
}

#[tokio::test]
async fn basic_passwords_are_tokens_and_the_name_is_audited() {
    let ground = Ground::with_tokens(&[("MONITOR_AUTH", "basic")]).await;
    let client = client();
    let url = ground.monitor.url("/admin/audit");
    // The table is created in the background.
    crate::support::wait::eventually("the audit can be read", SOON, || async {
        let answer = client.get(&url).basic_auth("", Some(ADMIN)).send().await.unwrap();
        answer.status().is_success().then_some(())
    })
    .await;
    let nobody = client.get(&url).header("accept", "text/html").send().await.unwrap();
    assert_eq!(nobody.status(), StatusCode::UNAUTHORIZED);
    assert!(nobody.headers()["www-authenticate"].to_str().unwrap().starts_with("Basic realm="));
    for (password, expected) in [(OPERATOR, 200), (VIEWER, 403), ("wrong-0123456789", 401)] {
        let answer = client.get(&url).basic_auth("bo", Some(password)).send().await.unwrap();
        assert_eq!(answer.status(), expected, "{password}");
        if expected == 200 {
            assert!(answer.text().await.unwrap().contains(">bo (operator token)<"), "the page says who looks");
        }
    }
}

#[tokio::test]
async fn proxy_headers_are_accepted_only_from_trusted_addresses() {
    let asked = [("x-forwarded-user", "bo"), ("x-forwarded-role", "viewer")];
    for (trusted, expected) in [("127.0.0.0/8,10.0.0.1", 200), ("10.0.0.0/8", 403)] {
        let ground = Ground::with_tokens(&[("MONITOR_AUTH", "proxy"), ("MONITOR_PROXY_TRUSTED", trusted)]).await;
        let (client, url) = (client(), ground.monitor.url("/api/snapshot"));
        let answer = crate::support::wait::eventually("there is a snapshot", SOON, || async {
            let answer = status(&client, Method::GET, &url, &asked).await;
            (answer != StatusCode::SERVICE_UNAVAILABLE).then_some(answer)
        });
        assert_eq!(answer.await, expected, "{trusted}");
        let admin = ground.monitor.url("/api/admin/cleanup");
        assert_eq!(status(&client, Method::POST, &admin, &asked).await, StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn repeated_wrong_guesses_are_delayed() {
    let ground = Ground::with_tokens(&[]).await;
    let (client, url) = (client(), ground.monitor.url("/api/snapshot"));
    let mut answers = Vec::new();
    for _ in 0..101 {
        answers.push(status(&client, Method::GET, &url, &[("authorization", "Bearer nonsense")]).await.as_u16());
    }
    assert_eq!((answers[0], answers[99], answers[100]), (401, 401, 429));
    // Requests without credentials from that address are not delayed.
    assert_eq!(status(&client, Method::GET, &url, &[]).await, 401);
    let right = format!("Bearer {VIEWER}");
    assert_ne!(status(&client, Method::GET, &url, &[("authorization", &right)]).await, 429);
}
