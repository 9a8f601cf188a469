//! What does an editor need to know to complete and check a configuration? A JSON Schema of it,
//! made from the table of keys.
//!
//! Source: <https://json-schema.org/draft/2020-12/json-schema-core>.

use serde_json::{Map, Value, json};

use super::EngineName;
use super::keys::File;
use super::spec::{Form, KeySpec, Omitted, Table, ValueType};
use super::tables::Keys;

/// The JSON Schema of the configuration file, with a final newline.
pub fn schema() -> String {
    let mut schema = object([
        (
            "$schema",
            json!("https://json-schema.org/draft/2020-12/schema"),
        ),
        ("title", json!("Configuration of pg-iam-proxy")),
    ]);
    schema.extend(table(&File::TABLE));
    format!("{:#}\n", Value::Object(schema))
}

fn table(table: &Table) -> Map<String, Value> {
    let mut schema = Map::new();
    schema.insert("type".to_string(), json!("object"));
    schema.insert("description".to_string(), json!(table.about.trim()));
    let properties: Map<_, _> = table
        .keys
        .iter()
        .map(|spec| (spec.name.to_string(), key(spec)))
        .collect();
    schema.insert("properties".to_string(), properties.into());
    schema.insert("additionalProperties".to_string(), json!(false));
    let required: Vec<_> = table
        .keys
        .iter()
        .filter(|key| matches!(key.default, Omitted::Required))
        .map(|key| key.name)
        .collect();
    if !required.is_empty() {
        schema.insert("required".to_string(), json!(required));
    }
    let foreign = foreign_keys(table);
    if !foreign.is_empty() {
        schema.insert("allOf".to_string(), foreign.into());
    }
    schema
}

/// For each engine, that the keys of the others are refused.
fn foreign_keys(table: &Table) -> Vec<Value> {
    let of_engine = |engine: EngineName| {
        let foreign: Map<_, _> = table
            .keys
            .iter()
            .filter(|key| !key.engines.contains(&engine))
            .map(|key| (key.name.to_string(), json!(false)))
            .collect();
        let is_engine = json!({
            "properties": {"engine": {"const": engine.as_str()}},
            "required": ["engine"],
        });
        (!foreign.is_empty()).then(|| json!({"if": is_engine, "then": {"properties": foreign}}))
    };
    EngineName::ALL.into_iter().filter_map(of_engine).collect()
}

fn key(spec: &KeySpec) -> Value {
    let mut schema = match &spec.value_type {
        ValueType::Text | ValueType::Time => object([("type", json!("string"))]),
        ValueType::Flag => object([("type", json!("boolean"))]),
        ValueType::Texts => list(json!({"type": "string"})),
        ValueType::Words(words) => object([("enum", json!(words))]),
        ValueType::Number => number(spec),
        ValueType::Table(inner) => table(inner),
        ValueType::Tables(inner) => list(table(inner).into()),
        ValueType::Named(inner) => object([
            ("type", json!("object")),
            ("additionalProperties", table(inner).into()),
        ]),
    };
    let mut description = spec.meaning.trim().to_string();
    match &spec.default {
        Omitted::Required => {}
        Omitted::Is(value) => {
            let value = serde_json::from_str(value).expect("defaults are JSON: a test reads them");
            schema.insert("default".to_string(), value);
        }
        Omitted::Means(meaning) => {
            description.push_str(&format!(" When omitted: {meaning}."));
        }
    }
    if spec.form == Form::Secret {
        schema.insert("writeOnly".to_string(), json!(true));
    }
    schema.insert("description".to_string(), description.into());
    schema.into()
}

fn list(items: Value) -> Map<String, Value> {
    object([("type", json!("array")), ("items", items)])
}

fn number(spec: &KeySpec) -> Map<String, Value> {
    let mut schema = object([("type", json!("integer"))]);
    if let Some(bounds) = &spec.bounds {
        schema.insert("minimum".to_string(), json!(bounds.least()));
        schema.insert("maximum".to_string(), json!(bounds.range.end()));
    }
    schema
}

fn object<const N: usize>(members: [(&str, Value); N]) -> Map<String, Value> {
    members
        .into_iter()
        .map(|(name, value)| (name.to_string(), value))
        .collect()
}
