//! Command-line flags and logging of the example workers.

use std::collections::HashMap;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Command-line flags with their values.
pub(crate) struct Flags(HashMap<String, String>);

impl Flags {
    /// Parses `--flag value` pairs; only `known` flags are accepted.
    pub(crate) fn read(mut args: impl Iterator<Item = String>, known: &[&str]) -> Result<Self, String> {
        let mut flags = HashMap::new();
        while let Some(flag) = args.next() {
            if !known.contains(&flag.as_str()) {
                return Err(format!("unknown flag {flag}"));
            }
            let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
            flags.insert(flag, value);
        }
        Ok(Self(flags))
    }

    pub(crate) fn text(&mut self, flag: &str) -> Result<String, String> {
        self.0.remove(flag).filter(|value| !value.is_empty()).ok_or_else(|| format!("{flag} is missing"))
    }

    pub(crate) fn number(&mut self, flag: &str, default: u64) -> Result<u64, String> {
        let Some(value) = self.0.remove(flag) else { return Ok(default) };
        value.parse().map_err(|_| format!("{flag} is {value:?}; expected a whole number"))
    }
}

/// Logs to standard error, filtered by `RUST_LOG`.
pub(crate) fn log() {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).init();
}

/// Exit code 0, or prints the error to standard error; exits with 2 and the usage after an invalid command line.
pub(crate) fn exit(name: &str, usage: &str, result: Result<Result<(), String>, String>) -> ExitCode {
    match result {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(e)) => {
            eprintln!("{name}: {e}");
            ExitCode::FAILURE
        }
        Err(wrong) => {
            eprintln!("{name}: {wrong}\n{usage}");
            ExitCode::from(2)
        }
    }
}
