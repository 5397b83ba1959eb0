//! One consumer's life as a state machine.

use serde::Serialize;

/// What is known of one consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsumerState {
    /// Its group lists it; it never wrote a heartbeat, so nothing is concluded from silence.
    NoHeartbeat,
    /// Its heartbeat is being rewritten.
    Alive,
    /// Alive and leaving: it takes no new work.
    Draining,
    /// Alive with work pending and no progress for longer than its stream's floor.
    Hung,
    /// Something stands under its heartbeat key that cannot be read.
    Unreadable,
    /// Its heartbeat is late or just gone; one more good reading decides.
    Suspect,
    /// It said goodbye.
    Left,
    /// It said goodbye and left entries pending.
    LeftWithWork,
    /// It vanished without a goodbye: a crash.
    Lost,
}
