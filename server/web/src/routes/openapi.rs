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

#[cfg(test)]
mod tests {
    use super::*;
    use app::api::{ApiProblem, DeviceInfo, HubFacts, HubToken, ModelInfo, ServerInfo, VaeInfo};
    use app::job::{Failure, JobDetail, JobId, JobState, JobSummary};
    use app::recipe::{Concept, RecipeDraft};

    /// The value's fields and the schema's are the same ones, all the way down.
    fn check(schemas: &Value, schema: &Value, value: &Value, at: &str) {
        let schema = match schema.get("$ref").and_then(Value::as_str) {
            Some(reference) => {
                let name = reference.rsplit('/').next().expect("a name");
                schemas
                    .get(name)
                    .unwrap_or_else(|| panic!("{at}: there is no schema {name}"))
            }
            None => schema.pointer("/anyOf/0").unwrap_or(schema),
        };
        if schema.get("$ref").is_some() {
            return check(schemas, schema, value, at);
        }
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let inner = schema.pointer(&format!("/properties/{name}"));
                    let inner = inner.unwrap_or_else(|| panic!("{at}.{name} is not described"));
                    check(schemas, inner, value, &format!("{at}.{name}"));
                }
                for name in schema["required"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                {
                    assert!(fields.contains_key(name), "{at}.{name} is required but not there");
                }
                if schema["additionalProperties"] == false {
                    let described = schema["properties"].as_object().map_or(0, Map::len);
                    assert_eq!(described, fields.len(), "{at}: a field is described that is not there");
                }
            }
            Value::Array(values) => values.iter().for_each(|v| check(schemas, &schema["items"], v, at)),
            _ => assert!(
                schema.get("type").is_some() || schema.get("enum").is_some(),
                "{at}: {schema}"
            ),
        }
    }

    /// Every optional field is set, so that none escapes.
    fn recipe() -> RecipeDraft {
        RecipeDraft {
            concepts: vec![Concept {
                instance_prompt: "photo of zwx dog".into(),
                instance_data_dir: "photos/0".into(),
                class_prompt: Some("photo of a dog".into()),
                class_data_dir: Some("class-images/0".into()),
            }],
            revision: Some("main".into()),
            resolution: Some(512),
            pretrained_vae_name_or_path: Some("vae".into()),
            resume_from_checkpoint: Some("latest".into()),
            tokenizer_name: Some("tokenizer".into()),
            ..RecipeDraft::default()
        }
    }

    #[test]
    fn the_schemas_are_those_of_the_types() {
        let schemas: Value = serde_json::from_str(SCHEMAS).expect("JSON");
        let compare = |name: &str, value: Value| check(&schemas, &schemas[name], &value, name);
        compare("RecipeDraft", json!(recipe()));
        let failure = Failure {
            code: "c".into(),
            message: "m".into(),
            hint: Some("h".into()),
        };
        let summary = JobSummary {
            id: JobId::parse("dog-1").expect("good"),
            state: JobState::Failed { failure },
            created_ms: 1,
            step: 1,
            steps: 2,
            title: "t".into(),
            last_seq: 3,
        };
        compare("JobSummary", json!(summary));
        let recipe_ok = recipe().check().expect("good");
        compare(
            "JobDetail",
            json!(JobDetail {
                summary,
                recipe: recipe_ok,
                loads_in_webuis: Some(true),
            }),
        );
        let device = DeviceInfo {
            trainer: "cpu".into(),
            name: "CPU".into(),
            memory_bytes: Some(1),
            why: "w".into(),
        };
        let facts = HubFacts {
            card: "https://hub.example.org/a/b".into(),
            license: Some("mit".into()),
            bytes: 1,
            missing_bytes: 1,
            revision: Some("main".into()),
        };
        let model = ModelInfo {
            pretrained_model_name_or_path: "starter".into(),
            title: "Starter".into(),
            resolution: 64,
            parameters: 1,
            latent_channels: 4,
            loads_in_webuis: false,
            defaults: recipe(),
            hub: Some(facts.clone()),
        };
        let vae = VaeInfo {
            pretrained_vae_name_or_path: "a/vae".into(),
            parameters: 1,
            latent_channels: 4,
            loads_in_webuis: false,
            hub: Some(facts),
        };
        compare("VaeInfo", json!(vae));
        compare(
            "ServerInfo",
            json!(ServerInfo {
                version: "1".into(),
                device,
                models: vec![model],
                has_hub_token: true,
            }),
        );
        compare("HubToken", json!(HubToken { token: "hf_1".into() }));
        let inner = crate::error::problem("c", "m".into(), "f".into());
        compare(
            "ApiProblem",
            json!(ApiProblem {
                problems: vec![inner.clone()],
                ..inner
            }),
        );
    }

    #[test]
    fn every_schema_that_is_named_is_there() {
        let document = build(&table());
        let text = document.to_string();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap_or_default();
            assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
        }
        assert_eq!(
            document["paths"]["/api/jobs/{id}/files/{path}"]["get"]["parameters"][1]["name"],
            "path"
        );
    }
}
