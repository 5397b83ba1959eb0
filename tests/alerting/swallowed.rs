//! One name at a time is not resolved any more, by a name server that does not answer. Everything else goes on, and the
//! channels that still work report it.

use std::time::{Duration, Instant};

use super::mail::Mail;
use super::{Ground, SOON};
use crate::support::monitor::Monitor;
use crate::support::names::Names;
use crate::support::proxy::Proxy;
use crate::support::wait::eventually;

/// Time limit for notifications about it.
const REPORTED_WITHIN: Duration = Duration::from_secs(30);
/// Time limit for everything that does not need the name.
const NORMAL: Duration = Duration::from_secs(3);
/// Time limit for the notification about a worker whose heartbeat is gone.
const CRASH_SENT_WITHIN: Duration = Duration::from_secs(25);
/// More than the threads for blocking work.
const RECIPIENTS: &str = "a@example.org,b@example.org,c@example.org,d@example.org,e@example.org,f@example.org";

/// A fleet, and a monitor that knows its servers by name.
struct Surroundings {
    names: Names,
    ground: Ground,
    mail: Mail,
    redis: Proxy,
    postgres: Proxy,
    monitor: Monitor,
}

impl Surroundings {
    async fn new() -> Option<Self> {
        let Some(names) = Names::new(&["redis.drill", "postgres.drill", "slack.drill", "smtp.drill"]) else {
            eprintln!("skipped: needs the privileges of root");
            return None;
        };
        let (ground, mail) = (Ground::new(), Mail::start("plain").await);
        ground.fleet.up(&["a", "b"]).await;
        let (redis, postgres) = (Proxy::to(ground.redis.port()), Proxy::to(ground.database.port()));
        let mut settings = mail.settings();
        settings.retain(|(name, _)| {
            !["SMTP_HOST", "SMTP_USER", "SMTP_PASSWORD", "ALERT_EMAIL_TO"].contains(&name.as_str())
        });
        settings.extend(
            [
                ("REDIS_URL", format!("redis://redis.drill:{}/0", redis.port())),
                (
                    "DATABASE_URL",
                    format!("postgres://postgres@postgres.drill:{}/{}", postgres.port(), ground.database.name()),
                ),
                ("SLACK_WEBHOOK_URL", format!("http://slack.drill:{}/services/T0/B0/verysecret", ground.slack.port())),
                ("SMTP_HOST", "smtp.drill".to_owned()),
                ("SMTP_USE_TLS", "false".to_owned()),
                ("ALERT_EMAIL_TO", RECIPIENTS.to_owned()),
                ("MONITOR_STARTUP_GRACE_SEC", "0".to_owned()),
                ("MONITOR_DOWN_DEBOUNCE_SEC", "1".to_owned()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        let settings: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let monitor = Monitor::start_by(&names.prefix(), &settings).await;
        monitor.takes_orders().await;
        ground.alive(&monitor, &["a", "b"]).await;
        Some(Self { names, ground, mail, redis, postgres, monitor })
    }

    /// `name` is not resolved any more, and no connection made before is left.
    fn swallow(&self, name: &str) {
        self.names.swallow(name);
        for (of, proxy) in [("redis.drill", &self.redis), ("postgres.drill", &self.postgres)] {
            if of == name {
                proxy.cut();
                proxy.pass();
            }
        }
    }

    /// Whether Slack accepted a message with this text.
    fn is_in_slack(&self, text: &str) -> bool {
        self.ground.slack.taken().iter().any(|post| post.body.to_string().contains(text))
    }

    /// Whether the mail server accepted one.
    fn is_mailed(&self, text: &str) -> bool {
        self.mail.mails().iter().any(|mail| mail.to_string().contains(text))
    }

    /// Waits until `reported`, while everything that does not need the name goes on within its normal time.
    async fn goes_on_until(&self, what: &str, limit: Duration, reported: impl Fn() -> bool) {
        let began = Instant::now();
        while !reported() {
            assert!(began.elapsed() < limit, "{what}: not after {limit:?}: {:?}", self.ground.slack.posts());
            let asked = Instant::now();
            let tick = self.monitor.snapshot().await["tick"].as_u64().unwrap();
            eventually("ticks go on", NORMAL, || async { self.monitor.snapshot().await["tick"].as_u64() > Some(tick) })
                .await;
            assert_eq!(self.monitor.get("/").await.0, 200);
            // Written on a thread for blocking work.
            assert_eq!(self.monitor.get("/metrics").await.0, 200);
            let took = asked.elapsed();
            assert!(took < NORMAL * 2, "pages, a tick and the metrics took {took:?}");
        }
        println!("{what}: after {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn everything_else_goes_on_while_the_name_of_the_mail_server_is_not_resolved() {
    let Some(drill) = Surroundings::new().await else { return };
    drill.swallow("smtp.drill");
    drill.ground.fleet.crash(&["a"]).await;
    drill.ground.slack.told("Worker a crashed", SOON).await;
    // By now there is an attempt for each recipient.
    let until = Instant::now() + Duration::from_secs(2);
    drill.goes_on_until("two seconds", NORMAL * 3, || Instant::now() > until).await;
}

#[tokio::test]
#[ignore = "25 s: run by name"]
async fn the_name_of_the_mail_server_not_resolved_is_reported_in_slack() {
    let Some(drill) = Surroundings::new().await else { return };
    drill.swallow("smtp.drill");
    drill.ground.fleet.crash(&["a"]).await;
    drill.goes_on_until("a crash is sent", CRASH_SENT_WITHIN, || drill.is_in_slack("Worker a crashed")).await;
    drill.goes_on_until("Slack hears of the mail server", REPORTED_WITHIN, || drill.is_in_slack("smtp.drill")).await;
}

#[tokio::test]
#[ignore = "25 s: run by name"]
async fn the_name_of_slack_not_resolved_is_reported_by_mail() {
    let Some(drill) = Surroundings::new().await else { return };
    drill.swallow("slack.drill");
    drill.ground.fleet.crash(&["a"]).await;
    drill.goes_on_until("a mail about the crash", CRASH_SENT_WITHIN, || drill.is_mailed("Worker a crashed")).await;
    drill.goes_on_until("a mail about Slack", REPORTED_WITHIN, || drill.is_mailed("slack fail")).await;
}

#[tokio::test]
#[ignore = "25 s: run by name"]
async fn the_name_of_redis_not_resolved_is_reported_through_every_channel() {
    let Some(drill) = Surroundings::new().await else { return };
    drill.swallow("redis.drill");
    let text = "Redis is unreachable";
    drill
        .goes_on_until("both hear of Redis", REPORTED_WITHIN, || drill.is_in_slack(text) && drill.is_mailed(text))
        .await;
}

#[tokio::test]
#[ignore = "25 s: run by name"]
async fn the_name_of_postgres_not_resolved_is_reported_through_every_channel() {
    let Some(drill) = Surroundings::new().await else { return };
    drill.swallow("postgres.drill");
    drill.ground.fleet.crash(&["a"]).await;
    let crashed = "Worker a crashed";
    drill
        .goes_on_until("a crash is sent", CRASH_SENT_WITHIN, || drill.is_in_slack(crashed) && drill.is_mailed(crashed))
        .await;
    let text = "Postgres is unreachable";
    drill
        .goes_on_until("both hear of Postgres", REPORTED_WITHIN, || drill.is_in_slack(text) && drill.is_mailed(text))
        .await;
}
