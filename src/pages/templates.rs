//! Compiled templates and their helpers. `pages/` are complete pages, `fragments/` are also sent alone as updates of
//! open pages, and `partials/` are included by others.

use handlebars::{Context, Handlebars, Helper, HelperDef, HelperResult, Output, RenderContext, RenderErrorReason};
use rust_embed::RustEmbed;
use serde::Serialize;

use super::block::Segment;
use super::view::Frame;
use super::wording;

/// Template files: embedded in a release build, read from disk in a debug build.
#[derive(RustEmbed)]
#[folder = "templates"]
#[include = "*.hbs"]
struct Files;

/// Delimiter of the output of helpers in rendered text. Displayed text never contains it; see [`escape`].
const MARK: char = '\u{1}';

/// Error while rendering a page. All of these are bugs, not invalid input.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// A template does not compile.
    #[error("cannot compile a template: {0}")]
    Template(#[from] Box<handlebars::TemplateError>),
    /// A template uses data that its view does not have.
    #[error("cannot render a page: {0}")]
    Render(#[from] Box<handlebars::RenderError>),
    /// An update cannot be serialized as JSON.
    #[error("cannot write an update: {0}")]
    Json(#[from] serde_json::Error),
}

/// Compiled templates.
pub struct Pages {
    handlebars: Handlebars<'static>,
    root: String,
}

impl Pages {
    /// Compiles all templates; links of the pages start with `root` (empty, or with a leading slash and no trailing
    /// one).
    ///
    /// # Errors
    /// When a template is invalid.
    pub fn below(root: &str) -> Result<Self, PagesError> {
        let mut handlebars = Handlebars::new();
        handlebars.set_strict_mode(true);
        handlebars.register_escape_fn(escape);
        handlebars.register_helper("cell", Box::new(cell));
        handlebars.register_helper("bar", Box::new(bar));
        handlebars.register_helper("spark", Box::new(spark));
        handlebars.register_helper("root", Box::new(Root(escape(root))));
        handlebars.register_embed_templates_with_extension::<Files>(".hbs").map_err(Box::new)?;
        Ok(Self { handlebars, root: root.to_owned() })
    }

    /// Root of all links.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// Renders `template` with `view`.
    pub(super) fn render(&self, template: &str, view: &impl Serialize) -> Result<String, PagesError> {
        Ok(self.handlebars.render(template, view).map_err(Box::new)?)
    }

    /// Renders a block's frame.
    pub(super) fn frame(&self, frame: &Frame) -> Result<Vec<Segment>, PagesError> {
        let html = self.render(frame.template(), frame)?;
        Ok(html.split(MARK).enumerate().map(|(i, part)| segment(i, part)).collect())
    }
}

/// Escapes a text for HTML and removes [`MARK`].
fn escape(text: &str) -> String {
    handlebars::html_escape(&text.replace(MARK, "\u{fffd}"))
}

/// Every second part of a rendered frame is the output of a helper.
fn segment(i: usize, part: &str) -> Segment {
    let mut words = part.split(' ');
    match (i % 2, words.next(), words.next(), words.next()) {
        (1, Some("cell"), Some(slot), Some(element)) => {
            let (tag, class) = element.split_once('.').unwrap_or((element, ""));
            Segment::Cell { tag: tag.to_owned(), class: class.replace('.', " "), slot: slot.to_owned() }
        }
        (1, Some("bar"), Some(slot), _) => Segment::Bar { slot: slot.to_owned() },
        (1, Some("spark"), ..) => Segment::Spark,
        _ => Segment::Html(part.to_owned()),
    }
}

/// `{{cell "td.num" slot}}`: the element of the cell in that slot.
fn cell(
    h: &Helper<'_>,
    _: &Handlebars<'_>,
    _: &Context,
    _: &mut RenderContext<'_, '_>,
    out: &mut dyn Output,
) -> HelperResult {
    let (element, slot) = (word(h, 0)?, word(h, 1)?);
    Ok(out.write(&format!("{MARK}cell {slot} {element}{MARK}"))?)
}

/// `{{bar slot}}`: the bar of the cell in that slot.
fn bar(
    h: &Helper<'_>,
    _: &Handlebars<'_>,
    _: &Context,
    _: &mut RenderContext<'_, '_>,
    out: &mut dyn Output,
) -> HelperResult {
    let slot = word(h, 0)?;
    Ok(out.write(&format!("{MARK}bar {slot}{MARK}"))?)
}

/// `{{spark}}`: place of the sparkline.
fn spark(
    _: &Helper<'_>,
    _: &Handlebars<'_>,
    _: &Context,
    _: &mut RenderContext<'_, '_>,
    out: &mut dyn Output,
) -> HelperResult {
    Ok(out.write(&format!("{MARK}spark{MARK}"))?)
}

/// `{{root}}`: root of all links.
struct Root(String);

impl HelperDef for Root {
    fn call<'reg: 'rc, 'rc>(
        &self,
        _: &Helper<'rc>,
        _: &'reg Handlebars<'reg>,
        _: &'rc Context,
        _: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> HelperResult {
        Ok(out.write(&self.0)?)
    }
}

fn word(h: &Helper<'_>, i: usize) -> Result<String, RenderErrorReason> {
    let value = h.param(i).and_then(|p| p.value().as_str());
    value.map(|v| wording::visible(v).into_owned()).ok_or(RenderErrorReason::ParamNotFoundForIndex("cell", i))
}
