//! The exporter is made to panic, and goes on counting where it was.

use std::net::TcpListener;

use shepherd_monitor::actors::messages::{Fail, Role};
use shepherd_monitor::application::Application;
use shepherd_monitor::settings::Settings;

use super::*;

async fn ask(application: &Application) -> Option<Vec<Sample>> {
    let answer = reqwest::get(format!("http://{}/metrics", application.address())).await.unwrap();
    let ok = answer.status() == 200;
    let text = answer.text().await.unwrap();
    ok.then(|| samples(&text))
}

#[test]
fn what_was_counted_outlives_the_exporter() {
    let (redis_server, database) = (TestRedis::start(), TestDatabase::create());
    let spool = folder();
    let given = [
        ("REDIS_URL", redis_server.url()),
        ("DATABASE_URL", database.url()),
        ("MONITOR_POLL_INTERVAL_SEC", "100ms".to_owned()),
        ("MONITOR_SPOOL_DIR", spool.folder().display().to_string()),
    ];
    let settings = Settings::from(&given.into()).unwrap();
    actix_web::rt::System::new().block_on(async {
        let application = Application::start(&settings, TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        const TICKS: &str = "shepherd_monitor_tick_duration_seconds_count";
        let ticks = eventually("ticks are counted", SOON, || async {
            let samples = ask(&application).await?;
            value(&samples, TICKS, &[]).filter(|ticks| *ticks >= 20.0)
        })
        .await;
        let restarts = [("actor", "exporter")];
        application.supervisor().do_send(Fail(Role::Exporter));
        let seen = eventually("it was started again", SOON, || async {
            // While it is away the answer is an error.
            let samples = ask(&application).await?;
            let again = value(&samples, "shepherd_monitor_actor_restarts_total", &restarts)? >= 1.0;
            again.then(|| value(&samples, TICKS, &[]).unwrap())
        })
        .await;
        assert!(seen >= ticks, "{seen} after {ticks}");
        eventually("it goes on", SOON, || async {
            let samples = ask(&application).await?;
            value(&samples, TICKS, &[]).filter(|now| *now > seen)
        })
        .await;
        application.stop().await;
    });
}
