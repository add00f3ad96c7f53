//! The API's table: one line per endpoint feeds the router and the OpenAPI document.

mod extract;
mod files;
mod jobs;
mod openapi;
mod photos;
mod server;

pub use files::picture;

use std::sync::Arc;

use axum::Router;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use axum::routing::{MethodRouter, delete, get, head, post, put};

use crate::error::ApiError;
use crate::guard::{self, Guard};
use crate::server::AppState;

/// JSON bodies are recipes with lists of hashes.
const MAX_JSON_BYTES: usize = 1 << 20;

/// What goes in or comes out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Content {
    Nothing,
    /// JSON of this schema.
    Json(&'static str),
    /// JSON list of this schema.
    List(&'static str),
    /// Bytes of this media type.
    Bytes(&'static str),
}
use Content::{Bytes, Json, List, Nothing};

/// One line of the table.
struct Endpoint {
    method: Method,
    path: &'static str,
    summary: &'static str,
    takes: Content,
    /// The good answers.
    gives: &'static [(u16, Content)],
    /// Statuses of the errors it is known for; all are `ErrorBody`.
    errors: &'static [u16],
    handler: MethodRouter<AppState>,
}

fn table() -> Vec<Endpoint> {
    let mut table = Vec::new();
    let mut add = |method, path, summary, takes, gives, errors, handler| {
        table.push(Endpoint {
            method,
            path,
            summary,
            takes,
            gives,
            errors,
            handler,
        });
    };
    type Gives = &'static [(u16, Content)];
    let ok_file: Gives = &[
        (200, Bytes("application/octet-stream")),
        (206, Bytes("application/octet-stream")),
    ];
    let (get_, post_) = (Method::GET, Method::POST);
    let info = "Version, device and models";
    add(
        get_.clone(),
        "/api/server",
        info,
        Nothing,
        &[(200, Json("ServerInfo"))],
        &[503],
        get(server::info),
    );
    let inspect = "What a base model is, and what suits it";
    let (takes, gives): (_, Gives) = (Json("InspectModel"), &[(200, Json("ModelInfo"))]);
    add(
        post_.clone(),
        "/api/models/inspect",
        inspect,
        takes,
        gives,
        &[400, 422, 503],
        post(server::inspect),
    );
    let inspect = "What a VAE is, to take the place of a base model's own";
    let (takes, gives): (_, Gives) = (Json("InspectVae"), &[(200, Json("VaeInfo"))]);
    add(
        post_.clone(),
        "/api/vaes/inspect",
        inspect,
        takes,
        gives,
        &[400, 422, 503],
        post(server::inspect_vae),
    );
    let token = "/api/hub/token";
    let gone: Gives = &[(204, Nothing)];
    add(
        Method::PUT,
        token,
        "Enter a token for the Hub",
        Json("HubToken"),
        gone,
        &[400, 422],
        put(server::set_hub_token),
    );
    add(
        Method::DELETE,
        token,
        "Forget the token for the Hub",
        Nothing,
        gone,
        &[],
        delete(server::forget_hub_token),
    );
    let photo = "/api/photos/{sha256}";
    let is_here = "Is this crop here already?";
    add(
        Method::HEAD,
        photo,
        is_here,
        Nothing,
        &[(200, Nothing)],
        &[404],
        head(photos::find),
    );
    let (takes, gives): (_, Gives) = (
        Bytes("image/png"),
        &[(200, Json("StoredPhoto")), (201, Json("StoredPhoto"))],
    );
    add(
        Method::PUT,
        photo,
        "Upload a crop",
        takes,
        gives,
        &[400, 413, 422],
        put(photos::put),
    );
    add(
        get_.clone(),
        photo,
        "A crop",
        Nothing,
        &[(200, Bytes("image/png"))],
        &[404],
        get(photos::get),
    );
    let start = "Queue a training";
    let created: Gives = &[(201, Json("JobDetail"))];
    add(
        post_.clone(),
        "/api/jobs",
        start,
        Json("NewJob"),
        created,
        &[400, 422, 503],
        post(jobs::create),
    );
    let all: Gives = &[(200, List("JobSummary"))];
    add(
        get_.clone(),
        "/api/jobs",
        "All jobs, newest first",
        Nothing,
        all,
        &[],
        get(jobs::list),
    );
    let one: Gives = &[(200, Json("JobDetail"))];
    add(
        get_.clone(),
        "/api/jobs/{id}",
        "A job",
        Nothing,
        one,
        &[404],
        get(jobs::detail),
    );
    add(
        Method::DELETE,
        "/api/jobs/{id}",
        "Delete a job",
        Nothing,
        gone,
        &[404, 409],
        delete(jobs::remove),
    );
    let stopped: Gives = &[(200, Json("JobSummary"))];
    let stop = "Stop and keep what there is";
    add(
        post_,
        "/api/jobs/{id}/stop",
        stop,
        Nothing,
        stopped,
        &[404, 409],
        post(jobs::stop),
    );
    let events: Gives = &[(200, List("Event"))];
    let since = "Events after the sequence number `after`";
    add(
        get_.clone(),
        "/api/jobs/{id}/events",
        since,
        Nothing,
        events,
        &[400, 404],
        get(jobs::events),
    );
    let file = "A sample or class image";
    add(
        get_.clone(),
        "/api/jobs/{id}/files/{*path}",
        file,
        Nothing,
        ok_file,
        &[404, 416],
        get(files::file),
    );
    let export = "A trained checkpoint";
    add(
        get_.clone(),
        "/api/jobs/{id}/export/{name}",
        export,
        Nothing,
        ok_file,
        &[404, 416],
        get(files::export),
    );
    let socket: Gives = &[(101, Nothing)];
    let live = "WebSocket: `ToServer` in, `ToPage` and previews out";
    add(
        get_.clone(),
        "/api/ws",
        live,
        Nothing,
        socket,
        &[403],
        get(crate::ws::connect),
    );
    let this: Gives = &[(200, Bytes("application/json"))];
    add(
        get_,
        "/api/openapi.json",
        "This document",
        Nothing,
        this,
        &[],
        get(openapi::document),
    );
    table
}

/// Every route, the page for the rest, and the guard around all.
pub fn router(state: AppState, guard: Arc<Guard>) -> Router {
    let mut router = Router::new();
    for endpoint in table() {
        router = router.route(endpoint.path, endpoint.handler);
    }
    router
        .fallback(fallback)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(axum::middleware::from_fn_with_state(guard, guard::check))
        .with_state(state)
}

async fn fallback(
    State(state): State<AppState>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let path = uri.path();
    if path == "/api" || path.starts_with("/api/") {
        return Err(ApiError::NotFound(format!("address {path}")));
    }
    // Nothing in the page is behind a body or a query.
    let page = state.page.clone();
    let path = path.to_owned();
    let answer = tokio::task::spawn_blocking(move || page.answer(&method, &path, &headers));
    answer.await.map_err(ApiError::internal)?
}
