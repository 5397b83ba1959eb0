//! The route table, with the role that each route requires. All routes exist at the root and, if set, below
//! `MONITOR_ROOT_PATH`, because an ingress may or may not strip the prefix.
//!
//! A route that is not in [`ROUTES`] is unreachable: see [`super::access`].

use actix_web::middleware::{Compress, DefaultHeaders, from_fn};
use actix_web::web::{self, Data, ServiceConfig, to};

use super::access::Needs::{AtLeast, Nobody};
use super::access::Role::{Admin, Operator, Viewer};
use super::access::Verb::{Change, Read, Socket};
use super::access::{AuthGateLayer, Needs, Verb, admitted, audit_page, gate, login, oidc};
use super::body::MOST_BODY;
use super::error_normalizer::normalize_errors;
use super::openapi::operation::Operation;
use super::problem::Problem;
use super::read_limits::{Expense, within_budget};
use super::{
    AppState, admin, alerts, api, assets, autoscale, detail_page, health, history, history_page, live_page,
    live_session, metrics, openapi, operator,
};

/// A route.
pub struct Route {
    /// Method.
    pub verb: Verb,
    /// Path relative to the root; `{name}` matches one segment, `{name:.*}` the rest of the path.
    pub path: &'static str,
    /// Required role.
    pub needs: Needs,
    /// OpenAPI description; `None` for pages and their own requests. Routes below `/api/`, probes, the websocket of
    /// snapshots and `/-/reload` have one.
    pub operation: Option<fn() -> Operation>,
    /// Costs so much that concurrent requests of a client are limited.
    pub expense: Option<Expense>,
    handler: fn() -> actix_web::Route,
}

const fn route(verb: Verb, needs: Needs, path: &'static str, handler: fn() -> actix_web::Route) -> Route {
    Route { verb, path, needs, operation: None, expense: None, handler }
}

impl Route {
    /// Adds the OpenAPI description.
    const fn told(mut self, operation: fn() -> Operation) -> Self {
        self.operation = Some(operation);
        self
    }

    const fn expensive(mut self) -> Self {
        self.expense = Some(Expense::Query);
        self
    }

    const fn rendered(mut self) -> Self {
        self.expense = Some(Expense::Rendering);
        self
    }
}

/// All routes.
pub const ROUTES: &[Route] = &[
    route(Read, Nobody, "/livez", || to(health::livez)).told(health::openapi::livez),
    route(Read, Nobody, "/readyz", || to(health::readyz)).told(health::openapi::readyz),
    route(Read, Nobody, "/assets/{path:.*}", || to(assets::asset)),
    route(Read, Nobody, "/favicon.ico", || to(assets::favicon)),
    route(Read, Nobody, "/login", || to(login::page)),
    route(Change, Nobody, "/login", || to(login::enter)),
    route(Read, Nobody, "/login/start", || to(oidc::start)),
    route(Read, Nobody, "/login/callback", || to(oidc::callback)),
    route(Change, Nobody, "/logout", || to(login::leave)),
    route(Socket, AtLeast(Viewer), "/ws", || to(live_session::snapshots)).told(api::openapi::websocket),
    route(Socket, AtLeast(Viewer), "/live/ws", || to(live_session::changes)),
    route(Read, AtLeast(Viewer), "", || to(live_page::page)).rendered(),
    route(Read, AtLeast(Viewer), "/", || to(live_page::page)).rendered(),
    route(Read, AtLeast(Viewer), "/history", || to(history_page::page)).expensive(),
    route(Read, AtLeast(Viewer), "/history/parts/{part}", || to(history_page::part)).expensive(),
    route(Read, AtLeast(Operator), "/streams/{name:.*}/messages", || to(operator::messages::page)).expensive(),
    route(Read, AtLeast(Viewer), "/streams/{name:.*}", || to(detail_page::stream)).expensive(),
    route(Read, AtLeast(Viewer), "/workers/{name:.*}", || to(detail_page::worker_type)).expensive(),
    route(Read, AtLeast(Viewer), "/live/updates", || to(live_page::updates)).rendered(),
    route(Read, AtLeast(Viewer), "/metrics", || to(metrics::metrics)).rendered().told(metrics::openapi::metrics),
    route(Read, AtLeast(Viewer), "/api/autoscale/{name:.*}", || to(autoscale::autoscale))
        .told(autoscale::openapi::autoscale),
    route(Read, AtLeast(Viewer), "/api/snapshot", || to(api::snapshot)).told(api::openapi::snapshot),
    route(Read, AtLeast(Viewer), "/api/health", || to(api::health)).told(api::openapi::health),
    route(Read, AtLeast(Viewer), "/api/history", || to(history::recent_names))
        .expensive()
        .told(history::openapi::recent_names),
    route(Read, AtLeast(Viewer), "/api/history/{series:.+}", || to(history::recent))
        .expensive()
        .told(history::openapi::recent),
    route(Read, AtLeast(Viewer), "/api/historical/metrics", || to(history::metrics))
        .expensive()
        .told(history::openapi::metrics),
    route(Read, AtLeast(Viewer), "/api/historical/metrics_by_prefix", || to(history::metrics_by_prefix))
        .expensive()
        .told(history::openapi::metrics_by_prefix),
    route(Read, AtLeast(Viewer), "/api/historical/latency", || to(history::latency))
        .expensive()
        .told(history::openapi::latency),
    route(Read, AtLeast(Viewer), "/api/historical/queries", || to(history::queries))
        .expensive()
        .told(history::openapi::queries),
    route(Read, AtLeast(Viewer), "/api/historical/events", || to(history::events))
        .expensive()
        .told(history::openapi::events),
    route(Read, AtLeast(Viewer), "/api/historical/incidents", || to(history::incidents))
        .expensive()
        .told(history::openapi::incidents),
    route(Read, AtLeast(Viewer), "/api/historical/summary", || to(history::summary))
        .expensive()
        .told(history::openapi::summary),
    route(Read, AtLeast(Viewer), "/api", || to(openapi::page)),
    route(Read, AtLeast(Viewer), "/api/openapi.json", || to(openapi::json)).told(openapi::told),
    route(Read, AtLeast(Viewer), "/alerts", || to(alerts::page)).expensive(),
    route(Read, AtLeast(Viewer), "/api/alerts", || to(alerts::list)).expensive().told(alerts::openapi::list),
    route(Change, AtLeast(Operator), "/api/alerts/acknowledge", || to(alerts::acknowledge))
        .told(alerts::openapi::acknowledge),
    route(Change, AtLeast(Operator), "/api/alerts/test", || to(alerts::test)).told(alerts::openapi::test),
    route(Change, AtLeast(Operator), "/api/silences", || to(alerts::silence)).told(alerts::openapi::silence),
    route(Change, AtLeast(Operator), "/api/silences/{id}/end", || to(alerts::end_silence))
        .told(alerts::openapi::end_silence),
    route(Change, AtLeast(Operator), "/-/reload", || to(alerts::reload)).told(alerts::openapi::reload),
    route(Read, AtLeast(Viewer), "/admin", || to(admin::page)).expensive(),
    route(Read, AtLeast(Viewer), "/api/admin/passes", || to(admin::passes)).expensive().told(admin::openapi::passes),
    route(Change, AtLeast(Admin), "/api/admin/cleanup", || to(admin::cleanup)).told(admin::openapi::cleanup),
    route(Change, AtLeast(Admin), "/api/admin/forget_worker", || to(admin::forget_worker))
        .told(admin::openapi::forget_worker),
    // Retrying requires operator, dropping requires admin: the handler checks the action of the preview.
    route(Read, AtLeast(Operator), "/api/streams/{name:.*}/messages", || to(operator::messages::list))
        .expensive()
        .told(operator::openapi::messages),
    route(Change, AtLeast(Operator), "/api/streams/{name:.*}/messages/preview", || to(operator::messages::preview))
        .expensive()
        .told(operator::openapi::preview),
    route(Change, AtLeast(Operator), "/api/streams/{name:.*}/messages/apply", || to(operator::apply))
        .told(operator::openapi::apply),
    route(Read, AtLeast(Operator), "/admin/dead-consumers", || to(operator::dead_consumers::page)).expensive(),
    route(Read, AtLeast(Operator), "/api/admin/dead_consumers", || to(operator::dead_consumers::list))
        .expensive()
        .told(operator::openapi::dead_consumers),
    route(Change, AtLeast(Operator), "/api/admin/dead_consumers/preview", || to(operator::dead_consumers::preview))
        .expensive()
        .told(operator::openapi::dead_consumers_preview),
    route(Change, AtLeast(Operator), "/api/admin/dead_consumers/apply", || to(operator::apply))
        .told(operator::openapi::dead_consumers_apply),
    route(Change, AtLeast(Admin), "/api/admin/reclaim_dead_consumers", || to(operator::dead_consumers::reclaim))
        .told(operator::openapi::reclaim),
    route(Read, AtLeast(Operator), "/admin/audit", || to(audit_page::page)).expensive(),
    route(Read, AtLeast(Operator), "/api/admin/audit", || to(audit_page::list))
        .expensive()
        .told(audit_page::openapi::list),
    route(Read, AtLeast(Operator), "/admin/recycle-bin", || to(operator::recycle_bin::page)).expensive(),
    route(Read, AtLeast(Operator), "/api/admin/recycle_bin", || to(operator::recycle_bin::list))
        .expensive()
        .told(operator::openapi::recycle_bin),
    route(Change, AtLeast(Admin), "/api/admin/recycle_bin/restore", || to(operator::recycle_bin::restore))
        .told(operator::openapi::restore),
];

/// Probes are too small to compress; websockets cannot be compressed.
fn is_compressed(route: &Route) -> bool {
    route.verb != Socket && !["/livez", "/readyz"].contains(&route.path)
}

/// No inline scripts, no external resources, no framing.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Registers all routes, at the root and below `root_path`.
pub fn configure(config: &mut ServiceConfig, front: AppState, root_path: &str) {
    let (lock, encrypted) = (front.lock.clone(), front.site.is_encrypted());
    config.app_data(Data::new(front));
    config.app_data(Data::new(AuthGateLayer::new(lock, ROUTES)));
    config.app_data(web::PayloadConfig::new(MOST_BODY));
    config.app_data(web::JsonConfig::default().limit(MOST_BODY));
    config.app_data(web::FormConfig::default().limit(MOST_BODY));
    if !root_path.is_empty() {
        config.service(
            web::scope(root_path)
                .wrap(from_fn(normalize_errors))
                .wrap(from_fn(gate))
                .wrap(headers(encrypted))
                .configure(all),
        );
    }
    config.service(
        web::scope("").wrap(from_fn(normalize_errors)).wrap(from_fn(gate)).wrap(headers(encrypted)).configure(all),
    );
    config.default_service(web::route().to(nothing));
}

fn all(config: &mut ServiceConfig) {
    let mut compressed = web::scope("").wrap(from_fn(within_budget)).wrap(Compress::default());
    for (place, route) in ROUTES.iter().enumerate() {
        let handler = (route.handler)().guard(admitted(place));
        if is_compressed(route) {
            compressed = compressed.route(route.path, handler);
        } else {
            config.route(route.path, handler);
        }
    }
    config.service(compressed);
}

fn headers(encrypted: bool) -> DefaultHeaders {
    let headers = DefaultHeaders::new()
        .add(("Content-Security-Policy", CONTENT_POLICY))
        .add(("X-Content-Type-Options", "nosniff"))
        .add(("Referrer-Policy", "same-origin"))
        .add(("Cross-Origin-Opener-Policy", "same-origin"))
        .add(("Cross-Origin-Resource-Policy", "same-origin"))
        .add(("Cache-Control", "no-store"));
    // Only if users connect over an encrypted connection: HSTS would make a plain HTTP site unreachable.
    if encrypted { headers.add(("Strict-Transport-Security", "max-age=31536000")) } else { headers }
}

async fn nothing() -> Result<actix_web::HttpResponse, Problem> {
    Err(Problem::NotFound)
}
