//! TCP proxy on 127.0.0.1 with faults that can be switched at runtime.
//!
//! It runs on a separate thread, so that a test that blocks its runtime does not block the proxy.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use shepherd_monitor::demo::servers::HeldPort;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// Faults in one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Way {
    /// Latency of each byte. Order and throughput do not change.
    pub(crate) delay: Duration,
    /// Whether data is read but not forwarded.
    pub(crate) swallow: bool,
    /// Bandwidth limit per connection.
    pub(crate) bytes_per_second: Option<u32>,
}

/// Faults of the proxy; by default none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// Whether all connections are closed and new ones refused.
    pub(crate) cut: bool,
    pub(crate) to_server: Way,
    pub(crate) to_client: Way,
}

/// A proxy in front of a server on 127.0.0.1; stopped when dropped.
pub(crate) struct Proxy {
    port: HeldPort,
    server: Arc<AtomicU16>,
    faults: Option<watch::Sender<Faults>>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    listening: AtomicBool,
    connections: AtomicU64,
    open: AtomicU64,
    to_server: AtomicU64,
    to_client: AtomicU64,
}

impl Proxy {
    /// Starts a proxy to `server_port` without faults.
    pub(crate) fn to(server_port: u16) -> Self {
        let port = HeldPort::take().unwrap();
        let (faults, switched) = watch::channel(Faults::default());
        let counts = Arc::new(Counts::default());
        let (number, shared) = (port.number(), Arc::clone(&counts));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = Arc::new(AtomicU16::new(server_port));
        let of_thread = Arc::clone(&server);
        let thread = std::thread::spawn(move || runtime.block_on(serve(number, of_thread, switched, shared)));
        let proxy = Self { port, server, faults: Some(faults), counts, thread: Some(thread) };
        proxy.pass();
        proxy
    }

    /// Port to connect to; constant.
    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    /// New connections lead to another server, as after a failover behind one name; open ones stay where they are.
    pub(crate) fn lead_to(&self, server_port: u16) {
        self.server.store(server_port, SeqCst);
    }

    /// Removes all faults.
    pub(crate) fn pass(&self) {
        self.set(Faults::default());
    }

    /// Closes all connections and refuses new ones.
    pub(crate) fn cut(&self) {
        self.set(Faults { cut: true, ..Faults::default() });
    }

    /// Delays data by this much. Data that was already read is not affected.
    pub(crate) fn delay(&self, to_server: Duration, to_client: Duration) {
        let way = |delay| Way { delay, ..Way::default() };
        self.set(Faults { cut: false, to_server: way(to_server), to_client: way(to_client) });
    }

    /// Discards replies: the server executes commands, but clients receive nothing.
    ///
    /// Swallowed bytes are lost, so cut the connections before they are used again.
    pub(crate) fn swallow_replies(&self) {
        self.set(Faults { to_client: Way { swallow: true, ..Way::default() }, ..Faults::default() });
    }

    /// Discards requests.
    pub(crate) fn swallow_requests(&self) {
        self.set(Faults { to_server: Way { swallow: true, ..Way::default() }, ..Faults::default() });
    }

    /// Limits the bandwidth of each connection and direction.
    pub(crate) fn limit(&self, bytes_per_second: u32) {
        let way = Way { bytes_per_second: Some(bytes_per_second), ..Way::default() };
        self.set(Faults { cut: false, to_server: way, to_client: way });
    }

    /// Sets the faults. They apply when this returns: connections are closed or accepted accordingly.
    pub(crate) fn set(&self, faults: Faults) {
        self.faults.as_ref().unwrap().send_replace(faults);
        while self.counts.listening.load(SeqCst) == faults.cut {
            assert!(!self.thread.as_ref().unwrap().is_finished(), "the proxy's thread is gone");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Number of connections accepted since the start.
    pub(crate) fn connections(&self) -> u64 {
        self.counts.connections.load(SeqCst)
    }

    /// Number of open connections.
    pub(crate) fn open_connections(&self) -> u64 {
        self.counts.open.load(SeqCst)
    }

    /// Bytes received from clients, including swallowed ones.
    pub(crate) fn bytes_to_server(&self) -> u64 {
        self.counts.to_server.load(SeqCst)
    }

    /// Bytes received from the server, including swallowed ones.
    pub(crate) fn bytes_to_client(&self) -> u64 {
        self.counts.to_client.load(SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.faults.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the proxy's thread panicked");
    }
}

/// While the proxy was cut, another connection of the machine may have been assigned its port.
async fn listen_again(port: u16) -> TcpListener {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match TcpListener::bind(("127.0.0.1", port)).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                sleep(Duration::from_millis(20)).await;
            }
            bound => return bound.unwrap(),
        }
    }
}

/// Runs until the sender of the faults is dropped, which also closes all connections.
async fn serve(port: u16, server: Arc<AtomicU16>, mut faults: watch::Receiver<Faults>, counts: Arc<Counts>) {
    while faults.wait_for(|faults| !faults.cut).await.is_ok() {
        let listener = listen_again(port).await;
        counts.listening.store(true, SeqCst);
        let mut open = JoinSet::new();
        let mut switch = faults.clone();
        let mut cut = std::pin::pin!(switch.wait_for(|faults| faults.cut));
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (client, _) = accepted.unwrap();
                    counts.connections.fetch_add(1, SeqCst);
                    open.spawn(relay(client, server.load(SeqCst), faults.clone(), Arc::clone(&counts)));
                }
                Some(_) = open.join_next() => {}
                switched = &mut cut => match switched {
                    Ok(_) => break,
                    Err(_) => return,
                },
            }
        }
        drop(listener);
        open.shutdown().await;
        counts.listening.store(false, SeqCst);
    }
}

/// Counts a connection as open until dropped.
struct Open<'a>(&'a Counts);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

async fn relay(client: TcpStream, server: u16, faults: watch::Receiver<Faults>, counts: Arc<Counts>) {
    counts.open.fetch_add(1, SeqCst);
    let _open = Open(&counts);
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // An error in one direction closes both; an end of stream only half-closes the connection.
    let _ = tokio::try_join!(
        pump(from_client, to_server, &faults, |faults| faults.to_server, &counts.to_server),
        pump(from_server, to_client, &faults, |faults| faults.to_client, &counts.to_client),
    );
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    faults: &watch::Receiver<Faults>,
    way: fn(&Faults) -> Way,
    bytes: &AtomicU64,
) -> std::io::Result<()> {
    let (queue, mut queued) = mpsc::channel::<(Instant, Vec<u8>)>(256);
    let read = async move {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let length = from.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            bytes.fetch_add(length as u64, SeqCst);
            let Way { delay, swallow, .. } = way(&faults.borrow());
            if !swallow && queue.send((Instant::now() + delay, buffer[..length].to_vec())).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((due, chunk)) = queued.recv().await {
            sleep_until(due).await;
            let mut rest = &chunk[..];
            while !rest.is_empty() {
                let limit = way(&faults.borrow()).bytes_per_second;
                // In pieces of 1/20 s, so that the bandwidth is limited evenly.
                let size = limit.map_or(rest.len(), |rate| rest.len().min((rate as usize / 20).max(1)));
                let (piece, later) = rest.split_at(size);
                to.write_all(piece).await?;
                if let Some(rate) = limit {
                    sleep(Duration::from_secs_f64(size as f64 / f64::from(rate))).await;
                }
                rest = later;
            }
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(drop)
}
