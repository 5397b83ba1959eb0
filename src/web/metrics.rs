//! Metrics for Prometheus.

pub mod openapi;

use actix_web::http::header::{ACCEPT, VARY};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};

use super::AppState;
use super::problem::Problem;
use crate::actors::messages::GetMetrics;
use crate::exposition::text::Format;

/// `GET /metrics`: all metrics, as OpenMetrics if the client accepts it, otherwise in the Prometheus text format.
pub async fn metrics(front: Data<AppState>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let accept: Vec<&str> = request.headers().get_all(ACCEPT).filter_map(|value| value.to_str().ok()).collect();
    let format = Format::asked_for(&accept.join(","));
    let gone = |_| Problem::Unavailable("the supervisor does not respond".to_owned());
    let text = front.metrics.send(GetMetrics(format)).await.map_err(gone)?.map_err(Problem::Unavailable)?;
    Ok(HttpResponse::Ok().content_type(format.content_type()).insert_header((VARY, "Accept")).body(text))
}
