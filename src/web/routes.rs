//! Every route, in one place. All of them exist at the root and, when there is one, below
//! `MONITOR_ROOT_PATH`: an ingress may strip the prefix or not.

use actix_web::middleware::{Compress, DefaultHeaders};
use actix_web::web::{self, ServiceConfig};

use super::problem::Problem;
use super::{Front, alerts, api, detail_page, health, history, history_page, live_session, operator, page};

/// Nothing inline, nothing from elsewhere, framed by nobody.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Adds all routes, at the root and below `root_path`.
pub fn configure(config: &mut ServiceConfig, front: Front, root_path: &str) {
    config.app_data(web::Data::new(front));
    config
        .app_data(web::QueryConfig::default().error_handler(|error, _| Problem::BadRequest(error.to_string()).into()));
    if !root_path.is_empty() {
        config.service(web::scope(root_path).wrap(headers()).configure(all));
    }
    config.service(web::scope("").wrap(headers()).configure(all));
    config.default_service(web::route().to(nothing));
}

fn all(config: &mut ServiceConfig) {
    // Websockets and probes are not compressed: the first cannot be, the second need not.
    config
        .route("/ws", web::get().to(live_session::snapshots))
        .route("/live/ws", web::get().to(live_session::changes))
        .route("/livez", web::get().to(health::livez))
        .route("/readyz", web::get().to(health::readyz))
        .service(
            web::scope("")
                .wrap(Compress::default())
                .route("", web::get().to(page::live))
                .route("/", web::get().to(page::live))
                .route("/history", web::get().to(history_page::page))
                .route("/history/parts/{part}", web::get().to(history_page::part))
                .route("/streams/{name:.*}/messages", web::get().to(operator::messages::page))
                .route("/api/streams/{name:.*}/messages", web::get().to(operator::messages::list))
                .route("/api/streams/{name:.*}/messages/preview", web::post().to(operator::messages::preview))
                .route("/api/streams/{name:.*}/messages/apply", web::post().to(operator::apply))
                .route("/admin/dead-consumers", web::get().to(operator::dead_consumers::page))
                .route("/api/admin/dead_consumers", web::get().to(operator::dead_consumers::list))
                .route("/api/admin/dead_consumers/preview", web::post().to(operator::dead_consumers::preview))
                .route("/api/admin/dead_consumers/apply", web::post().to(operator::apply))
                .route("/api/admin/reclaim_dead_consumers", web::post().to(operator::dead_consumers::reclaim))
                .route("/admin/recycle-bin", web::get().to(operator::recycle_bin::page))
                .route("/api/admin/recycle_bin", web::get().to(operator::recycle_bin::list))
                .route("/api/admin/recycle_bin/restore", web::post().to(operator::recycle_bin::restore))
                .route("/streams/{name:.*}", web::get().to(detail_page::stream))
                .route("/workers/{name:.*}", web::get().to(detail_page::worker_type))
                .route("/live/updates", web::get().to(page::updates))
                .route("/assets/{path:.*}", web::get().to(page::asset))
                .route("/favicon.ico", web::get().to(page::favicon))
                .route("/api/snapshot", web::get().to(api::snapshot))
                .route("/api/health", web::get().to(api::health))
                .route("/api/history", web::get().to(history::recent_names))
                .route("/api/history/{series:.+}", web::get().to(history::recent))
                .route("/api/historical/metrics", web::get().to(history::metrics))
                .route("/api/historical/metrics_by_prefix", web::get().to(history::metrics_by_prefix))
                .route("/api/historical/latency", web::get().to(history::latency))
                .route("/api/historical/queries", web::get().to(history::queries))
                .route("/api/historical/events", web::get().to(history::events))
                .route("/api/historical/incidents", web::get().to(history::incidents))
                .route("/api/historical/summary", web::get().to(history::summary))
                .route("/alerts", web::get().to(alerts::page))
                .route("/api/alerts", web::get().to(alerts::list))
                .route("/api/alerts/acknowledge", web::post().to(alerts::acknowledge))
                .route("/api/alerts/test", web::post().to(alerts::test))
                .route("/api/silences", web::post().to(alerts::silence))
                .route("/api/silences/{id}/end", web::post().to(alerts::end_silence))
                .route("/-/reload", web::post().to(alerts::reload)),
        );
}

fn headers() -> DefaultHeaders {
    DefaultHeaders::new()
        .add(("Content-Security-Policy", CONTENT_POLICY))
        .add(("X-Content-Type-Options", "nosniff"))
        .add(("Referrer-Policy", "same-origin"))
        .add(("Cache-Control", "no-store"))
}

async fn nothing() -> Result<actix_web::HttpResponse, Problem> {
    Err(Problem::NotFound)
}
