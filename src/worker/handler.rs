//! Handler forms.
//!
//! A handler is an async function or closure from [`Task`] to [`Answer`]. [`typed`] parses the fields first,
//! [`with_state`] passes a shared value, and [`service`] converts a handler into a tower service, to be wrapped in
//! tower layers (timeout, rate limit, concurrency limit).

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use serde::de::DeserializeOwned;
use tower_service::Service;

use super::answer::{Answer, ServiceError, TaskError};
use super::task::Task;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// Output of a handler.
pub type HandlerResult = Result<Answer, TaskError>;
/// Type-erased handler that the engine calls.
pub(super) type Handler = Arc<dyn Fn(Task) -> BoxFuture<HandlerResult> + Send + Sync>;

pub(super) fn boxed<H, F>(handler: H) -> Handler
where
    H: Fn(Task) -> F + Send + Sync + 'static,
    F: Future<Output = HandlerResult> + Send + 'static,
{
    Arc::new(move |task| Box::pin(handler(task)))
}

pub(super) fn of_service<S>(service: S) -> Handler
where
    S: Service<Task, Response = Answer> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    Arc::new(move |task| {
        let mut service = service.clone();
        Box::pin(async move {
            poll_fn(|context| service.poll_ready(context)).await.map_err(Into::into)?;
            Ok(service.call(task).await.map_err(Into::into)?)
        })
    })
}

/// Wraps a handler of tasks whose fields are parsed into `T`. If parsing fails, the task is
/// [malformed](TaskError::malformed), and the handler is not called.
///
/// ```no_run
/// # use shepherd_monitor::worker::{Answer, Task, Worker, WorkerError, typed};
/// #[derive(serde::Deserialize)]
/// struct Callback {
///     callback_id: String,
/// }
///
/// # async fn example() -> Result<(), WorkerError> {
/// let merge = typed(|task: Task<Callback>| async move {
///     println!("merging {}", task.body().callback_id);
///     Ok(Answer::end())
/// });
/// Worker::builder("merge_message")?.run(merge).await?;
/// # Ok(())
/// # }
/// ```
pub fn typed<T, H, F>(handler: H) -> impl Fn(Task) -> BoxFuture<HandlerResult> + Send + Sync + 'static
where
    T: DeserializeOwned,
    H: Fn(Task<T>) -> F + Send + Sync + 'static,
    F: Future<Output = HandlerResult> + Send + 'static,
{
    move |task| match task.parse() {
        Ok(body) => Box::pin(handler(task.with_body(body))),
        Err(malformed) => Box::pin(std::future::ready(Err(malformed.into()))),
    }
}

/// Wraps a handler that gets a clone of `state` (an `Arc`, a pool, a client) with each task.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use shepherd_monitor::worker::{Answer, Task, Worker, WorkerError, with_state};
/// # struct Model;
/// # impl Model { fn rank(&self, _id: Option<&str>) {} }
/// # async fn example() -> Result<(), WorkerError> {
/// let rank = with_state(Arc::new(Model), |model, task: Task| async move {
///     model.rank(task.response_id());
///     Ok(Answer::forward())
/// });
/// Worker::builder("arax.rank")?.run(rank).await?;
/// # Ok(())
/// # }
/// ```
pub fn with_state<S, T, H, F>(state: S, handler: H) -> impl Fn(Task<T>) -> F + Send + Sync + 'static
where
    S: Clone + Send + Sync + 'static,
    H: Fn(S, Task<T>) -> F + Send + Sync + 'static,
    F: Future<Output = HandlerResult> + Send + 'static,
{
    move |task| handler(state.clone(), task)
}

/// Converts a handler into a tower service for [`run_service`](super::WorkerBuilder::run_service).
pub fn service<H>(handler: H) -> HandlerService<H> {
    HandlerService { handler: Arc::new(handler) }
}

/// Tower service returned by [`service`].
#[derive(Debug)]
pub struct HandlerService<H> {
    handler: Arc<H>,
}

impl<H> Clone for HandlerService<H> {
    fn clone(&self) -> Self {
        Self { handler: Arc::clone(&self.handler) }
    }
}

impl<H, F> Service<Task> for HandlerService<H>
where
    H: Fn(Task) -> F,
    F: Future<Output = HandlerResult> + Send + 'static,
{
    type Response = Answer;
    type Error = ServiceError;
    type Future = BoxFuture<Result<Answer, ServiceError>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), ServiceError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, task: Task) -> Self::Future {
        let answer = (self.handler)(task);
        Box::pin(async move { answer.await.map_err(ServiceError) })
    }
}
