//! Limits of reads: concurrent expensive requests, bytes of responses that clients have not read yet, and websockets.
//!
//! Routes that read much from Redis or Postgres, or that the actors render (marked in [`super::routes`]), wait here for a
//! slot; each client queues behind its own requests. A large response counts until its client has read it, so clients that read nothing
//! cannot exhaust memory. [`super::deadlines`] limits how long they may take.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::web::{Bytes, Data};
use actix_web::{Error, HttpMessage as _, ResponseError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::AppState;
use super::access::Caller;
use super::problem::Problem;
use crate::access::address::client_prefix;
use crate::access::policy::account_of;

/// Maximum number of concurrent requests of an [`Expense`].
pub const RUNNING: usize = 3;
/// Maximum number of concurrent requests of an [`Expense`] per client.
pub const RUNNING_PER_CLIENT: usize = 2;
/// Maximum number of waiting requests per client.
pub const WAITING_PER_CLIENT: usize = 64;
/// Maximum time that a request waits for its slot.
pub const WAIT: Duration = Duration::from_secs(20);
/// Unread bytes of responses, all clients.
pub const UNREAD: usize = 24 << 20;
/// Unread bytes of responses, per client.
pub const UNREAD_PER_CLIENT: usize = 12 << 20;
/// Smaller responses are not counted, bytes.
const SMALL: usize = 16 << 10;
/// Responses are sent in parts of this size, bytes.
const PART: usize = 128 << 10;

/// What a request costs. Each has slots of its own: a page does not wait for a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expense {
    /// Reads much from Redis or Postgres.
    Query,
    /// Is rendered by the actors, on their thread.
    Rendering,
}

impl Expense {
    /// The requests, for error messages.
    fn requests(self) -> &'static str {
        match self {
            Self::Query => "requests for history, alerts or messages",
            Self::Rendering => "requests for the live page or metrics",
        }
    }
}

/// Slots of each expense.
#[derive(Debug)]
struct Slots {
    query: Arc<Semaphore>,
    rendering: Arc<Semaphore>,
}

impl Slots {
    fn new(count: usize) -> Self {
        let slots = || Arc::new(Semaphore::new(count));
        Self { query: slots(), rendering: slots() }
    }

    fn of(&self, expense: Expense) -> Arc<Semaphore> {
        Arc::clone(match expense {
            Expense::Query => &self.query,
            Expense::Rendering => &self.rendering,
        })
    }
}

/// Current usage.
#[derive(Debug)]
pub struct ReadLimits {
    running: Slots,
    unread: AtomicUsize,
    clients: Mutex<HashMap<String, Weak<Client>>>,
}

/// Current usage of a client.
#[derive(Debug)]
struct Client {
    running: Slots,
    waiting: AtomicUsize,
    unread: AtomicUsize,
    websockets: AtomicUsize,
}

/// An open websocket of a client, until dropped.
#[derive(Debug)]
pub struct OpenWebsocket(Arc<Client>);

impl Drop for OpenWebsocket {
    fn drop(&mut self) {
        self.0.websockets.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Slot of an expensive request, released when dropped.
#[derive(Debug)]
pub struct Turn {
    _client: (Arc<Client>, OwnedSemaphorePermit),
    _of_all: OwnedSemaphorePermit,
}

/// Bytes of a response that count as unread until dropped.
#[derive(Debug)]
struct Unread {
    limits: Arc<ReadLimits>,
    client: Arc<Client>,
    bytes: usize,
}

/// A waiting request of a client, until dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ReadLimits {
    /// Creates the limits without any usage.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { running: Slots::new(RUNNING), unread: AtomicUsize::new(0), clients: Mutex::default() })
    }

    /// Usage of the client, which is identified by account and address.
    fn client(&self, caller: &Caller) -> Arc<Client> {
        let address =
            caller.address.parse().map_or_else(|_| caller.address.clone(), |ip| client_prefix(ip).to_string());
        let key = format!("{} {}", address, account_of(&caller.name));
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = clients.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        clients.retain(|_, client| client.strong_count() > 0);
        let client = Arc::new(Client {
            running: Slots::new(RUNNING_PER_CLIENT),
            waiting: AtomicUsize::new(0),
            unread: AtomicUsize::new(0),
            websockets: AtomicUsize::new(0),
        });
        clients.insert(key, Arc::downgrade(&client));
        client
    }

    /// Waits for a slot.
    ///
    /// # Errors
    /// [`Problem::Busy`] if the client has too many requests, [`Problem::Unavailable`] if other clients have.
    pub async fn turn(&self, caller: &Caller, expense: Expense) -> Result<Turn, Problem> {
        let (client, requests) = (self.client(caller), expense.requests());
        if client.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_PER_CLIENT {
            client.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Problem::Busy(format!(
                "this client already has {WAITING_PER_CLIENT} requests waiting, the maximum; wait for their answers"
            )));
        }
        let counted = Arc::clone(&client);
        let _waiting = Waiting(&counted.waiting);
        let (until, waited) = (Instant::now() + WAIT, WAIT.as_secs());
        let late = |_| {
            Problem::Busy(format!(
                "this client already has {RUNNING_PER_CLIENT} {requests} running, the maximum, and none ended within {waited} \
                 s; send fewer, or ask for a shorter window"
            ))
        };
        let closed = |_| Problem::Unavailable("the monitor is stopping".to_owned());
        let own = timeout_at(until, client.running.of(expense).acquire_owned()).await.map_err(late)?.map_err(closed)?;
        let late = |_| {
            Problem::Unavailable(format!(
                "{RUNNING} {requests} are running, the maximum, and none ended within {waited} s; try again later"
            ))
        };
        let of_all =
            timeout_at(until, self.running.of(expense).acquire_owned()).await.map_err(late)?.map_err(closed)?;
        Ok(Turn { _client: (client, own), _of_all: of_all })
    }

    /// Counts a websocket of the client, of which it may have `most`.
    ///
    /// # Errors
    /// [`Problem::TooManyConnections`] if it has as many.
    pub fn open_websocket(&self, caller: &Caller, most: usize) -> Result<OpenWebsocket, Problem> {
        let client = self.client(caller);
        let before = client.websockets.fetch_add(1, Ordering::Relaxed);
        let open = OpenWebsocket(client);
        if before < most { Ok(open) } else { Err(Problem::TooManyConnections) }
    }

    /// Counts `bytes` of a response until they are read.
    fn unread(self: &Arc<Self>, caller: &Caller, bytes: usize) -> Result<Unread, Problem> {
        if bytes > UNREAD_PER_CLIENT {
            return Err(Problem::BadRequest(format!(
                "the answer has {bytes} bytes: expected at most {UNREAD_PER_CLIENT}; ask for a shorter window, fewer \
                 names or a smaller limit"
            )));
        }
        let client = self.client(caller);
        let unread = Unread { limits: Arc::clone(self), client, bytes };
        let of_client = unread.client.unread.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let of_all = self.unread.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if of_client > UNREAD_PER_CLIENT {
            return Err(Problem::Busy(format!(
                "answers of {of_client} bytes to this client are not read yet: expected at most {UNREAD_PER_CLIENT}; read \
                 them, or close their connections"
            )));
        }
        if of_all > UNREAD {
            return Err(Problem::Unavailable(format!(
                "answers of {of_all} bytes are not read by their clients yet: at most {UNREAD} are kept; try again later"
            )));
        }
        Ok(unread)
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.client.unread.fetch_sub(self.bytes, Ordering::Relaxed);
        self.limits.unread.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Middleware inside compression: counts large responses until they are read, and rejects those that exceed the
/// limits. Responses to callers without a role are small or static and not counted.
///
/// # Errors
/// Those of the inner service.
pub(super) async fn within_budget<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let answer = next.call(request).await?;
    let bytes = match answer.response().body().size() {
        BodySize::Sized(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
        BodySize::None | BodySize::Stream => 0,
    };
    let caller = answer.request().extensions().get::<Caller>().cloned();
    let limits = answer.request().app_data::<Data<AppState>>().map(|front| Arc::clone(&front.read_limits));
    let (Some(caller), Some(limits), true) = (caller, limits, bytes > SMALL) else {
        return Ok(answer.map_into_boxed_body());
    };
    match limits.unread(&caller, bytes) {
        Ok(unread) => {
            Ok(answer
                .map_body(|_, body| CountedBody { body: body.boxed(), rest: Bytes::new(), _unread: unread }.boxed()))
        }
        Err(problem) => Ok(answer.into_response(problem.error_response())),
    }
}

/// A body that counts as unread until it is sent.
struct CountedBody {
    body: BoxBody,
    rest: Bytes,
    _unread: Unread,
}

impl MessageBody for CountedBody {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_next(cx) {
                Poll::Ready(Some(Ok(part))) => self.rest = part,
                other => return other,
            }
        }
        let length = self.rest.len().min(PART);
        Poll::Ready(Some(Ok(self.rest.split_to(length))))
    }
}

#[cfg(test)]
mod tests {
    use super::Expense::Query;
    use tokio::time::timeout;

    use super::*;
    use crate::access::Role;

    fn caller(name: &str, address: &str) -> Caller {
        Caller {
            name: name.to_owned(),
            role: Role::Viewer,
            address: address.to_owned(),
            anonymous: false,
            can_leave: false,
        }
    }

    #[test]
    fn unread_responses_are_bounded_per_client_and_in_total() {
        let limits = ReadLimits::new();
        let (greedy, other) = (caller("viewer token", "192.0.2.1"), caller("viewer token", "192.0.2.2"));
        let many: Vec<_> = (0..64).map(|_| limits.unread(&greedy, 5 << 20)).collect();
        assert_eq!(many.iter().filter(|unread| unread.is_ok()).count(), 2);
        assert!(
            many.iter().flat_map(Result::as_ref).count() == 2 && matches!(many.last(), Some(Err(Problem::Busy(_))))
        );
        let honest = limits.unread(&other, 10 << 20).unwrap();
        let third = limits.unread(&caller("viewer token", "192.0.2.3"), 10 << 20);
        assert!(matches!(third, Err(Problem::Unavailable(_))), "{third:?}");
        assert!(matches!(limits.unread(&other, UNREAD_PER_CLIENT + 1), Err(Problem::BadRequest(_))));
        drop((many, honest));
        assert_eq!(limits.unread.load(Ordering::Relaxed), 0);
        assert!(limits.unread(&greedy, UNREAD_PER_CLIENT).is_ok());
    }

    #[test]
    fn a_client_with_a_shared_token_is_one_client_under_any_name() {
        let limits = ReadLimits::new();
        let named = |name| caller(name, "192.0.2.1");
        let _first = limits.open_websocket(&named("bo (viewer token)"), 1).unwrap();
        assert!(matches!(limits.open_websocket(&named("eve (viewer token)"), 1), Err(Problem::TooManyConnections)));
        for other in [named("viewer@example.org"), named("bo (admin token)"), caller("viewer token", "192.0.2.2")] {
            limits.open_websocket(&other, 1).unwrap();
            limits.open_websocket(&other, 1).unwrap();
        }
    }

    #[tokio::test]
    async fn one_client_cannot_occupy_all_slots() {
        let limits = ReadLimits::new();
        let greedy = caller("bo", "2001:db8::1");
        let running = (limits.turn(&greedy, Query).await.unwrap(), limits.turn(&greedy, Query).await.unwrap());
        let same = caller("bo", "2001:db8::2");
        assert!(timeout(Duration::from_millis(20), limits.turn(&same, Query)).await.is_err(), "the same /64");
        assert!(timeout(Duration::from_millis(20), limits.turn(&same, Expense::Rendering)).await.unwrap().is_ok());
        let other = timeout(Duration::from_millis(20), limits.turn(&caller("eve", "192.0.2.1"), Query)).await.unwrap();
        drop(running);
        assert!(timeout(Duration::from_millis(20), limits.turn(&same, Query)).await.unwrap().is_ok());
        let waiting: Vec<_> = (0..WAITING_PER_CLIENT).map(|_| limits.client(&greedy)).collect();
        for client in &waiting {
            client.waiting.fetch_add(1, Ordering::Relaxed);
        }
        assert!(matches!(limits.turn(&greedy, Query).await, Err(Problem::Busy(_))));
        drop(other);
    }
}
