//! Stores alerts and notifications on disk while Postgres is unreachable: one file, replaced as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::alerts::{Delivery, OutboxRow, Rows};
use super::events::NewRow;
use crate::alerting::lifecycle::{Alert, Notified, Phase};
use crate::alerting::message::{About, Message};
use crate::regular_file;

/// Maximum number of notifications; the oldest completed ones are dropped first, then the oldest.
const MESSAGES: usize = 2000;
/// Maximum size of a file to read, bytes.
const LARGEST: u64 = 256 << 20;
/// Maximum number of events; the oldest are dropped first.
const EVENTS: usize = 5000;

/// Recorded instead of an answer for a notification that was given up because the end of its alerts was notified before it.
pub const SUPERSEDED: &str = "not sent: the resolution was sent first";

/// Rows that Postgres has not accepted yet: the newest version of each.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Unsaved {
    /// Epoch in which this instance was leader last. If another one was leader since, its rows are newer.
    #[serde(default)]
    pub led_under: Option<i64>,
    /// Alerts as the leader had written them when this instance took over without Postgres, if the rows were decided from these: the
    /// leader may have written more.
    #[serde(default)]
    pub based_on: Option<Vec<Alert>>,
    alerts: BTreeMap<String, Alert>,
    outbox: Vec<OutboxRow>,
    events: Vec<NewRow>,
}

impl Unsaved {
    /// Adds rows; replaces older versions.
    pub fn add(&mut self, alerts: Vec<Alert>, outbox: Vec<OutboxRow>, events: Vec<NewRow>) {
        self.alerts.extend(alerts.into_iter().map(|alert| (alert.key.clone(), alert)));
        for row in outbox {
            match self.outbox.iter_mut().find(|known| known.id == row.id && known.channel == row.channel) {
                Some(known) => *known = row,
                None => self.outbox.push(row),
            }
        }
        while self.outbox.len() > MESSAGES {
            let oldest_done = self.outbox.iter().position(|row| row.state != Delivery::Waiting).unwrap_or(0);
            self.outbox.remove(oldest_done);
        }
        self.events.extend(events);
        let over = self.events.len().saturating_sub(EVENTS);
        self.events.drain(..over);
    }

    /// Adds the rows of `other`, which replace older versions.
    pub fn merge(&mut self, other: Self) {
        self.add(other.alerts.into_values().collect(), other.outbox, other.events);
    }

    /// Removes and returns the rows about the alerts `keys`, including notifications that are about others too.
    #[must_use]
    pub fn split_off(&mut self, keys: &BTreeSet<String>) -> Self {
        let (led_under, based_on) = (self.led_under, self.based_on.clone());
        let alerts = self.alerts.extract_if(.., |key, _| keys.contains(key)).collect();
        let outbox = self.outbox.extract_if(.., |row| row.message.keys.iter().any(|key| keys.contains(key))).collect();
        let events = self.events.extract_if(.., |event| event.alert().is_some_and(|key| keys.contains(key))).collect();
        Self { led_under, based_on, alerts, outbox, events }
    }

    /// Settles the notifications of an earlier leader that are `waiting` in Postgres, given that the rows are newer than these: one
    /// that would follow the resolution of its alerts is given up. If it is about other alerts too, it is sent, and the resolutions
    /// that it would follow are sent again.
    pub fn settle_superseded(&mut self, waiting: &[OutboxRow]) {
        for row in waiting {
            let newer: Vec<&OutboxRow> = self.outbox.iter().filter(|newer| newer.channel == row.channel).collect();
            if newer.iter().any(|newer| newer.id == row.id) {
                continue;
            }
            let resolution_of = |key: &String| {
                // An attempt in progress may succeed before the older notification is sent.
                let is_first = |newer: &&&OutboxRow| newer.state == Delivery::Sent || newer.begun.is_some();
                let last = newer.iter().filter(is_first).rfind(|newer| newer.message.keys.contains(key));
                last.filter(|last| last.message.about == About::Resolved).and_then(|last| last.ended.or(last.begun))
            };
            let keys = &row.message.keys;
            let resolved: BTreeMap<&String, f64> =
                keys.iter().filter_map(|key| resolution_of(key).map(|at| (key, at))).collect();
            if resolved.len() == keys.len()
                && let Some(last) = resolved.values().copied().reduce(f64::max)
            {
                let ended = Some(last.max(row.created));
                let answer = Some(SUPERSEDED.to_owned());
                self.outbox.push(OutboxRow {
                    state: Delivery::Dead,
                    next_attempt: None,
                    begun: None,
                    answer,
                    ended,
                    ..row.clone()
                });
            } else {
                let again = self
                    .alerts
                    .iter_mut()
                    .filter(|(key, alert)| alert.phase == Phase::Resolved && resolved.contains_key(key));
                again.for_each(|(_, alert)| alert.over_told = false);
            }
        }
    }

    /// Returns whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.alerts.is_empty() && self.outbox.is_empty() && self.events.is_empty()
    }

    /// Returns all rows, for a write.
    #[must_use]
    pub fn rows(&self) -> Rows<'_> {
        Rows {
            alerts: self.alerts.values().collect(),
            outbox: self.outbox.iter().collect(),
            events: self.events.iter().collect(),
        }
    }

    /// Returns the part that users were notified of: completed notifications, and the events and alerts of those that were sent.
    /// Decisions of this instance while another was the leader are void. Requires that every outcome is known, see
    /// [`Self::is_sending`].
    #[must_use]
    pub fn sent(&self) -> Self {
        let outbox: Vec<OutboxRow> = self.outbox.iter().filter(|row| row.ended.is_some()).cloned().collect();
        let sent_rows = || outbox.iter().filter(|row| row.state == Delivery::Sent);
        let sent = || sent_rows().map(|row| &row.message);
        let mut of_alerts: BTreeMap<(&str, bool), Vec<(usize, f64)>> = BTreeMap::new();
        for (place, event) in self.events.iter().enumerate() {
            if let Some(key) = event.alert() {
                let of_alert = of_alerts.entry((key, event.is_of_type("alert_resolved"))).or_default();
                of_alert.push((place, event.happened_at()));
            }
        }
        // The newest event before the notification; a later one belongs to another occurrence.
        let event_of = |message: &Message, key: &str| {
            let events = of_alerts.get(&(key, message.about == About::Resolved))?;
            events.iter().rfind(|(_, ts)| *ts <= message.at + 0.001).map(|(place, _)| *place)
        };
        let places: BTreeSet<usize> =
            sent().flat_map(|message| message.keys.iter().filter_map(move |key| event_of(message, key))).collect();
        let lacks_its_end = |alert: &Alert| {
            let of_key = |message: &&Message| message.keys.contains(&alert.key);
            // The last one: an earlier occurrence may have ended.
            let end_sent = sent().rfind(of_key).is_some_and(|message| message.about == About::Resolved);
            let told = alert.told.as_ref()?;
            let row = sent_rows().find(|row| row.id == told.message)?;
            if end_sent {
                return None;
            }
            // The time of the notification, not of the decision: another instance may have resolved the alert in between.
            let told = Notified { at: told.at.max(row.ended.unwrap_or(told.at)), ..told.clone() };
            let alert = Alert { told: Some(told), ..alert.clone().before_its_end() };
            Some((alert.key.clone(), alert))
        };
        Self {
            led_under: self.led_under,
            based_on: None,
            alerts: self.alerts.values().filter_map(lacks_its_end).collect(),
            events: places.into_iter().filter_map(|place| self.events.get(place).cloned()).collect(),
            outbox,
        }
    }

    /// Returns whether an attempt to send has no known outcome.
    #[must_use]
    pub fn is_sending(&self) -> bool {
        self.outbox.iter().any(|row| row.begun.is_some())
    }

    /// Removes a notification.
    pub fn forget(&mut self, row: &OutboxRow) {
        self.outbox.retain(|known| known.id != row.id || known.channel != row.channel);
    }

    /// Clears attempts in progress, which belong to an ended process.
    pub fn forget_attempts(&mut self) {
        self.outbox.iter_mut().for_each(|row| row.begun = None);
    }

    /// Returns the alerts.
    #[must_use]
    pub fn alerts(&self) -> Vec<Alert> {
        self.alerts.values().cloned().collect()
    }

    /// Returns the notifications.
    #[must_use]
    pub fn outbox(&self) -> &[OutboxRow] {
        &self.outbox
    }
}

/// The spool file.
#[derive(Debug, Clone)]
pub struct Spool {
    file: PathBuf,
}

impl Spool {
    /// Returns the spool in `folder`, which is created on the first write. `name` distinguishes instances that share a folder.
    #[must_use]
    pub fn new(folder: &Path, name: &str) -> Self {
        Self { file: folder.join(format!("alerts-{name}.json")) }
    }

    /// Loads the rows; none if the file does not exist. An unreadable file is moved aside and reported, since it may hold alerts
    /// without a notification.
    #[must_use]
    pub fn load(&self) -> Unsaved {
        let read = match regular_file::read_own(&self.file, LARGEST) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(std::io::Error::from),
            Err(error) => Err(error),
        };
        read.unwrap_or_else(|error| {
            if error.kind() != std::io::ErrorKind::NotFound {
                let (file, aside) = (self.file.display(), self.file.with_extension("unreadable"));
                match std::fs::rename(&self.file, &aside) {
                    Ok(()) => {
                        tracing::error!(%file, %error, "cannot read the spooled changes; kept in {}", aside.display())
                    }
                    Err(_) => tracing::error!(%file, %error, "cannot read the spooled changes"),
                }
            }
            Unsaved::default()
        })
    }

    /// Replaces the file atomically and syncs it to disk.
    ///
    /// # Errors
    /// The error of the operating system.
    pub fn save(&self, unsaved: &Unsaved) -> std::io::Result<()> {
        if unsaved.is_empty() {
            return match std::fs::remove_file(&self.file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        if let Some(folder) = self.file.parent() {
            regular_file::make_own_folder(folder)?;
        }
        let new = self.file.with_extension("new");
        let options = &mut std::fs::OpenOptions::new();
        let mut file = regular_file::open_own(options.write(true).create(true).truncate(true), &new)?;
        file.write_all(&serde_json::to_vec(unsaved)?)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_spool_is_moved_aside() {
        let folder = std::env::temp_dir().join(format!("shepherd-alerts-spool-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let spool = Spool::new(&folder, "x");
        std::fs::write(folder.join("alerts-x.json"), "{\"alerts\": torn").unwrap();
        let loaded = spool.load();
        assert!(loaded.is_empty());
        // An empty spool removes its file, but not the unreadable one.
        spool.save(&loaded).unwrap();
        assert_eq!(std::fs::read_to_string(folder.join("alerts-x.unreadable")).unwrap(), "{\"alerts\": torn");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
