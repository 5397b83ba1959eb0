//! Builds everything, starts it, and stops it in order.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr};
use actix_web::dev::ServerHandle;
use actix_web::{App, HttpServer};
use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use tokio::sync::{Mutex, oneshot};

use crate::actors::database_probe::DatabaseProbe;
use crate::actors::heartbeat_watcher::{HeartbeatWatcher, Watch};
use crate::actors::io::Io;
use crate::actors::live_feed::LiveFeed;
use crate::actors::messages::Stop;
use crate::actors::state_tracker::StateTracker;
use crate::actors::stream_poller::{Polled, StreamPoller};
use crate::actors::supervisor::{Makers, Newest, Supervisor, answer_within};
use crate::fleet::tracker::TrackerSettings;
use crate::pages::{Environment, LiveView, Pages};
use crate::redis_streams::connection::Kept;
use crate::redis_streams::streams_reader::StreamsReader;
use crate::settings::Settings;
use crate::web::{Front, routes};
use crate::{postgres, redis_streams};

/// Threads that serve pages: one feeds thousands of sessions, and each costs a little when idle.
const HTTP_WORKERS: usize = 1;
/// How long requests that are being answered may take to end at the stop.
const FINISH_WITHIN_SECS: u64 = 1;

/// A running monitor. It belongs to the actix system it was started in.
pub struct Application {
    address: SocketAddr,
    supervisor: Addr<Supervisor>,
    server: ServerHandle,
    /// Dropped last: pools and their connections live on it.
    _sources: Sources,
}

/// The thread on which Redis and Postgres are asked: a busy actor never delays a query.
struct Sources {
    handle: tokio::runtime::Handle,
    /// The thread ends when this is dropped.
    _running: oneshot::Sender<()>,
}

impl Sources {
    fn start() -> std::io::Result<Self> {
        // One thread that drives all: cheaper, tick by tick, than a scheduler for several.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(2)
            .thread_name("sources")
            .enable_all()
            .build()?;
        let (handle, (running, stopped)) = (runtime.handle().clone(), oneshot::channel::<()>());
        std::thread::Builder::new().name("sources".to_owned()).spawn(move || {
            drop(runtime.block_on(stopped));
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _running: running })
    }
}

impl Application {
    /// Starts everything on `listener`. Must be called inside an actix system.
    ///
    /// # Errors
    /// When the settings cannot be used; Redis and Postgres being away is no error.
    pub fn start(settings: &Settings, listener: TcpListener) -> anyhow::Result<Self> {
        let address = listener.local_addr()?;
        let sources = Sources::start().context("no thread for the sources")?;
        let redis = redis_streams::connection::pool(settings.redis_url.reveal(), answer_within(settings.poll_interval))
            .map_err(|trouble| anyhow::anyhow!(trouble.detail))?;
        let database = postgres::connection::pool(settings.database_url.reveal(), settings.pool_timeout)
            .map_err(|trouble| anyhow::anyhow!(trouble.detail))?;
        let io = Io::new(sources.handle.clone(), redis, database);
        let newest: Newest = Arc::new(ArcSwapOption::empty());
        let supervisor =
            Supervisor::new(io.clone(), settings.poll_interval, makers(settings, &io)?, Arc::clone(&newest)).start();
        let front = Front {
            newest,
            io,
            health: supervisor.clone().recipient(),
            page: supervisor.clone().recipient(),
            changes: supervisor.clone().recipient(),
            join: supervisor.clone().recipient(),
            interval: settings.poll_interval,
        };
        let root_path = settings.root_path.clone();
        let server = HttpServer::new(move || {
            let (front, root_path) = (front.clone(), root_path.clone());
            App::new().configure(move |config| routes::configure(config, front, &root_path))
        })
        .workers(HTTP_WORKERS)
        .disable_signals()
        .shutdown_timeout(FINISH_WITHIN_SECS)
        .listen(listener)
        .context("cannot serve")?
        .run();
        let handle = server.handle();
        actix_web::rt::spawn(server);
        Ok(Self { address, supervisor, server: handle, _sources: sources })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The supervisor, for tests that make actors fail.
    #[must_use]
    pub fn supervisor(&self) -> &Addr<Supervisor> {
        &self.supervisor
    }

    /// Stops in order: readiness off and no more ticks, sessions closed, server, pools.
    pub async fn stop(self) {
        if self.supervisor.send(Stop).await.is_err() {
            tracing::warn!("the supervisor was gone already");
        }
        // A session that does not read holds a graceful stop up for its whole time.
        let graceful = actix_web::rt::time::timeout(Duration::from_millis(1200), self.server.stop(true)).await;
        if graceful.is_err() {
            self.server.stop(false).await;
        }
    }
}

fn makers(settings: &Settings, io: &Io) -> anyhow::Result<Makers> {
    let watched = Arc::new(settings.watched.clone());
    let connection = || {
        Kept::to(settings.redis_url.reveal(), answer_within(settings.poll_interval))
            .map_err(|trouble| anyhow::anyhow!(trouble.detail))
    };
    let reader = StreamsReader::new(settings.watched.clone(), &settings.seed_streams);
    let reader = Arc::new(Mutex::new(Polled::new(reader, connection()?)));
    let watch = Arc::new(Mutex::new(Watch::new(connection()?)));
    let tracker = TrackerSettings {
        interval: settings.poll_interval,
        default_floor: settings.default_floor,
        seed_streams: settings.seed_streams.clone(),
        aras: Arc::clone(&settings.aras),
        disk_capacity_bytes: settings.disk_capacity_bytes,
    };
    let pages = Arc::new(Pages::new().context("the templates cannot be read")?);
    let environment = Environment { maturity: settings.maturity.clone(), url: settings.server_url.clone() };
    let (root_path, database_url) = (settings.root_path.clone(), settings.database_url.clone());
    let each = || io.clone();
    let (a, b, c, d) = (each(), each(), each(), each());
    Ok(Makers {
        stream_poller: Box::new(move |up| StreamPoller::new(a.clone(), up, Arc::clone(&reader))),
        heartbeat_watcher: Box::new(move |up| {
            HeartbeatWatcher::new(b.clone(), up, Arc::clone(&watched), Arc::clone(&watch))
        }),
        database_probe: Box::new(move |up| DatabaseProbe::new(c.clone(), up, database_url.clone())),
        state_tracker: Box::new(move |up| StateTracker::new(d.clone(), up, tracker.clone())),
        live_feed: Box::new(move |up| {
            LiveFeed::new(up, LiveView::new(Arc::clone(&pages), environment.clone()), root_path.clone())
        }),
    })
}
