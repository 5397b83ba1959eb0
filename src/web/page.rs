//! Pages as HTML, and what they are made of.

use actix_web::HttpRequest;
use actix_web::HttpResponse;
use actix_web::http::header::{CACHE_CONTROL, ContentType, ETAG, IF_NONE_MATCH};
use actix_web::web::{Data, Path, Query};
use serde::Deserialize;

use super::Front;
use super::access::Caller;
use super::problem::Problem;
use crate::actors::messages::{GetChanges, RenderPage};
use crate::pages::assets;

/// `GET /`: the live page, complete before any script runs.
pub async fn live(front: Data<Front>, caller: Caller) -> Result<HttpResponse, Problem> {
    let page = front
        .page
        .send(RenderPage { visitor: caller.visitor() })
        .await
        .map_err(|e| Problem::Unavailable(e.to_string()))?;
    let html = page.map_err(Problem::Unavailable)?;
    Ok(HttpResponse::Ok().content_type(ContentType::html()).body(html))
}

/// The page that the client has.
#[derive(Debug, Deserialize)]
pub struct Known {
    /// The run of the monitor that rendered it.
    pub epoch: u64,
    /// The last tick it took in.
    pub tick: u64,
}

/// `GET /live/updates?epoch=&tick=`: what changed since, for clients without websocket; 204 when
/// nothing did.
pub async fn updates(front: Data<Front>, known: Query<Known>) -> Result<HttpResponse, Problem> {
    let asked = GetChanges { epoch: known.epoch, tick: known.tick };
    let changes = front.changes.send(asked).await.map_err(|e| Problem::Unavailable(e.to_string()))?;
    Ok(match changes.map_err(Problem::Unavailable)? {
        Some(json) => HttpResponse::Ok().content_type(ContentType::json()).body(json),
        None => HttpResponse::NoContent().finish(),
    })
}

/// `GET /assets/…`: scripts and styles; their address changes with their content.
pub async fn asset(request: HttpRequest, path: Path<String>) -> Result<HttpResponse, Problem> {
    let asset = assets::get(&path).ok_or(Problem::NotFound)?;
    let etag = format!("\"{}\"", asset.etag);
    if request.headers().get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes()) {
        return Ok(HttpResponse::NotModified().insert_header((ETAG, etag)).finish());
    }
    Ok(HttpResponse::Ok()
        .content_type(asset.content_type)
        .insert_header((CACHE_CONTROL, "public, max-age=31536000, immutable"))
        .insert_header((ETAG, etag))
        .body(asset.bytes.into_owned()))
}

/// `GET /favicon.ico`, for browsers that ask without being told to.
pub async fn favicon(request: HttpRequest) -> Result<HttpResponse, Problem> {
    asset(request, Path::from("favicon.svg".to_owned())).await
}
