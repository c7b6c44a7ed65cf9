//! `portcullis config`: the schemas, a commented default, and the resolved form.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use super::{Done, print, say};
use crate::policy::Summary;

/// The schema of the main file, for editors.
pub const SCHEMA: &str = include_str!("../../config/schema.json");
/// The schema of a partner's file, for editors.
pub const ORG_SCHEMA: &str = include_str!("../../config/org.schema.json");
/// The shipped example, which holds every setting with its default.
pub const DEFAULT: &str = include_str!("../../config/portcullis.toml");

/// Arguments of `portcullis config`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The JSON Schema, for editors
    Schema {
        /// Of a partner's file in orgs.d instead of the main file
        #[arg(long)]
        org: bool,
    },
    /// A commented configuration with every default
    Default,
    /// The resolved configuration, without secrets
    Show {
        /// The configuration
        #[arg(short, long, default_value = "config/portcullis.toml", value_name = "FILE")]
        config: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Prints what is asked for.
pub fn run(args: &Args) -> Done {
    match &args.what {
        What::Schema { org } => print(if *org { ORG_SCHEMA } else { SCHEMA }),
        What::Default => print(DEFAULT),
        What::Show { config, json } => {
            let summary = Summary::of(&super::loaded(config, *json)?);
            if *json { say(summary.to_json()) } else { print(summary.render()) }
        }
    }
}
