//! The shell of every page: navigation, environment, user, scripts and styles.

use std::sync::Arc;

use serde::Serialize;

use super::assets;
use super::templates::Pages;
use crate::access::Role;

/// Data of the page header: the environment and the user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `SERVER_MATURITY`.
    pub maturity: Option<String>,
    /// `SERVER_URL`.
    pub url: Option<String>,
    /// `MONITOR_OBSERVE_ONLY`.
    pub observe_only: bool,
    /// User.
    pub visitor: Visitor,
}

/// The user of a page. Pages hide actions that the role does not permit; the server enforces the permissions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Visitor {
    /// Name; `None` without authentication.
    pub name: Option<String>,
    /// Role.
    pub role: Role,
    /// Whether the user logged in with a session and can log out.
    pub can_leave: bool,
}

impl Visitor {
    /// Whether the user has the permissions of `role`.
    pub(super) fn may(&self, role: Role) -> bool {
        self.role >= role
    }
}

/// The same for templates: `{{#if visitor.operator}}…{{/if}}`.
#[derive(Debug, Serialize)]
struct VisitorView<'a> {
    name: Option<&'a str>,
    role: Role,
    operator: bool,
    admin: bool,
    can_leave: bool,
}

impl<'a> VisitorView<'a> {
    fn of(visitor: &'a Visitor) -> Self {
        Self {
            name: visitor.name.as_deref(),
            role: visitor.role,
            operator: visitor.may(Role::Operator),
            admin: visitor.may(Role::Admin),
            can_leave: visitor.can_leave,
        }
    }
}

/// Pages in the navigation: name, path, and the key that follows `g`.
const PAGES: [(&str, &str, &str); 5] = [
    ("Live", "/", "l"),
    ("History", "/history", "h"),
    ("Alerts", "/alerts", "a"),
    ("Admin", "/admin", "m"),
    ("API", "/api", "i"),
];

/// Data of the shell.
#[derive(Debug, Serialize)]
pub(super) struct Head<'a> {
    /// Title of the browser tab.
    title: &'a str,
    assets: String,
    maturity: Option<&'a str>,
    url: Option<&'a str>,
    observe_only: bool,
    visitor: VisitorView<'a>,
    pages: Vec<PageLink>,
    /// Imports of the page's script, preloaded to avoid a request chain.
    modules: &'static [&'static str],
    /// Reload interval without JavaScript, seconds.
    refresh: Option<u32>,
}

#[derive(Debug, Serialize)]
struct PageLink {
    name: &'static str,
    path: &'static str,
    key: &'static str,
    here: bool,
}

impl<'a> Head<'a> {
    /// Returns the shell of the page at `path`.
    pub(super) fn of(
        environment: &'a Environment,
        (pages, path): (&Pages, &str),
        title: &'a str,
        modules: &'static [&'static str],
        refresh: Option<u32>,
    ) -> Self {
        let link = |(name, at, key)| PageLink { name, path: at, key, here: at == path };
        Self {
            title,
            assets: format!("{}/assets/{}", pages.root(), assets::version()),
            maturity: environment.maturity.as_deref(),
            url: environment.url.as_deref().filter(|url| is_web_address(url)),
            observe_only: environment.observe_only,
            visitor: VisitorView::of(&environment.visitor),
            pages: PAGES.into_iter().map(link).collect(),
            modules,
            refresh,
        }
    }
}

/// Whether the URL is safe to link: another scheme could execute a script.
fn is_web_address(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
}

/// Pages that are rendered on request.
pub struct Site {
    /// Templates.
    pub(super) pages: Arc<Pages>,
    /// Environment.
    pub(super) environment: Environment,
}

impl Site {
    /// Returns the pages of one environment.
    #[must_use]
    pub fn new(pages: Arc<Pages>, environment: Environment) -> Self {
        Self { pages, environment }
    }

    /// Returns the same pages for another user.
    #[must_use]
    pub fn seen_by(&self, visitor: Visitor) -> Self {
        Self { pages: Arc::clone(&self.pages), environment: Environment { visitor, ..self.environment.clone() } }
    }

    /// Whether users connect over HTTPS, according to `SERVER_URL`.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.environment.url.as_deref().is_some_and(|url| url.starts_with("https://"))
    }

    /// Root of all URLs: empty, or a path without a trailing slash.
    #[must_use]
    pub fn root(&self) -> &str {
        self.pages.root()
    }

    /// Returns a tab title with the environment.
    pub(super) fn title(&self, what: &str) -> String {
        match &self.environment.maturity {
            Some(maturity) => format!("{what} · Shepherd · {maturity}"),
            None => format!("{what} · Shepherd"),
        }
    }
}
