//! A child process, with a temporary folder, that cannot outlive its owner.
//!
//! Destructors do not run when a process is killed. Therefore a small shell script (`reaper.sh`) starts the process and
//! waits on a pipe held by the owner: when the owner exits for any reason, the pipe closes, and the script ends the
//! process and removes the folder. The script has its own process group, so that Ctrl-C in a terminal reaches only the
//! owner.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Error of the reaper or of a command it ran.
#[derive(Debug, thiserror::Error)]
pub enum ReaperError {
    /// The shell did not start or the folder could not be created.
    #[error("cannot start a process in {folder}: {why}")]
    Start {
        /// Folder to create.
        folder: PathBuf,
        /// Error of the operating system.
        why: String,
    },
    /// The reaper does not respond, because it was killed.
    #[error("the process that owns {folder} is gone")]
    Gone {
        /// Its folder.
        folder: PathBuf,
    },
    /// An argument that cannot be passed to the shell in one line.
    #[error("invalid argument {0:?}: expected UTF-8 without line breaks")]
    Argument(std::ffi::OsString),
}

/// How to shut the process down.
#[derive(Clone, Copy, Debug)]
pub struct ShutdownSpec {
    /// Signal that requests the shutdown; KILL follows three seconds later.
    pub signal: &'static str,
    /// Shell commands run in the folder after the process exits and before the folder is removed.
    pub epilogue: &'static str,
}

/// A process (one at a time) and its folder. Both are removed when this is dropped or its owner dies.
#[derive(Debug)]
pub struct Reaper {
    folder: PathBuf,
    script: Mutex<Script>,
}

#[derive(Debug)]
struct Script {
    shell: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Reaper {
    /// Starts the reaper, which creates a folder `{name}-{random}` in the temporary folder (`TMPDIR`).
    pub fn start(name: &str, shutdown: ShutdownSpec) -> Result<Self, ReaperError> {
        let random = uuid::Uuid::new_v4().simple().to_string();
        let folder = std::env::temp_dir().join(format!("{name}-{}", random.get(..12).unwrap_or(&random)));
        let failed = |why: String| ReaperError::Start { folder: folder.clone(), why };
        let mut shell = Command::new("sh")
            .args(["-c", include_str!("reaper.sh"), "reaper"])
            .arg(&folder)
            .args([shutdown.signal, shutdown.epilogue])
            .env("LC_ALL", "C")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| failed(format!("sh: {e}")))?;
        let (Some(orders), Some(answers)) = (shell.stdin.take(), shell.stdout.take()) else {
            return Err(failed("sh: no pipes".into()));
        };
        let mut script = Script { shell, orders: Some(orders), answers: BufReader::new(answers) };
        match script.answer() {
            Some(line) if line == "ready" => {}
            Some(line) => return Err(failed(line)),
            None => return Err(failed("the shell exited immediately".into())),
        }
        Ok(Self { folder, script: Mutex::new(script) })
    }

    /// The folder; absolute if `TMPDIR` is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// File with the output of all commands.
    pub fn log_file(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Output so far, from byte `offset` on.
    pub fn log_from(&self, offset: usize) -> String {
        let log = std::fs::read(self.log_file()).unwrap_or_default();
        String::from_utf8_lossy(log.get(offset..).unwrap_or_default()).into_owned()
    }

    /// Runs a command in the folder to completion. Returns its exit status.
    ///
    /// If the owner dies, the reaper notices only after the command is done.
    pub fn run<S: AsRef<OsStr>>(&self, command: &[S]) -> Result<u32, ReaperError> {
        self.order("run", command)
    }

    /// Starts the process in the folder, after stopping the previous one. Returns its process ID.
    pub fn serve<S: AsRef<OsStr>>(&self, command: &[S]) -> Result<u32, ReaperError> {
        self.order("serve", command)
    }

    /// Sends a signal (`STOP`, `CONT`, `KILL`, …) to the process and its children. After KILL, it returns once the
    /// process has exited. Returns whether there was a process.
    pub fn send(&self, signal: &str) -> Result<bool, ReaperError> {
        self.order("send", &[signal]).map(|status| status == 0)
    }

    /// Shuts the process down, killing it after three seconds; it has exited when this returns.
    pub fn end(&self) -> Result<(), ReaperError> {
        self.order::<&str>("end", &[]).map(drop)
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order<S: AsRef<OsStr>>(&self, what: &str, words: &[S]) -> Result<u32, ReaperError> {
        let mut line = what.to_owned();
        for word in words {
            line.push(' ');
            line.push_str(&quoted(word.as_ref())?);
        }
        line.push('\n');
        let mut script = self.script();
        let sent = script.orders.as_mut().is_some_and(|pipe| pipe.write_all(line.as_bytes()).is_ok());
        let answer = if sent { script.answer() } else { None };
        answer.and_then(|answer| answer.parse().ok()).ok_or_else(|| ReaperError::Gone { folder: self.folder.clone() })
    }
}

impl Script {
    fn answer(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(read) if read > 0 => Some(line.trim_end().to_owned()),
            _ => None,
        }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // The end of the pipe is the command to finish; the script limits its own run time.
        drop(self.orders.take());
        let _ = self.shell.wait();
    }
}

/// Quotes a shell word.
fn quoted(word: &OsStr) -> Result<String, ReaperError> {
    match word.to_str() {
        Some(text) if !text.contains(['\n', '\0']) => Ok(format!("'{}'", text.replace('\'', r"'\''"))),
        _ => Err(ReaperError::Argument(word.to_owned())),
    }
}

/// Whether a process with this ID exists and has not exited (a zombie has).
pub fn is_running(pid: u32) -> bool {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stat = String::from_utf8_lossy(&stat);
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: ShutdownSpec = ShutdownSpec { signal: "KILL", epilogue: "" };

    #[test]
    fn arguments_are_quoted() {
        let reaper = Reaper::start("reaper-test", AT_ONCE).unwrap();
        assert_eq!(reaper.run(&["printf", "%s", "it's $HOME `x` \\ \"q\" *"]).unwrap(), 0);
        assert_eq!(reaper.log_from(0), "it's $HOME `x` \\ \"q\" *");
        assert!(matches!(reaper.run(&["echo", "two\nlines"]), Err(ReaperError::Argument(_))));
    }

    #[test]
    fn drop_removes_process_and_folder() {
        let reaper = Reaper::start("reaper-test", AT_ONCE).unwrap();
        let (folder, pid) = (reaper.folder().to_owned(), reaper.serve(&["sleep", "600"]).unwrap());
        assert!(is_running(pid) && folder.is_dir());
        drop(reaper);
        assert!(!is_running(pid) && !folder.exists());
    }

    #[test]
    fn process_that_ignores_the_signal_is_killed() {
        let reaper = Reaper::start("reaper-test", ShutdownSpec { signal: "TERM", epilogue: "" }).unwrap();
        let stubborn = "trap '' TERM; echo deaf; while :; do sleep 0.1; done";
        let pid = reaper.serve(&["sh", "-c", stubborn]).unwrap();
        while !reaper.log_from(0).contains("deaf") {
            std::thread::yield_now();
        }
        reaper.end().unwrap();
        assert!(!is_running(pid));
    }

    #[test]
    fn folder_creation_failure_is_an_error() {
        let error = Reaper::start("no/such/folder", AT_ONCE).unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
    }
}
