//! `pg-iam-proxy schema`: describes the configuration, for editors and for the reference page.

use std::process::ExitCode;

use clap::Args;

use super::output::print_lines;
use crate::config;

#[derive(Args)]
pub(super) struct Schema {
    /// `markdown` makes docs/configuration.md
    #[arg(long, value_enum, default_value_t, hide = true)]
    format: SchemaFormat,
}

/// Who the description of the keys of the configuration is for.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
pub(super) enum SchemaFormat {
    /// For programs: a JSON Schema.
    #[default]
    Json,
    /// For people: the reference page.
    Markdown,
}

/// Prints the description.
pub(super) fn print(arguments: &Schema) -> ExitCode {
    let text = match arguments.format {
        SchemaFormat::Json => config::schema(),
        SchemaFormat::Markdown => config::reference(),
    };
    print_lines(&[text.trim_end().to_string()]);
    ExitCode::SUCCESS
}
