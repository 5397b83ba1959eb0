//! TCP connections to servers: names are looked up apart from all other blocking work, the addresses of a name are
//! tried side by side, and a peer that disappears without a word is noticed.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use redis::io::{AsyncDNSResolver, tcp::TcpSettings};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// An attempt to connect that takes longer than this no longer holds up the next address (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// An idle connection is probed after this,
const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);
/// then this often,
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
/// and given up after so many probes without an answer.
const KEEPALIVE_PROBES: u32 = 3;
/// Sent data that is not acknowledged for this long ends the connection.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a caller waits for a lookup: less than any caller waits for its connection, so that the name server is named as
/// the cause. The resolver's own attempts to reach its servers go on, for minutes, and serve the next caller.
const LOOKUP_WITHIN: Duration = Duration::from_millis(1500);
/// How long an answer that arrived after every caller had given up is kept for the next caller.
const LATE_ANSWER_HOLDS: Duration = Duration::from_secs(10);

/// Whether `host`, a name or an address, is this machine: what is sent there passes no network.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Connects to the first address of `host` that answers.
///
/// # Errors
/// When the name cannot be resolved, or the error of the last address that was tried.
pub async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = socket_addresses(host, port).await?;
    let stream = match addresses.as_slice() {
        [] => return Err(io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"))),
        [only] => TcpStream::connect(only).await?,
        several => side_by_side(several).await?,
    };
    watch_peer(&stream)?;
    Ok(stream)
}

/// Starts with the first address, adds the next one when the last attempt failed or takes long, and returns the first
/// connection.
async fn side_by_side(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut waiting = addresses.iter().copied();
    let mut attempts = JoinSet::new();
    let mut last_error = io::Error::from(io::ErrorKind::NotFound);
    loop {
        let started = waiting.next().map(|address| attempts.spawn(TcpStream::connect(address))).is_some();
        let ended = tokio::select! {
            ended = attempts.join_next() => ended,
            () = sleep(ATTEMPT_DELAY), if started => continue,
        };
        match ended {
            Some(Ok(Ok(stream))) => return Ok(stream),
            Some(Ok(Err(error))) => last_error = error,
            Some(Err(error)) => last_error = io::Error::other(error),
            None => return Err(last_error),
        }
    }
}

/// The same addresses, IPv6 and IPv4 by turns, beginning with the family of the first.
fn by_turns(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (first, second): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(|ip| ip.is_ipv6() == first_is_v6);
    let mut second = second.into_iter();
    let mut ordered = Vec::new();
    for address in first {
        ordered.push(address);
        ordered.extend(second.next());
    }
    ordered.extend(second);
    ordered
}

fn watch_peer(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&keepalive())?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY).with_retries(KEEPALIVE_PROBES)
}

/// The settings of [`connect`]'s sockets, for connections that the Redis client opens itself.
#[must_use]
pub fn settings() -> TcpSettings {
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive());
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(USER_TIMEOUT);
    settings
}

/// What came of a lookup, and when; `None` while it is under way.
type Answer = Option<(Instant, Result<Vec<IpAddr>, String>)>;

/// The lookups under way, by name, and those whose answer came too late.
static LOOKUPS: LazyLock<Mutex<HashMap<String, watch::Receiver<Answer>>>> = LazyLock::new(Mutex::default);

/// The addresses of `host`, a name or an address.
///
/// A resolver that does not answer delays neither other names nor other blocking work: each lookup has its own thread, and
/// concurrent callers for one name share it. An answer that arrives after every caller has given up is kept for a short
/// time for the next caller.
///
/// # Errors
/// When the name cannot be resolved, or not in time.
pub async fn resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(vec![address]);
    }
    answer_within(LOOKUP_WITHIN, host, begin_lookup(host, system_resolver)?).await
}

async fn answer_within(limit: Duration, host: &str, mut lookup: watch::Receiver<Answer>) -> io::Result<Vec<IpAddr>> {
    let unresolved = |kind, why: &str| io::Error::new(kind, format!("cannot resolve {host}: {why}"));
    let Ok(answer) = timeout(limit, lookup.wait_for(Option::is_some)).await else {
        let why = format!("no name server answered within {} s", limit.as_secs_f64());
        return Err(unresolved(io::ErrorKind::TimedOut, &why));
    };
    match &*answer.map_err(io::Error::other)? {
        Some((_, Ok(addresses))) => Ok(addresses.clone()),
        Some((_, Err(error))) => Err(unresolved(io::ErrorKind::NotFound, error)),
        None => Err(unresolved(io::ErrorKind::NotFound, "no answer")),
    }
}

/// Like [`resolve`], with `port`, and the families by turns.
///
/// # Errors
/// As [`resolve`].
pub async fn socket_addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok(by_turns(resolve(host).await?).into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

fn system_resolver(host: &str) -> Result<Vec<IpAddr>, String> {
    let found = (host, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found.map(|address| address.ip()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

fn begin_lookup(
    host: &str,
    resolver: impl FnOnce(&str) -> Result<Vec<IpAddr>, String> + Send + 'static,
) -> io::Result<watch::Receiver<Answer>> {
    let mut lookups = LOOKUPS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lookup) = lookups.get(host) {
        let (lookup, answered) = (lookup.clone(), lookup.borrow().as_ref().map(|(at, _)| *at));
        match answered {
            None if lookup.has_changed().is_ok() => return Ok(lookup),
            None => {}
            Some(at) => {
                lookups.remove(host);
                if at.elapsed() < LATE_ANSWER_HOLDS {
                    return Ok(lookup);
                }
            }
        }
    }
    let (sender, receiver) = watch::channel(None);
    let host = host.to_owned();
    let name = host.clone();
    std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
        let answer = resolver(&name);
        let mut lookups = LOOKUPS.lock().unwrap_or_else(PoisonError::into_inner);
        // One receiver is that of the map.
        if sender.receiver_count() > 1 || answer.is_err() {
            lookups.remove(&name);
        }
        sender.send_replace(Some((Instant::now(), answer)));
    })?;
    lookups.insert(host, receiver.clone());
    Ok(receiver)
}

/// [`resolve`] for connections that the Redis client opens itself.
#[derive(Debug, Clone, Copy)]
pub struct Resolver;

impl AsyncDNSResolver for Resolver {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        host: &'b str,
        port: u16,
    ) -> redis::RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        Box::pin(async move { Ok(Box::new(socket_addresses(host, port).await?.into_iter()) as Box<_>) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_of_both_families_take_turns_beginning_with_the_first() {
        let addresses = ["2001:db8::1", "2001:db8::2", "192.0.2.1", "2001:db8::3"].map(ip).to_vec();
        assert_eq!(by_turns(addresses), ["2001:db8::1", "192.0.2.1", "2001:db8::2", "2001:db8::3"].map(ip));
        assert_eq!(by_turns(vec![ip("192.0.2.1"), ip("192.0.2.2")]), ["192.0.2.1", "192.0.2.2"].map(ip));
    }

    #[tokio::test]
    async fn an_address_that_swallows_everything_does_not_keep_the_next_one_from_being_reached() {
        // A full backlog: the kernel drops further SYNs, as a firewall or a missing route does.
        let (black_hole, _full) = full_backlog().await;
        let server = tokio::net::TcpListener::bind(("127.0.0.2", black_hole)).await.unwrap();
        let began = std::time::Instant::now();
        let addresses = ["127.0.0.1", "127.0.0.2"].map(|address| SocketAddr::new(ip(address), black_hole));
        let connecting = side_by_side(&addresses);
        let stream = tokio::time::timeout(Duration::from_secs(3), connecting).await.unwrap().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), server.local_addr().unwrap());
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }

    /// The port of a listener on 127.0.0.1 that takes no more connections, and what keeps it so.
    async fn full_backlog() -> (u16, Vec<TcpStream>) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap().into_std().unwrap();
        let address = listener.local_addr().unwrap();
        let mut open = Vec::new();
        while let Ok(connected) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            open.push(connected.unwrap());
        }
        // Never accepted from, never closed.
        std::mem::forget(listener);
        (address.port(), open)
    }

    #[tokio::test]
    async fn all_addresses_failing_is_the_error_of_the_last() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let addresses = ["127.0.0.1", "127.0.0.2"].map(|address| SocketAddr::new(ip(address), free));
        let error = side_by_side(&addresses).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_at_a_time_and_holds_up_no_other() {
        let (answer, swallowed) = mpsc::channel::<()>();
        let slow = move |_: &str| {
            swallowed.recv().unwrap();
            Ok(vec![ip("192.0.2.1")])
        };
        let first = begin_lookup("swallowed.example", slow).unwrap();
        let never = |_: &str| panic!("one lookup is under way already");
        let second = begin_lookup("swallowed.example", never).unwrap();
        let other = begin_lookup("answered.example", |_: &str| Ok(vec![ip("192.0.2.2")])).unwrap();
        assert_eq!(answer_of(other).await, Ok(vec![ip("192.0.2.2")]));
        assert!(first.borrow().is_none());
        answer.send(()).unwrap();
        for lookup in [first, second] {
            assert_eq!(answer_of(lookup).await, Ok(vec![ip("192.0.2.1")]));
        }
        let again = |_: &str| Err("gone".to_owned());
        let again = begin_lookup("swallowed.example", again).unwrap();
        assert_eq!(answer_of(again).await, Err("gone".to_owned()));
    }

    async fn answer_of(mut lookup: watch::Receiver<Answer>) -> Result<Vec<IpAddr>, String> {
        let answer = timeout(Duration::from_secs(5), lookup.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
        answer.unwrap().1
    }

    #[tokio::test]
    async fn late_answer_is_used_by_the_next_caller_only() {
        let (answer, slow) = mpsc::channel::<()>();
        let late = move |_: &str| {
            slow.recv().unwrap();
            Ok(vec![ip("192.0.2.1")])
        };
        drop(begin_lookup("slow.example", late).unwrap());
        answer.send(()).unwrap();
        let is_in = || {
            let lookups = LOOKUPS.lock().unwrap();
            lookups.get("slow.example").is_some_and(|lookup| lookup.borrow().is_some())
        };
        while !is_in() {
            sleep(Duration::from_millis(5)).await;
        }
        let next = |_: &str| Ok(vec![ip("192.0.2.2")]);
        assert_eq!(answer_of(begin_lookup("slow.example", next).unwrap()).await, Ok(vec![ip("192.0.2.1")]));
        assert_eq!(answer_of(begin_lookup("slow.example", next).unwrap()).await, Ok(vec![ip("192.0.2.2")]));
    }

    #[tokio::test]
    async fn a_lookup_without_an_answer_is_given_up() {
        let (_answer, swallowed) = mpsc::channel::<()>();
        let never = move |_: &str| {
            let _ = swallowed.recv();
            Err("given up".to_owned())
        };
        let lookup = begin_lookup("silent.example", never).unwrap();
        let error = answer_within(Duration::from_secs(1), "silent.example", lookup).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot resolve silent.example: no name server answered within 1 s");
    }

    #[tokio::test]
    async fn a_connection_is_probed_and_given_up_when_the_peer_is_silent() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = connect("localhost", server.local_addr().unwrap().port()).await.unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_AFTER);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
    }
}
