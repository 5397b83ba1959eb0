//! The live page: rendered as fragments and updated with differences.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::block::{Block, Change};
use super::cell::Cell;
use super::chart::{Columns, StillChart, sparkline};
use super::site::{Environment, Head, Visitor};
use super::templates::{Pages, PagesError};
use super::view::{self, Alerts, Frame, Memory};
use super::{assets, element_id};
use crate::alerting::alert_manager::FiringAlert;
use crate::fleet::event::Event;
use crate::fleet::older_monitor::OlderMonitor;
use crate::fleet::reading::RedisServer;
use crate::fleet::snapshot::{DepthHistory, PostgresFreshness, PostgresStatus, RedisStatus, Snapshot, SourceStatus};

/// Imports of `live.js`, preloaded to avoid a request chain.
const MODULES: &[&str] =
    &["shell.js", "clock.js", "figures.js", "palette.js", "fragments.js", "connection.js", "depths.js", "table.js"];
/// Reload interval without JavaScript, seconds.
const REFRESH: u32 = 10;

/// The live page of the latest snapshot, with the tick at which each part last changed.
///
/// [`LiveView::update`] applies a snapshot and returns the message for clients that have the previous one;
/// [`LiveView::since`] returns the message for clients with an older one; [`LiveView::page`] returns the whole page.
pub struct LiveView {
    pages: Arc<Pages>,
    environment: Environment,
    /// Distinguishes this view's ticks from those of another run of the monitor.
    epoch: u64,
    tick: u64,
    snapshot: Option<Arc<Snapshot>>,
    memory: Memory,
    alerts: Alerts,
    blocks: BTreeMap<String, Block>,
    lists: BTreeMap<&'static str, (Vec<String>, u64)>,
    title: (String, u64),
    /// Newest chart column at each applied tick.
    columns: VecDeque<(u64, f64)>,
}

/// An update for the script.
#[derive(Serialize)]
struct Update<'a> {
    r#type: &'static str,
    epoch: u64,
    tick: u64,
    /// Base tick: a client with an older tick has missed an update. Absent when the update replaces everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<u64>,
    ts: f64,
    /// Last reading of the oldest data source, Unix seconds; absent when equal to `ts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_at: Option<f64>,
    /// HTML by element ID.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    set: BTreeMap<&'a str, String>,
    /// Cell values by element ID.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    cells: BTreeMap<&'a str, CellChanges<'a>>,
    /// Members of each list, in order; all others are removed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    lists: BTreeMap<&'a str, &'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chart: Option<Columns>,
    /// In full updates: version of the scripts.
    #[serde(skip_serializing_if = "Option::is_none")]
    assets: Option<String>,
}

struct CellChanges<'a>(Vec<(&'a str, &'a Cell)>);

impl Serialize for CellChanges<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// Data of the whole page.
#[derive(Serialize)]
struct Page<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    epoch: u64,
    tick: u64,
    ts: f64,
    /// Last reading of the oldest data source, Unix seconds.
    read_at: f64,
    blocks: BTreeMap<&'a str, String>,
    lists: BTreeMap<&'static str, String>,
    chart: StillChart,
    history: String,
}

impl LiveView {
    /// Returns a view without a snapshot.
    #[must_use]
    pub fn new(pages: Arc<Pages>, environment: Environment) -> Self {
        // JavaScript represents integers up to 2^53 exactly.
        Self::with_epoch(pages, environment, Uuid::new_v4().as_u64_pair().0 >> 12)
    }

    pub(super) fn with_epoch(pages: Arc<Pages>, environment: Environment, epoch: u64) -> Self {
        Self {
            pages,
            environment,
            epoch,
            tick: 0,
            snapshot: None,
            memory: Memory::default(),
            alerts: Alerts::default(),
            blocks: BTreeMap::new(),
            lists: BTreeMap::new(),
            title: (String::new(), 0),
            columns: VecDeque::new(),
        }
    }

    /// Sets the firing alerts and the recent alert events, newest first; they are shown with the next snapshot.
    pub fn set_alerts(&mut self, firing: Vec<FiringAlert>, recent: Vec<Arc<Event>>) {
        self.alerts = Alerts { firing, recent };
    }

    /// Applies a snapshot and renders its changes. Returns the message (JSON) for clients that have the previous tick;
    /// `None` if the snapshot is not newer.
    ///
    /// # Errors
    /// When rendering a template fails; the view may then have applied the snapshot partially or not at all.
    pub fn update(&mut self, snapshot: &Arc<Snapshot>) -> Result<Option<String>, PagesError> {
        if snapshot.tick <= self.tick && self.snapshot.is_some() {
            return Ok(None);
        }
        let (before, tick) = (self.tick, snapshot.tick);
        let view = view::compose(snapshot, self.environment.maturity.as_deref(), &self.alerts, &mut self.memory);
        let mut previous = std::mem::take(&mut self.blocks);
        for draft in view.drafts {
            let id = draft.id.clone();
            let block = match previous.remove(&id) {
                Some(mut block) => {
                    block.update(&self.pages, draft, tick)?;
                    block
                }
                None => Block::new(&self.pages, draft, tick)?,
            };
            self.blocks.insert(id, block);
        }
        for list in view.lists {
            let entry = self.lists.entry(list.id).or_default();
            if entry.0 != list.members {
                *entry = (list.members, tick);
            }
        }
        if self.title.0 != view.title {
            self.title = (view.title, tick);
        }
        if let Some(newest) = snapshot.depths.times.back() {
            self.columns.push_back((tick, *newest));
        }
        while self.columns.len() > DepthHistory::COLUMNS {
            self.columns.pop_front();
        }
        self.tick = tick;
        self.snapshot = Some(Arc::clone(snapshot));
        self.message(Some(before)).map(Some)
    }

    /// Returns the message (JSON) for clients that have `tick` of `epoch`: the changes after it, or everything if the
    /// epoch belongs to another run; `None` if nothing is newer.
    ///
    /// # Errors
    /// When serialization to JSON fails.
    pub fn since(&self, epoch: u64, tick: u64) -> Result<Option<String>, PagesError> {
        if self.snapshot.is_none() || (epoch == self.epoch && tick == self.tick) {
            return Ok(None);
        }
        let known = (epoch == self.epoch && tick < self.tick).then_some(tick);
        self.message(known).map(Some)
    }

    /// Renders the whole page for this user; it is complete without JavaScript.
    ///
    /// # Errors
    /// When rendering a template fails.
    pub fn page(&self, visitor: &Visitor) -> Result<String, PagesError> {
        let Some(snapshot) = &self.snapshot else { return self.starting()?.page(visitor) };
        let environment = Environment { visitor: visitor.clone(), ..self.environment.clone() };
        let history = &*snapshot.depths;
        let sparks = self.sparklines(history);
        let html = |id: &str, block: &Block| {
            let spark = match block.frame() {
                Frame::Card(card) => card.sparkline_key().and_then(|key| sparks.get(key)).map_or("", String::as_str),
                _ => "",
            };
            let mut html = String::new();
            block.write_html(&mut html, spark);
            (id.to_owned(), html)
        };
        let mut lists = BTreeMap::new();
        for (list, (members, _)) in &self.lists {
            let mut together = String::new();
            for (id, block) in members.iter().filter_map(|id| self.blocks.get_key_value(id)) {
                together.push_str(&html(id, block).1);
            }
            lists.insert(*list, together);
        }
        let fixed = self.blocks.iter().filter(|(id, _)| !matches!(id.get(1..2), Some("-")));
        let blocks = fixed.map(|(id, block)| (id.as_str(), html(id, block).1)).collect();
        let page = Page {
            head: Head::of(&environment, (&self.pages, "/"), &self.title.0, MODULES, Some(REFRESH)),
            epoch: self.epoch,
            tick: self.tick,
            ts: snapshot.ts,
            read_at: snapshot.read_at(),
            blocks,
            lists,
            chart: StillChart::new(history),
            history: serde_json::to_string(&Columns::whole(history))?,
        };
        self.pages.render("pages/live", &page)
    }

    /// Returns the view before the first tick, while all data sources are starting.
    fn starting(&self) -> Result<Self, PagesError> {
        let mut view = Self::with_epoch(Arc::clone(&self.pages), self.environment.clone(), self.epoch);
        view.update(&Arc::new(nothing_read_yet()))?;
        Ok(view)
    }

    /// Returns the changes after `known`; everything if it is `None`.
    fn message(&self, known: Option<u64>) -> Result<String, PagesError> {
        let Some(snapshot) = &self.snapshot else { return Ok(String::new()) };
        let mut set = BTreeMap::new();
        let mut cells = BTreeMap::new();
        for (id, block) in &self.blocks {
            match known.map_or(Change::Frame, |tick| block.since(tick)) {
                Change::Nothing => {}
                Change::Cells(changed) => drop(cells.insert(id.as_str(), CellChanges(changed))),
                Change::Frame => {
                    let mut html = String::new();
                    block.write_html(&mut html, "");
                    set.insert(id.as_str(), html);
                }
            }
        }
        let newer = |changed: u64| known.is_none_or(|tick| changed > tick);
        let lists = self.lists.iter().filter(|(_, (_, changed))| newer(*changed));
        let column = known.and_then(|known| self.columns.iter().find(|(tick, _)| *tick == known));
        let chart = match column {
            Some((_, until)) => Columns::after(&snapshot.depths, *until),
            None => Some(Columns::whole(&snapshot.depths)),
        };
        let update = Update {
            r#type: "update",
            epoch: self.epoch,
            tick: self.tick,
            from: known,
            ts: snapshot.ts,
            read_at: Some(snapshot.read_at()).filter(|at| *at < snapshot.ts),
            set,
            cells,
            lists: lists.map(|(id, (members, _))| (*id, members.as_slice())).collect(),
            title: newer(self.title.1).then_some(self.title.0.as_str()),
            chart,
            assets: known.is_none().then(assets::version),
        };
        Ok(serde_json::to_string(&update)?)
    }

    /// Returns the sparkline of each stream that has one, by key.
    fn sparklines(&self, history: &DepthHistory) -> BTreeMap<String, String> {
        let draw = |depths: &VecDeque<Option<u64>>| format!(r#" d="{}""#, sparkline(depths.iter().copied()));
        history.depths.iter().map(|(name, depths)| (element_id::key(name), draw(depths))).collect()
    }
}

fn nothing_read_yet() -> Snapshot {
    Snapshot {
        tick: 0,
        ts: 0.0,
        workers: BTreeMap::new(),
        streams: BTreeMap::new(),
        postgres: PostgresStatus {
            state_counts: None,
            status_counts: None,
            counts_age_sec: None,
            queries_last_1h: None,
            queries_last_24h: None,
            per_ara_24h: None,
            callbacks_pending: None,
            oldest_callback_age_sec: None,
            connection_count: None,
            db_size_bytes: None,
            wal_size_bytes: None,
            disk_capacity_bytes: 0,
            disk_used_bytes: None,
            disk_used_pct: None,
            without_queries: false,
            write_error: None,
            freshness: PostgresFreshness::default(),
            source: SourceStatus::Starting,
            error: None,
        },
        redis: RedisStatus {
            server: RedisServer::default(),
            source: SourceStatus::Starting,
            error: None,
            read_at: None,
            write_error: None,
        },
        events: Vec::new(),
        recent_events: VecDeque::new(),
        aras: Arc::from([]),
        unreadable_heartbeats: Vec::new(),
        older_monitor: OlderMonitor::Absent,
        observe_only: false,
        depths: Arc::default(),
    }
}
