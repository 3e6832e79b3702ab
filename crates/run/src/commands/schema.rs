//! `prunectl schema`: the catalogue for programs.

use clap::Args;
use prunectl_recipe::catalogue::{Spec, Ty};
use serde_json::{Value, json};

use crate::cli::DONE;
use crate::commands::print_json;
use crate::compile::catalogue;
use crate::error::Result;

/// Version of the schema's format.
const FORMAT: u32 = 1;

/// Arguments of `schema`.
#[derive(Debug, Args)]
pub struct Schema {}

impl Schema {
    /// Prints every method with its parameters as JSON.
    pub fn run(&self) -> Result<u8> {
        let methods: Vec<Value> = catalogue().iter().map(method).collect();
        let codes: Vec<Value> = prunectl_recipe::explain::PAGES.iter().map(|p| json!({"code": p.code, "title": p.title})).collect();
        print_json(&json!({"format": FORMAT, "edition": 2026, "methods": methods, "codes": codes}))?;
        DONE
    }
}

fn method(spec: &Spec) -> Value {
    json!({
        "name": spec.name,
        "kind": format!("{:?}", spec.kind).to_lowercase(),
        "source": spec.source,
        "doc": spec.doc,
        "sites": spec.sites.iter().map(|s| format!("{s:?}").to_lowercase()).collect::<Vec<_>>(),
        "sequential": spec.sequential,
        "learns": spec.learns,
        "turns": spec.turns,
        "needs_data": spec.needs_data,
        "params": spec.params.iter().map(|p| json!({
            "name": p.name,
            "type": type_name(&p.ty),
            "one_of": if let Ty::OneOf(words) = p.ty { json!(words) } else { Value::Null },
            "default": p.default,
            "required": p.default.is_none() && !p.optional,
            "range": p.range.map(|(a, b)| [a, b]),
            "doc": p.doc,
        })).collect::<Vec<_>>(),
    })
}

/// A type in the words of the language.
pub fn type_name(ty: &Ty) -> String {
    match ty {
        Ty::OneOf(_) => "word".to_owned(),
        Ty::List(of) => format!("list of {}", type_name(of)),
        Ty::ScheduledPercent => "percent or schedule".to_owned(),
        Ty::Scheduled => "number or schedule".to_owned(),
        other => format!("{other:?}").to_lowercase(),
    }
}
