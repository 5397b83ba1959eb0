//! The audit page: changes and security events with user, address and result.

use serde::Serialize;
use serde_json::Value;

use super::site::{Head, Site};
use super::templates::PagesError;
use super::wording::{Label, MomentStyle, Sentence, visible};
use crate::access::AuditedChange;
use crate::contract::Name;

/// Maximum length of a displayed value, characters; the API returns all of it.
const SHOWN: usize = 300;

/// Data of the page.
#[derive(Debug)]
pub struct AuditPage<'a> {
    /// Changes, newest first.
    pub changes: &'a [AuditedChange],
    /// What is shown: changes, security or all.
    pub show: &'static str,
    /// The next page starts below this ID.
    pub next: Option<i64>,
}

#[derive(Serialize)]
struct View<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    changes: Vec<Row>,
    show: &'static str,
    /// Security events only.
    of_security: bool,
    next: Option<i64>,
}

#[derive(Serialize)]
struct Row {
    when: Sentence,
    who: Label,
    role: String,
    address: Label,
    action: Label,
    parameters: String,
    result: String,
    outcome: String,
    level: &'static str,
}

impl AuditPage<'_> {
    /// Renders the page.
    ///
    /// # Errors
    /// When rendering the template fails.
    pub fn html(&self, site: &Site) -> Result<String, PagesError> {
        let title = site.title("Audit");
        let head = Head::of(&site.environment, (&site.pages, "/admin"), &title, &["shell.js", "clock.js"], None);
        let changes = self.changes.iter().map(row).collect();
        site.pages.render(
            "pages/audit",
            &View { head, changes, show: self.show, of_security: self.show == "security", next: self.next },
        )
    }
}

fn row(change: &AuditedChange) -> Row {
    Row {
        when: Sentence::default().at("", Some(change.ts), MomentStyle::Ago),
        who: Label::of(&Name::from(change.who.as_str())),
        role: change.role.clone(),
        address: Label::of(&Name::from(change.address.as_str())),
        action: Label::of(&Name::from(change.action.as_str())),
        parameters: in_words(&change.parameters),
        result: change.result.as_ref().map(in_words).unwrap_or_default(),
        outcome: change.outcome.clone(),
        level: match change.outcome.as_str() {
            "done" => "fine",
            "refused" => "warning",
            "failed" => "critical",
            _ => "unknown",
        },
    }
}

/// Formats a flat object as `name: value`, anything else as JSON.
fn in_words(value: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let words = match value {
        Value::Object(fields) => {
            let known = fields.iter().filter(|(_, value)| !value.is_null());
            known.map(|(name, value)| format!("{name}: {}", text(value))).collect::<Vec<_>>().join(", ")
        }
        other => text(other),
    };
    let words = visible(&words);
    if words.chars().count() <= SHOWN {
        return words.into_owned();
    }
    words.chars().take(SHOWN).chain(['…']).collect()
}
