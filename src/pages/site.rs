//! What every page has around it: which pages there are, which deployment this is, where its
//! scripts and styles are.

use std::sync::Arc;

use serde::Serialize;

use super::assets;
use super::templates::Pages;
use crate::access::Role;

/// What is shown in every page's head: which deployment this is, and who looks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `SERVER_MATURITY`.
    pub maturity: Option<String>,
    /// `SERVER_URL`.
    pub url: Option<String>,
    /// `MONITOR_OBSERVE_ONLY`.
    pub observe_only: bool,
    /// Who looks.
    pub visitor: Visitor,
}

/// Who looks at a page. What they may not do is not offered; the server is the judge all the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Visitor {
    /// What they are called; `None` where nobody is asked.
    pub name: Option<String>,
    /// What they may do.
    pub role: Role,
    /// They logged in here, and can log out.
    pub can_leave: bool,
}

impl Visitor {
    /// They may do what this role may.
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

/// The pages that exist, in the order of the head: name, path, and the key that follows `g`.
const PAGES: [(&str, &str, &str); 5] = [
    ("Live", "/", "l"),
    ("History", "/history", "h"),
    ("Alerts", "/alerts", "a"),
    ("Admin", "/admin", "m"),
    ("API", "/api", "i"),
];

/// Everything around a page's content.
#[derive(Debug, Serialize)]
pub(super) struct Head<'a> {
    /// The browser tab's title.
    title: &'a str,
    assets: String,
    maturity: Option<&'a str>,
    url: Option<&'a str>,
    observe_only: bool,
    visitor: VisitorView<'a>,
    pages: Vec<PageLink>,
    /// What the page's script imports, so that the browser fetches all at once.
    modules: &'static [&'static str],
    /// Without script it is loaded again after so many seconds.
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
    /// The head of the page at `path`.
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

/// Whether it may be linked to: an address of another kind could be a script.
fn is_web_address(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
}

/// The pages that are rendered when somebody asks for them, from what is known then.
pub struct Site {
    /// The templates.
    pub(super) pages: Arc<Pages>,
    /// Which deployment this is.
    pub(super) environment: Environment,
}

impl Site {
    /// Pages of one deployment.
    #[must_use]
    pub fn new(pages: Arc<Pages>, environment: Environment) -> Self {
        Self { pages, environment }
    }

    /// The same pages, as this visitor sees them.
    #[must_use]
    pub fn seen_by(&self, visitor: Visitor) -> Self {
        Self { pages: Arc::clone(&self.pages), environment: Environment { visitor, ..self.environment.clone() } }
    }

    /// Whether people come to it over an encrypted connection, as `SERVER_URL` says.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.environment.url.as_deref().is_some_and(|url| url.starts_with("https://"))
    }

    /// What all its addresses are below: empty, or a path without a slash at its end.
    #[must_use]
    pub fn root(&self) -> &str {
        self.pages.root()
    }

    /// A tab's title: what it shows, and where.
    pub(super) fn title(&self, what: &str) -> String {
        match &self.environment.maturity {
            Some(maturity) => format!("{what} · Shepherd · {maturity}"),
            None => format!("{what} · Shepherd"),
        }
    }
}
