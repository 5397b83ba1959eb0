//! `shepherd-monitor notify-test`: sends a test notification through each channel.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::{ArgMatches, Command};

use super::{flags, output, runtime, settings};
use crate::alerting::{channels, message};
use crate::application::channel_settings;
use crate::delivery::Outcome;
use crate::delivery::channels::Channels;
use crate::delivery::sparkline::Sketches;

/// The subcommand.
pub(super) fn command() -> Command {
    Command::new("notify-test")
        .about("Send a test notification via each channel and print the responses")
        .args(flags(|entry| matches!(entry.group, "Alerts" | "Notification channels" | "Server")))
}

/// Sends the notification and prints the response of each channel.
///
/// # Errors
/// When no channel is configured, or one rejected the notification.
pub(super) fn run(given: &ArgMatches) -> Result<(), String> {
    let settings = settings(given)?;
    runtime()?.block_on(async move {
        let channels = Channels::new(channel_settings(&settings))?;
        let names = channels.names();
        if names.is_empty() {
            return Err(channels::no_channel());
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let message = message::test(since.as_secs_f64(), &since.as_nanos().to_string());
        let mut failed = 0;
        for name in &names {
            let outcome = channels.send(name, &message, &Sketches::new()).await;
            let sent = matches!(outcome, Outcome::Sent(_));
            failed += usize::from(!sent);
            let (word, answer) = (if sent { "sent" } else { "not sent" }, outcome.answer());
            output::line(format_args!("{name}: {word}: {answer}"))?;
        }
        if failed == 0 {
            Ok(())
        } else {
            Err(format!("the test notification failed on {failed} of {} channels", names.len()))
        }
    })
}
