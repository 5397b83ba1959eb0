//! The live page, and its changes for browsers without websocket (with one: `live_session`).

use actix_web::HttpResponse;
use actix_web::http::header::ContentType;
use actix_web::web::{Data, Query};
use serde::Deserialize;

use super::AppState;
use super::access::Caller;
use super::problem::Problem;
use crate::actors::messages::{GetChanges, RenderPage};

/// `GET /`: the live page, complete without scripts.
pub async fn page(front: Data<AppState>, caller: Caller) -> Result<HttpResponse, Problem> {
    let page = front
        .page
        .send(RenderPage { visitor: caller.visitor() })
        .await
        .map_err(|e| Problem::Unavailable(e.to_string()))?;
    let html = page.map_err(Problem::Unavailable)?;
    Ok(HttpResponse::Ok().content_type(ContentType::html()).body(html))
}

/// State of the page that the client has.
#[derive(Debug, Deserialize)]
pub struct Known {
    /// Epoch (run of the monitor) that rendered the page.
    pub epoch: u64,
    /// Last tick that the client applied.
    pub tick: u64,
}

/// `GET /live/updates?epoch=&tick=`: changes since that tick, for clients without websocket; 204 if there are none.
pub async fn updates(front: Data<AppState>, known: Query<Known>) -> Result<HttpResponse, Problem> {
    let asked = GetChanges { epoch: known.epoch, tick: known.tick };
    let changes = front.changes.send(asked).await.map_err(|e| Problem::Unavailable(e.to_string()))?;
    Ok(match changes.map_err(Problem::Unavailable)? {
        Some(json) => HttpResponse::Ok().content_type(ContentType::json()).body(json),
        None => HttpResponse::NoContent().finish(),
    })
}
