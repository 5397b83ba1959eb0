//! Redis and Postgres as far as the monitors' decisions go: what they keep, and what they refuse.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::world::{BEGINS, World};
use crate::alerting::lifecycle::{Alert, Phase};
use crate::alerting::quiet::Silence;
use crate::contract::{Heartbeat, Name, ShutdownMarker};
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::postgres::alerts::{Delivery, Kept, Led, NotWritten, OutboxRow};
use crate::postgres::events::NewRow;

/// Redis. Its keys expire by its own clock, which may be stepped.
#[derive(Default)]
pub(super) struct Redis {
    pub(super) down_until: u64,
    pub(super) full_until: u64,
    pub(super) flaps_until: u64,
    /// By so many seconds its clock is ahead.
    pub(super) ahead: i64,
    pub(super) run: u64,
    pub(super) beats: BTreeMap<Name, (f64, Arc<Heartbeat>)>,
    pub(super) markers: BTreeMap<Name, (f64, ShutdownMarker)>,
    /// Records of worker types, as JSON.
    pub(super) records: BTreeMap<Name, String>,
    /// Events that wait for Postgres.
    pub(super) spool: Vec<NewRow>,
    /// Who leads, and until when.
    pub(super) leader: Option<(u64, f64)>,
}

impl Redis {
    pub(super) fn is_up(&self, now: u64) -> bool {
        now >= self.down_until && (now >= self.flaps_until || now % 9_000 < 4_000)
    }

    /// `TIME`, Unix seconds.
    pub(super) fn time(&self, now: u64) -> f64 {
        BEGINS + now as f64 / 1000.0 + self.ahead as f64
    }

    pub(super) fn expire(&mut self, now: u64) {
        let time = self.time(now);
        self.beats.retain(|_, (expires, _)| *expires > time);
        self.markers.retain(|_, (expires, _)| *expires > time);
        if self.leader.is_some_and(|(_, expires)| expires <= time) {
            self.leader = None;
        }
    }

    pub(super) fn empty(&mut self) {
        *self = Self {
            run: self.run + 1,
            ahead: self.ahead,
            down_until: self.down_until,
            full_until: self.full_until,
            flaps_until: self.flaps_until,
            ..Self::default()
        };
    }

    /// Whether it takes writes.
    pub(super) fn takes(&self, now: u64) -> Result<(), SourceTrouble> {
        if now >= self.full_until { Ok(()) } else { Err(SourceTrouble::new(TroubleKind::Failed, "OOM")) }
    }
}

/// Postgres. Its transactions are done in one moment.
#[derive(Default)]
pub(super) struct Postgres {
    pub(super) down_until: u64,
    pub(super) full_until: u64,
    epoch: i64,
    holder: Option<u64>,
    renewed: f64,
    pub(super) alerts: BTreeMap<String, Alert>,
    pub(super) outbox: Vec<OutboxRow>,
    /// By key, in the order of storing.
    pub(super) events: Vec<(String, NewRow)>,
    pub(super) silences: Vec<Silence>,
}

/// Rows that are written together, taken out of the borrowed ones.
#[derive(Default)]
pub(super) struct OwnedRows {
    pub(super) alerts: Vec<Alert>,
    pub(super) outbox: Vec<OutboxRow>,
    pub(super) events: Vec<NewRow>,
}

impl Postgres {
    pub(super) fn is_up(&self, now: u64) -> bool {
        now >= self.down_until
    }

    fn takes(&self, world: &World) -> Result<(), SourceTrouble> {
        if world.now.get() >= self.full_until {
            Ok(())
        } else {
            Err(SourceTrouble::new(TroubleKind::Failed, "could not extend file: No space left on device"))
        }
    }

    pub(super) fn lead(&mut self, world: &World, holder: u64, lease: f64) -> Result<Led, SourceTrouble> {
        self.takes(world)?;
        let now = world.time();
        let (mut epoch, followed) = (None, Some(self.epoch));
        if self.holder == Some(holder) || self.renewed < now - lease {
            self.epoch += i64::from(self.holder != Some(holder));
            (self.holder, self.renewed) = (Some(holder), now);
            epoch = Some(self.epoch);
        }
        Ok(Led { epoch, followed, silences: Some(self.silences(now)), findings: Vec::new() })
    }

    pub(super) fn resign(&mut self, holder: u64) {
        if self.holder == Some(holder) {
            self.renewed = f64::NEG_INFINITY;
        }
    }

    pub(super) fn follow(&self, now: f64) -> Led {
        Led { followed: Some(self.epoch), silences: Some(self.silences(now)), ..Led::default() }
    }

    fn silences(&self, now: f64) -> Vec<Silence> {
        self.silences.iter().filter(|silence| silence.until > now).cloned().collect()
    }

    pub(super) fn write(&mut self, world: &World, epoch: i64, rows: OwnedRows) -> Result<(), NotWritten> {
        if self.epoch != epoch {
            return Err(NotWritten::Deposed);
        }
        self.takes(world).map_err(NotWritten::Trouble)?;
        self.put(rows);
        Ok(())
    }

    pub(super) fn hand_over(&mut self, world: &World, rows: OwnedRows) -> Result<(), SourceTrouble> {
        self.takes(world)?;
        let alerts = rows.alerts;
        self.put(OwnedRows { alerts: Vec::new(), ..rows });
        let mut adopted = false;
        for alert in alerts {
            let told = alert.told.as_ref().map_or(f64::NEG_INFINITY, |told| told.at);
            let is_new = self.alerts.get(&alert.key).is_none_or(|known| {
                let ended_before = || known.resolved_at.unwrap_or(known.since) < told;
                known.told.is_none() || (known.phase == Phase::Resolved && ended_before())
            });
            if is_new {
                adopted = true;
                self.alerts.insert(alert.key.clone(), alert);
            }
        }
        self.epoch += i64::from(adopted);
        Ok(())
    }

    pub(super) fn load(&self) -> Kept {
        let waiting = self.outbox.iter().filter(|row| row.state == Delivery::Waiting).cloned().collect();
        Kept { alerts: self.alerts.values().cloned().collect(), waiting }
    }

    pub(super) fn insert_events(&mut self, world: &World, rows: Vec<NewRow>) -> Result<(), SourceTrouble> {
        self.takes(world)?;
        self.put_events(rows);
        Ok(())
    }

    fn put(&mut self, rows: OwnedRows) {
        self.alerts.extend(rows.alerts.into_iter().map(|alert| (alert.key.clone(), alert)));
        for row in rows.outbox {
            match self.outbox.iter_mut().find(|known| known.id == row.id && known.channel == row.channel) {
                Some(known) if known.state == Delivery::Waiting => {
                    let attempts = known.attempts.max(row.attempts);
                    *known = OutboxRow { attempts, ..row };
                }
                Some(_) => {}
                None => self.outbox.push(row),
            }
        }
        self.put_events(rows.events);
    }

    fn put_events(&mut self, rows: Vec<NewRow>) {
        for row in rows {
            let key = key_of(&row);
            if !self.events.iter().any(|(known, _)| *known == key) {
                self.events.push((key, row));
            }
        }
    }
}

/// The key under which an event is stored once.
pub(super) fn key_of(row: &NewRow) -> String {
    let row = serde_json::to_value(row).unwrap();
    row["payload"]["key"].as_str().unwrap_or_default().to_owned()
}
