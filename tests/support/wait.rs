//! Waits for a condition instead of a fixed time.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

const PAUSE: Duration = Duration::from_millis(10);

/// Result of a condition: a value, or the reason why it does not hold yet.
pub(crate) trait Outcome {
    type Value;
    fn settled(self) -> Result<Self::Value, String>;
}

impl Outcome for bool {
    type Value = ();
    fn settled(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".into()) }
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;
    fn settled(self) -> Result<T, String> {
        self.ok_or_else(|| "None".into())
    }
}

impl<T, E: Display> Outcome for Result<T, E> {
    type Value = T;
    fn settled(self) -> Result<T, String> {
        self.map_err(|e| e.to_string())
    }
}

/// Polls `condition` until it is `true`, `Some` or `Ok`, and returns the value. Panics after `limit` with `what` and
/// the last result.
#[track_caller]
pub(crate) fn eventually<C, F>(
    what: &str,
    limit: Duration,
    condition: C,
) -> impl Future<Output = <F::Output as Outcome>::Value>
where
    C: FnMut() -> F,
    F: Future<Output: Outcome>,
{
    let caller = std::panic::Location::caller();
    poll(what, limit, condition, caller)
}

async fn poll<C, F>(
    what: &str,
    limit: Duration,
    mut condition: C,
    caller: &std::panic::Location<'_>,
) -> <F::Output as Outcome>::Value
where
    C: FnMut() -> F,
    F: Future<Output: Outcome>,
{
    let deadline = Instant::now() + limit;
    let mut last = "no answer at all".to_owned();
    loop {
        match timeout_at(deadline, condition()).await.map(Outcome::settled) {
            Ok(Ok(value)) => return value,
            Ok(Err(why)) if Instant::now() < deadline => last = why,
            Ok(Err(why)) => panic!("{what}: not within {limit:?}; the last answer was {why} ({caller})"),
            Err(_) => panic!("{what}: not within {limit:?}; the answer before the last was {last} ({caller})"),
        }
        sleep(PAUSE).await;
    }
}
