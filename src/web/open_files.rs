//! The limit of open files, raised at startup. Each connection uses two descriptors, and some must remain for Redis,
//! Postgres, the spool and notifications.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors reserved for everything but client connections.
const RESERVED: u64 = 128;
/// Maximum number of client connections, whatever the limit of open files.
const MOST: u64 = 10_000;

/// Raises the soft limit of open files to the hard one. Returns the number of client connections that it permits.
pub(crate) fn raise() -> usize {
    let limit = getrlimit(Resource::Nofile);
    // Each connection uses a second descriptor, by which it can be closed.
    let needed = 2 * MOST + RESERVED;
    let wanted = limit.maximum.map_or(needed, |hard| hard.min(needed));
    let current = limit.current.unwrap_or(u64::MAX);
    let mut open_files = current;
    if current < wanted {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }) {
            Ok(()) => open_files = wanted,
            Err(error) => tracing::warn!(%error, current, wanted, "the limit of open files cannot be raised"),
        }
    }
    let connections = connections(open_files);
    tracing::debug!(open_files, connections, "limits of open files and connections");
    connections
}

/// Number of client connections for a limit of open files.
fn connections(open_files: u64) -> usize {
    let reserved = RESERVED.min(open_files / 2);
    usize::try_from(((open_files - reserved) / 2).clamp(1, MOST)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_reserved_descriptors_free() {
        assert_eq!(connections(1024), 448);
        assert_eq!(connections(20_000), 9936);
        assert_eq!(connections(u64::MAX), 10_000);
        for few in 0..300 {
            assert!(u64::try_from(connections(few)).unwrap() * 2 <= few.max(2), "{few}");
        }
    }
}
