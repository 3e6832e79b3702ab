//! `adopt m from grid where … by lowest(val)`: one cell's model becomes the model.

use std::collections::BTreeMap;

use prunectl_recipe::plan::Expr;
use serde_json::json;

use crate::error::{Error, Result};
use crate::executor::measure::evaluate;
use crate::executor::state::ModelState;
use crate::executor::{Executor, Outcome};

/// How a cell of a sweep ended.
#[derive(Debug, Clone)]
pub struct EndOfCell {
    /// One label per axis.
    pub labels: Vec<String>,
    /// Its models.
    pub models: BTreeMap<String, ModelState>,
    /// Its metrics by plain name.
    pub metrics: BTreeMap<String, f64>,
    /// Whether an expectation failed in it: such a cell is never adopted.
    pub failed: bool,
}

impl Executor<'_> {
    pub(super) fn adopt(&mut self, model: &str, grid: &str, filter: Option<&Expr>, rank: &Expr, lowest: bool) -> Result<Outcome> {
        let cells = self.cells.get(grid).ok_or_else(|| Error::Internal(format!("sweep `{grid}` is used before it is run")))?;
        let mut best: Option<(f64, &EndOfCell)> = None;
        for cell in cells.iter().filter(|c| !c.failed) {
            let mut known = self.metrics.clone();
            known.extend(cell.metrics.clone());
            if let Some(state) = cell.models.get(model) {
                known.insert("params".to_owned(), state.model.parameter_count() as f64);
            }
            if let Some(filter) = filter
                && evaluate(filter, &known)? == 0.0
            {
                continue;
            }
            let value = evaluate(rank, &known)?;
            let better = |than: f64| if lowest { value < than } else { value > than };
            // The first of equals stays; a value that is no number never wins.
            if !value.is_nan() && best.as_ref().is_none_or(|(b, _)| better(*b)) {
                best = Some((value, cell));
            }
        }
        let Some((value, cell)) = best else {
            return Err(Error::Refused {
                what: format!("no cell of `{grid}` can be adopted: in each an expectation failed, or the condition does not hold"),
                remedy: "loosen the condition, or widen the sweep".to_owned(),
            });
        };
        let (labels, value) = (cell.labels.clone(), value);
        let state = cell.models.get(model).cloned().ok_or_else(|| Error::Internal(format!("a cell of `{grid}` has no model `{model}`")))?;
        self.options.ui.note(format!("adopt {model} from {grid}: {}", labels.join(", ")));
        self.state.models.insert(model.to_owned(), state);
        Ok(Outcome { result: json!({"cell": labels, "value": value}), ..Outcome::default() })
    }
}
