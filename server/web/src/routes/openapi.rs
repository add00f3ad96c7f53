//! The OpenAPI document, made from the router's own table and the schemas beside this file.

use axum::Json;
use serde_json::{Map, Value, json};

use super::{Content, Endpoint, table};

const SCHEMAS: &str = include_str!("schemas.json");

pub async fn document() -> Json<Value> {
    Json(build(&table()))
}

fn build(table: &[Endpoint]) -> Value {
    let mut paths = Map::new();
    for endpoint in table {
        // Path templates know no wildcard.
        let path = endpoint.path.replace("{*", "{");
        let operations = paths.entry(path.clone()).or_insert_with(|| json!({}));
        let method = endpoint.method.as_str().to_ascii_lowercase();
        operations[method] = operation(endpoint, &path);
    }
    // A test reads the schemas, so the fallback is never taken.
    let schemas: Value = serde_json::from_str(SCHEMAS).unwrap_or_default();
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Likeness", "version": env!("CARGO_PKG_VERSION"), "license": { "name": "MIT OR Apache-2.0" } },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn operation(endpoint: &Endpoint, path: &str) -> Value {
    let mut parameters: Vec<Value> = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    if path.ends_with("/events") {
        parameters.push(json!({ "name": "after", "in": "query", "schema": { "type": "integer", "minimum": 0 } }));
    }
    let mut responses = Map::new();
    for (status, content) in endpoint.gives {
        responses.insert(status.to_string(), body("as asked", *content));
    }
    for status in endpoint.errors {
        responses.insert(status.to_string(), body("an error", Content::Json("ErrorBody")));
    }
    responses.insert("default".into(), body("an error", Content::Json("ErrorBody")));
    let mut operation = json!({ "summary": endpoint.summary, "parameters": parameters, "responses": responses });
    if endpoint.takes != Content::Nothing {
        operation["requestBody"] = body("what is sent", endpoint.takes);
        operation["requestBody"]["required"] = true.into();
    }
    if matches!(endpoint.takes, Content::Bytes(_)) {
        let name = app::api::ORIGIN_HEADER;
        let header = json!({ "name": name, "in": "header", "required": true, "schema": { "type": "string" },
            "description": "PhotoOrigin as ASCII JSON" });
        if let Some(all) = operation["parameters"].as_array_mut() {
            all.push(header);
        }
    }
    operation
}

fn body(description: &str, content: Content) -> Value {
    let schema = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let (media, schema) = match content {
        Content::Nothing => return json!({ "description": description }),
        Content::Json(name) => ("application/json", schema(name)),
        Content::List(name) => ("application/json", json!({ "type": "array", "items": schema(name) })),
        Content::Bytes(media) => (media, json!({ "type": "string", "format": "binary" })),
    };
    json!({ "description": description, "content": { media: { "schema": schema } } })
}
