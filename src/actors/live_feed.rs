//! Sends updates to clients: each message is rendered once per tick for all sessions, and a session that does not read is dropped
//! instead of delaying the others.

use std::sync::Arc;

use actix::{Actor, Context, Handler, MessageResult, Recipient};
use bytestring::ByteString;

use super::messages::{
    AlertsNow, Fail, Feed, GetChanges, Join, Push, RenderPage, Report, Role, SessionCount, SnapshotTaken, StopFeed,
};
use crate::fleet::snapshot::Snapshot;
use crate::pages::LiveView;

/// Sends updates to clients; see the module documentation.
pub struct LiveFeed {
    supervisor: Recipient<Report>,
    view: LiveView,
    /// The newest snapshot, and whether the view has it.
    newest: Option<Arc<Snapshot>>,
    rendered: bool,
    snapshots: Vec<Recipient<Push>>,
    changes: Vec<Recipient<Push>>,
    /// Alerts that fired since the last snapshot was sent.
    fired: Vec<String>,
    jammed: u64,
}

impl LiveFeed {
    /// Returns the actor; it renders `view`.
    #[must_use]
    pub fn new(supervisor: Recipient<Report>, view: LiveView) -> Self {
        Self {
            supervisor,
            view,
            newest: None,
            rendered: false,
            snapshots: Vec::new(),
            changes: Vec::new(),
            fired: Vec::new(),
            jammed: 0,
        }
    }

    /// Renders the newest snapshot, unless that was done. Returns the changes, if any.
    fn render(&mut self) -> Result<Option<String>, String> {
        let Some(snapshot) = self.newest.as_ref().filter(|_| !self.rendered) else { return Ok(None) };
        self.rendered = true;
        self.view.update(snapshot).map_err(|error| {
            tracing::error!(%error, "cannot render the live page");
            error.to_string()
        })
    }
}

/// Sends to all sessions. Drops and counts those that do not accept the message.
fn send_all(sessions: &mut Vec<Recipient<Push>>, text: &ByteString) -> u64 {
    let mut jammed = 0;
    sessions.retain(|session| match session.try_send(Push::Text(text.clone())) {
        Ok(()) => true,
        Err(actix::prelude::SendError::Full(_)) => {
            jammed += 1;
            false
        }
        Err(actix::prelude::SendError::Closed(_)) => false,
    });
    jammed
}

/// Returns the websocket message of the API; with `new_alerts` if alerts fired since the previous one.
fn snapshot_message(snapshot: &Snapshot, fired: &[String]) -> Option<ByteString> {
    let mut json = serde_json::to_string(snapshot).ok()?;
    if !fired.is_empty() && json.pop() == Some('}') {
        json.push_str(r#","new_alerts":["#);
        json.push_str(&fired.join(","));
        json.push_str("]}");
    }
    Some(format!(r#"{{"type":"snapshot","data":{json}}}"#).into())
}

impl Actor for LiveFeed {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.supervisor.do_send(Report::Ended(Role::LiveFeed));
    }
}

impl Handler<SnapshotTaken> for LiveFeed {
    type Result = ();

    fn handle(&mut self, SnapshotTaken(snapshot): SnapshotTaken, _: &mut Self::Context) {
        let fired = std::mem::take(&mut self.fired);
        if !self.snapshots.is_empty()
            && let Some(text) = snapshot_message(&snapshot, &fired)
        {
            self.jammed += send_all(&mut self.snapshots, &text);
        }
        self.newest = Some(snapshot);
        self.rendered = false;
        if !self.changes.is_empty()
            && let Ok(Some(text)) = self.render()
        {
            self.jammed += send_all(&mut self.changes, &text.into());
        }
    }
}

impl Handler<AlertsNow> for LiveFeed {
    type Result = ();

    fn handle(&mut self, alerts: AlertsNow, _: &mut Self::Context) {
        self.fired.extend(alerts.fired);
        self.view.set_alerts(alerts.firing, alerts.recent);
    }
}

impl Handler<Join> for LiveFeed {
    type Result = ();

    fn handle(&mut self, join: Join, _: &mut Self::Context) {
        match join.feed {
            Feed::Snapshots => {
                if let Some(text) = self.newest.as_deref().and_then(|snapshot| snapshot_message(snapshot, &[])) {
                    drop(join.session.try_send(Push::Text(text)));
                }
                self.snapshots.push(join.session);
            }
            Feed::Changes { epoch, tick } => {
                // Connected sessions must get the changes that this rendering finds.
                if let Ok(Some(text)) = self.render() {
                    self.jammed += send_all(&mut self.changes, &text.into());
                }
                if let Ok(Some(text)) = self.view.since(epoch, tick) {
                    drop(join.session.try_send(Push::Text(text.into())));
                }
                self.changes.push(join.session);
            }
        }
    }
}

impl Handler<RenderPage> for LiveFeed {
    type Result = Result<String, String>;

    fn handle(&mut self, asked: RenderPage, _: &mut Self::Context) -> Self::Result {
        if let Some(text) = self.render()? {
            self.jammed += send_all(&mut self.changes, &text.into());
        }
        self.view.page(&asked.visitor).map_err(|error| error.to_string())
    }
}

impl Handler<GetChanges> for LiveFeed {
    type Result = Result<Option<String>, String>;

    fn handle(&mut self, asked: GetChanges, _: &mut Self::Context) -> Self::Result {
        if let Some(text) = self.render()? {
            self.jammed += send_all(&mut self.changes, &text.into());
        }
        self.view.since(asked.epoch, asked.tick).map_err(|error| error.to_string())
    }
}

impl Handler<SessionCount> for LiveFeed {
    type Result = MessageResult<SessionCount>;

    fn handle(&mut self, _: SessionCount, _: &mut Self::Context) -> Self::Result {
        MessageResult((self.snapshots.len() + self.changes.len(), self.jammed))
    }
}

impl Handler<StopFeed> for LiveFeed {
    type Result = ();

    fn handle(&mut self, _: StopFeed, _: &mut Self::Context) {
        for session in self.snapshots.drain(..).chain(self.changes.drain(..)) {
            drop(session.try_send(Push::Close));
        }
    }
}

impl Handler<Fail> for LiveFeed {
    type Result = ();

    #[expect(clippy::panic, reason = "requested by a test")]
    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("the live feed failed on request");
    }
}
