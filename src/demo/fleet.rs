//! Runs the demonstration: private servers, the simulated fleet, arriving queries, and the scenario.

use std::path::PathBuf;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::random;
use super::script::beat_after;
use super::seed_history::{self, Past};
use super::servers::{PrivatePostgres, PrivateRedis, RedisOptions, ServerError};
use super::shepherd::{FLEET, QUERIES_PER_SECOND, Route, route};
use super::shepherd_database::ShepherdDatabase;
use super::worker_processes::{WorkerProcesses, WorkerPrograms};
use crate::fleet::reading::SourceTrouble;
use crate::redis_streams::connection::{Pool, checkout, pool};
use crate::worker::{NewTask, Producer, ProducerError, Workflow};

/// One query in this many is lost.
const LOST_EVERY: u32 = 60;
/// Number of queries per day of generated history.
const QUERIES_A_DAY: u32 = 33_000;

/// Options of the demonstration.
pub struct DemoOptions {
    /// Program with the subcommand `demo-worker`; [`DemoOptions::new`] uses the running one.
    pub worker_program: PathBuf,
    /// Speed factor of the scenario and the tasks; 1 is normal.
    pub speed: f64,
    /// Days of history to generate.
    pub past_days: u32,
    /// Receives each line of the scenario as it happens.
    pub say: Box<dyn Fn(&str) + Send>,
}

impl DemoOptions {
    /// Returns options with normal speed.
    ///
    /// # Errors
    /// When the path of the running program is unknown.
    pub fn new(say: impl Fn(&str) + Send + 'static) -> Result<Self, DemoError> {
        Ok(Self {
            worker_program: std::env::current_exe().map_err(DemoError::Program)?,
            speed: 1.0,
            past_days: 0,
            say: Box::new(say),
        })
    }
}

/// Error of the demonstration.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A private server did not start.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The path of the running program is unknown.
    #[error("cannot find the path of this program: {0}")]
    Program(#[source] std::io::Error),
    /// A worker process did not start.
    #[error("cannot start {program} as a worker: {source}")]
    Worker {
        /// Program.
        program: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// A signal could not be sent to a worker process.
    #[error("cannot signal a worker: {0}")]
    Signal(#[source] std::io::Error),
    /// Postgres returned an error.
    #[error("Postgres error: {0}")]
    Postgres(String),
    /// Redis is unreachable.
    #[error("{0}")]
    Unreachable(String),
    /// Redis returned an error.
    #[error("Redis error: {0}")]
    Redis(#[from] redis::RedisError),
    /// The task of a query could not be added.
    #[error(transparent)]
    Producer(#[from] ProducerError),
    /// The thread of the scenario could not be started.
    #[error("cannot start the scenario: {0}")]
    Thread(#[source] std::io::Error),
}

/// A running demonstration. When it is dropped or its process dies, its servers, workers and files are removed.
pub struct Demo {
    // Drop order: workers before the servers that they use.
    _fleet: Fleet,
    redis: PrivateRedis,
    postgres: PrivatePostgres,
}

impl Demo {
    /// Starts servers, fleet, queries and scenario, which run on a thread of their own. Blocks for the few seconds that
    /// the servers need to start.
    ///
    /// # Errors
    /// When a program is missing or a server fails to start.
    pub fn start(options: DemoOptions) -> Result<Self, DemoError> {
        let redis = PrivateRedis::start(RedisOptions::default())?;
        let postgres = PrivatePostgres::start()?;
        let fleet = Fleet::start(options, redis.url(), postgres.url())?;
        Ok(Self { _fleet: fleet, redis, postgres })
    }

    /// Private Redis.
    #[must_use]
    pub fn redis(&self) -> &PrivateRedis {
        &self.redis
    }

    /// Private Postgres; its database `postgres` is Shepherd's.
    #[must_use]
    pub fn postgres(&self) -> &PrivatePostgres {
        &self.postgres
    }

    /// URL of the fleet's Redis.
    #[must_use]
    pub fn redis_url(&self) -> String {
        self.redis.url()
    }

    /// URL of the fleet's database.
    #[must_use]
    pub fn database_url(&self) -> String {
        self.postgres.url()
    }

    /// The twenty streams, in the format of `MONITOR_SEED_STREAMS`.
    #[must_use]
    pub fn seed_streams() -> String {
        FLEET.map(|t| t.stream).join(",")
    }
}

/// The simulated fleet on existing servers. When it is dropped or its process dies, its workers stop; the data on the
/// servers stays.
pub struct Fleet {
    _story: Story,
}

impl Fleet {
    /// Starts fleet, queries and scenario, which run on a thread of their own.
    ///
    /// # Errors
    /// When a worker does not start or a server returns an error.
    pub fn start(options: DemoOptions, redis_url: String, database_url: String) -> Result<Self, DemoError> {
        let equipment =
            WorkerPrograms { program: options.worker_program, redis_url, database_url, speed: options.speed };
        Ok(Self { _story: Story::start(equipment, options.past_days, options.say)? })
    }
}

/// The thread that runs the fleet; dropping it stops the fleet.
struct Story {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Story {
    /// Returns when the whole fleet has been started.
    fn start(equipment: WorkerPrograms, past_days: u32, say: Box<dyn Fn(&str) + Send>) -> Result<Self, DemoError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(DemoError::Thread)?;
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = std_mpsc::channel();
        let work = move || {
            runtime.block_on(async move {
                let mut scenario = match Scenario::prepare(equipment, past_days, say).await {
                    Ok(scenario) => scenario,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                drop(ready.send(Ok(())));
                tokio::select! {
                    _ = stopped => {}
                    error = scenario.run() => (scenario.say)(&format!("the demo scenario stopped: {error}")),
                }
            });
        };
        let thread = std::thread::Builder::new().name("demo".into()).spawn(work).map_err(DemoError::Thread)?;
        let story = Self { stop: Some(stop), thread: Some(thread) };
        match started.recv() {
            Ok(result) => result.map(|()| story),
            Err(gone) => Err(DemoError::Thread(std::io::Error::other(gone))),
        }
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic has already printed its message.
            let _ = thread.join();
        }
    }
}

/// State of the scenario.
struct Scenario {
    crew: WorkerProcesses,
    query_source: QuerySource,
    reports: Reports,
    speed: f64,
    say: Box<dyn Fn(&str) + Send>,
}

impl Scenario {
    async fn prepare(
        equipment: WorkerPrograms,
        past_days: u32,
        say: Box<dyn Fn(&str) + Send>,
    ) -> Result<Self, DemoError> {
        let query_source = QuerySource::open(&equipment).await?;
        let reports = Reports::open(&equipment.redis_url).await?;
        if past_days > 0 {
            say(&format!("Generating {past_days} days of history; 30 days take a minute or two."));
            let past = Past {
                days: past_days,
                types: FLEET.map(|t| t.stream.to_owned()).into(),
                queries: past_days.saturating_mul(QUERIES_A_DAY),
            };
            seed_history::fill(&equipment.database_url, &past).await.map_err(DemoError::Postgres)?;
        }
        let speed = equipment.speed;
        let mut crew = WorkerProcesses::new(equipment);
        for t in FLEET {
            crew.start(t.stream, t.processes)?;
        }
        let workers = crew.present().count();
        say(&format!(
            "{workers} workers of {} types are running; about {QUERIES_PER_SECOND} queries arrive per second",
            FLEET.len()
        ));
        Ok(Self { crew, query_source, reports, speed, say })
    }

    /// Runs until an error occurs.
    async fn run(&mut self) -> DemoError {
        let Self { crew, query_source, reports, speed, say } = self;
        tokio::select! {
            error = query_source.submit_queries(*speed) => error,
            error = reports.read_along() => error,
            error = tell(crew, *speed, say) => error,
        }
    }
}

async fn tell(crew: &mut WorkerProcesses, speed: f64, say: &(dyn Fn(&str) + Send)) -> DemoError {
    let start = Instant::now();
    let mut beats = 0;
    loop {
        let (at, beat) = beat_after(beats);
        beats += 1;
        sleep_until(start + at.div_f64(speed)).await;
        for stream in crew.gone() {
            say(&format!("{}  a worker of {stream} stopped unexpectedly", clock(at)));
        }
        say(&format!("{}  {}", clock(at), beat.line));
        if let Err(error) = crew.act(beat.action) {
            return error;
        }
    }
}

fn clock(at: Duration) -> String {
    format!("{:3}:{:02}", at.as_secs() / 60, at.as_secs() % 60)
}

/// Source of queries, equivalent to Shepherd's web server as far as Redis and the database are concerned.
struct QuerySource {
    brain: ShepherdDatabase,
    producer: Producer,
}

impl QuerySource {
    async fn open(equipment: &WorkerPrograms) -> Result<Self, DemoError> {
        let brain = ShepherdDatabase::connect(&equipment.database_url).await.map_err(DemoError::Postgres)?;
        brain.create_tables().await.map_err(DemoError::Postgres)?;
        let producer = Producer::builder().environment(|_| None).redis_url(&equipment.redis_url);
        // The keys deduplicate retries after lost replies, which happen within seconds.
        let producer = producer.idempotency_ttl(Duration::from_secs(60)).connect().await?;
        Ok(Self { brain, producer })
    }

    async fn submit_queries(&mut self, speed: f64) -> DemoError {
        let pause = Duration::from_secs_f64(1.0 / (QUERIES_PER_SECOND * speed));
        let mut arrived = 0_u32;
        loop {
            sleep(random::around(pause)).await;
            let route = route(random::lot());
            arrived += 1;
            let entered = if arrived.is_multiple_of(LOST_EVERY) {
                self.submit_lost(route).await
            } else {
                self.submit(route).await
            };
            if let Err(error) = entered {
                return error;
            }
        }
    }

    /// Inserts a query without a task, so that only the monitor's janitor ever completes it.
    async fn submit_lost(&self, route: &Route) -> Result<(), DemoError> {
        let query_id = short_id();
        self.brain.add_query(&query_id, &short_id(), route.ara).await.map_err(DemoError::Postgres)?;
        self.brain.add_callbacks(&query_id, 2).await.map_err(DemoError::Postgres)
    }

    /// Inserts the row before the task, because a worker may complete a query as soon as it is in the stream.
    async fn submit(&mut self, route: &Route) -> Result<(), DemoError> {
        let Some(first) = route.streams.first() else { return Ok(()) };
        let (query_id, response_id) = (short_id(), short_id());
        self.brain.add_query(&query_id, &response_id, route.ara).await.map_err(DemoError::Postgres)?;
        let workflow = Workflow::through(route.streams.iter().copied());
        // The key makes retries after a lost reply safe.
        let task = NewTask::query(&query_id, &response_id).workflow(workflow).idempotency_key(query_id);
        self.producer.add(*first, task).await?;
        Ok(())
    }
}

/// A second group on one stream that reads only now and then. While it is behind, workers cannot delete finished
/// entries; after it has read, only the monitor's janitor deletes them.
struct Reports {
    redis: Pool,
}

impl Reports {
    const STREAM: &str = "example.score";
    const GROUP: &str = "reports";
    const PAUSE: Duration = Duration::from_secs(45);

    async fn open(redis_url: &str) -> Result<Self, DemoError> {
        let unreachable = |trouble: SourceTrouble| DemoError::Unreachable(trouble.detail);
        // A second is too short on a busy machine.
        let redis = pool(redis_url, Duration::from_secs(20)).map_err(unreachable)?;
        let mut connection = checkout(&redis).await.map_err(unreachable)?;
        let mut create = redis::cmd("XGROUP");
        create.arg("CREATE").arg(Self::STREAM).arg(Self::GROUP).arg("0").arg("MKSTREAM");
        match create.query_async::<()>(&mut connection).await {
            // An earlier fleet created it on the same Redis.
            Err(error) if error.code() == Some("BUSYGROUP") => {}
            made => made?,
        }
        Ok(Self { redis })
    }

    async fn read_along(&mut self) -> DemoError {
        loop {
            sleep(Self::PAUSE).await;
            let mut read = redis::cmd("XREADGROUP");
            read.arg("GROUP").arg(Self::GROUP).arg("reports-1").arg("COUNT").arg(10_000).arg("NOACK");
            read.arg("STREAMS").arg(Self::STREAM).arg(">");
            let mut connection = match checkout(&self.redis).await {
                Ok(connection) => connection,
                Err(trouble) => return DemoError::Unreachable(trouble.detail),
            };
            if let Err(error) = read.query_async::<redis::Value>(&mut connection).await {
                return error.into();
            }
        }
    }
}

fn short_id() -> String {
    let mut id = Uuid::new_v4().simple().to_string();
    id.truncate(16);
    id
}
