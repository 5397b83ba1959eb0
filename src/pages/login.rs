//! The login page.

use serde::Serialize;

use super::site::{Head, Site};
use super::templates::PagesError;

/// Everything the page shows.
#[derive(Debug)]
pub struct LoginPage {
    /// Where to go on to.
    pub next: String,
    /// The token was wrong.
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
    /// The page as HTML.
    ///
    /// # Errors
    /// When the template does not fit.
    pub fn html(&self, site: &Site) -> Result<String, PagesError> {
        let title = site.title("Log in");
        let head = Head::of(&site.environment, (&site.pages, "/login"), &title, &["shell.js"], None);
        site.pages.render("pages/login", &View { head, next: &self.next, wrong: self.wrong })
    }
}
