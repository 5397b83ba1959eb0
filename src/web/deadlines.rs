//! Deadlines around every request: its body must arrive in time, and its answer must be read.
//!
//! [`watched`] tells the [`Connections`](super::access::Connections) how far each request is; those close what is late.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::PayloadError;
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::rt::time::{Sleep, sleep};
use actix_web::web::Bytes;
use actix_web::{Error, HttpMessage as _, HttpRequest};
use futures_util::Stream;

use super::access::{Connection, Counted};

/// A body that has not arrived after this time is refused.
pub(super) const BODY_WITHIN: Duration = Duration::from_secs(10);
/// Answers are handed on in parts of this size, so that it shows whether the client reads them.
const PART: usize = 32 << 10;

fn connection(request: &HttpRequest) -> Option<Arc<Connection>> {
    request.conn_data::<Counted>().map(|counted| Arc::clone(&counted.connection))
}

/// Whether the body of `request` did not arrive in time.
pub(super) fn body_was_late(request: &HttpRequest) -> bool {
    connection(request).is_some_and(|connection| connection.body_was_late())
}

/// Around everything that is served.
///
/// # Errors
/// Those of what it is around.
pub async fn watched<B: MessageBody + 'static>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<WatchedBody>, Error> {
    let connection = connection(request.request());
    if let Some(connection) = &connection {
        // A websocket's payload is its frames, which come for as long as it is open.
        let payload = request.take_payload();
        if matches!(payload, Payload::None) || request.method() == Method::GET {
            request.set_payload(payload);
            connection.handles();
        } else {
            connection.waits_for_body();
            let body =
                TimedBody { payload, deadline: Box::pin(sleep(BODY_WITHIN)), connection: Arc::clone(connection) };
            request.set_payload(Payload::Stream { payload: Box::pin(body) });
        }
    }
    let answer = match next.call(request).await {
        Ok(answer) => answer,
        Err(error) => {
            connection.iter().for_each(|connection| connection.rests(true));
            return Err(error);
        }
    };
    if let Some(connection) = &connection {
        connection.answers(answer.status() == StatusCode::SWITCHING_PROTOCOLS);
    }
    let refused = answer.status().is_client_error();
    Ok(answer.map_body(|_, body| WatchedBody { body: body.boxed(), rest: Bytes::new(), refused, connection }))
}

/// A request's body, for as long as its deadline has not passed.
struct TimedBody {
    payload: Payload,
    deadline: Pin<Box<Sleep>>,
    connection: Arc<Connection>,
}

impl Stream for TimedBody {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(part) = Pin::new(&mut self.payload).poll_next(cx) {
            if part.is_none() {
                self.connection.handles();
            }
            return Poll::Ready(part);
        }
        if self.deadline.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.connection.note_late_body();
        Poll::Ready(Some(Err(PayloadError::Incomplete(Some(std::io::ErrorKind::TimedOut.into())))))
    }
}

/// An answer's body, handed on in small parts.
pub struct WatchedBody {
    body: BoxBody,
    rest: Bytes,
    refused: bool,
    connection: Option<Arc<Connection>>,
}

impl MessageBody for WatchedBody {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_next(cx) {
                Poll::Ready(Some(Ok(part))) => self.rest = part,
                other => {
                    // Asked for more, and more is not there yet: the client has taken all before it.
                    self.connection.iter().for_each(|connection| connection.sends(0));
                    return other;
                }
            }
        }
        let length = self.rest.len().min(PART);
        let part = self.rest.split_to(length);
        self.connection.iter().for_each(|connection| connection.sends(length));
        Poll::Ready(Some(Ok(part)))
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        self.connection.iter().for_each(|connection| connection.rests(self.refused));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures_util::StreamExt;

    use super::*;
    use crate::exposition::counters::Counters;
    use crate::web::access::{ConnectionLimits, Connections};

    #[tokio::test]
    async fn a_body_that_does_not_arrive_ends_after_its_deadline_and_one_that_does_is_handed_on() {
        let counters = Arc::new(std::sync::Mutex::new(Counters::new(&[])));
        let connections = Connections::new(ConnectionLimits { per_address: 9, in_all: 9 }, Arc::default(), counters);
        let counted = connections.admit("192.0.2.1".parse().unwrap(), None, Instant::now());
        let body = |parts: Vec<&'static str>, more: bool| {
            let parts = futures_util::stream::iter(parts).map(|part| Ok(Bytes::from_static(part.as_bytes())));
            let pending = futures_util::stream::pending().take(usize::from(more));
            TimedBody {
                payload: Payload::Stream { payload: Box::pin(parts.chain(pending)) },
                deadline: Box::pin(sleep(Duration::from_millis(50))),
                connection: Arc::clone(&counted.connection),
            }
        };
        let whole: Vec<_> = body(vec!["a", "b"], false).collect().await;
        assert!(whole.iter().all(Result::is_ok) && whole.len() == 2 && !counted.connection.body_was_late());
        let mut torn = body(vec!["a"], true);
        assert!(torn.next().await.unwrap().is_ok());
        assert!(torn.next().await.unwrap().is_err() && counted.connection.body_was_late());
    }

    #[tokio::test]
    async fn an_answer_is_handed_on_in_small_parts() {
        let length = 3 * PART + 5;
        let mut body =
            WatchedBody { body: BoxBody::new(vec![7; length]), rest: Bytes::new(), refused: false, connection: None };
        let mut parts = Vec::new();
        while let Some(part) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_next(cx)).await {
            parts.push(part.unwrap().len());
        }
        assert_eq!(parts, [PART, PART, PART, 5]);
    }
}
