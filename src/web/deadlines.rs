//! Deadlines of requests: the body must arrive, and the response must be read in time.
//!
//! [`watched`] reports the progress of each request to [`Connections`](super::access::Connections), which closes late
//! connections.

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

/// Deadline of the request body.
pub(super) const BODY_WITHIN: Duration = Duration::from_secs(10);
/// Part size of responses, bytes. Small, so that progress of the client is visible.
const PART: usize = 32 << 10;

fn connection(request: &HttpRequest) -> Option<Arc<Connection>> {
    request.conn_data::<Counted>().map(|counted| Arc::clone(&counted.connection))
}

/// Whether the body of `request` missed its deadline.
pub(super) fn body_was_late(request: &HttpRequest) -> bool {
    connection(request).is_some_and(|connection| connection.body_was_late())
}

/// Middleware around all routes.
///
/// # Errors
/// Those of the inner service.
pub async fn watched<B: MessageBody + 'static>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<WatchedBody>, Error> {
    let connection = connection(request.request());
    if let Some(connection) = &connection {
        // The payload of a websocket is its frames, which have no deadline.
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

/// A request body that fails after its deadline.
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

/// A response body, sent in small parts.
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
                    // Polled for more while none is ready: the client has read everything so far.
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
    async fn only_late_bodies_end_at_their_deadline() {
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
    async fn responses_are_sent_in_small_parts() {
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
