//! Responses as JSON or CSV, with an ETag so that unchanged data is not sent again.

use std::fmt::Write as _;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, ETAG, IF_NONE_MATCH};
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use uuid::Uuid;

use crate::web::problem::Problem;

/// Response format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Csv,
}

pub(super) fn json(request: &HttpRequest, answer: &impl Serialize) -> Result<HttpResponse, Problem> {
    let body = serde_json::to_vec(answer).map_err(|error| Problem::Unavailable(error.to_string()))?;
    Ok(tagged(request, body, "application/json", None))
}

/// A table with a header row, as a file download.
pub(super) fn csv(
    request: &HttpRequest,
    name: &str,
    head: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
) -> Result<HttpResponse, Problem> {
    let mut text = head.join(",");
    text.push('\n');
    for row in rows {
        for (place, cell) in row.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            // Writing to a `String` cannot fail.
            let _ = write!(text, "{comma}{}", quoted(cell));
        }
        text.push('\n');
    }
    let file = format!("attachment; filename=\"{name}.csv\"");
    Ok(tagged(request, text.into_bytes(), "text/csv; charset=utf-8", Some(file)))
}

/// Quotes a cell for spreadsheets. Text that a spreadsheet would evaluate as a formula is prefixed, since clients can
/// choose names.
fn quoted(cell: &str) -> String {
    let formula = cell.starts_with(['=', '+', '-', '@', '\t', '\r']) && cell.parse::<f64>().is_err();
    let cell = if formula { format!("'{cell}") } else { cell.to_owned() };
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
}

fn tagged(request: &HttpRequest, body: Vec<u8>, content_type: &str, file: Option<String>) -> HttpResponse {
    // Weak, because the same ETag applies to the compressed response.
    let etag = format!("W/\"{}\"", Uuid::new_v5(&Uuid::nil(), &body).simple());
    let known = request.headers().get(IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut answer = if known.is_some_and(|known| known.split(',').any(|tag| tag.trim() == etag)) {
        HttpResponse::NotModified()
    } else {
        HttpResponse::Ok()
    };
    answer.content_type(content_type).insert_header((ETAG, etag)).insert_header((CACHE_CONTROL, "no-cache"));
    if let Some(file) = file {
        answer.insert_header((CONTENT_DISPOSITION, file));
    }
    answer.body(body)
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn csv_cells_are_quoted_and_formulas_neutralized() {
        for (cell, written) in [
            ("arax", "arax"),
            ("a,b", "\"a,b\""),
            ("say \"no\"", "\"say \"\"no\"\"\""),
            ("=cmd|'/c calc'!A1", "'=cmd|'/c calc'!A1"),
            ("-5.5", "-5.5"),
            ("-x", "'-x"),
            ("a\nb", "\"a\nb\""),
        ] {
            assert_eq!(quoted(cell), written);
        }
    }
}
