//! Access control: every route, every authentication mode, and browsers on pages of other sites.

mod browser;
mod gate;
mod hostile;
mod modes;
mod oidc;
mod security_log;
mod table;
mod trail;
mod users;

use std::time::Duration;

use reqwest::{Client, Method, StatusCode};

use crate::support::monitor::Monitor;
use crate::support::postgres::TestDatabase;
use crate::support::redis::TestRedis;
use crate::support::wait::eventually;

const VIEWER: &str = "viewer-0123456789";
const OPERATOR: &str = "operator-0123456789";
const ADMIN: &str = "admin-0123456789";
const SOON: Duration = Duration::from_secs(60);

/// A monitor with its own servers.
struct Ground {
    monitor: Monitor,
    _redis: TestRedis,
    _database: TestDatabase,
}

impl Ground {
    async fn new(settings: &[(&str, &str)]) -> Self {
        let (redis, database) = (TestRedis::start(), TestDatabase::create());
        let (redis_url, database_url) = (redis.url(), database.url());
        let mut all = vec![("REDIS_URL", redis_url.as_str()), ("DATABASE_URL", database_url.as_str())];
        all.extend(settings);
        let monitor = Monitor::start(&all).await;
        monitor.until("it watches", SOON, |snapshot| snapshot["ts"].is_f64()).await;
        Self { monitor, _redis: redis, _database: database }
    }

    async fn with_tokens(more: &[(&str, &str)]) -> Self {
        let database = TestDatabase::create();
        let url = database.url();
        Self::of(more, database, &url).await
    }

    /// With tokens, and the database at this URL.
    async fn of(more: &[(&str, &str)], database: TestDatabase, database_url: &str) -> Self {
        let mut settings = vec![
            ("MONITOR_AUTH", "token"),
            ("MONITOR_VIEWER_TOKEN", VIEWER),
            ("MONITOR_OPERATOR_TOKEN", OPERATOR),
            ("MONITOR_ADMIN_TOKEN", ADMIN),
        ];
        settings.extend(more);
        let redis = TestRedis::start();
        let redis_url = redis.url();
        settings.extend([("REDIS_URL", redis_url.as_str()), ("DATABASE_URL", database_url)]);
        let monitor = Monitor::start(&settings).await;
        Self { monitor, _redis: redis, _database: database }
    }

    async fn takes_changes(&self) {
        let client = client();
        eventually("changes are taken", SOON, || async {
            let change = client.post(self.monitor.url("/-/reload")).bearer_auth(OPERATOR).send().await.unwrap();
            change.status() == 200
        })
        .await;
    }
}

/// A client without redirects and connection reuse: on a slow machine, the server may close an idle connection just
/// as it is reused.
fn client() -> Client {
    Client::builder().redirect(reqwest::redirect::Policy::none()).pool_max_idle_per_host(0).build().unwrap()
}

/// Status of the response to a request.
async fn status(client: &Client, method: Method, url: &str, headers: &[(&str, &str)]) -> StatusCode {
    let mut request = client.request(method, url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap().status()
}
