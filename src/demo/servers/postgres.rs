//! A private Postgres.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::port::HeldPort;
use super::{ServerError, await_ready, folder_on_path, last_lines};
use crate::demo::reaper::{Reaper, ShutdownSpec};

const PROGRAM: &str = "postgres";
/// A primary is ready for "connections", a standby for "read-only connections".
const READY: &str = "database system is ready to accept";

/// Postgres does not run as root; Debian's package creates this user.
const SERVICE_USER: &str = "postgres";

const FAREWELL: ShutdownSpec = ShutdownSpec {
    // Immediate shutdown: does not wait for clients, and still frees its shared memory.
    signal: "QUIT",
    // A killed server leaves its shared memory; the seventh line of its lock file identifies it.
    epilogue: r#"set -- $(sed -n 7p data/postmaster.pid); [ -z "$2" ] || ipcrm -m "$2""#,
};

/// Small and without durability, because the data is disposable.
const SETTINGS: [&str; 13] = [
    "listen_addresses=127.0.0.1",
    // Its own data folder.
    "unix_socket_directories=.",
    "max_connections=200",
    "shared_buffers=16MB",
    "dynamic_shared_memory_type=mmap",
    "fsync=off",
    "full_page_writes=off",
    "wal_level=minimal",
    "max_wal_senders=0",
    "min_wal_size=32MB",
    "max_wal_size=256MB",
    "lc_messages=C",
    "timezone=UTC",
];

/// A private Postgres: user `postgres` without password, database `postgres`, 200 connections, on 127.0.0.1 only.
#[derive(Debug)]
pub struct PrivatePostgres {
    port: HeldPort,
    programs: PathBuf,
    as_service_user: bool,
    settings: Vec<String>,
    reaper: Reaper,
    pid: AtomicU32,
}

impl PrivatePostgres {
    /// Initializes the cluster, starts the server and waits until it is ready: one or two seconds.
    pub fn start() -> Result<Self, ServerError> {
        Self::start_with(&[])
    }

    /// Like [`start`](Self::start), with additional settings (`name=value`), which override the defaults.
    pub fn start_with(settings: &[&str]) -> Result<Self, ServerError> {
        let server = Self::without_data(settings.iter().map(|setting| (*setting).to_owned()).collect())?;
        server.make_data_folder()?;
        server.restart()?;
        Ok(server)
    }

    /// Starts a streaming standby of this server with the same settings; they have to allow replication (`wal_level`,
    /// `max_wal_senders`).
    pub fn start_standby(&self) -> Result<Self, ServerError> {
        let standby = Self::without_data(self.settings.clone())?;
        standby.follow(self)?;
        Ok(standby)
    }

    /// Replaces the data of this server with a base backup of `primary` and restarts it as a streaming standby.
    pub fn follow(&self, primary: &Self) -> Result<(), ServerError> {
        self.reaper.end()?;
        self.prepare(&["sh", "-c", FAREWELL.epilogue])?;
        self.prepare(&["rm", "-rf", "data"])?;
        self.make_folder()?;
        // A folder of links may have the server alone.
        let server = std::fs::canonicalize(self.programs.join(PROGRAM)).unwrap_or_default();
        let program = server.with_file_name("pg_basebackup").to_string_lossy().into_owned();
        let port = primary.port().to_string();
        let mut command = self.prefix();
        command.extend([program.as_str(), "-D", "data", "-h", "127.0.0.1", "-p", &port, "-U", "postgres"]);
        command.extend(["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]);
        self.prepare(&command)?;
        self.restart()
    }

    fn without_data(settings: Vec<String>) -> Result<Self, ServerError> {
        let programs = programs()?;
        let port = HeldPort::take().map_err(ServerError::Port)?;
        let reaper = Reaper::start("shepherd-postgres", FAREWELL)?;
        Ok(Self { port, programs, as_service_user: is_root(), settings, reaper, pid: AtomicU32::new(0) })
    }

    /// Port on 127.0.0.1, constant across restarts.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// URL of its database `postgres`.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// URL of another database.
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port())
    }

    /// Process ID of the server, or of the last one after it was killed.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Folder with its log and data.
    pub fn folder(&self) -> &Path {
        self.reaper.folder()
    }

    /// Its log.
    pub fn log(&self) -> String {
        self.reaper.log_from(0)
    }

    /// Sends SIGSTOP to the server and its backends: they accept connections and do not respond.
    pub fn stop(&self) -> Result<(), ServerError> {
        Ok(self.reaper.send("STOP").map(drop)?)
    }

    /// Sends SIGCONT, which resumes it.
    pub fn resume(&self) -> Result<(), ServerError> {
        Ok(self.reaper.send("CONT").map(drop)?)
    }

    /// Requests a fast shutdown (SIGINT): it ends its sessions, and its standbys receive everything first.
    pub fn shut_down(&self) -> Result<(), ServerError> {
        Ok(self.reaper.send("INT").map(drop)?)
    }

    /// Sends SIGKILL to the server and its backends: its port refuses connections until it is restarted.
    pub fn kill(&self) -> Result<(), ServerError> {
        Ok(self.reaper.send("KILL").map(drop)?)
    }

    /// Restarts it on the same port with its data (a running server is shut down first), and waits until it is ready.
    pub fn restart(&self) -> Result<(), ServerError> {
        let port = self.port().to_string();
        let program = self.program(PROGRAM);
        let mut command = self.prefix();
        command.extend([program.as_str(), "-D", "data", "-p", &port]);
        for setting in SETTINGS.into_iter().chain(self.settings.iter().map(String::as_str)) {
            command.extend(["-c", setting]);
        }
        self.reaper.end()?;
        let offset = self.log().len();
        let pid = self.reaper.serve(&command)?;
        self.pid.store(pid, Ordering::Relaxed);
        await_ready(&self.reaper, pid, PROGRAM, READY, offset)
    }

    fn make_folder(&self) -> Result<(), ServerError> {
        self.prepare(&["mkdir", "-m", "700", "data"])?;
        if self.as_service_user {
            self.prepare(&["chown", SERVICE_USER, "data"])?;
        }
        Ok(())
    }

    fn make_data_folder(&self) -> Result<(), ServerError> {
        self.make_folder()?;
        let initdb = self.program("initdb");
        let mut command = self.prefix();
        command.extend([initdb.as_str(), "-D", "data", "-U", "postgres", "--auth=trust", "--no-sync"]);
        command.extend(["--encoding=UTF8", "--locale=C"]);
        self.prepare(&command)
    }

    fn prepare(&self, command: &[&str]) -> Result<(), ServerError> {
        match self.reaper.run(command)? {
            0 => Ok(()),
            _ => Err(ServerError::Preparation { what: command.join(" "), log: last_lines(&self.log()) }),
        }
    }

    fn program(&self, name: &str) -> String {
        self.programs.join(name).to_string_lossy().into_owned()
    }

    /// Prefix of commands that must not run as root. Unlike `runuser`, `setpriv` execs the command, so that signals and
    /// the process ID are the server's own.
    fn prefix(&self) -> Vec<&'static str> {
        if self.as_service_user {
            vec!["setpriv", "--reuid", SERVICE_USER, "--regid", SERVICE_USER, "--init-groups"]
        } else {
            Vec::new()
        }
    }
}

/// Returns the folder of `postgres` and `initdb`: from PATH, or the newest version in Debian's location.
fn programs() -> Result<PathBuf, ServerError> {
    let has_initdb = |folder: &PathBuf| folder.join("initdb").is_file();
    let newest_of_debian = || {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let numbered = versions.filter_map(|entry| {
            let folder = entry.ok()?.path();
            let version: u32 = folder.file_name()?.to_str()?.parse().ok()?;
            Some((version, folder.join("bin")))
        });
        numbered.filter(|(_, bin)| bin.join(PROGRAM).is_file() && has_initdb(bin)).max().map(|(_, bin)| bin)
    };
    folder_on_path(PROGRAM).filter(has_initdb).or_else(newest_of_debian).ok_or(ServerError::Missing {
        program: PROGRAM,
        place: "on PATH or under /usr/lib/postgresql",
        package: "postgresql",
    })
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}
