//! `shepherd-monitor serve`: runs the monitor with its pages and API.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

use clap::{ArgMatches, Command};
use rustix::io::Errno;

use super::{flags, output, settings};
use crate::application;
use crate::settings::Settings;
use crate::telemetry;

/// The subcommand.
pub(super) fn command() -> Command {
    Command::new("serve")
        .about("Run the monitor: poll the fleet, send alerts, serve the pages and the API")
        .after_help(
            "Every setting is a flag or an environment variable; flags take precedence. Redis and Postgres may be \
             unreachable at startup: the monitor reports that and connects when they are available.",
        )
        .args(flags(|_| true))
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// When the monitor cannot start.
pub(super) fn run(given: &ArgMatches) -> Result<(), String> {
    let settings = settings(given)?;
    let _telemetry = telemetry::start(&settings.log_level, settings.collector.as_ref())?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let listener = listen(&settings)?;
    watch(&settings, listener)
}

/// Binds the listening socket.
pub(super) fn listen(settings: &Settings) -> Result<TcpListener, String> {
    settings.may_serve().map_err(|bad| bad.to_string())?;
    let listening = TcpListener::bind((settings.bind, settings.port)).or_else(|error| {
        // All addresses of a machine without IPv6 are those of IPv4.
        let no_ipv6 = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].map(|errno| Some(errno.raw_os_error()));
        let means_all = settings.bind == Ipv6Addr::UNSPECIFIED;
        if means_all && no_ipv6.contains(&error.raw_os_error()) {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, settings.port))
        } else {
            Err(error)
        }
    });
    listening.map_err(|e| {
        format!("cannot listen on {}:{} ({e}); check MONITOR_BIND and MONITOR_PORT", settings.bind, settings.port)
    })
}

/// Prints the URL and runs until SIGINT or SIGTERM.
pub(super) fn watch(settings: &Settings, listener: TcpListener) -> Result<(), String> {
    application::run(settings, listener, |address| {
        // A closed standard output is no reason not to serve.
        _ = output::line(format_args!("shepherd-monitor: listening on http://{address}{}/", settings.root_path));
    })
    .map_err(|error| format!("{error:#}"))
}
