//! Scripts and styles of the pages.

use actix_web::http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use actix_web::web::Path;
use actix_web::{HttpRequest, HttpResponse};

use super::problem::Problem;
use crate::pages::assets;

/// `GET /assets/…`: the URL contains a hash of the content, so responses can be cached forever.
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

/// `GET /favicon.ico`, for browsers that request it by default.
pub async fn favicon(request: HttpRequest) -> Result<HttpResponse, Problem> {
    asset(request, Path::from("favicon.svg".to_owned())).await
}
