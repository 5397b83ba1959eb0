//! Shepherd's own database as its servers and workers use it: queries and callbacks.

use tokio_postgres::{Client, Error, NoTls};
use uuid::Uuid;

/// The tables exactly as the monitor knows them.
const TABLES: &str = include_str!("../../migrations/0001_fleet_tables/up.sql");

/// One connection to it.
pub(super) struct Brain(Client);

impl Brain {
    /// Connects, on the runtime of the caller.
    pub(super) async fn connect(url: &str) -> Result<Self, Error> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        Ok(Self(client))
    }

    /// Makes the fleet's tables in an empty database.
    pub(super) async fn create_tables(&self) -> Result<(), Error> {
        self.0.batch_execute(TABLES).await
    }

    /// A query arrived.
    pub(super) async fn add_query(&self, query_id: &str, response_id: &str, ara: &str) -> Result<(), Error> {
        let insert = "INSERT INTO shepherd_brain \
             (qid, start_time, submitter, remote_ip, domain, hostname, response_id, state, description) \
             VALUES ($1, NOW(), 'demo', '127.0.0.1', $2, 'demo', $3, 'QUEUED', 'a simulated query')";
        self.0.execute(insert, &[&query_id, &ara, &response_id]).await.map(drop)
    }

    /// The query waits for `count` more answers.
    pub(super) async fn add_callbacks(&self, query_id: &str, count: usize) -> Result<(), Error> {
        let ids: Vec<String> = (0..count).map(|_| Uuid::new_v4().simple().to_string()).collect();
        let insert = "INSERT INTO callbacks (query_id, callback_id) SELECT $1, unnest($2::text[])";
        self.0.execute(insert, &[&query_id, &ids]).await.map(drop)
    }

    /// The query is finished, and no answer is awaited any more. What is final stays as it is.
    pub(super) async fn finish_query(&self, query_id: &str, status: &str) -> Result<(), Error> {
        let finish = "WITH reaped AS (DELETE FROM callbacks WHERE query_id = $1) \
             UPDATE shepherd_brain SET state = 'COMPLETED', status = $2, stop_time = NOW() \
             WHERE qid = $1 AND state = 'QUEUED'";
        self.0.execute(finish, &[&query_id, &status]).await.map(drop)
    }
}
