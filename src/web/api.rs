//! Live routes of the API: the newest snapshot. Recorded data is in [`super::history`].

pub mod openapi;

use actix_web::HttpResponse;
use actix_web::http::header::ContentType;
use actix_web::web::Data;

use self::openapi::Health;
use super::AppState;
use super::problem::Problem;

/// `GET /api/snapshot`: the newest snapshot.
pub async fn snapshot(front: Data<AppState>) -> Result<HttpResponse, Problem> {
    let snapshot =
        front.newest.load_full().ok_or_else(|| Problem::Unavailable("the first poll has not finished".to_owned()))?;
    let json = serde_json::to_vec(&*snapshot).map_err(|e| Problem::Unavailable(e.to_string()))?;
    Ok(HttpResponse::Ok().content_type(ContentType::json()).body(json))
}

/// `GET /api/health`: this process responds.
pub async fn health() -> HttpResponse {
    HttpResponse::Ok().json(Health { ok: true })
}
