//! A private redis-server.

use std::sync::atomic::{AtomicU32, Ordering};

use super::port::HeldPort;
use super::{ServerError, await_ready, folder_on_path};
use crate::demo::reaper::{Reaper, ShutdownSpec};

const PROGRAM: &str = "redis-server";
const READY: &str = "Ready to accept connections";

/// Options of a private Redis.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    /// Password; letters and digits only, because it is part of the URL.
    pub password: Option<String>,
    /// Additional arguments of redis-server, such as `["--appendonly", "yes"]`; they override the defaults.
    pub args: Vec<String>,
    /// Its port speaks TLS, with the certificates that `args` name.
    pub tls: bool,
    /// Additional environment variables.
    pub environment: Vec<(String, String)>,
    /// Path of the server's binary, such as another version of Redis or a Valkey; `redis-server` on PATH if absent.
    pub program: Option<String>,
}

impl RedisOptions {
    /// Returns options with these arguments and no password.
    pub fn with_args<const N: usize>(args: [&str; N]) -> Self {
        Self { args: args.map(str::to_owned).into(), ..Self::default() }
    }
}

/// A private redis-server: empty, without persistence by default, on 127.0.0.1 only.
#[derive(Debug)]
pub struct PrivateRedis {
    port: HeldPort,
    options: RedisOptions,
    reaper: Reaper,
    pid: AtomicU32,
}

impl PrivateRedis {
    /// Starts the server and waits until it is ready.
    pub fn start(options: RedisOptions) -> Result<Self, ServerError> {
        if options.program.is_none() && folder_on_path(PROGRAM).is_none() {
            return Err(ServerError::Missing { program: PROGRAM, place: "on PATH", package: PROGRAM });
        }
        let port = HeldPort::take().map_err(ServerError::Port)?;
        // Nothing outlives the folder, so a clean shutdown is unnecessary.
        let reaper = Reaper::start("shepherd-redis", ShutdownSpec { signal: "KILL", epilogue: "" })?;
        let server = Self { port, options, reaper, pid: AtomicU32::new(0) };
        server.restart_empty()?;
        Ok(server)
    }

    /// Port on 127.0.0.1, constant across restarts.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// URL, including the password.
    pub fn url(&self) -> String {
        self.url_through(self.port())
    }

    /// URL with another port of 127.0.0.1, such as a proxy's.
    pub fn url_through(&self, port: u16) -> String {
        match &self.options.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{port}/"),
            None => format!("redis://127.0.0.1:{port}/"),
        }
    }

    /// Process ID of the server, or of the last one after it was killed.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Folder with its log and data.
    pub fn folder(&self) -> &std::path::Path {
        self.reaper.folder()
    }

    /// Its log.
    pub fn log(&self) -> String {
        self.reaper.log_from(0)
    }

    /// Sends SIGSTOP: it accepts connections and does not respond.
    pub fn stop(&self) -> Result<(), ServerError> {
        Ok(self.reaper.send("STOP").map(drop)?)
    }

    /// Sends SIGCONT, which resumes it.
    pub fn resume(&self) -> Result<(), ServerError> {
        Ok(self.reaper.send("CONT").map(drop)?)
    }

    /// Sends SIGKILL: its port refuses connections until it is restarted.
    pub fn kill(&self) -> Result<(), ServerError> {
        Ok(self.reaper.send("KILL").map(drop)?)
    }

    /// Restarts it on the same port (a running server is killed first) with its data on disk: none, unless the options
    /// contain `--appendonly yes`. Waits until it is ready.
    pub fn restart(&self) -> Result<(), ServerError> {
        let (pid, offset) = self.launch()?;
        await_ready(&self.reaper, pid, PROGRAM, READY, offset)
    }

    /// Like [`restart`](Self::restart), without any data.
    pub fn restart_empty(&self) -> Result<(), ServerError> {
        self.reaper.end()?;
        self.reaper.run(&["rm", "-rf", "data"])?;
        self.reaper.run(&["mkdir", "data"])?;
        self.restart()
    }

    /// Like [`restart`](Self::restart), without waiting, to observe it while it loads.
    pub fn relaunch(&self) -> Result<(), ServerError> {
        self.launch().map(drop)
    }

    fn launch(&self) -> Result<(u32, usize), ServerError> {
        let port = self.port().to_string();
        let variables: Vec<String> =
            self.options.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut command = vec!["env"];
        command.extend(variables.iter().map(String::as_str));
        command.push(self.options.program.as_deref().unwrap_or(PROGRAM));
        command.extend(if self.options.tls { &["--port", "0", "--tls-port"][..] } else { &["--port"] });
        command.extend([&*port, "--bind", "127.0.0.1", "--dir", "data"]);
        command.extend(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        if let Some(password) = &self.options.password {
            command.extend(["--requirepass", password]);
        }
        command.extend(self.options.args.iter().map(String::as_str));
        self.reaper.end()?;
        let offset = self.log().len();
        let pid = self.reaper.serve(&command)?;
        self.pid.store(pid, Ordering::Relaxed);
        Ok((pid, offset))
    }
}
