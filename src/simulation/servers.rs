//! Models of Redis and Postgres: what they store, and what they reject.

use std::collections::BTreeMap;

use super::world::World;
use crate::alerting::lifecycle::{Alert, Phase};
use crate::alerting::silences::Silence;
use crate::contract::Name;
use crate::fleet::reading::{SourceTrouble, TroubleKind};
use crate::fleet::simulated::{BEGINS, Keys};
use crate::history::stored_name::stored_name;
use crate::postgres::alerts::{Delivery, LeaseReply, NotWritten, OutboxRow, StoredAlerts};
use crate::postgres::events::{CHANGES, Merged, NewRow};

/// Maximum size of an index row, bytes.
const INDEX_ROW: usize = 2704;

/// Redis. Keys expire by its own clock, which may be stepped.
#[derive(Default)]
pub(super) struct Redis {
    pub(super) down_until: u64,
    pub(super) full_until: u64,
    pub(super) flaps_until: u64,
    /// Offset of its clock, seconds.
    pub(super) ahead: i64,
    pub(super) run: u64,
    pub(super) keys: Keys,
    /// Records of worker types, as JSON.
    pub(super) records: BTreeMap<Name, String>,
    /// Spooled events.
    pub(super) spool: Vec<NewRow>,
    /// Holder of the leader's lease, and its expiry.
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
        self.keys.expire(time);
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

    /// Returns an error if it rejects writes.
    pub(super) fn takes(&self, now: u64) -> Result<(), SourceTrouble> {
        if now >= self.full_until { Ok(()) } else { Err(SourceTrouble::new(TroubleKind::Failed, "OOM")) }
    }
}

/// Postgres. Transactions are instantaneous.
#[derive(Default)]
pub(super) struct Postgres {
    pub(super) down_until: u64,
    pub(super) full_until: u64,
    epoch: i64,
    holder: Option<u64>,
    renewed: f64,
    pub(super) alerts: BTreeMap<String, Alert>,
    pub(super) outbox: Vec<OutboxRow>,
    /// In the order of storing; each key once.
    pub(super) events: Vec<NewRow>,
    pub(super) silences: Vec<Silence>,
}

/// Owned copy of rows that are written in one transaction.
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

    pub(super) fn lead(&mut self, world: &World, holder: u64, lease: f64) -> Result<LeaseReply, SourceTrouble> {
        self.takes(world)?;
        let now = world.time();
        let (mut epoch, followed) = (None, Some(self.epoch));
        if self.holder == Some(holder) || self.renewed < now - lease {
            self.epoch += i64::from(self.holder != Some(holder));
            (self.holder, self.renewed) = (Some(holder), now);
            epoch = Some(self.epoch);
        }
        Ok(LeaseReply { epoch, followed, silences: Some(self.silences(now)), findings: Vec::new() })
    }

    pub(super) fn resign(&mut self, holder: u64) {
        if self.holder == Some(holder) {
            self.renewed = f64::NEG_INFINITY;
        }
    }

    pub(super) fn follow(&self, now: f64) -> LeaseReply {
        LeaseReply { followed: Some(self.epoch), silences: Some(self.silences(now)), ..LeaseReply::default() }
    }

    fn silences(&self, now: f64) -> Vec<Silence> {
        self.silences.iter().filter(|silence| silence.until > now).cloned().collect()
    }

    pub(super) fn write(&mut self, world: &World, epoch: i64, rows: OwnedRows) -> Result<(), NotWritten> {
        if self.epoch != epoch {
            return Err(NotWritten::Deposed);
        }
        self.takes(world).and_then(|()| self.put(rows)).map_err(NotWritten::Trouble)
    }

    pub(super) fn hand_over(&mut self, world: &World, rows: OwnedRows) -> Result<(), SourceTrouble> {
        self.takes(world)?;
        let alerts = rows.alerts;
        self.put(OwnedRows { alerts: Vec::new(), ..rows })?;
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

    pub(super) fn load(&self) -> StoredAlerts {
        let waiting = self.outbox.iter().filter(|row| row.state == Delivery::Waiting).cloned().collect();
        StoredAlerts { alerts: self.alerts.values().cloned().collect(), waiting }
    }

    pub(super) fn insert_events(&mut self, world: &World, rows: Vec<NewRow>) -> Result<(), SourceTrouble> {
        self.takes(world)?;
        self.put_events(rows);
        Ok(())
    }

    fn put(&mut self, rows: OwnedRows) -> Result<(), SourceTrouble> {
        if rows.alerts.iter().any(|alert| stored_name(&alert.key).len() > INDEX_ROW) {
            return Err(SourceTrouble::new(TroubleKind::Failed, "index row size exceeds btree maximum"));
        }
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
        Ok(())
    }

    fn put_events(&mut self, rows: Vec<NewRow>) {
        let is_change = |row: &NewRow| CHANGES.iter().any(|change| row.is_of_type(change));
        let stored: Vec<NewRow> = match rows.iter().any(is_change) {
            true => self.events.iter().filter(|row| is_change(row)).cloned().collect(),
            false => Vec::new(),
        };
        let Merged { new, repeated } = Merged::of(&rows, &stored);
        for row in new {
            if !self.events.iter().any(|known| known.key() == row.key()) {
                self.events.push(row);
            }
        }
        for (key, repeats) in repeated {
            self.events.iter_mut().filter(|row| row.key() == key).for_each(|row| row.is_repeated_as(&repeats));
        }
    }
}
