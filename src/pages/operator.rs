//! Pages for actions on messages: messages of a stream, previews, results, consumers without heartbeats, and the
//! recycle bin.

use serde::Serialize;
use serde::de::IgnoredAny;

use super::figures::{bytes, count, counted, duration, exact};
use super::link::{About, encoded, messages_of};
use super::site::{Head, Site};
use super::templates::PagesError;
use super::wording::{Label, MomentStyle, Sentence, visible};
use crate::access::Role;
use crate::contract::Name;
use crate::fleet::message::{
    Action, Applied, BinState, Binned, DeadFound, Field, Found, Group, LEFT_ALONE, Message, MessageState, Page, Wanted,
};

/// Maximum number of owners listed in a preview.
const OWNERS: usize = 50;
/// Maximum number of consumers listed on a page.
const CONSUMERS: usize = 200;

/// Common data of these pages.
#[derive(Serialize)]
struct Frame<'a, T> {
    #[serde(flatten)]
    head: Head<'a>,
    headline: String,
    level: &'static str,
    notes: Vec<String>,
    #[serde(flatten)]
    view: T,
}

impl Site {
    fn framed<T: Serialize>(
        &self,
        template: &str,
        path: &str,
        (level, headline): (&'static str, String),
        notes: Vec<String>,
        view: T,
    ) -> Result<String, PagesError> {
        let title = self.title(&headline);
        let head = Head::of(&self.environment, (&self.pages, path), &title, &["shell.js", "clock.js"], None);
        let frame = Frame { head, headline, level, notes, view };
        self.pages.render(template, &frame)
    }
}

#[derive(Serialize)]
struct FieldView {
    name: Label,
    value: String,
    size: String,
    cut: bool,
    odd: bool,
}

#[derive(Serialize)]
struct MessageView {
    id: String,
    whole: Option<String>,
    owner: Option<Label>,
    deliveries: String,
    idle: String,
    added: Sentence,
    size: String,
    deleted: bool,
    fields: Vec<FieldView>,
    more_fields: Option<String>,
    actions: Vec<ActionView>,
}

#[derive(Serialize, Clone)]
struct ActionView {
    action: &'static str,
    label: &'static str,
}

fn actions(state: MessageState, site: &Site) -> Vec<ActionView> {
    let label = |action: Action| match action {
        Action::Retry => "Retry…",
        Action::Bury => "Dead-letter…",
        Action::Drop => "Move to recycle bin…",
    };
    let fitting = Action::ALL.into_iter().filter(|action| action.fits(state) && may(*action, site));
    fitting.map(|action| ActionView { action: action.as_str(), label: label(action) }).collect()
}

/// Whether to offer the action to the user.
fn may(action: Action, site: &Site) -> bool {
    !action.takes_away() || site.environment.visitor.may(Role::Admin)
}

fn message_view(message: &Message, actions: Vec<ActionView>, whole: Option<String>) -> MessageView {
    let shown = u64::try_from(message.fields.len()).unwrap_or(u64::MAX);
    let more = message.field_count.saturating_sub(shown);
    #[expect(clippy::cast_precision_loss, reason = "milliseconds")]
    let seconds = |ms: u64| ms as f64 / 1000.0;
    MessageView {
        id: message.id.clone(),
        whole,
        owner: message.owner.as_ref().map(Label::of),
        deliveries: counted(message.deliveries, "delivery", "deliveries"),
        idle: duration(seconds(message.idle_ms)),
        added: Sentence::default().at("added ", message.added_ms().map(seconds), MomentStyle::Ago),
        size: bytes(message.bytes),
        deleted: message.field_count == 0,
        fields: message.fields.iter().map(field_view).collect(),
        more_fields: (more > 0 && shown > 0).then(|| counted(more, "more field", "more fields")),
        actions,
    }
}

fn field_view(field: &Field) -> FieldView {
    FieldView {
        name: Label::of(&Name::from(field.name.as_slice())),
        value: shown_value(&field.value, field.is_cut()),
        size: bytes(field.bytes),
        cut: field.is_cut(),
        odd: std::str::from_utf8(&field.value).is_err() && !field.is_cut(),
    }
}

/// Formats a value for display: JSON indented, invalid UTF-8 and control characters escaped.
fn shown_value(value: &[u8], cut: bool) -> String {
    let text = Name::from(value).to_text();
    let json =
        !cut && matches!(value.first(), Some(b'{' | b'[')) && serde_json::from_slice::<IgnoredAny>(value).is_ok();
    let text = if json { indented(&text) } else { text };
    let line = |line: &str| if line.is_empty() { String::new() } else { visible(line).into_owned() };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// Puts each JSON item on its own line; all other characters stay unchanged.
fn indented(json: &str) -> String {
    let (mut out, mut depth, mut quoted, mut escaped) = (String::with_capacity(json.len() * 2), 0_usize, false, false);
    let mut chars = json.chars().peekable();
    while let Some(c) = chars.next() {
        if quoted {
            out.push(c);
            (quoted, escaped) = (escaped || c != '"', !escaped && c == '\\');
            continue;
        }
        let line = |out: &mut String, depth: usize| {
            out.push('\n');
            out.extend(std::iter::repeat_n("  ", depth));
        };
        match c {
            ' ' | '\t' | '\r' | '\n' => {}
            '{' | '[' => {
                out.push(c);
                while chars.next_if(|next| next.is_ascii_whitespace()).is_some() {}
                match chars.next_if(|next| matches!(next, '}' | ']')) {
                    Some(end) => out.push(end),
                    None => {
                        depth += 1;
                        line(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c => {
                quoted = c == '"';
                out.push(c);
            }
        }
    }
    out
}

/// Requested filter, for the forms of the page.
#[derive(Serialize, Clone)]
struct FormView {
    state: &'static str,
    group: String,
    owner: String,
    field: String,
    contains: String,
    /// Stream name, if it cannot be part of the path.
    name: Option<String>,
}

impl FormView {
    fn of(wanted: &Wanted) -> Self {
        let text = |bytes: &[u8]| Name::from(bytes).to_text();
        Self {
            state: wanted.state.as_str(),
            group: wanted.group.to_text(),
            owner: wanted.owner.as_ref().map(Name::to_text).unwrap_or_default(),
            field: wanted.field.as_deref().map(text).unwrap_or_default(),
            contains: text(&wanted.contains),
            name: None,
        }
    }

    fn query(&self) -> String {
        let pairs = [
            ("state", self.state),
            ("group", &self.group),
            ("owner", &self.owner),
            ("field", &self.field),
            ("contains", &self.contains),
        ];
        let pair = |(name, value): &(&str, &str)| format!("{name}={}", encoded(value.as_bytes()));
        pairs.iter().filter(|(_, value)| !value.is_empty()).map(pair).collect::<Vec<_>>().join("&")
    }
}

/// Appends a query to a URL.
fn with_query(address: &str, query: &str) -> String {
    let mark = if address.contains('?') { '&' } else { '?' };
    format!("{address}{mark}{query}")
}

/// Data of the page of a stream's messages.
#[derive(Debug)]
pub struct MessagesPage<'a> {
    /// Stream.
    pub stream: &'a Name,
    /// Consumer groups.
    pub groups: &'a [Group],
    /// Number of dead letters.
    pub dead: Option<u64>,
    /// Requested filter.
    pub wanted: &'a Wanted,
    /// Messages found.
    pub page: &'a Page,
    /// Whether a single message is shown, with as much of its content as possible.
    pub one: bool,
}

impl MessagesPage<'_> {
    /// Renders the page.
    ///
    /// # Errors
    /// When rendering the template fails.
    pub fn html(&self, site: &Site) -> Result<String, PagesError> {
        #[derive(Serialize)]
        struct Tab {
            word: &'static str,
            count: String,
            href: String,
            here: bool,
        }
        #[derive(Serialize)]
        struct View {
            stream: Label,
            stream_href: String,
            path: String,
            action: String,
            tabs: Vec<Tab>,
            groups: Vec<GroupLink>,
            asked: FormView,
            state_word: &'static str,
            pending: bool,
            searched: bool,
            messages: Vec<MessageView>,
            actions: Vec<ActionView>,
            next: Option<String>,
            looked: String,
            empty: bool,
        }
        #[derive(Serialize)]
        struct GroupLink {
            name: Label,
            href: String,
            here: bool,
        }
        let base = messages_of(self.stream);
        let state = self.wanted.state;
        let asked =
            FormView { name: base.split_once("name=").map(|_| self.stream.to_text()), ..FormView::of(self.wanted) };
        let group = self.groups.iter().find(|group| group.name == self.wanted.group);
        let known = |n: Option<u64>| n.map_or_else(|| "—".to_owned(), count);
        let tab = |of: MessageState, word, n| Tab {
            word,
            count: known(n),
            href: with_query(&base, &FormView { state: of.as_str(), owner: String::new(), ..asked.clone() }.query()),
            here: of == state,
        };
        let tabs = vec![
            tab(MessageState::Pending, "Pending", group.map(|group| group.pending)),
            tab(MessageState::Unread, "Undelivered", group.and_then(|group| group.unread)),
            tab(MessageState::Dead, "Dead-lettered", self.dead),
        ];
        let groups = self.groups.iter().map(|other| GroupLink {
            name: Label::of(&other.name),
            href: with_query(
                &base,
                &FormView { group: other.name.to_text(), owner: String::new(), ..asked.clone() }.query(),
            ),
            here: other.name == self.wanted.group,
        });
        let offered = actions(state, site);
        let view_of = |message: &Message| {
            let cut = !self.one && message.fields.iter().any(Field::is_cut);
            let whole = cut.then(|| with_query(&base, &format!("{}&id={}", asked.query(), message.id)));
            message_view(message, offered.clone(), whole)
        };
        let mut notes = Vec::new();
        if self.groups.is_empty() {
            notes.push("This stream has no consumer groups, or does not exist.".to_owned());
        }
        let label = Label::of(self.stream);
        let view = View {
            stream_href: About::Stream.of(self.stream),
            path: base.clone(),
            action: format!("/api{}", with_slash(&base)),
            tabs,
            groups: if self.groups.len() > 1 { groups.collect() } else { Vec::new() },
            state_word: state.words(),
            pending: state == MessageState::Pending,
            searched: !asked.field.is_empty() || !asked.contains.is_empty() || !asked.owner.is_empty(),
            messages: self.page.messages.iter().map(view_of).collect(),
            actions: offered.clone(),
            next: self.page.next.as_ref().map(|next| with_query(&base, &format!("{}&cursor={next}", asked.query()))),
            looked: counted(self.page.looked, "message", "messages"),
            empty: self.page.messages.is_empty(),
            asked,
            stream: label.clone(),
        };
        let headline = format!("Messages in {label}");
        site.framed("pages/messages", "/messages", ("fine", headline), notes, view)
    }
}

/// Returns the base URL of actions from that of the messages: `…/messages/preview`.
fn with_slash(base: &str) -> String {
    match base.split_once('?') {
        Some((path, query)) => format!("{path}/preview?{query}"),
        None => format!("{base}/preview"),
    }
}

/// A preview that the user confirms.
#[derive(Debug)]
pub struct PreviewPage<'a> {
    /// Token.
    pub token: &'a str,
    /// Action.
    pub action: Action,
    /// Number of entries, and whether these are all matches.
    pub messages: (u64, bool),
    /// URL that applies it, below the root.
    pub apply: &'a str,
    /// URL of the previous page, below the root.
    pub back: &'a str,
    /// Owners, whether each has a heartbeat, and their numbers of entries.
    pub owners: &'a [(Name, bool, u64)],
    /// First messages.
    pub first: &'a [Message],
    /// Number of groups that read the stream.
    pub groups: usize,
    /// Whether consumers without heartbeats are deleted afterwards.
    pub of_the_dead: bool,
}

impl<'a> PreviewPage<'a> {
    /// Returns the preview of messages of a stream.
    #[must_use]
    pub fn of(found: &'a Found, (token, apply, back): (&'a str, &'a str, &'a str)) -> Self {
        let messages = (found.chosen.len() as u64, found.complete);
        Self {
            token,
            action: found.chosen.action,
            messages,
            apply,
            back,
            owners: &found.owners,
            first: &found.first,
            groups: found.groups,
            of_the_dead: false,
        }
    }

    /// Renders the page.
    ///
    /// # Errors
    /// When rendering the template fails.
    pub fn html(&self, site: &Site) -> Result<String, PagesError> {
        #[derive(Serialize)]
        struct Owner {
            name: Label,
            alive: bool,
            messages: String,
        }
        #[derive(Serialize)]
        struct View<'a> {
            token: &'a str,
            apply: &'a str,
            back: &'a str,
            may: bool,
            button: String,
            what: Vec<String>,
            owners: Vec<Owner>,
            more_owners: usize,
            first: Vec<MessageView>,
            nothing: bool,
        }
        let (n, complete) = self.messages;
        let messages = counted(n, "message", "messages");
        let (order, what) = match self.action {
            Action::Retry => (
                format!("Retry {messages}"),
                "Each message is added again to the end of its stream and the pending entry is acknowledged. The delivery count restarts; the first start time, the history and the idempotency key are kept.",
            ),
            Action::Bury => (
                format!("Dead-letter {messages}"),
                "Each message is moved from its stream to the dead-letter stream, from where it can be retried.",
            ),
            Action::Drop => (
                format!("Move {messages} to the recycle bin"),
                "Each message is acknowledged, deleted from its stream and kept in the recycle bin. It can be restored for 30 days.",
            ),
        };
        let mut words = vec![what.to_owned()];
        words.push("Messages that change before you confirm are skipped.".to_owned());
        if !complete {
            words
                .push("More messages match than one preview can hold. Repeat this afterwards for the rest.".to_owned());
        }
        if self.groups > 1 && self.action == Action::Retry {
            words.push(format!(
                "{} consumer groups read this stream; each of them receives the retried messages.",
                self.groups
            ));
        }
        let busy: u64 = self.owners.iter().filter(|(_, alive, _)| *alive).map(|(.., n)| n).sum();
        if busy > 0 {
            words.push(format!(
                "{} to a consumer with a heartbeat, which may still be processing them.",
                counted(busy, "message belongs", "messages belong")
            ));
        }
        if self.of_the_dead {
            words.push("Consumers with no pending messages left are then removed.".to_owned());
        }
        let owner =
            |(name, alive, n): &(Name, bool, u64)| Owner { name: Label::of(name), alive: *alive, messages: exact(*n) };
        let view = View {
            token: self.token,
            apply: self.apply,
            back: self.back,
            may: may(self.action, site),
            button: order.clone(),
            what: words,
            owners: self.owners.iter().take(OWNERS).map(owner).collect(),
            more_owners: self.owners.len().saturating_sub(OWNERS),
            first: self.first.iter().map(|message| message_view(message, Vec::new(), None)).collect(),
            nothing: n == 0,
        };
        let headline = if n == 0 { "No matching messages".to_owned() } else { format!("{order}?") };
        let level = if self.action == Action::Drop && n > 0 { "warning" } else { "info" };
        site.framed("pages/preview", "/messages", (level, headline), Vec::new(), view)
    }
}

/// Renders the result of an action, with a link back.
///
/// # Errors
/// When rendering the template fails.
pub fn applied_page(site: &Site, action: Action, applied: &Applied, back: &str) -> Result<String, PagesError> {
    #[derive(Serialize)]
    struct View<'a> {
        what: Vec<String>,
        batch: Option<&'a str>,
        back: &'a str,
    }
    let done = match action {
        Action::Retry => "retried",
        Action::Bury => "dead-lettered",
        Action::Drop => "moved to the recycle bin",
    };
    let mut words = Vec::new();
    for (why, n) in &applied.left_alone {
        let meaning = LEFT_ALONE.iter().find(|(word, _)| word == why).map_or(*why, |(_, meaning)| meaning);
        words.push(format!("{} skipped: {meaning}.", counted(*n, "message", "messages")));
    }
    if applied.vanished > 0 {
        words.push(format!(
            "{} already deleted; removed from the pending list.",
            counted(applied.vanished, "message", "messages")
        ));
    }
    if let Some((n, error)) = &applied.refused {
        words.push(format!("Redis rejected {}: {}", counted(*n, "message", "messages"), visible(error)));
    }
    if applied.consumers_removed > 0 {
        words.push(format!("{} removed.", counted(applied.consumers_removed, "consumer", "consumers")));
    }
    if let Some(why) = &applied.ended_early {
        words.push(format!("Stopped before the last message: {}", visible(why)));
    }
    let troubled = applied.refused.is_some() || applied.ended_early.is_some();
    let view = View { what: words, batch: applied.batch.as_deref().filter(|_| applied.done > 0), back };
    let headline = format!("{} {done}", counted(applied.done, "message", "messages"));
    site.framed("pages/applied", "/messages", (if troubled { "warning" } else { "fine" }, headline), Vec::new(), view)
}

/// Renders the consumers without heartbeats and their stuck entries.
///
/// # Errors
/// When rendering the template fails.
pub fn dead_consumers_page(site: &Site, found: &DeadFound, min_idle_seconds: u64) -> Result<String, PagesError> {
    #[derive(Serialize)]
    struct Row {
        name: Label,
        stream: Label,
        href: String,
        group: Label,
        pending: String,
        stuck: String,
        idle: String,
        oldest: String,
        first: Option<MessageView>,
    }
    #[derive(Serialize)]
    struct View {
        rows: Vec<Row>,
        more: usize,
        min_idle_seconds: u64,
        messages: String,
    }
    #[expect(clippy::cast_precision_loss, reason = "milliseconds")]
    let span = |ms: u64| duration(ms as f64 / 1000.0);
    let row = |dead: &crate::fleet::message::DeadConsumer| Row {
        name: Label::of(&dead.name),
        stream: Label::of(&dead.stream),
        href: with_query(&messages_of(&dead.stream), &format!("group={}", encoded(dead.group.to_text().as_bytes()))),
        group: Label::of(&dead.group),
        pending: exact(dead.pending),
        stuck: exact(dead.stuck),
        idle: span(dead.idle_ms),
        oldest: span(dead.oldest_ms),
        first: dead.first.as_ref().map(|message| message_view(message, Vec::new(), None)),
    };
    let n = found.chosen.len() as u64;
    let view = View {
        rows: found.consumers.iter().take(CONSUMERS).map(row).collect(),
        more: found.consumers.len().saturating_sub(CONSUMERS),
        min_idle_seconds,
        messages: counted(n, "message", "messages"),
    };
    let consumers = counted(found.consumers.len() as u64, "consumer", "consumers");
    let (level, headline) = match n {
        0 => ("fine", "No messages stuck on consumers without heartbeat".to_owned()),
        n => ("warning", format!("{} stuck on {consumers} without heartbeat", counted(n, "message", "messages"))),
    };
    let mut notes = Vec::new();
    if !found.complete {
        notes.push("There are more; this page shows the first ones only.".to_owned());
    }
    site.framed("pages/dead_consumers", "/admin/dead-consumers", (level, headline), notes, view)
}

/// Data of the recycle bin page.
#[derive(Debug)]
pub struct BinPage<'a> {
    /// Rows, newest first.
    pub rows: &'a [Binned],
    /// Stream filter.
    pub stream: Option<&'a Name>,
    /// Batch filter.
    pub batch: Option<&'a str>,
    /// The next page starts below this ID.
    pub next: Option<i64>,
    /// Result of the last action.
    pub said: Option<String>,
}

impl BinPage<'_> {
    /// Renders the page.
    ///
    /// # Errors
    /// When rendering the template fails.
    pub fn html(&self, site: &Site) -> Result<String, PagesError> {
        #[derive(Serialize)]
        struct Row {
            id: i64,
            batch: String,
            short: String,
            stream: Label,
            href: String,
            group: Option<Label>,
            was: &'static str,
            entry: String,
            owner: Option<Label>,
            deliveries: String,
            size: String,
            who: Label,
            why: Label,
            at: Sentence,
            state: String,
            can_restore: bool,
            restored: Option<Sentence>,
            fields: Vec<FieldView>,
        }
        #[derive(Serialize)]
        struct View {
            rows: Vec<Row>,
            batch: Option<String>,
            stream: String,
            next: Option<String>,
            filtered: bool,
        }
        let may_restore = site.environment.visitor.may(Role::Admin);
        let row = |row: &Binned| Row {
            id: row.id,
            short: row.batch.chars().take(8).collect(),
            batch: row.batch.clone(),
            stream: Label::of(&row.stream),
            href: About::Stream.of(&row.stream),
            group: row.group.as_ref().map(Label::of),
            was: row.was.words(),
            entry: row.entry.clone(),
            owner: row.owner.as_ref().map(Label::of),
            deliveries: counted(row.deliveries, "delivery", "deliveries"),
            size: bytes(row.bytes),
            who: Label::from_text(&row.who),
            why: Label::from_text(if row.why.is_empty() { "—" } else { &row.why }),
            at: Sentence::default().at("", Some(row.at), MomentStyle::Ago),
            state: match row.state {
                BinState::Pending => "in progress".to_owned(),
                BinState::Binned => "in recycle bin".to_owned(),
                BinState::Void => "not removed".to_owned(),
                BinState::Restored => "restored".to_owned(),
            },
            can_restore: may_restore && matches!(row.state, BinState::Binned | BinState::Pending),
            restored: row.restored_at.map(|at| {
                let as_id = row.restored_as.as_deref().unwrap_or_default();
                let by = row.restored_by.as_deref().unwrap_or_default();
                Sentence::words(format!("as {as_id} by {}, ", visible(by))).at("", Some(at), MomentStyle::Ago)
            }),
            fields: row
                .fields
                .iter()
                .map(|(name, value)| Field { name: name.clone(), value: value.clone(), bytes: value.len() as u64 })
                .map(|field| field_view(&field))
                .collect(),
        };
        let mut query = String::new();
        if let Some(stream) = self.stream {
            query.push_str(&format!("stream={}&", encoded(stream.as_bytes())));
        }
        if let Some(batch) = self.batch {
            query.push_str(&format!("batch={batch}&"));
        }
        let view = View {
            rows: self.rows.iter().map(row).collect(),
            batch: self.batch.map(str::to_owned),
            stream: self.stream.map(Name::to_text).unwrap_or_default(),
            next: self.next.map(|next| format!("/admin/recycle-bin?{query}before={next}")),
            filtered: self.stream.is_some() || self.batch.is_some(),
        };
        let headline = self.said.clone().unwrap_or_else(|| "Recycle bin".to_owned());
        site.framed("pages/recycle_bin", "/admin/recycle-bin", ("info", headline), Vec::new(), view)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn json_is_indented_and_otherwise_unchanged() {
        assert_eq!(
            shown_value(br#"[{"id":"a, b: {}\"","n":1e400}, [],{ } , 12345678901234567890123]"#, false),
            "[\n  {\n    \"id\": \"a, b: {}\\\"\",\n    \"n\": 1e400\n  },\n  [],\n  {},\n  12345678901234567890123\n]"
        );
        assert_eq!(shown_value(b"[1,", false), "[1,");
        assert_eq!(shown_value(b"a\xff\0\nb\x1b[2J", false), "a\\xff\\0\nb\\u{1b}[2J");
    }

    proptest! {
        #[test]
        fn indenting_changes_only_whitespace_between_tokens(text in "[a-z {}\\[\\],:\"\\\\\n]{0,30}") {
            let json = serde_json::json!({"a": [text, {"b": [1, true, null]}]}).to_string();
            let back: serde_json::Value = serde_json::from_str(&indented(&json)).unwrap();
            prop_assert_eq!(back.to_string(), json);
        }
    }
}
