//! Incidents, derived from the events of a time range.

use super::answer::{Format, csv, json as as_json};
use super::from_postgres;
use super::openapi::{IncidentResponse, Incidents};
use super::params::HappenedQuery;
use crate::fleet::event::Severity;
use crate::fleet::incident::{self, Happened, IncidentKind, Over};
use crate::pages::history::parts::MOST_EVENTS;
use crate::postgres::events::{self, Filter, Row};
use crate::web::AppState;
use crate::web::problem::Problem;
use actix_web::web::{Data, Query};
use actix_web::{HttpRequest, HttpResponse};

/// Stored events, newest first; at most [`MOST_EVENTS`].
pub(in crate::web) async fn happened(front: &AppState, filter: Filter) -> Result<Vec<Happened>, Problem> {
    let pool = front.io.web.reads.clone();
    let rows = from_postgres(front, async move { events::newest(&pool, &filter, MOST_EVENTS).await }).await?;
    Ok(rows.into_iter().map(of_row).collect())
}

fn of_row(row: Row) -> Happened {
    Happened {
        ts: row.unix_seconds(),
        type_name: row.type_,
        subject: row.worker.unwrap_or_default(),
        severity: Severity::from_stored(row.severity.as_deref().unwrap_or_default()),
        detail: row.detail.unwrap_or_default(),
        payload: row.payload.unwrap_or_default(),
    }
}

/// `GET /api/historical/incidents?since=&until=&worker=`: incidents with start and end, newest first. `until` is
/// `null` if the incident continues at the end of the time range.
pub async fn incidents(
    front: Data<AppState>,
    request: HttpRequest,
    query: Query<HappenedQuery>,
) -> Result<HttpResponse, Problem> {
    let (filter, format) = query.of()?;
    let found = incident::incidents(&happened(&front, filter).await?);
    let kind = |kind| match kind {
        IncidentKind::Crash => "crash",
        IncidentKind::Hung => "hung",
        IncidentKind::Lost => "lost",
        IncidentKind::SourceDown => "source_down",
    };
    let until = |i: &incident::Incident| match i.over {
        Over::At(at) => Some(at),
        Over::AtOnce => i.since,
        Over::NotYet => None,
    };
    if format == Format::Csv {
        let text = |at: Option<f64>| at.map_or_else(String::new, |at| at.to_string());
        let rows = found.into_iter().map(|i| {
            let end = text(until(&i));
            vec![kind(i.kind).to_owned(), i.subject, text(i.since), end, i.what]
        });
        return csv(&request, "incidents", &["kind", "worker", "since", "until", "what"], rows);
    }
    let told = |i: incident::Incident| IncidentResponse {
        kind: kind(i.kind),
        since: i.since,
        until: until(&i),
        worker: i.subject,
        what: i.what,
    };
    as_json(&request, &Incidents { incidents: found.into_iter().map(told).collect() })
}
