//! `shepherd-monitor health`: checks the liveness of a running monitor, for containers without curl.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{flags, settings};

/// Timeout for the connection and for the response.
const WITHIN: Duration = Duration::from_secs(2);

/// The subcommand.
pub(super) fn command() -> Command {
    Command::new("health")
        .about("Check liveness; exits non-zero on failure")
        .arg(
            Arg::new("ready")
                .long("ready")
                .action(ArgAction::SetTrue)
                .help("Check readiness (/readyz) instead of liveness (/livez)"),
        )
        .args(flags(|entry| entry.group == "Server"))
}

/// Requests `/livez` or `/readyz` from the monitor with these settings on this machine.
///
/// # Errors
/// The response on failure, or the connection error.
pub(super) fn run(given: &ArgMatches) -> Result<(), String> {
    let settings = settings(given)?;
    let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    // Where all addresses are meant, this machine may have no IPv6.
    let hosts = match settings.bind {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![v4],
        IpAddr::V6(ip) if ip.is_unspecified() => vec![v6, v4],
        ip => vec![ip],
    };
    let path = if given.get_flag("ready") { "/readyz" } else { "/livez" };
    let mut answered = Err(format!("no address to contact at {}", settings.bind));
    for host in hosts {
        let address = SocketAddr::new(host, settings.port);
        answered = get(address, path)
            .map(|answer| (address, answer))
            .map_err(|error| format!("cannot reach {address}: {error}"));
        if answered.is_ok() {
            break;
        }
    }
    let (address, answer) = answered?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    if status == "200" { Ok(()) } else { Err(format!("http://{address}{path} returned {status}")) }
}

/// Returns the start of the response.
fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    stream.set_write_timeout(Some(WITHIN))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(64).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
