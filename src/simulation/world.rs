//! Time, machines and calls of a simulated world. Single-threaded; a waiting future is polled again every [`QUANTUM`].

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use super::random::Random;
use super::scenario::ChannelMode;
use super::servers::{Postgres, Redis};
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::fleet::simulated::{BEGINS, MONITORS};
use crate::postgres::alerts::OutboxRow;

/// Time step, milliseconds.
pub(super) const QUANTUM: u64 = 100;

/// A server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    Redis,
    Postgres,
}

/// The machine of a monitor; survives restarts of the process.
#[derive(Default)]
pub(super) struct Machine {
    /// Offset of its wall clock, seconds.
    pub(super) ahead: Cell<i64>,
    /// Its process is paused until this time, milliseconds of true time.
    pub(super) paused_until: Cell<u64>,
    pub(super) cut_from_redis_until: Cell<u64>,
    pub(super) cut_from_postgres_until: Cell<u64>,
    pub(super) disk_full_until: Cell<u64>,
    /// Setting: its process does not watch the second worker type.
    pub(super) excludes: Cell<bool>,
    /// Spool file of alerts.
    pub(super) disk: RefCell<Vec<u8>>,
    /// Tasks that the process started and that are not scheduled yet.
    pub(super) spawned: RefCell<Vec<Task>>,
}

pub(super) type Task = Pin<Box<dyn Future<Output = ()>>>;

/// A task of a process, and the time of its next poll.
pub(super) struct Scheduled {
    pub(super) task: Task,
    pub(super) due: u64,
}

/// A notification that the channel accepted.
#[derive(Debug, Clone)]
pub(super) struct Delivered {
    /// True time, milliseconds.
    pub(super) at: u64,
    pub(super) row: OutboxRow,
}

/// The world, shared by all tasks.
pub(super) struct World {
    /// True time since its start, milliseconds.
    pub(super) now: Cell<u64>,
    /// Latest time of the next poll that the current task requested.
    pub(super) due: Cell<Option<u64>>,
    pub(super) random: RefCell<Random>,
    pub(super) machines: [Machine; MONITORS],
    pub(super) redis: RefCell<Redis>,
    pub(super) postgres: RefCell<Postgres>,
    pub(super) flaky_until: Cell<u64>,
    /// The query for a figure of the database fails until this time.
    pub(super) probe_fails_until: Cell<u64>,
    /// An old figure that was shown as current.
    pub(super) invented: RefCell<Option<String>>,
    pub(super) channel: Cell<ChannelMode>,
    pub(super) delivered: RefCell<Vec<Delivered>>,
    /// Current variant of the rules file.
    pub(super) rules: Cell<usize>,
    /// Another leader may not know all decisions, so that duplicate notifications are permitted: a monitor reached neither server,
    /// or had no Postgres in a world in which the leader may change.
    pub(super) may_be_split: Cell<bool>,
    /// There are no more faults, and every call is answered soon.
    pub(super) is_calm: Cell<bool>,
}

impl World {
    /// Returns the true time, Unix seconds.
    pub(super) fn time(&self) -> f64 {
        BEGINS + self.now.get() as f64 / 1000.0
    }

    /// Returns the wall clock of a machine, Unix seconds.
    pub(super) fn wall(&self, machine: usize) -> f64 {
        self.time() + self.machines[machine].ahead.get() as f64
    }

    pub(super) fn reaches(&self, machine: usize, server: Server) -> bool {
        let now = self.now.get();
        let is_paused = now < self.machines[machine].paused_until.get();
        !is_paused
            && match server {
                Server::Redis => {
                    self.redis.borrow().is_up(now) && now >= self.machines[machine].cut_from_redis_until.get()
                }
                Server::Postgres => {
                    self.postgres.borrow().is_up(now) && now >= self.machines[machine].cut_from_postgres_until.get()
                }
            }
    }

    /// Waits until this true time.
    pub(super) fn until(self: &Rc<Self>, at: u64) -> impl Future<Output = ()> + use<> {
        let world = Rc::clone(self);
        poll_fn(move |_| {
            if world.now.get() >= at {
                return Poll::Ready(());
            }
            world.wants_turn(at);
            Poll::Pending
        })
    }

    fn wants_turn(&self, at: u64) {
        self.due.set(Some(self.due.get().map_or(at, |due| due.min(at))));
    }

    pub(super) fn rest(self: &Rc<Self>, millis: u64) -> impl Future<Output = ()> + use<> {
        self.until(self.now.get() + millis)
    }

    /// Returns the result of `work`, or `None` after a timeout in milliseconds.
    pub(super) async fn within<T>(self: &Rc<Self>, millis: u64, work: impl Future<Output = T>) -> Option<T> {
        let until = self.now.get() + millis;
        let mut work = Box::pin(work);
        poll_fn(|context| match work.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if self.now.get() >= until => Poll::Ready(None),
            Poll::Pending => {
                // It may wait for a lock, which requests no poll.
                self.wants_turn(self.now.get() + QUANTUM);
                Poll::Pending
            }
        })
        .await
    }

    /// Calls a server, with a limit in milliseconds: the call may be refused, late, or executed with its reply lost.
    pub(super) async fn call<T>(
        self: &Rc<Self>,
        machine: usize,
        server: Server,
        limit: u64,
        effect: impl FnOnce(&Self) -> Result<T, SourceTrouble>,
    ) -> Result<T, SourceTrouble> {
        let late = || SourceTrouble::new(TroubleKind::TimedOut, "does not answer in time");
        let (there, back, lost) = {
            let mut random = self.random.borrow_mut();
            let slow = if !self.is_calm.get() && random.one_in(50) { 12 } else { 2 };
            let flaky = self.now.get() < self.flaky_until.get();
            (random.between(0, slow) * QUANTUM / 2, random.between(0, slow) * QUANTUM / 2, flaky && random.one_in(3))
        };
        let asked = self.now.get();
        self.rest(there).await;
        if !self.reaches(machine, server) {
            return Err(SourceTrouble::new(TroubleKind::Unreachable, "connection refused"));
        }
        if self.now.get() > asked + limit {
            return Err(late());
        }
        if lost && self.random.borrow_mut().one_in(2) {
            return Err(SourceTrouble::new(TroubleKind::Unreachable, "connection reset"));
        }
        let answer = effect(self);
        self.rest(back).await;
        if lost || self.now.get() > asked + limit {
            return Err(late());
        }
        answer
    }
}
