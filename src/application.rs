//! Builds, starts and shuts down the monitor.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr};
use actix_web::dev::ServerHandle;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer};
use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;

use crate::actors::alert_dispatcher::AlertDispatcher;
use crate::actors::alert_evaluator::{AlertEvaluator, EvaluatorSettings, ShownAlerts};
use crate::actors::alert_ledger::Ledger;
use crate::actors::alert_store::LiveStore;
use crate::actors::compactor::Compactor;
use crate::actors::database_probe::DatabaseProbe;
use crate::actors::dead_mans_switch::DeadMansSwitch;
use crate::actors::exporter::Exporter;
use crate::actors::heartbeat_watcher::{HeartbeatWatcher, Watch};
use crate::actors::history_recorder::{HistoryRecorder, Recording};
use crate::actors::io::{Io, POSTGRES_LATE, WebPools};
use crate::actors::janitor::{Janitor, JanitorSettings};
use crate::actors::latency_bucketer::LatencyBucketer;
use crate::actors::live_feed::LiveFeed;
use crate::actors::messages::{AlertOrder, Stop};
use crate::actors::retention_sweeper::RetentionSweeper;
use crate::actors::state_tracker::StateTracker;
use crate::actors::stream_poller::{Polled, StreamPoller};
use crate::actors::supervisor::{ActorFactories, Newest, Supervisor, answer_within};
use crate::delivery::Deployment;
use crate::delivery::channels::{ChannelSettings, Channels};
use crate::delivery::email::Smtp;
use crate::delivery::outside_check::OutsideCheck;
use crate::exposition::counters::Counters;
use crate::exposition::page::Shape;
use crate::fleet::reading::SourceTrouble;
use crate::fleet::tracker::TrackerSettings;
use crate::identity_provider::IdentityProvider;
use crate::pages::{Environment, LiveView, Pages, Site};
use crate::postgres::alerts_spool;
use crate::postgres::connection::{PgPool, pool_beside, pool_of};
use crate::redis_streams::connection::PersistentConnection;
use crate::redis_streams::leader::LeaderLease;
use crate::redis_streams::streams_reader::StreamsReader;
use crate::settings::{OBSERVER_SCHEMA, Settings};
use crate::spool::Spool;
use crate::web::access::{AuthGate, ConnectionLimits, Connections, Lifetimes, SecurityLog, Sessions, Users};
use crate::web::deadlines::watched;
use crate::web::read_limits::ReadLimits;
use crate::web::request_id::identified;
use crate::web::timer_slack::Timers;
use crate::web::{AppState, open_files, routes};
use crate::{postgres, redis_streams, spool};

/// Threads of the HTTP server: one serves thousands of sessions, and each costs some CPU when idle.
const HTTP_WORKERS: usize = 1;
/// Time limit for requests in progress at shutdown, seconds.
const FINISH_WITHIN_SECS: u64 = 1;
/// Connections accepted beyond the limit, to answer them with an error.
const ACCEPTED_BEYOND: usize = 32;
/// Postgres connections of the actors.
const POSTGRES_ACTORS: usize = 5;
/// Postgres connections for read-only requests; a summary uses four at once.
const POSTGRES_READS: usize = 4;
/// Postgres connections for changes and the audit log.
const POSTGRES_CHANGES: usize = 2;
/// Time that a read-only request waits for a connection.
const READ_WAITS: Duration = Duration::from_secs(15);
/// Maximum size of spooled samples while Postgres is unreachable, bytes: several days of a large fleet.
const SPOOL_MOST_BYTES: u64 = 256 << 20;

/// Runs the monitor on `listener` until SIGINT or SIGTERM; SIGHUP reloads the rules file. Calls `begun` with the address.
///
/// # Errors
/// As [`Application::start`], and if the event loop cannot be started.
pub fn run(settings: &Settings, listener: TcpListener, begun: impl FnOnce(SocketAddr)) -> anyhow::Result<()> {
    // One thread for the actors and their queries; what computes for long does so on others. Names are looked up in `tcp`.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.max_blocking_threads(4).enable_all().build().context("cannot start the event loop")?;
    actix_web::rt::System::with_tokio_rt(move || runtime).block_on(async move {
        let application = Application::start(settings, listener)?;
        begun(application.address());
        wait_for_the_end(&application).await?;
        tracing::info!("stopping");
        application.stop().await;
        Ok(())
    })
}

async fn wait_for_the_end(application: &Application) -> std::io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => application.reload_rules(),
        }
    }
}

/// A running monitor. It belongs to the actix system in which it was started.
pub struct Application {
    address: SocketAddr,
    supervisor: Addr<Supervisor>,
    server: ServerHandle,
    timers: Timers,
    ledger: Arc<Ledger>,
    io: Io,
    security: Arc<SecurityLog>,
}

impl Application {
    /// Starts the monitor on `listener`. Must be called inside an actix system.
    ///
    /// # Errors
    /// If the settings cannot be used. Unreachable data sources are not an error.
    pub fn start(settings: &Settings, listener: TcpListener) -> anyhow::Result<Self> {
        let address = listener.local_addr()?;
        let most_connections = open_files::raise();
        let io = io(settings)?;
        if let Err(error) = spool::probe(&settings.spool_folder) {
            tracing::error!(
                "cannot write to {} ({error}): while Postgres is unreachable, samples and alerts are lost. Set \
                 MONITOR_SPOOL_DIR to a folder that this user may write",
                settings.spool_folder.display()
            );
        }
        let newest: Newest = Arc::new(ArcSwapOption::empty());
        let alerts = Alerting::new(settings, &io)?;
        let pages = Arc::new(Pages::below(&settings.root_path).context("cannot load the templates")?);
        let environment = Environment {
            maturity: settings.maturity.clone(),
            url: settings.server_url.clone(),
            observe_only: settings.observe_only,
            ..Environment::default()
        };
        let counters = Arc::new(std::sync::Mutex::new(Counters::new(&alerts.settings.channels)));
        let makers = makers(settings, &io, (&pages, &environment), &alerts, (&newest, &counters))?;
        let supervisor = Supervisor::new(io.clone(), settings.poll_interval, makers, Arc::clone(&newest)).start();
        let lifetimes = Lifetimes { idle: settings.session_idle, absolute: settings.session_absolute };
        let security = SecurityLog::new(io.clone(), Arc::clone(&counters), settings.access.mode());
        let secret = settings.secret_key.as_ref().filter(|_| settings.access.has_tokens());
        let users = secret.map(|secret| Users::new(secret.reveal()));
        let users = users.transpose().context("cannot verify tokens of users")?.map(Arc::new);
        let provider = settings.access.provider().map(|provider| IdentityProvider::new(provider.clone()));
        let provider = provider.transpose().map_err(|error| anyhow::anyhow!(error))?.map(Arc::new);
        let lock = AuthGate {
            policy: Arc::new(settings.access.clone()),
            trusted: Arc::new(settings.trusted_proxies.clone()),
            failures: Arc::default(),
            provider,
            sessions: settings
                .access
                .login()
                .map(|credentials| Sessions::new(lifetimes, credentials.session_key.clone(), users.clone())),
            users,
            io: io.clone(),
            counters,
            security: Arc::clone(&security),
            root: settings.root_path.clone(),
            own: settings.server_url.clone(),
            reported: Arc::default(),
        };
        let limits = ConnectionLimits::new(settings.connections_per_address, most_connections);
        let connections = Connections::new(limits, Arc::clone(&lock.trusted), Arc::clone(&lock.counters));
        let front = AppState {
            newest,
            lock,
            io: io.clone(),
            health: supervisor.clone().recipient(),
            page: supervisor.clone().recipient(),
            changes: supervisor.clone().recipient(),
            join: supervisor.clone().recipient(),
            metrics: supervisor.clone().recipient(),
            site: Arc::new(Site::new(pages, environment)),
            interval: settings.poll_interval,
            alerts: Arc::clone(&alerts.shown),
            ledger: Arc::clone(&alerts.ledger),
            order: supervisor.clone().recipient(),
            test: supervisor.clone().recipient(),
            clean_up: supervisor.clone().recipient(),
            forget: supervisor.clone().recipient(),
            watched: Arc::new(settings.watched.clone()),
            may_clean: Arc::new(settings.may_touch.clone()),
            abandoned_after: settings.abandoned_after,
            recent_window: settings.recent_window,
            read_limits: ReadLimits::new(),
            websockets_per_client: limits.websockets_per_client(),
        };
        let root_path = settings.root_path.clone();
        let timers = Timers::default();
        let (of_thread, of_connections) = (timers.clone(), timers.clone());
        let server = HttpServer::new(move || {
            of_thread.begin();
            let (front, root_path) = (front.clone(), root_path.clone());
            App::new()
                .wrap(from_fn(identified))
                .wrap(from_fn(watched))
                .configure(move |config| routes::configure(config, front, &root_path))
        })
        .on_connect(move |connection, notes| {
            notes.insert(of_connections.connected());
            connections.made(connection, notes);
        })
        .workers(HTTP_WORKERS)
        // Beyond this limit no connections are accepted, so that connections that are still closing keep their file descriptors.
        .max_connections(most_connections.saturating_add(ACCEPTED_BEYOND))
        .disable_signals()
        .shutdown_timeout(FINISH_WITHIN_SECS)
        .listen(listener)
        .context("cannot start the HTTP server")?
        .run();
        let handle = server.handle();
        actix_web::rt::spawn(server);
        Ok(Self { address, supervisor, server: handle, timers, ledger: alerts.ledger, io, security })
    }

    /// Returns the address on which it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the supervisor, for tests that make actors panic.
    #[must_use]
    pub fn supervisor(&self) -> &Addr<Supervisor> {
        &self.supervisor
    }

    /// Reloads the rules file.
    pub fn reload_rules(&self) {
        self.supervisor.do_send(AlertOrder::Reload);
        self.security.reloaded_by_signal();
    }

    /// Shuts down in order: readiness and ticks, sessions, HTTP server, pools.
    pub async fn stop(self) {
        self.timers.stop();
        if self.supervisor.send(Stop).await.is_err() {
            tracing::warn!("the supervisor had already stopped");
        }
        // So that the next leader does not wait for the lease to expire.
        let ledger = Arc::clone(&self.ledger);
        let resigning = self.io.run(Duration::from_secs(1), POSTGRES_LATE, async move {
            ledger.resign().await;
            Ok(())
        });
        // A session that does not read would delay the graceful shutdown by its whole timeout.
        let stopping = actix_web::rt::time::timeout(Duration::from_millis(1200), self.server.stop(true));
        let recording = actix_web::rt::time::timeout(Duration::from_secs(1), self.security.finish());
        let (_, graceful, _) = futures_util::join!(resigning, stopping, recording);
        if graceful.is_err() {
            self.server.stop(false).await;
        }
    }
}

/// Returns the pools of the actors and those for requests of clients.
fn io(settings: &Settings) -> anyhow::Result<Io> {
    let timeout = settings.pool_timeout;
    let redis = || redis_streams::connection::pool(settings.redis_url.reveal(), answer_within(settings.poll_interval));
    let web = || {
        Ok::<_, SourceTrouble>(WebPools {
            redis: redis()?,
            reads: postgres_pool(settings, POSTGRES_READS, READ_WAITS)?,
            changes: postgres_pool(settings, POSTGRES_CHANGES, timeout)?,
        })
    };
    let pools = || Ok::<_, SourceTrouble>(((redis()?, postgres_pool(settings, POSTGRES_ACTORS, timeout)?), web()?));
    let (own, web) = pools().map_err(|trouble| anyhow::anyhow!(trouble.detail))?;
    Ok(Io::new(tokio::runtime::Handle::current(), own, web, settings.observe_only))
}

/// Returns a pool of at most `size` connections to Postgres, in which a query waits at most `wait` for a free one.
fn postgres_pool(settings: &Settings, size: usize, wait: Duration) -> Result<PgPool, SourceTrouble> {
    let (url, timeout) = (settings.database_url.reveal(), settings.pool_timeout);
    match &settings.fleet_database_url {
        Some(fleet) => pool_beside(size, (OBSERVER_SCHEMA, url), fleet.reveal(), timeout, wait),
        None => pool_of(size, url, timeout, wait),
    }
}

/// State shared by the two alert actors.
struct Alerting {
    ledger: Arc<Ledger>,
    channels: Arc<Channels>,
    settings: EvaluatorSettings,
    shown: ShownAlerts,
}

impl Alerting {
    fn new(settings: &Settings, io: &Io) -> anyhow::Result<Self> {
        let alerts = &settings.alerts;
        let channels = Channels::new(channel_settings(settings)).map_err(|why| anyhow::anyhow!(why))?;
        let database = postgres::connection::identity(settings.database_url.reveal());
        let spool = alerts_spool::Spool::new(&settings.spool_folder, &format!("{database}-{}", settings.port));
        let evaluator = EvaluatorSettings {
            file: alerts.file.clone(),
            file_is_given: alerts.file_is_given,
            grace: alerts.grace,
            started: io.now(),
            debounce: alerts.debounce,
            channels: channels.names(),
        };
        let holder = uuid::Uuid::new_v4().to_string();
        let place = if settings.observe_only {
            LeaderLease::none(holder.clone())
        } else {
            LeaderLease::new(holder.clone(), kept_connection(io))
        };
        Ok(Self {
            ledger: Arc::new(Ledger::new(LiveStore::new(
                (io.postgres.clone(), io.web.reads.clone()),
                place,
                holder,
                spool,
            ))),
            channels: Arc::new(channels),
            settings: evaluator,
            shown: ShownAlerts::default(),
        })
    }
}

/// Returns the channels that the settings configure.
#[must_use]
pub fn channel_settings(settings: &Settings) -> ChannelSettings {
    let alerts = &settings.alerts;
    ChannelSettings {
        channels: alerts.channels.clone(),
        webhook_authorities: alerts.webhook_authorities.clone(),
        email: alerts.email.as_ref().map(|email| {
            let smtp = Smtp {
                host: email.host.clone(),
                port: email.port,
                login: email.login.clone(),
                tls: email.tls,
                authorities: email.authorities.clone(),
                any_certificate: email.any_certificate,
                from: email.from.clone(),
                helo_name: email.helo_name.clone(),
            };
            (smtp, email.to.clone())
        }),
        deployment: Deployment { maturity: settings.maturity.clone(), url: settings.server_url.clone() },
    }
}

/// A connection for what is asked with every tick.
fn kept_connection(io: &Io) -> PersistentConnection {
    PersistentConnection::beside(&io.redis)
}

fn makers(
    settings: &Settings,
    io: &Io,
    (pages, environment): (&Arc<Pages>, &Environment),
    alerts: &Alerting,
    (newest, counters): (&Newest, &Arc<std::sync::Mutex<Counters>>),
) -> anyhow::Result<ActorFactories> {
    let watched = Arc::new(settings.watched.clone());
    let reader = StreamsReader::new(settings.watched.clone(), &settings.seed_streams);
    let reader = Arc::new(Mutex::new(Polled::new(reader, kept_connection(io))));
    let watch = Arc::new(Mutex::new(Watch::new(kept_connection(io))));
    let tracker = TrackerSettings {
        interval: settings.poll_interval,
        default_floor: settings.default_floor,
        seed_streams: settings.seed_streams.clone(),
        watched: Arc::clone(&watched),
        aras: Arc::clone(&settings.aras),
        disk_capacity_bytes: settings.disk_capacity_bytes,
    };
    let (pages, environment) = (Arc::clone(pages), environment.clone());
    let (ledger, channels) = (Arc::clone(&alerts.ledger), Arc::clone(&alerts.channels));
    let (evaluator, evaluators_ledger) = (alerts.settings.clone(), Arc::clone(&alerts.ledger));
    let shown = Arc::clone(&alerts.shown);
    let shape = Shape {
        db: redis_streams::connection::database_number(settings.redis_url.reveal()),
        per_consumer: settings.metrics_per_consumer,
    };
    let counters = Arc::clone(counters);
    let (newest, exported_alerts) = (Arc::clone(newest), Arc::clone(&alerts.shown));
    let database_url = settings.database_url.clone();
    let recording = Recording { interval: settings.history_interval, recent: settings.recent_window };
    let spool = Arc::new(std::sync::Mutex::new(Spool::new(
        settings.spool_folder.clone(),
        format!("samples-{}", postgres::connection::identity(settings.database_url.reveal())),
        SPOOL_MOST_BYTES,
    )));
    let (interval, keep) = (settings.history_interval, settings.keep);
    let janitor = Arc::new(JanitorSettings {
        abandoned_after: settings.abandoned_after,
        query_days: settings.query_days,
        may_touch: settings.may_touch.clone(),
        default_floor: settings.default_floor,
    });
    let alerts = &settings.alerts;
    let outside_check = alerts.heartbeat.clone().map(|url| {
        OutsideCheck::new(url, alerts.webhook_authorities.as_deref()).map_err(|why| anyhow::anyhow!(why)).map(Arc::new)
    });
    let outside_check = outside_check.transpose()?;
    let each = || io.clone();
    let (a, b, c, d, e) = (each(), each(), each(), each(), each());
    let (f, g, h, i, j, k, l, m) = (each(), each(), each(), each(), each(), each(), each(), each());
    Ok(ActorFactories {
        stream_poller: Box::new(move |up| StreamPoller::new(a.clone(), up, Arc::clone(&reader))),
        heartbeat_watcher: Box::new(move |up| {
            HeartbeatWatcher::new(b.clone(), up, Arc::clone(&watched), Arc::clone(&watch))
        }),
        database_probe: Box::new(move |up| DatabaseProbe::new(c.clone(), up, database_url.clone())),
        state_tracker: Box::new(move |up| StateTracker::new(d.clone(), up, tracker.clone())),
        live_feed: Box::new(move |up| LiveFeed::new(up, LiveView::new(Arc::clone(&pages), environment.clone()))),
        history_recorder: Box::new(move |up| HistoryRecorder::new(e.clone(), up, recording, Arc::clone(&spool))),
        latency_bucketer: Box::new(move |up| LatencyBucketer::new(f.clone(), up, interval)),
        compactor: Box::new(move |up| Compactor::new(g.clone(), up)),
        retention_sweeper: Box::new(move |up| RetentionSweeper::new(h.clone(), up, keep)),
        janitor: Box::new(move |up| Janitor::new(k.clone(), up, Arc::clone(&janitor))),
        alert_evaluator: Box::new(move |up| {
            AlertEvaluator::new(i.clone(), up, Arc::clone(&evaluators_ledger), evaluator.clone(), Arc::clone(&shown))
        }),
        alert_dispatcher: Box::new(move |up| {
            AlertDispatcher::new(j.clone(), up, Arc::clone(&ledger), Arc::clone(&channels))
        }),
        dead_mans_switch: Box::new(move |up| DeadMansSwitch::new(m.clone(), up, outside_check.clone())),
        exporter: Box::new(move |up| {
            let (counters, newest) = (Arc::clone(&counters), Arc::clone(&newest));
            Exporter::new(l.clone(), up, counters, newest, Arc::clone(&exported_alerts), shape.clone())
        }),
    })
}
