//! The login page, and the page after a login at an identity provider.

use serde::Serialize;

use super::site::{Head, Site};
use super::templates::PagesError;

/// Data of the page.
#[derive(Debug)]
pub struct LoginPage {
    /// Path to continue with after the login.
    pub next: String,
    /// Whether the token was invalid.
    pub wrong: bool,
    /// Identity provider at which users can log in.
    pub provider: Option<Provider>,
}

/// An identity provider.
#[derive(Debug, Serialize)]
pub struct Provider {
    /// Host, for people.
    pub host: String,
    /// Path that starts a login there: not a form, because the policy of the pages permits forms no other hosts.
    pub start: String,
}

/// Data of the page after a login at the identity provider.
#[derive(Debug)]
pub struct LoggedInPage {
    /// Path to continue with.
    pub next: String,
}

#[derive(Serialize)]
struct View<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    next: &'a str,
    wrong: bool,
    provider: Option<&'a Provider>,
}

impl LoginPage {
    /// Renders the page.
    ///
    /// # Errors
    /// When rendering the template fails.
    pub fn html(&self, site: &Site) -> Result<String, PagesError> {
        let title = site.title("Log in");
        let head = Head::of(&site.environment, (&site.pages, "/login"), &title, &["shell.js"], None);
        site.pages.render(
            "pages/login",
            &View { head, next: &self.next, wrong: self.wrong, provider: self.provider.as_ref() },
        )
    }
}

impl LoggedInPage {
    /// Renders the page, which continues by itself.
    ///
    /// # Errors
    /// When rendering the template fails.
    pub fn html(&self, site: &Site) -> Result<String, PagesError> {
        let title = site.title("Logged in");
        let head = Head::of(&site.environment, (&site.pages, "/login"), &title, &["shell.js"], None);
        site.pages.render("pages/logged_in", &View { head, next: &self.next, wrong: false, provider: None })
    }
}
