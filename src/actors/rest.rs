//! Long rests of actors.
//!
//! The runtime keeps its timers in a wheel, and on the way to one that is seconds off its thread is woken up to twice
//! only to move it nearer. At rest that is most of what a monitor does: a thread that slept costs more to wake than a
//! timer to move. A timer of the kernel's own wakes it once.

#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
use std::time::Duration;

use actix::fut::wrap_future;
use actix::{Actor, ActorFutureExt, AsyncContext, Context, SpawnHandle};
#[cfg(target_os = "linux")]
use tokio::io::unix::AsyncFd;

/// As [`AsyncContext::run_later`], for a `rest` of seconds and more.
pub(super) fn later<A: Actor<Context = Context<A>>>(
    ctx: &mut Context<A>,
    rest: Duration,
    then: impl FnOnce(&mut A, &mut Context<A>) + 'static,
) -> SpawnHandle {
    ctx.spawn(wrap_future(for_long(rest)).map(|(), this, ctx| then(this, ctx)))
}

async fn for_long(rest: Duration) {
    #[cfg(target_os = "linux")]
    match of_the_kernel(rest) {
        Ok(timer) if timer.readable().await.is_ok() => return,
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "cannot create a timer"),
    }
    tokio::time::sleep(rest).await;
}

/// A timer that is readable after `rest`.
#[cfg(target_os = "linux")]
#[expect(deprecated, reason = "what it leaves to its caller, an OwnedFd keeps: the descriptor stays open and the same")]
fn of_the_kernel(rest: Duration) -> std::io::Result<AsyncFd<OwnedFd>> {
    use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

    let timer =
        rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    // Zero would mean never.
    let it_value = Timespec::try_from(rest.max(Duration::from_millis(1))).map_err(std::io::Error::other)?;
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
    rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
    AsyncFd::with_interest(timer, tokio::io::Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_rest_is_as_long_as_was_asked_for() {
        for rest in [Duration::ZERO, Duration::from_millis(70)] {
            let began = Instant::now();
            tokio::time::timeout(Duration::from_secs(10), for_long(rest)).await.unwrap();
            assert!(began.elapsed() >= rest, "{:?} of {rest:?}", began.elapsed());
        }
    }
}
