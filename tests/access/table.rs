//! Every route with every role and origin.

use shepherd_monitor::web::access::{Needs, Role, Verb};
use shepherd_monitor::web::routes::ROUTES;

use super::*;

/// An example path that matches the pattern of the route.
fn path(pattern: &str) -> String {
    let mut path = String::new();
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').unwrap();
        path.push_str(before);
        path.push_str(if name == "id" { "0b6dbe30-0000-4000-8000-000000000000" } else { "x" });
        rest = after;
    }
    path + rest
}

#[tokio::test]
async fn every_route_requires_its_role_and_its_own_origin() {
    let ground = Ground::with_tokens(&[]).await;
    let client = client();
    let monitor = &ground.monitor;
    let mut seen = 0;
    for route in ROUTES {
        let url = monitor.url(&path(route.path));
        let method = if route.verb == Verb::Change { Method::POST } else { Method::GET };
        let who =
            [(None, ""), (None, "wrong-0123456789"), (Some(Role::Viewer), VIEWER), (Some(Role::Operator), OPERATOR)];
        for (role, token) in who.into_iter().chain([(Some(Role::Admin), ADMIN)]) {
            let bearer = format!("Bearer {token}");
            let mut headers = Vec::new();
            if !token.is_empty() {
                headers.push(("authorization", bearer.as_str()));
            }
            if route.verb == Verb::Socket {
                headers.extend([
                    ("connection", "upgrade"),
                    ("upgrade", "websocket"),
                    ("sec-websocket-version", "13"),
                    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ]);
            }
            let what = format!("{:?} {} as {role:?}", route.verb, route.path);
            let answer = status(&client, method.clone(), &url, &headers).await;
            match (route.needs, role) {
                (Needs::Nobody, _) => {
                    assert!(![401, 403, 405].contains(&answer.as_u16()) || route.path == "/login", "{what}: {answer}")
                }
                // The test sends more wrong tokens than permitted in a minute.
                (Needs::AtLeast(_), None) => {
                    assert!(answer == 401 || (answer == 429 && !token.is_empty()), "{what}: {answer}");
                }
                (Needs::AtLeast(needed), Some(role)) if role < needed => {
                    assert_eq!(answer, StatusCode::FORBIDDEN, "{what}");
                }
                // Depending on the preview, a higher role may be required.
                (Needs::AtLeast(_), Some(_)) => {
                    assert!(![401, 403, 405].contains(&answer.as_u16()), "{what}: {answer}");
                }
            }
            // Pages of other sites are rejected for every role, except for reads.
            for foreign in [("origin", "http://evil.example"), ("sec-fetch-site", "cross-site"), ("origin", "null")] {
                let mut headers = headers.clone();
                headers.push(foreign);
                let answer = status(&client, method.clone(), &url, &headers).await;
                if route.verb != Verb::Read {
                    assert_eq!(answer, StatusCode::FORBIDDEN, "{what} from {foreign:?}");
                }
            }
            seen += 1;
        }
        // Routes that change something do not accept GET.
        let both = ROUTES.iter().filter(|other| other.path == route.path).count() > 1;
        if !both {
            let other = if route.verb == Verb::Change { Method::GET } else { Method::POST };
            let bearer = format!("Bearer {ADMIN}");
            let answer = status(&client, other, &url, &[("authorization", &bearer)]).await;
            assert_eq!(answer, StatusCode::METHOD_NOT_ALLOWED, "{}", route.path);
        }
    }
    assert!(seen > 250, "{seen}");
    // The probe shows its status to all clients, but the reasons only to authenticated ones.
    let why = monitor.url("/readyz?verbose");
    assert_eq!(status(&client, Method::GET, &why, &[]).await, StatusCode::UNAUTHORIZED);
    assert_ne!(status(&client, Method::GET, &monitor.url("/readyz"), &[]).await, StatusCode::UNAUTHORIZED);
    // Routes outside of the table do not exist.
    let bearer = format!("Bearer {ADMIN}");
    for path in ["/api/admin", "/api/admin/nothing", "/admin/x", "/.git/config"] {
        let answer = status(&client, Method::GET, &monitor.url(path), &[("authorization", &bearer)]).await;
        assert_eq!(answer, StatusCode::NOT_FOUND, "{path}");
    }
    for token in [VIEWER, OPERATOR, ADMIN, "wrong-0123456789"] {
        assert!(!monitor.log().contains(token), "{token} is in the log");
    }
}

#[tokio::test]
async fn every_change_is_audited_with_user_and_outcome() {
    let ground = Ground::with_tokens(&[]).await;
    let client = client();
    let bearer = format!("Bearer {OPERATOR}");
    let silence = client
        .post(ground.monitor.url("/api/silences"))
        .header("authorization", &bearer)
        .json(&serde_json::json!({"rule": "worker_*", "duration": "5m", "owner": "bo"}));
    let refused = client
        .post(ground.monitor.url("/api/alerts/acknowledge"))
        .header("authorization", &bearer)
        .json(&serde_json::json!({"key": "none", "owner": "bo"}));
    // The tables are created in the background.
    let silenced = crate::support::wait::eventually("the silence is taken", SOON, || async {
        let answer = silence.try_clone().unwrap().send().await.unwrap();
        answer.status().is_success().then_some(())
    });
    silenced.await;
    assert_eq!(refused.send().await.unwrap().status(), StatusCode::BAD_REQUEST);
    let audit = client.get(ground.monitor.url("/api/admin/audit?limit=1")).header("authorization", &bearer);
    let audit: serde_json::Value = audit.send().await.unwrap().json().await.unwrap();
    let change = &audit["changes"][0];
    assert_eq!(
        (change["action"].as_str(), change["who"].as_str()),
        (Some("silence"), Some("operator token")),
        "{audit}"
    );
    assert_eq!((change["role"].as_str(), change["outcome"].as_str()), (Some("operator"), Some("done")), "{audit}");
    assert_eq!(change["parameters"]["rule"], "worker_*");
    assert!(change["result"]["silenced"].is_string() && change["address"] == "127.0.0.1", "{audit}");
    let viewer = format!("Bearer {VIEWER}");
    let page = client.get(ground.monitor.url("/admin/audit")).header("authorization", &viewer).send().await.unwrap();
    assert_eq!(page.status(), StatusCode::FORBIDDEN);
    let page = client.get(ground.monitor.url("/admin/audit")).header("authorization", &bearer).send().await.unwrap();
    assert!(page.text().await.unwrap().contains("operator token"));
}
