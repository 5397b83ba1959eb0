//! One Postgres server per test process, and a database per test.

use std::future::Future;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use shepherd_monitor::demo::servers::PrivatePostgres;
use tokio_postgres::{Client, NoTls};

use super::pgbouncer::{Pgbouncer, PoolMode};

const TEMPLATE: &str = "template_of_the_tests";

/// Started by the first test that needs it. Never dropped: the reaper ends it with the process.
fn server() -> &'static PrivatePostgres {
    static SERVER: OnceLock<PrivatePostgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = PrivatePostgres::start().unwrap();
        statement(server.url(), format!("CREATE DATABASE {TEMPLATE}"));
        server
    })
}

/// The pooler that all tests go through, if they are to.
fn pooler() -> Option<&'static Pgbouncer> {
    static POOLER: OnceLock<Option<Pgbouncer>> = OnceLock::new();
    let start = || {
        let mode = match std::env::var("TEST_POOL_MODE").ok()?.as_str() {
            "session" => PoolMode::Session,
            _ => PoolMode::Transaction,
        };
        Some(Pgbouncer::start(server().port(), mode, 12))
    };
    POOLER.get_or_init(start).as_ref()
}

/// A database for one test, copied from the template; dropped with this value.
pub(crate) struct TestDatabase {
    name: String,
}

impl TestDatabase {
    pub(crate) fn create() -> Self {
        Self::copy_of(TEMPLATE)
    }

    fn copy_of(template: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        statement(server().url(), format!("CREATE DATABASE {name} TEMPLATE {template}"));
        Self { name }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// URL of the database, for user `postgres` without password.
    ///
    /// With `TEST_POOL_MODE=session` or `transaction` in the environment it leads through a PgBouncer, for trying any
    /// test through one.
    pub(crate) fn url(&self) -> String {
        match pooler() {
            Some(pooler) => self.url_through(pooler.port()),
            None => server().url_of(&self.name),
        }
    }

    /// URL of the database through a proxy on another port of 127.0.0.1.
    pub(crate) fn url_through(&self, port: u16) -> String {
        format!("postgres://postgres@127.0.0.1:{port}/{}", self.name)
    }

    /// Port of the shared server, for a proxy.
    pub(crate) fn port(&self) -> u16 {
        server().port()
    }

    /// Connects on the current runtime.
    pub(crate) async fn connect(&self) -> Client {
        connect(&server().url_of(&self.name)).await.unwrap()
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        // FORCE, because connections of the code under test may still be closing.
        statement(server().url(), format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }
}

/// Connects to a URL on the current runtime.
pub(crate) async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Runs a statement on a separate thread, so that it works in any runtime and in `Drop`.
fn statement(url: String, sql: String) {
    on_a_thread(async move { connect(&url).await?.batch_execute(&sql).await }).unwrap();
}

fn on_a_thread<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || runtime().block_on(work)).join().unwrap()
}
