//! Page and API of the audit log.

pub mod openapi;

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::web::{Data, Query};
use schemars::JsonSchema;
use serde::Deserialize;

use self::openapi::Changes;
use super::Caller;
use crate::access::AuditedChange;
use crate::actors::io::POSTGRES_LATE;
use crate::pages::audit::AuditPage;
use crate::postgres::audit::{self, Row, Shown};
use crate::web::AppState;
use crate::web::html::html;
use crate::web::problem::Problem;

/// Changes per page, and default for the API.
const SHOWN: u32 = 50;
/// Maximum number of changes per response.
const MOST: u32 = 500;

/// Values of `show`.
const SHOWN_AS: [(&str, Shown); 3] = [("changes", Shown::Changes), ("security", Shown::Security), ("all", Shown::All)];

/// Query of the page and of the API.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct AuditQuery {
    /// Maximum number of changes.
    #[schemars(with = "Option<u32>", range(min = 1, max = MOST), extend("default" = SHOWN), example = 2)]
    limit: Option<String>,
    /// `changes`, `security` (logins, failed logins and denied requests, with the number of repetitions), or `all`.
    #[schemars(with = "Option<String>", extend("enum" = SHOWN_AS.map(|(name, _)| name)), extend("default" = "changes"))]
    show: Option<String>,
    /// Only changes before this ID; `next` of the previous page.
    #[schemars(with = "Option<i64>")]
    before: Option<String>,
}

impl AuditQuery {
    fn shown(&self) -> Result<(&'static str, Shown), Problem> {
        let name = self.show.as_deref().unwrap_or("changes");
        SHOWN_AS
            .into_iter()
            .find(|(known, _)| *known == name)
            .ok_or_else(|| Problem::BadRequest(format!("show is {name:?}: expected changes, security or all")))
    }
}

async fn rows(front: &AppState, query: &AuditQuery) -> Result<(Vec<Row>, u32), Problem> {
    let (_, shown) = query.shown()?;
    let bad = |name: &str, text: &str, expected: String| {
        Problem::BadRequest(format!("{name} is {text:?}: expected {expected}"))
    };
    let limit = match &query.limit {
        None => SHOWN,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=MOST).contains(limit))
            .ok_or_else(|| bad("limit", text, format!("1 to {MOST}")))?,
    };
    let before = match &query.before {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| bad("before", text, "the ID of a change".to_owned()))?),
    };
    let pool = front.io.web.reads.clone();
    let reading = async move { audit::newest(&pool, shown, before, limit).await };
    Ok((front.io.read(Duration::from_secs(5), POSTGRES_LATE, reading).await?, limit))
}

/// Cursor of the next page; `None` if this page is not full.
fn next(rows: &[Row], limit: u32) -> Option<i64> {
    rows.last().filter(|_| rows.len() == limit as usize).map(|row| row.id)
}

/// `GET /admin/audit?show=&before=`.
pub async fn page(front: Data<AppState>, caller: Caller, query: Query<AuditQuery>) -> Result<HttpResponse, Problem> {
    let (rows, limit) = rows(&front, &query).await?;
    let next = next(&rows, limit);
    let changes: Vec<AuditedChange> = rows.into_iter().map(told).collect();
    let (show, _) = query.shown()?;
    html(AuditPage { changes: &changes, show, next }.html(&front.site_for(&caller)))
}

/// `GET /api/admin/audit?limit=50&before=`: changes, newest first. `next` is the `before` of the next page.
pub async fn list(front: Data<AppState>, query: Query<AuditQuery>) -> Result<HttpResponse, Problem> {
    let (rows, limit) = rows(&front, &query).await?;
    let next = next(&rows, limit);
    let changes = rows.into_iter().map(told).collect();
    Ok(HttpResponse::Ok().json(Changes { changes, next }))
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a date fit a double")]
fn seconds(at: chrono::DateTime<chrono::Utc>) -> f64 {
    at.timestamp_micros() as f64 / 1e6
}

fn told(row: Row) -> AuditedChange {
    AuditedChange {
        id: row.id,
        ts: seconds(row.ts),
        who: row.who,
        role: row.role,
        address: row.address,
        action: row.action,
        parameters: row.parameters,
        outcome: row.outcome,
        result: row.result,
        ended: row.ended.map(seconds),
    }
}
