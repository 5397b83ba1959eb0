//! Every actor is restarted after a panic, with its state.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::Value;
use shepherd_monitor::actors::messages::{Fail, Role};
use shepherd_monitor::application::Application;
use shepherd_monitor::settings::Settings;

use crate::support::postgres::TestDatabase;
use crate::support::python::Python;
use crate::support::redis::TestRedis;
use crate::support::wait::eventually;

async fn json(application: &Application, path: &str) -> Value {
    let answer = reqwest::get(format!("http://{}{path}", application.address())).await.unwrap();
    answer.json().await.unwrap_or_default()
}

fn actor(health: &Value, role: Role) -> Value {
    let name = serde_json::to_value(role).unwrap();
    health["monitor"]["actors"].as_array().unwrap().iter().find(|actor| actor["actor"] == name).unwrap().clone()
}

/// Returns whether the page shows the alert of a rule that always fires.
async fn alert_is_shown(application: &Application) -> bool {
    let page = reqwest::get(format!("http://{}/", application.address())).await.unwrap();
    page.text().await.unwrap_or_default().contains("1 alert firing")
}

fn fleet_is_fine(snapshot: &Value) -> bool {
    snapshot["workers"]["s"]["alive"] == 1
        && snapshot["workers"]["s"]["lost"] == 0
        && snapshot["streams"]["s"]["groups"][0]["name"] == "consumer"
        && snapshot["postgres"]["source"]["status"] == "ok"
}

#[test]
fn actors_restart_after_a_panic_with_their_state() {
    let (redis, database) = (TestRedis::start(), TestDatabase::create());
    let _worker = Python::start(include_str!("fleet.py"), &[&redis.port().to_string(), "s", "aaaa0001"]);
    let rules = redis.folder().join("alerts.yaml");
    std::fs::write(&rules, "rules: [{name: watched, type: threshold, metric: alive, worker: s, threshold: 0}]")
        .unwrap();
    let given = [
        ("REDIS_URL", redis.url()),
        ("DATABASE_URL", database.url()),
        ("MONITOR_ALERTS_CONFIG", rules.to_str().unwrap().to_owned()),
        ("MONITOR_POLL_INTERVAL_SEC", "200ms".to_owned()),
    ];
    let settings = Settings::from(&given.into()).unwrap();
    actix_web::rt::System::new().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let application = Application::start(&settings, listener).unwrap();
        let limit = Duration::from_secs(20);
        eventually("the fleet is shown", limit, || async {
            let snapshot = json(&application, "/api/snapshot").await;
            if fleet_is_fine(&snapshot) && alert_is_shown(&application).await { Ok(()) } else { Err(snapshot) }
        })
        .await;
        // A restarted evaluator without the rules file uses the previous rules.
        std::fs::remove_file(&rules).unwrap();
        for role in Role::ALL {
            application.supervisor().do_send(Fail(role));
            let health = eventually("it was started again", limit, || async {
                let health = json(&application, "/readyz?verbose").await;
                let fallen = actor(&health, role);
                (fallen["restarts"] == 1 && fallen["up"] == true).then_some(health)
            })
            .await;
            let ticks = health["monitor"]["ticks"].as_u64().unwrap();
            eventually("ticks go on and all is as before", limit, || async {
                let health = json(&application, "/readyz?verbose").await;
                let snapshot = json(&application, "/api/snapshot").await;
                health["monitor"]["ticks"].as_u64().unwrap() > ticks + 2
                    && health["ready"] == true
                    && fleet_is_fine(&snapshot)
                    && alert_is_shown(&application).await
            })
            .await;
        }
        let events = json(&application, "/api/historical/events").await;
        let kinds: Vec<&Value> = events["events"].as_array().unwrap().iter().map(|event| &event["type"]).collect();
        assert_eq!(kinds, ["alert", "scale_up"], "nobody was called lost, nothing was told twice");
        application.stop().await;
    });
}
