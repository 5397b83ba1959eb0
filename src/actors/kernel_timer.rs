//! Timers for long waits of actors.
//!
//! Tokio's timer wheel wakes its thread up to twice to cascade a timer that is seconds away. In an idle monitor these wake-ups are
//! most of the CPU time. A timerfd wakes the thread once.

#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
use std::time::Duration;

use actix::fut::wrap_future;
use actix::{Actor, ActorFutureExt, AsyncContext, Context, SpawnHandle};
#[cfg(target_os = "linux")]
use tokio::io::unix::AsyncFd;

/// Like [`AsyncContext::run_later`], for waits of a second or more.
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

/// Returns a timerfd that becomes readable after `kernel_timer`.
#[cfg(target_os = "linux")]
#[expect(deprecated, reason = "what it leaves to its caller, an OwnedFd keeps: the descriptor stays open and the same")]
fn of_the_kernel(rest: Duration) -> std::io::Result<AsyncFd<OwnedFd>> {
    use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

    let timer =
        rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    // Zero would disarm the timer.
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
    async fn timers_expire_after_the_requested_time() {
        for rest in [Duration::ZERO, Duration::from_millis(70)] {
            let began = Instant::now();
            tokio::time::timeout(Duration::from_secs(10), for_long(rest)).await.unwrap();
            assert!(began.elapsed() >= rest, "{:?} of {rest:?}", began.elapsed());
        }
    }
}
