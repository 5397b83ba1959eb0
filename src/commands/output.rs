//! Output of commands, and of panics. Nothing else writes to standard output or standard error: text that comes from
//! servers, files or arguments must not control a terminal.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::process::ExitCode;

use chrono::{DateTime, SecondsFormat};
use clap::error::{ContextKind, ContextValue};

use super::NAME;
use crate::printable::{self, Escaped, Lines, is_hidden};

/// Formats Unix seconds as RFC 3339.
pub(super) fn time(seconds: i64) -> String {
    DateTime::from_timestamp(seconds, 0)
        .map_or_else(|| seconds.to_string(), |at| at.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// Prints one line.
pub(super) fn line(text: impl Display) -> Result<(), String> {
    write(&format!("{}\n", Escaped(text)))
}

/// Prints lines.
pub(super) fn print(lines: &Lines) -> Result<(), String> {
    write(lines.as_str())
}

/// Prints a document: JSON, or text that contains no foreign values.
pub(super) fn document(text: &str) -> Result<(), String> {
    write(&printable::json(text))
}

/// Prints a long document line by line, so that memory is bounded.
pub(super) struct Stream(io::BufWriter<io::Stdout>);

impl Stream {
    pub(super) fn new() -> Self {
        Self(io::BufWriter::new(io::stdout()))
    }

    /// Prints a line of JSON or CSV.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.0, "{}", printable::json(text))
    }

    /// Prints what is left.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A closed pipe, as with `head`, is not an error.
fn write(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// Prints an error in one line.
pub(super) fn complain(reason: impl Display) {
    detail(format_args!("{NAME}: {reason}"));
}

/// Prints one line to standard error that belongs to an error.
pub(super) fn detail(text: impl Display) {
    // If standard error is closed, the exit code still reports the failure.
    _ = writeln!(io::stderr(), "{}", Escaped(text));
}

/// Prints help, or an error about the arguments, and returns the exit code.
pub(super) fn about_arguments(mut error: clap::Error) -> ExitCode {
    let status = ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    let escaped: Vec<(ContextKind, ContextValue)> = error
        .context()
        .filter_map(|(kind, value)| match value {
            ContextValue::String(text) if text.contains(is_hidden) => {
                Some((kind, ContextValue::String(Escaped(text).to_string())))
            }
            ContextValue::Strings(texts) if texts.iter().any(|text| text.contains(is_hidden)) => {
                Some((kind, ContextValue::Strings(texts.iter().map(|text| Escaped(text).to_string()).collect())))
            }
            _ => None,
        })
        .collect();
    if escaped.is_empty() {
        // Styled for a terminal.
        _ = error.print();
        return status;
    }
    for (kind, value) in escaped {
        _ = error.insert(kind, value);
    }
    // Suggestions repeat the argument.
    _ = error.remove(ContextKind::Suggested);
    for line in error.to_string().lines() {
        detail(line);
    }
    status
}

/// Reports panics in one line, in the format of the log if logging was started.
pub(super) fn report_panics() {
    std::panic::set_hook(Box::new(report_panic));
}

fn report_panic(info: &PanicHookInfo<'_>) {
    let current = std::thread::current();
    let thread = current.name().unwrap_or("unnamed");
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let message = info.payload_as_str().unwrap_or("unknown reason");
    let backtrace = Backtrace::capture();
    let captured = matches!(backtrace.status(), BacktraceStatus::Captured);
    if tracing::dispatcher::has_been_set() {
        let backtrace = captured.then(|| tracing::field::display(&backtrace));
        tracing::error!(thread, backtrace, "panicked at {location}: {message}");
        return;
    }
    complain(format_args!("thread '{thread}' panicked at {location}: {message}"));
    if captured {
        for line in backtrace.to_string().lines() {
            detail(line);
        }
    }
}
