//! The worker processes of the simulated fleet: starts, slows, stops and kills them.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::DemoError;
use super::script::Action;
use super::shepherd::type_of;

/// Parameters for starting a process.
pub(super) struct WorkerPrograms {
    /// Program with the subcommand `demo-worker`.
    pub(super) program: PathBuf,
    pub(super) redis_url: String,
    pub(super) database_url: String,
    /// Speed factor; 1 is normal.
    pub(super) speed: f64,
}

/// All processes. Dropping it stops them.
pub(super) struct WorkerProcesses {
    equipment: WorkerPrograms,
    members: Vec<Member>,
    paces: HashMap<&'static str, u32>,
}

struct Member {
    stream: &'static str,
    process: Child,
    /// Whether a graceful shutdown was requested.
    leaving: bool,
}

impl WorkerProcesses {
    pub(super) fn new(equipment: WorkerPrograms) -> Self {
        Self { equipment, members: Vec::new(), paces: HashMap::new() }
    }

    /// Process IDs and streams of the processes that were not told to stop.
    pub(super) fn present(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.members.iter().filter(|m| !m.leaving).map(|m| (m.stream, m.process.id()))
    }

    /// Executes an action of the scenario.
    pub(super) fn act(&mut self, action: Action) -> Result<(), DemoError> {
        match action {
            Action::Start { stream, count } => self.start(stream, count),
            Action::Leave { stream, count } => self.leave(stream, count),
            Action::Kill { stream } => self.kill(stream),
            Action::Pace { stream, factor } => {
                self.pace(stream, factor);
                Ok(())
            }
        }
    }

    /// Removes processes that have exited; returns the streams of those that exited unexpectedly.
    pub(super) fn gone(&mut self) -> Vec<&'static str> {
        let mut untold = Vec::new();
        self.members.retain_mut(|member| match member.process.try_wait() {
            Ok(None) => true,
            _ => {
                if !member.leaving {
                    untold.push(member.stream);
                }
                false
            }
        });
        untold
    }

    pub(super) fn start(&mut self, stream: &'static str, count: usize) -> Result<(), DemoError> {
        let Some(plan) = type_of(stream) else { return Ok(()) };
        for _ in 0..count {
            let process = Command::new(&self.equipment.program)
                .arg("demo-worker")
                .args(["--stream", stream])
                .args(["--task-limit", &plan.task_limit.to_string()])
                .args(["--work-ms", &plan.work.div_f64(self.equipment.speed).as_millis().to_string()])
                .env("REDIS_URL", &self.equipment.redis_url)
                .env("DATABASE_URL", &self.equipment.database_url)
                // Ctrl-C must reach only the demonstration, which then stops its workers.
                .process_group(0)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .map_err(|source| DemoError::Worker { program: self.equipment.program.clone(), source })?;
            self.members.push(Member { stream, process, leaving: false });
        }
        if let Some(factor) = self.paces.get(stream).copied() {
            self.pace(stream, factor);
        }
        Ok(())
    }

    fn leave(&mut self, stream: &'static str, count: usize) -> Result<(), DemoError> {
        for member in self.of(stream).rev().take(count) {
            member.leaving = true;
            send_sigterm(member.process.id()).map_err(DemoError::Signal)?;
        }
        Ok(())
    }

    fn kill(&mut self, stream: &'static str) -> Result<(), DemoError> {
        for member in self.of(stream).take(1) {
            member.leaving = true;
            member.process.kill().map_err(DemoError::Signal)?;
        }
        Ok(())
    }

    fn pace(&mut self, stream: &'static str, factor: u32) {
        self.paces.insert(stream, factor);
        for member in self.of(stream) {
            if let Some(pipe) = &mut member.process.stdin {
                // A process that is exiting does not read it and does not need it.
                let _ = writeln!(pipe, "pace {factor}");
            }
        }
    }

    fn of(&mut self, stream: &'static str) -> impl DoubleEndedIterator<Item = &mut Member> {
        self.members.iter_mut().filter(move |m| m.stream == stream && !m.leaving)
    }
}

impl Drop for WorkerProcesses {
    fn drop(&mut self) {
        // Close all pipes first, so that the processes stop simultaneously.
        for member in &mut self.members {
            drop(member.process.stdin.take());
        }
        for member in &mut self.members {
            // A stopped process, for example, does not notice the end of the pipe.
            if !ends_soon(&mut member.process) {
                let _ = member.process.kill();
            }
            let _ = member.process.wait();
        }
    }
}

fn ends_soon(process: &mut Child) -> bool {
    for _ in 0..100 {
        if !matches!(process.try_wait(), Ok(None)) {
            return true;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    false
}

/// The standard library only sends SIGKILL; `kill` is built into every shell.
fn send_sigterm(pid: u32) -> std::io::Result<()> {
    Command::new("sh").args(["-c", "kill -s TERM \"$1\"", "sh", &pid.to_string()]).status().map(drop)
}
