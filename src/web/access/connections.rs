//! Open connections: limits per address and in total, and deadlines for clients that send or read too slowly.
//!
//! At a limit, the oldest connection without a complete request is closed in favor of the new one. A client that
//! floods from one address therefore displaces its own connections, and short requests are served during the flood.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::dev::Extensions;
use actix_web::rt;

use crate::access::address::{TrustedProxies, client_prefix};
use crate::exposition::counters::Counters;

/// Deadline of a complete request. The HTTP server's own deadline for the request head is shorter; this one holds
/// whatever the client sends.
const REQUEST_WITHIN: Duration = Duration::from_secs(15);
/// Deadline of the next request; the HTTP server's own keep-alive is shorter.
const IDLE: Duration = Duration::from_secs(20);
/// A connection younger than this gives way to others of its address only at twice the limit.
const YOUNG: Duration = Duration::from_millis(300);
/// A connection idle for longer than this is closed in favor of others of its address.
const SHORTLY: Duration = Duration::from_secs(2);
/// A client that reads nothing of a response for this long is disconnected.
const STALLED: Duration = Duration::from_secs(20);
/// The same for websockets, which are pinged every 30 s.
const WEBSOCKET_STALLED: Duration = Duration::from_secs(90);
/// Deadline of reading a response, in addition to a second per [`SLOWEST`] bytes.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Minimum speed of a client, bytes per second.
const SLOWEST: u64 = 16 << 10;
/// Interval of checking the deadlines.
const SWEEP_EVERY: Duration = Duration::from_secs(3);
/// Minimum interval between log lines about a reached limit.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Maximum number of open connections.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Per address; 0: unlimited.
    pub per_address: usize,
    /// In total.
    pub in_all: usize,
}

impl ConnectionLimits {
    /// At most `in_all`, of which one address cannot hold more than half whatever `per_address` is.
    #[must_use]
    pub fn new(per_address: usize, in_all: usize) -> Self {
        let half = (in_all / 2).max(1);
        Self { per_address: if per_address == 0 { 0 } else { per_address.min(half) }, in_all }
    }

    /// Maximum number of websockets of a client, which behind a trusted proxy has no connections of its own.
    #[must_use]
    pub fn websockets_per_client(&self) -> usize {
        if self.per_address == 0 { usize::MAX } else { self.per_address }
    }
}

/// The open connections.
#[derive(Debug)]
pub struct Connections {
    limits: ConnectionLimits,
    /// Trusted proxies carry the requests of many clients, so their connections have no limit per address.
    trusted: Arc<TrustedProxies>,
    open: Mutex<Open>,
    sweeping: AtomicBool,
    counters: Arc<Mutex<Counters>>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// In the order in which they were accepted.
    all: BTreeMap<u64, Arc<Connection>>,
    by_address: HashMap<IpAddr, usize>,
    warned: Option<Instant>,
}

/// What a connection is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Its first request.
    New,
    /// The rest of a request's body.
    Body,
    /// The handler.
    Handling,
    /// The client, which reads the response.
    Answering,
    /// Like `Answering`, while the websocket is open.
    Websocket,
    /// The next request.
    Idle,
    /// The client, which got an error; then the next request or the end of the connection.
    Refused,
}

#[derive(Debug)]
struct Progress {
    step: Step,
    /// Start of the step.
    since: Instant,
    /// When the client last read a part of the response.
    moved: Instant,
    /// Bytes of the response that the client read.
    sent: u64,
}

/// One open connection.
#[derive(Debug)]
pub(in crate::web) struct Connection {
    id: u64,
    /// Address that it counts towards.
    of: Option<IpAddr>,
    stream: Option<TcpStream>,
    progress: Mutex<Progress>,
    /// The client got a 408 because its body was late.
    body_was_late: AtomicBool,
}

/// An open connection; dropping it removes it from the counts.
#[derive(Debug)]
pub(in crate::web) struct Counted {
    among: Arc<Connections>,
    /// The connection.
    pub(in crate::web) connection: Arc<Connection>,
    /// The limit of the address is exceeded.
    pub(super) beyond: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connections {
    /// Creates an empty registry.
    #[must_use]
    pub fn new(limits: ConnectionLimits, trusted: Arc<TrustedProxies>, counters: Arc<Mutex<Counters>>) -> Arc<Self> {
        Arc::new(Self { limits, trusted, open: Mutex::default(), sweeping: AtomicBool::new(false), counters })
    }

    fn count(&self) {
        locked(&self.counters).connections_closed += 1;
    }

    /// Registers an accepted connection and attaches it to `notes` for the gate. To be called on the thread that
    /// serves the connection.
    pub fn made(self: &Arc<Self>, connection: &dyn Any, notes: &mut Extensions) {
        let Some(stream) = connection.downcast_ref::<rt::net::TcpStream>() else { return };
        let Ok(peer) = stream.peer_addr() else { return };
        let Ok(same) = stream.as_fd().try_clone_to_owned() else {
            // Without a second descriptor the deadlines cannot be enforced.
            self.count();
            _ = rustix::net::shutdown(stream, rustix::net::Shutdown::Both);
            return;
        };
        notes.insert(self.admit(peer.ip().to_canonical(), Some(TcpStream::from(same)), Instant::now()));
        self.keep_sweeping();
    }

    /// Registers a connection of `peer`.
    pub(in crate::web) fn admit(self: &Arc<Self>, peer: IpAddr, stream: Option<TcpStream>, now: Instant) -> Counted {
        let limited = self.limits.per_address > 0 && !self.trusted.contains(peer);
        let of = limited.then(|| client_prefix(peer));
        let mut open = locked(&self.open);
        open.next += 1;
        let progress = Progress { step: Step::New, since: now, moved: now, sent: 0 };
        let connection = Arc::new(Connection {
            id: open.next,
            of,
            stream,
            progress: Mutex::new(progress),
            body_was_late: AtomicBool::new(false),
        });
        let most = self.limits.per_address;
        let mut beyond = false;
        if let Some(of) = of
            && open.by_address.get(&of).copied().unwrap_or(0) >= most
        {
            self.warn(&mut open, now, || {
                tracing::warn!(address = %of, most, "an address holds too many connections: its oldest without a \
                    request are closed. See MONITOR_MAX_CONNECTIONS_PER_ADDRESS");
            });
            let gives_way = |other: &Connection| other.of == Some(of) && other.is_waiting(false, now);
            // One that was just accepted has not been read yet, and may be honest: in a burst it stays, up to twice the
            // limit.
            let count = open.by_address.get(&of).copied().unwrap_or(0);
            beyond = !(self.make_room(&mut open, |other| gives_way(other) && other.lasts(now) > YOUNG)
                || (count < most.saturating_mul(2) && open.all.values().any(|other| gives_way(other)))
                || self.make_room(&mut open, gives_way));
        }
        open.add(&connection);
        let full = open.all.len() > self.limits.in_all && {
            let most = self.limits.in_all;
            self.warn(&mut open, now, || {
                tracing::warn!(
                    most,
                    "too many connections: the oldest without a request are closed. Raise the limit \
                    of open files (LimitNOFILE, ulimit -n) if they are needed"
                );
            });
            !self.make_room(&mut open, |other| other.id != connection.id && other.is_waiting(true, now))
        };
        // A connection above the limit of its address gets a response and is closed; above twice the limit, it is
        // closed at once.
        let far_beyond = of.is_some_and(|of| open.by_address.get(&of).is_some_and(|n| *n > most.saturating_mul(2)));
        if full || far_beyond {
            self.close(&mut open, &connection);
        }
        drop(open);
        Counted { among: Arc::clone(self), connection, beyond }
    }

    /// Closes the oldest connection for which `gives_way` is true; returns false if there is none.
    fn make_room(&self, open: &mut Open, gives_way: impl Fn(&Connection) -> bool) -> bool {
        let Some(oldest) = open.all.values().find(|other| gives_way(other)).cloned() else { return false };
        self.close(open, &oldest);
        true
    }

    fn close(&self, open: &mut Open, connection: &Connection) {
        self.count();
        connection.hang_up();
        open.forget(connection);
    }

    fn warn(&self, open: &mut Open, now: Instant, say: impl FnOnce()) {
        if open.warned.is_none_or(|warned| now.duration_since(warned) >= WARN_EVERY) {
            open.warned = Some(now);
            say();
        }
    }

    /// Closes connections whose deadline has passed; stops when there are no connections.
    fn keep_sweeping(self: &Arc<Self>) {
        if self.sweeping.swap(true, Ordering::SeqCst) {
            return;
        }
        let this = Arc::clone(self);
        rt::spawn(async move {
            loop {
                rt::time::sleep(SWEEP_EVERY).await;
                this.sweep(Instant::now());
                if locked(&this.open).all.is_empty() {
                    this.sweeping.store(false, Ordering::SeqCst);
                    // A connection accepted in between relied on this sweep.
                    if locked(&this.open).all.is_empty() || this.sweeping.swap(true, Ordering::SeqCst) {
                        return;
                    }
                }
            }
        });
    }

    fn sweep(&self, now: Instant) {
        let mut open = locked(&self.open);
        let late: Vec<_> = open.all.values().filter(|connection| connection.is_late(now)).cloned().collect();
        for connection in late {
            self.close(&mut open, &connection);
        }
    }
}

impl Open {
    fn add(&mut self, connection: &Arc<Connection>) {
        self.all.insert(connection.id, Arc::clone(connection));
        if let Some(of) = connection.of {
            *self.by_address.entry(of).or_default() += 1;
        }
    }

    /// Idempotent.
    fn forget(&mut self, connection: &Connection) {
        if self.all.remove(&connection.id).is_none() {
            return;
        }
        let Some(of) = connection.of else { return };
        if let Some(count) = self.by_address.get_mut(&of) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_address.remove(&of);
            }
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        locked(&self.among.open).forget(&self.connection);
    }
}

impl Connection {
    fn begin(&self, step: Step) {
        let now = Instant::now();
        *locked(&self.progress) = Progress { step, since: now, moved: now, sent: 0 };
    }

    /// The head of a request has arrived, but not its body.
    pub(in crate::web) fn waits_for_body(&self) {
        self.begin(Step::Body);
    }

    /// A complete request has arrived.
    pub(in crate::web) fn handles(&self) {
        self.begin(Step::Handling);
    }

    /// The response begins.
    pub(in crate::web) fn answers(&self, websocket: bool) {
        self.begin(if websocket { Step::Websocket } else { Step::Answering });
    }

    /// The client can read the next part of the response; `bytes` of it are sent.
    pub(in crate::web) fn sends(&self, bytes: usize) {
        let mut progress = locked(&self.progress);
        progress.moved = Instant::now();
        progress.sent += u64::try_from(bytes).unwrap_or(u64::MAX);
    }

    /// The response is complete; `refused` if it is an error.
    pub(in crate::web) fn rests(&self, refused: bool) {
        self.begin(if refused { Step::Refused } else { Step::Idle });
    }

    /// The body did not arrive in time.
    pub(in crate::web) fn note_late_body(&self) {
        self.body_was_late.store(true, Ordering::Relaxed);
    }

    /// Whether the body did not arrive in time.
    pub(in crate::web) fn body_was_late(&self) -> bool {
        self.body_was_late.load(Ordering::Relaxed)
    }

    /// Whether it waits for its client: for the rest of a request, or, if `or_idle` or after [`SHORTLY`], for the
    /// next one.
    fn is_waiting(&self, or_idle: bool, now: Instant) -> bool {
        let progress = locked(&self.progress);
        match progress.step {
            Step::New | Step::Body | Step::Refused => true,
            Step::Idle => or_idle || now.saturating_duration_since(progress.since) > SHORTLY,
            Step::Handling | Step::Answering | Step::Websocket => false,
        }
    }

    /// How long its step has lasted.
    fn lasts(&self, now: Instant) -> Duration {
        now.saturating_duration_since(locked(&self.progress).since)
    }

    fn is_late(&self, now: Instant) -> bool {
        let progress = locked(&self.progress);
        let (lasts, stalled) =
            (now.saturating_duration_since(progress.since), now.saturating_duration_since(progress.moved));
        match progress.step {
            Step::New | Step::Body => lasts > REQUEST_WITHIN,
            // Handlers have their own deadlines.
            Step::Handling => false,
            Step::Answering => {
                stalled > STALLED || lasts > ANSWER_WITHIN + Duration::from_secs(progress.sent / SLOWEST)
            }
            Step::Websocket => stalled > WEBSOCKET_STALLED,
            Step::Idle | Step::Refused => lasts > IDLE,
        }
    }

    fn hang_up(&self) {
        if let Some(stream) = &self.stream {
            // The connection may already be closed.
            _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(per_address: usize, in_all: usize) -> ConnectionLimits {
        ConnectionLimits { per_address, in_all }
    }

    fn connections(limits: ConnectionLimits, trusted: Arc<TrustedProxies>) -> Arc<Connections> {
        Connections::new(limits, trusted, Arc::new(Mutex::new(Counters::new(&[]))))
    }

    fn admit(all: &Arc<Connections>, peer: &str) -> Counted {
        all.admit(peer.parse().unwrap(), None, Instant::now())
    }

    /// As [`admit`], so many seconds later.
    fn later(all: &Arc<Connections>, peer: &str, seconds: u64) -> Counted {
        all.admit(peer.parse().unwrap(), None, Instant::now() + Duration::from_secs(seconds))
    }

    fn is_open(counted: &Counted) -> bool {
        locked(&counted.among.open).all.contains_key(&counted.connection.id)
    }

    #[test]
    fn closed_connections_no_longer_count_for_their_address() {
        let proxies = Arc::new(TrustedProxies::new(vec!["10.0.0.1/32".parse().unwrap()]));
        let all = connections(limits(2, 100), proxies);
        let busy = |peer| {
            let counted = admit(&all, peer);
            counted.connection.handles();
            counted
        };
        let two = [busy("192.0.2.1"), busy("192.0.2.1")];
        assert!(two.iter().all(|counted| !counted.beyond));
        assert!(busy("192.0.2.1").beyond);
        assert!(!busy("192.0.2.2").beyond, "another address");
        let proxied: Vec<_> = (0..9).map(|_| busy("10.0.0.1")).collect();
        assert!(proxied.iter().all(|counted| !counted.beyond), "a proxy");
        drop((two, proxied));
        assert!(!busy("192.0.2.1").beyond);
        assert!(locked(&all.open).by_address.is_empty() && locked(&all.open).all.is_empty(), "nothing is kept");
        let unlimited = connections(limits(0, 100), Arc::default());
        let many: Vec<_> = (0..50).map(|_| admit(&unlimited, "192.0.2.1")).collect();
        assert!(many.iter().all(|counted| !counted.beyond && is_open(counted)));
    }

    #[test]
    fn connections_without_a_request_are_closed_first() {
        let all = connections(limits(3, 100), Arc::default());
        let busy = admit(&all, "192.0.2.1");
        busy.connection.handles();
        let (silent, slow) = (admit(&all, "192.0.2.1"), admit(&all, "192.0.2.1"));
        slow.connection.waits_for_body();
        let honest = later(&all, "192.0.2.1", 1);
        assert!(!honest.beyond && is_open(&honest) && !is_open(&silent) && is_open(&slow));
        let next = later(&all, "192.0.2.1", 2);
        assert!(!next.beyond && !is_open(&slow) && is_open(&busy) && is_open(&honest));
        assert_eq!(locked(&all.counters).connections_closed, 2);
        honest.connection.rests(true);
        next.connection.rests(false);
        let last = later(&all, "192.0.2.1", 3);
        assert!(
            !last.beyond && !is_open(&honest) && is_open(&next),
            "one that was refused goes before one that was not"
        );
    }

    #[test]
    fn total_connections_are_limited() {
        let all = connections(limits(100, 4), Arc::default());
        let of = |n: u8| format!("192.0.2.{n}");
        let kept: Vec<_> = (0..50).map(|n| admit(&all, &of(n))).collect();
        assert_eq!(kept.iter().filter(|counted| is_open(counted)).count(), 4);
        kept.iter().for_each(|counted| counted.connection.answers(true));
        let refused = admit(&all, &of(99));
        assert!(!is_open(&refused), "all that are open are in use");
        let idle = kept.last().unwrap();
        idle.connection.rests(false);
        assert!(is_open(&admit(&all, &of(98))) && !is_open(idle));
    }

    #[test]
    fn each_step_has_its_deadline() {
        let all = connections(limits(100, 100), Arc::default());
        let counted = admit(&all, "192.0.2.1");
        let connection = &counted.connection;
        let late_after = |seconds| connection.is_late(Instant::now() + Duration::from_secs(seconds));
        assert!(!late_after(14) && late_after(16), "the head");
        connection.waits_for_body();
        assert!(!late_after(14) && late_after(16), "the body");
        connection.handles();
        assert!(!late_after(600), "a handler");
        connection.answers(false);
        assert!(!late_after(19) && late_after(21), "an answer that is not read");
        connection.sends(1 << 20);
        {
            let mut progress = locked(&connection.progress);
            progress.moved += Duration::from_secs(200);
        }
        assert!(!late_after(90) && late_after(95), "an answer that is read too slowly");
        connection.answers(true);
        assert!(!late_after(89) && late_after(91), "a websocket");
        connection.rests(false);
        assert!(!late_after(19) && late_after(21), "no request");
        all.sweep(Instant::now() + Duration::from_secs(30));
        assert!(!is_open(&counted) && locked(&all.open).by_address.is_empty());
    }
}
