//! The OpenAPI 3.1 document: paths from the table of routes, schemas from the types. Committed as `openapi.json`, so that clients
//! can be made from a checkout; a test holds it to the code.

use super::routes::{ROUTES, Route};
use crate::control::messages::ProblemBody;
use serde_json::{Map, Value, json};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// What `/openapi.json` serves.
pub const COMMITTED: &str = include_str!("openapi.json");

type Schemas = Vec<(String, RefOr<Schema>)>;

/// A schema for a body, and the named ones it needs.
pub type Shape = fn(&mut Schemas) -> Option<Value>;

/// No body, or one without a schema.
pub fn none(_: &mut Schemas) -> Option<Value> {
    None
}

/// A `T`.
pub fn one<T: ToSchema + PartialSchema>(schemas: &mut Schemas) -> Option<Value> {
    let name = T::name().into_owned();
    schemas.push((name.clone(), T::schema()));
    T::schemas(schemas);
    Some(json!({"$ref": format!("#/components/schemas/{name}")}))
}

/// An array of them.
pub fn list_of<T: ToSchema + PartialSchema>(schemas: &mut Schemas) -> Option<Value> {
    Some(json!({"type": "array", "items": one::<T>(schemas)?}))
}

/// A page of them.
pub fn page_of<T: ToSchema + PartialSchema>(schemas: &mut Schemas) -> Option<Value> {
    let items = list_of::<T>(schemas)?;
    let next = json!({"type": "string", "description": "For `cursor`; absent on the last page."});
    Some(json!({"type": "object", "required": ["items"], "properties": {"items": items, "next": next}}))
}

fn operation(route: &Route, schemas: &mut Schemas) -> Value {
    let mut parameters: Vec<Value> = Vec::new();
    for part in route.path.split('/') {
        if let Some(name) = part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
            parameters.push(json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}));
        }
    }
    for name in route.query {
        let (name, required) = name.strip_suffix('!').map_or((*name, false), |name| (name, true));
        let kind = match name {
            "limit" | "after" => "integer",
            "preflight" => "boolean",
            _ => "string",
        };
        parameters.push(json!({"name": name, "in": "query", "required": required, "schema": {"type": kind}}));
    }
    let mut operation = Map::new();
    let words = route.path.trim_start_matches("/v1").replace(['{', '}'], "").replace(['/', '-', '.'], "_");
    operation.insert("operationId".into(), json!(format!("{}{words}", route.method.as_str().to_lowercase())));
    operation.insert("summary".into(), json!(route.does));
    if !parameters.is_empty() {
        operation.insert("parameters".into(), json!(parameters));
    }
    if let Some(schema) = (route.takes)(schemas) {
        let media = if route.path.ends_with("/manifest") { "application/x-ndjson" } else { "application/json" };
        operation.insert("requestBody".into(), json!({"required": true, "content": {media: {"schema": schema}}}));
    }
    let (status, shape) = route.gives;
    let mut good = json!({"description": "Done."});
    match (shape)(schemas) {
        Some(schema) => good["content"] = json!({"application/json": {"schema": schema}}),
        None if status == 200 => good["content"] = json!({"application/json": {"schema": {"type": "object"}}}),
        None => {}
    }
    let problem = json!({"$ref": "#/components/responses/Problem"});
    operation.insert("responses".into(), json!({status.to_string(): good, "default": problem}));
    match route.allowed {
        [] => operation.insert("security".into(), json!([])),
        roles => {
            let words: Vec<String> = roles.iter().map(ToString::to_string).collect();
            operation.insert("description".into(), json!(format!("Roles: {}.", words.join(", "))))
        }
    };
    Value::Object(operation)
}

/// The document, as the code has it.
pub fn document() -> Value {
    let mut schemas: Schemas = Vec::new();
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let item = paths.entry(route.path).or_insert_with(|| json!({}));
        item[route.method.as_str().to_lowercase()] = operation(route, &mut schemas);
    }
    let problem = one::<ProblemBody>(&mut schemas);
    let named: Map<String, Value> =
        schemas.into_iter().map(|(name, schema)| (name, serde_json::to_value(schema).unwrap_or_default())).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Longhaul main",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Requests, approval, agents, catalog and events of a Longhaul service.",
            "license": {"name": "Apache-2.0 OR MIT"},
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": named,
            "responses": {"Problem": {
                "description": "It was not done; the document says why.",
                "content": {"application/problem+json": {"schema": problem}},
            }},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `LONGHAUL_WRITE_OPENAPI=1 cargo test --lib openapi` writes it anew.
    #[test]
    fn the_committed_document_is_the_code() {
        let text = format!("{}\n", serde_json::to_string_pretty(&document()).unwrap());
        if std::env::var_os("LONGHAUL_WRITE_OPENAPI").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/control/main_role/openapi.json");
            std::fs::write(path, &text).unwrap();
            return;
        }
        assert!(text == COMMITTED, "run `LONGHAUL_WRITE_OPENAPI=1 cargo test --lib openapi` and commit the file");
    }

    /// Every route is in the served document, and the document has no other.
    #[test]
    fn routes_and_document_are_the_same() {
        let committed: Value = serde_json::from_str(COMMITTED).unwrap();
        let mut described: Vec<(String, String)> = Vec::new();
        for (path, item) in committed["paths"].as_object().unwrap() {
            described.extend(item.as_object().unwrap().keys().map(|method| (path.clone(), method.to_uppercase())));
        }
        let mut routes: Vec<_> = ROUTES.iter().map(|r| (r.path.to_owned(), r.method.to_string())).collect();
        described.sort();
        routes.sort();
        assert_eq!(described, routes);
    }
}
