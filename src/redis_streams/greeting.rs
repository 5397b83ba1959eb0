//! Why a server closes a connection that it has just accepted.
//!
//! Redis then writes the reason and reads nothing. A client writes first and sees only a closed connection, so the reason is
//! read from another connection that writes nothing. With TLS, Redis sends no reason.

use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, RedisError};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::tcp;

/// Time limit for the connection and the reason.
const WITHIN: Duration = Duration::from_secs(1);

/// Users read this when Redis has `maxclients` clients.
pub(super) const TOO_MANY_CLIENTS: &str =
    "Redis accepts no more connections (maxclients is reached). Close idle clients, or raise maxclients";
/// Users read this when Redis has no password and is asked from another machine.
pub(super) const PROTECTED_MODE: &str = "Redis is in protected mode: it has no password and accepts only clients on its own \
     machine. Set a password there (requirepass or ACL), and REDIS_PASSWORD here";

/// The reason why the server closed a connection with `error` before it was used, if it says one.
pub(super) async fn reason(info: &ConnectionInfo, error: &RedisError) -> Option<String> {
    let was_closed = error.is_io_error() || error.is_connection_dropped();
    let ConnectionAddr::Tcp(host, port) = info.addr() else { return None };
    if !was_closed || error.is_timeout() || error.is_connection_refusal() {
        return None;
    }
    let mut line = Vec::with_capacity(1024);
    let read = async {
        let stream = tcp::connect(host, *port).await?;
        stream.take(1024).read_to_end(&mut line).await
    };
    // What arrived counts: the server may not close the connection at once.
    drop(timeout(WITHIN, read).await);
    said(&line)
}

fn said(line: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(line.strip_prefix(b"-")?).into_owned();
    let text = text.lines().next().unwrap_or_default().trim();
    Some(if text.contains("max number of clients") {
        TOO_MANY_CLIENTS.to_owned()
    } else if text.starts_with("DENIED") && text.contains("protected mode") {
        PROTECTED_MODE.to_owned()
    } else {
        format!("Redis refuses the connection: {}", text.chars().take(200).collect::<String>())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_error_is_a_reason() {
        assert_eq!(said(b"-ERR max number of clients reached\r\n").as_deref(), Some(TOO_MANY_CLIENTS));
        assert_eq!(said(b"-DENIED Redis is running in protected mode because \xff").as_deref(), Some(PROTECTED_MODE));
        assert_eq!(said(b"-ERR go away\r\nmore").as_deref(), Some("Redis refuses the connection: ERR go away"));
        for other in [&b""[..], b"+OK\r\n", b"HTTP/1.1 400 Bad Request", b"SSH-2.0"] {
            assert_eq!(said(other), None);
        }
    }
}
