//! Shepherd's own database, as used by its web server and its workers.

use std::time::Duration;

use diesel_async::SimpleAsyncConnection;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::postgres::connection::{self, PgConnection};
use crate::worker::queries::{NewQuery, add_callback, add_query, finish_query};

/// The tables as the monitor expects them.
const TABLES: &str = include_str!("../../migrations/0001_fleet_tables/up.sql");

/// Time limit for connecting.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);

/// A connection. Errors are the server's messages.
pub(super) struct ShepherdDatabase(Mutex<PgConnection>);

impl ShepherdDatabase {
    /// Connects on the caller's runtime.
    pub(super) async fn connect(url: &str) -> Result<Self, String> {
        let connected = connection::connect(url.to_owned(), CONNECT_WITHIN).await;
        connected.map(|connection| Self(Mutex::new(connection))).map_err(|e| e.to_string())
    }

    /// Creates the fleet's tables in an empty database. If a monitor creates them concurrently, the second check finds
    /// them.
    pub(super) async fn create_tables(&self) -> Result<(), String> {
        let connection = &mut *self.0.lock().await;
        if connection.batch_execute(TABLES).await.is_ok() {
            return Ok(());
        }
        connection.batch_execute(TABLES).await.map_err(|e| e.to_string())
    }

    /// Inserts a query to `ara`.
    pub(super) async fn add_query(&self, query_id: &str, response_id: &str, ara: &str) -> Result<(), String> {
        let query = NewQuery {
            qid: query_id,
            submitter: Some("demo"),
            remote_ip: Some("127.0.0.1"),
            hostname: Some("demo"),
            response_id: Some(response_id),
            description: Some("a simulated query"),
            ..NewQuery::default()
        };
        add_query(&mut *self.0.lock().await, &query, ara).await.map(drop).map_err(|e| e.to_string())
    }

    /// Adds `count` outstanding callbacks to the query.
    pub(super) async fn add_callbacks(&self, query_id: &str, count: u32) -> Result<(), String> {
        let connection = &mut *self.0.lock().await;
        for _ in 0..count {
            let id = Uuid::new_v4().simple().to_string();
            add_callback(connection, query_id, &id, None).await.map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Completes the query and deletes its callbacks.
    pub(super) async fn finish_query(&self, query_id: &str, status: &str) -> Result<(), String> {
        finish_query(&mut *self.0.lock().await, query_id, status).await.map(drop).map_err(|e| e.to_string())
    }
}
