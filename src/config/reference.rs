//! What does the reference page of the configuration, `docs/configuration.md`, say? It is made from
//! the table of keys, so that it has every key and no other.

use super::EngineName;
use super::keys::{File, URL_PARAMETERS};
use super::spec::{Form, KeySpec, Omitted, Table, ValueType};
use super::tables::Keys;

/// What stands before the tables of keys.
const INTRODUCTION: &str = include_str!("reference.md");

/// The page, in Markdown.
pub fn reference() -> String {
    let mut page = INTRODUCTION.to_string();
    section(&mut page, &File::TABLE);
    page.push_str(
        "\n## Target URLs\n\nA target URL on the command line takes every key of `[target.NAME]` \
         as a parameter (a list with commas), and these:\n\n| parameter | meaning |\n|---|---|\n",
    );
    for (name, meaning) in URL_PARAMETERS {
        page.push_str(&format!("| `{name}` | {meaning} |\n"));
    }
    page
}

/// A table with its heading, then those within it.
fn section(page: &mut String, table: &Table) {
    let title = match table.header {
        Some(header) => format!("`{header}`"),
        None => "Top of the file".to_string(),
    };
    page.push_str(&format!("\n## {title}\n\n{}\n\n", table.about.trim()));
    let by_engine = table
        .keys
        .iter()
        .any(|key| key.engines.len() < EngineName::ALL.len());
    let (engines, line) = if by_engine {
        (" engines |", "---|")
    } else {
        ("", "")
    };
    page.push_str(&format!(
        "| key | type |{engines} meaning | when omitted |\n|---|---|{line}---|---|\n"
    ));
    for key in table.keys {
        let engines = by_engine.then(|| format!(" {} |", engines_of(key)));
        page.push_str(&format!(
            "| `{}` | {} |{} {} | {} |\n",
            key.name,
            type_of(key),
            engines.unwrap_or_default(),
            key.meaning.trim(),
            omitted(key),
        ));
    }
    for key in table.keys {
        if let ValueType::Table(inner) | ValueType::Tables(inner) | ValueType::Named(inner) =
            key.value_type
        {
            section(page, inner);
        }
    }
}

fn type_of(key: &KeySpec) -> String {
    match &key.value_type {
        ValueType::Text => match key.form {
            Form::Plain | Form::Secret => "string".to_string(),
            Form::Path => "path".to_string(),
            Form::Url => "URL".to_string(),
        },
        ValueType::Time => "time".to_string(),
        ValueType::Flag => "boolean".to_string(),
        ValueType::Texts => "list of strings".to_string(),
        ValueType::Words(words) => {
            let words: Vec<_> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
            words.join(", ")
        }
        ValueType::Number => match &key.bounds {
            Some(bounds) => format!("{} to {}", bounds.least(), bounds.range.end()),
            None => "integer".to_string(),
        },
        ValueType::Table(_) => "table".to_string(),
        ValueType::Tables(_) => "tables".to_string(),
        ValueType::Named(_) => "tables by name".to_string(),
    }
}

fn engines_of(key: &KeySpec) -> String {
    if key.engines.len() == EngineName::ALL.len() {
        return "all".to_string();
    }
    let names: Vec<_> = key.engines.iter().map(|engine| engine.as_str()).collect();
    names.join(", ")
}

fn omitted(key: &KeySpec) -> String {
    match key.default {
        Omitted::Required => "required".to_string(),
        Omitted::Is(value) => format!("`{value}`"),
        Omitted::Means(meaning) => meaning.to_string(),
    }
}
