//! A PgBouncer in front of a Postgres on 127.0.0.1.

use std::time::Duration;

use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};
use shepherd_monitor::demo::servers::HeldPort;

/// How long a client keeps a server session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolMode {
    Session,
    Transaction,
}

impl PoolMode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Transaction => "transaction",
        }
    }
}

/// A running PgBouncer; ended when dropped. It knows every database of the server, and the user `postgres`.
pub(crate) struct Pgbouncer {
    port: HeldPort,
    reaper: Reaper,
}

impl Pgbouncer {
    /// One with up to `sessions` server sessions for each database.
    pub(crate) fn start(server_port: u16, mode: PoolMode, sessions: u32) -> Self {
        let settings = format!("auth_type = trust\npool_mode = {}\ndefault_pool_size = {sessions}", mode.name());
        Self::start_with(server_port, "*", "", &settings)
    }

    /// One that knows this database (`*`: each), and the user `postgres` with this password.
    pub(crate) fn start_with(server_port: u16, database: &str, password: &str, settings: &str) -> Self {
        let port = HeldPort::take().unwrap();
        let reaper = Reaper::start("pgbouncer", ShutdownSpec { signal: "INT", epilogue: "" }).unwrap();
        let settings = format!(
            "[databases]\n{database} = host=127.0.0.1 port={server_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {}\nunix_socket_dir =\nauth_file = {}\nmax_client_conn = 200\nlogfile =\npidfile =\n\
             {settings}\n",
            port.number(),
            reaper.folder().join("users").display(),
        );
        std::fs::write(reaper.folder().join("pgbouncer.ini"), settings).unwrap();
        std::fs::write(reaper.folder().join("users"), format!("\"postgres\" \"{password}\"\n")).unwrap();
        let ini = reaper.folder().join("pgbouncer.ini").display().to_string();
        let installed = "/usr/sbin/pgbouncer";
        let program = std::env::var("TEST_PGBOUNCER").unwrap_or_else(|_| {
            if std::path::Path::new(installed).exists() { installed } else { "pgbouncer" }.to_owned()
        });
        // It refuses to run as root.
        let as_service_user = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"];
        let mut command = Vec::new();
        if std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0) {
            command.extend(as_service_user);
        }
        command.extend([program.as_str(), &ini]);
        assert_eq!(reaper.run(&["chmod", "-R", "a+rX", "."]).unwrap(), 0);
        reaper.serve(&command).unwrap();
        let bouncer = Self { port, reaper };
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", bouncer.port())).is_err() {
            assert!(std::time::Instant::now() < until, "PgBouncer does not start:\n{}", bouncer.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        bouncer
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    pub(crate) fn log(&self) -> String {
        self.reaper.log_from(0)
    }
}
