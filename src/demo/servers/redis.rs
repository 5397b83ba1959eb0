//! A private redis-server.

use std::sync::atomic::{AtomicU32, Ordering};

use super::port::HeldPort;
use super::{ServerError, await_ready, folder_on_path};
use crate::demo::reaper::{Farewell, Reaper};

const PROGRAM: &str = "redis-server";
const READY: &str = "Ready to accept connections";

/// What a private Redis does beyond the plain one.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    /// The password it asks for; letters and digits, because it stands in the URL.
    pub password: Option<String>,
    /// More arguments for redis-server, such as `["--appendonly", "yes"]`; they win over ours.
    pub args: Vec<String>,
    /// Its port speaks TLS, with the certificates that `args` name.
    pub tls: bool,
    /// Variables that are added to its environment.
    pub environment: Vec<(String, String)>,
}

impl RedisOptions {
    /// No password, with these arguments.
    pub fn with_args<const N: usize>(args: [&str; N]) -> Self {
        Self { args: args.map(str::to_owned).into(), ..Self::default() }
    }
}

/// A redis-server of one's own: empty, without persistence unless asked for, on 127.0.0.1 only.
#[derive(Debug)]
pub struct PrivateRedis {
    port: HeldPort,
    options: RedisOptions,
    reaper: Reaper,
    pid: AtomicU32,
}

impl PrivateRedis {
    /// Starts one and waits until it is ready.
    pub fn start(options: RedisOptions) -> Result<Self, ServerError> {
        if folder_on_path(PROGRAM).is_none() {
            return Err(ServerError::Missing { program: PROGRAM, place: "on PATH", package: PROGRAM });
        }
        let port = HeldPort::take().map_err(ServerError::Port)?;
        // Nothing of it outlives the folder, so there is nothing to be polite about.
        let reaper = Reaper::start("shepherd-redis", Farewell { signal: "KILL", epilogue: "" })?;
        let server = Self { port, options, reaper, pid: AtomicU32::new(0) };
        server.restart_empty()?;
        Ok(server)
    }

    /// Its port on 127.0.0.1; the same for all its life.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its URL, password included.
    pub fn url(&self) -> String {
        self.url_through(self.port())
    }

    /// Its URL by way of another port of 127.0.0.1, a proxy's.
    pub fn url_through(&self, port: u16) -> String {
        match &self.options.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{port}/"),
            None => format!("redis://127.0.0.1:{port}/"),
        }
    }

    /// The process id of the server, or of the last one when it was killed.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// The folder with its log and its data.
    pub fn folder(&self) -> &std::path::Path {
        self.reaper.folder()
    }

    /// Everything it logged.
    pub fn log(&self) -> String {
        self.reaper.log_from(0)
    }

    /// SIGSTOP: it accepts connections and answers nothing.
    pub fn stop(&self) -> Result<(), ServerError> {
        Ok(self.reaper.send("STOP").map(drop)?)
    }

    /// SIGCONT: it goes on.
    pub fn resume(&self) -> Result<(), ServerError> {
        Ok(self.reaper.send("CONT").map(drop)?)
    }

    /// SIGKILL: it is gone, and its port refuses connections until it is restarted.
    pub fn kill(&self) -> Result<(), ServerError> {
        Ok(self.reaper.send("KILL").map(drop)?)
    }

    /// Starts it again (a running one is killed first) on the same port, with what it had on disk:
    /// nothing, unless the options say `--appendonly yes`. Waits until it is ready.
    pub fn restart(&self) -> Result<(), ServerError> {
        let (pid, offset) = self.launch()?;
        await_ready(&self.reaper, pid, PROGRAM, READY, offset)
    }

    /// Like [`restart`](Self::restart), with nothing in it.
    pub fn restart_empty(&self) -> Result<(), ServerError> {
        self.reaper.end()?;
        self.reaper.run(&["rm", "-rf", "data"])?;
        self.reaper.run(&["mkdir", "data"])?;
        self.restart()
    }

    /// Like [`restart`](Self::restart), without waiting: to be watched while it loads.
    pub fn relaunch(&self) -> Result<(), ServerError> {
        self.launch().map(drop)
    }

    fn launch(&self) -> Result<(u32, usize), ServerError> {
        let port = self.port().to_string();
        let variables: Vec<String> =
            self.options.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut command = vec!["env"];
        command.extend(variables.iter().map(String::as_str));
        command.push(PROGRAM);
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
