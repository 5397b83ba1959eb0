//! The login page.

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
}

#[derive(Serialize)]
struct View<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    next: &'a str,
    wrong: bool,
}

impl LoginPage {
    /// Renders the page.
    ///
    /// # Errors
    /// When rendering the template fails.
    pub fn html(&self, site: &Site) -> Result<String, PagesError> {
        let title = site.title("Log in");
        let head = Head::of(&site.environment, (&site.pages, "/login"), &title, &["shell.js"], None);
        site.pages.render("pages/login", &View { head, next: &self.next, wrong: self.wrong })
    }
}
