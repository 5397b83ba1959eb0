//! The `shepherd-monitor` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    shepherd_monitor::commands::run()
}
