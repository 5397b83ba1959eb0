//! The error page for browsers.

use serde::Serialize;

use super::site::{Head, Site};
use super::templates::PagesError;
use super::wording::visible;

#[derive(Serialize)]
struct View<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    headline: &'a str,
    detail: String,
}

impl Site {
    /// Renders an error page with a headline and details.
    ///
    /// # Errors
    /// When rendering the template fails.
    pub fn problem(&self, headline: &str, detail: &str) -> Result<String, PagesError> {
        let title = self.title(headline);
        let head = Head::of(&self.environment, (&self.pages, ""), &title, &["shell.js"], None);
        self.pages.render("pages/problem", &View { head, headline, detail: visible(detail).into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Environment, Pages};
    use super::*;

    #[test]
    fn problem_page_escapes_its_text() {
        let site = Site::new(Arc::new(Pages::below("/m").unwrap()), Environment::default());
        let html = site.problem("This is not allowed", "<img src=x onerror=alert(1)>").unwrap();
        assert!(html.contains("This is not allowed") && html.contains("&lt;img") && !html.contains("<img"), "{html}");
        assert!(html.contains("href=\"/m/\""), "{html}");
    }
}
