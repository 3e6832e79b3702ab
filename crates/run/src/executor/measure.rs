//! `eval` and `expect`.

use std::collections::BTreeMap;

use prunectl_prune::{Batches, Inputs, METRICS, Measured, Metric, Needs, Progress, build, paired_lower_bound};
use prunectl_recipe::plan::{DataExpr, Expr, Method, Share, Step, StepKind, Value};
use serde_json::json;

use crate::data::{Ask, Need, describe};
use crate::error::{Error, Result};
use crate::executor::book::{Expected, Recorded, Row, plain_name};
use crate::executor::inputs::{Wanted, asked, batches, questions, rows_at_once, stream};
use crate::executor::{Executor, Outcome};
use crate::files::file_name_of;
use crate::journal::StepDone;
use crate::rundir::CHECKPOINTS;
use crate::session::device_name;

/// Confidence of a paired comparison where the recipe names none.
const CONFIDENCE: Share = Share(950_000_000);
/// How far a mean over examples may be from the metric that it should be.
const SAME_MEAN: f64 = 1e-6;

impl Executor<'_> {
    pub(super) fn eval(
        &mut self,
        step: &Step,
        metric: &Method,
        model: &Value,
        data: Option<&DataExpr>,
        batch: Option<u64>,
        done: Option<&StepDone>,
    ) -> Result<Outcome> {
        let built = build(METRICS, &metric.name, &metric.args)?;
        let (recorded, examples, files, reused) = match done {
            Some(done) => {
                let journal = self.dir.join(crate::journal::JOURNAL);
                let damaged = |e: serde_json::Error| Error::Damaged { path: journal, what: format!("step {}: {e}", done.index) };
                let recorded: Recorded = serde_json::from_value(done.result.clone()).map_err(damaged)?;
                let examples = self.stored_examples(done)?;
                (recorded, examples, done.files.clone(), Some("finished before the interruption".to_owned()))
            }
            None => {
                let measured = self.measure(&*built, metric, model, data, batch)?;
                let files = self.store_examples(&step.name, &measured.per_example)?;
                (self.record(metric, model, data, &measured)?, measured.per_example, files, None)
            }
        };
        self.options.ui.note(format!("{} = {}", step.name, crate::report::figure(recorded.value, super::book::unit_of(&recorded.metric))));
        for warning in recorded.warnings.iter().map(|w| format!("{}: {w}", plain_name(&step.name))) {
            // Of every round and cell it would be the same.
            if !self.book.warnings.contains(&warning) {
                self.warn(warning);
            }
        }
        self.enter(step, metric, recorded.clone(), built.higher_is_better());
        if !examples.is_empty() {
            self.examples.insert(plain_name(&step.name).to_owned(), examples.clone());
            self.examples.insert(step.name.clone(), examples);
        }
        self.dir.write_json(crate::rundir::METRICS, &self.book.metrics())?;
        let mut result = serde_json::to_value(&recorded).map_err(|e| Error::Internal(format!("a metric can't be written as JSON: {e}")))?;
        // For whoever reads the journal: a comparison of criteria must know which way is good.
        result["higher_is_better"] = json!(built.higher_is_better());
        Ok(Outcome { files, result, reused })
    }

    fn enter(&mut self, step: &Step, metric: &Method, recorded: Recorded, higher_is_better: Option<bool>) {
        self.metrics.insert(plain_name(&step.name).to_owned(), recorded.value);
        self.metrics.insert(step.name.clone(), recorded.value);
        let call = self.call(metric.span, &metric.name);
        self.book.rows.push(Row { name: step.name.clone(), call, recorded, higher_is_better });
    }

    fn record(&self, metric: &Method, model: &Value, data: Option<&DataExpr>, measured: &Measured) -> Result<Recorded> {
        let (_, name) = self.state.network(model)?;
        let changed = self.state.model(&name)?.changed;
        Ok(Recorded {
            metric: metric.name.clone(),
            value: measured.value,
            stderr: measured.stderr,
            protocol: measured.protocol.clone(),
            tokens: measured.tokens,
            examples: measured.examples,
            device: device_name(&self.device),
            model: name,
            data: data.map(describe),
            dense: !changed,
            details: measured.details.clone(),
            warnings: measured.warnings.clone(),
        })
    }

    /// Measures; also what `eval` inside `train` calls.
    pub(super) fn measure(
        &self,
        built: &dyn Metric,
        metric: &Method,
        model: &Value,
        data: Option<&DataExpr>,
        batch: Option<u64>,
    ) -> Result<Measured> {
        let (network, name) = self.state.network(model)?;
        let mut state = self.state.model(&name)?.clone();
        state.model = network;
        let missing = || Error::Refused {
            what: format!("`{}` is measured on data, and none is given", metric.name),
            remedy: format!("write `eval {}() of {name} on DATA as NAME`", metric.name),
        };
        let needs = built.needs();
        let other = |name: &str| metric.args.get(name).map(|value| self.state.network(value)).transpose();
        let teacher = match needs {
            Needs::BatchesAndTeacher => other("teacher")?.map(|(network, _)| network),
            Needs::BatchesAndEnds => {
                if let Some((network, _)) = other("a")? {
                    state.model = network;
                }
                other("b")?.map(|(network, _)| network)
            }
            _ => None,
        };
        let mut source = None;
        let mut tokens = None;
        let mut questioned = None;
        let mut about = None;
        match needs {
            Needs::Nothing => {}
            Needs::Stream => tokens = Some(stream(&self.data, &state, data.ok_or_else(missing)?)?),
            Needs::Choices => questioned = Some(questions(&self.data, &state, data.ok_or_else(missing)?, Ask::Choices)?),
            Needs::LastWords => questioned = Some(questions(&self.data, &state, data.ok_or_else(missing)?, Ask::LastWord)?),
            Needs::Answers { length, stride } => about = Some(asked(&self.data, &state, data.ok_or_else(missing)?, length, stride)?),
            Needs::Batches | Needs::BatchesAndTeacher | Needs::BatchesAndEnds => {
                let need = if needs == Needs::BatchesAndTeacher { Need::Optional } else { Need::Required };
                let wanted = Wanted { need, labels: true, batch, backward: false, apart: needs == Needs::Batches };
                source = Some(batches(&self.data, &state, data.ok_or_else(missing)?, wanted)?);
            }
        }
        let progress = self.progress(&metric.name);
        let mut inputs = Inputs {
            model: &state.model,
            batches: source.as_mut().map(|b| b as &mut dyn Batches),
            stream: tokens.as_ref(),
            questions: questioned.as_ref().map(|(q, _)| q.as_slice()),
            asked: about.as_deref(),
            teacher: teacher.as_ref(),
            batch: rows_at_once(&state, batch, metric.args.count("window").ok(), false),
            progress: &progress,
        };
        let measured = built.measure(&mut inputs)?;
        if let Some((_, Some(note))) = &questioned {
            progress.note(note);
        }
        for note in source.iter().flat_map(crate::data::DataBatches::notes) {
            progress.note(&note);
        }
        Ok(measured)
    }

    /// Values of each example, kept only where some `expect` compares pairs.
    fn store_examples(&self, name: &str, values: &[f64]) -> Result<Vec<(String, String)>> {
        if values.is_empty() || !any_paired(&self.plan.steps) {
            return Ok(Vec::new());
        }
        let file = format!("{CHECKPOINTS}/examples-{}.bin", file_name_of(name));
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let hash = self.dir.write(&file, &bytes)?;
        Ok(vec![(file, hash)])
    }

    fn stored_examples(&self, done: &StepDone) -> Result<Vec<f64>> {
        let Some((file, hash)) = done.files.first() else { return Ok(Vec::new()) };
        let bytes = self.dir.read_checked(file, hash)?;
        Ok(bytes.chunks_exact(8).filter_map(|c| c.try_into().ok().map(f64::from_le_bytes)).collect())
    }

    /// Returns the message if the expectation is not met. It is evaluated again in a resumed run: the metrics are the same bits.
    pub(super) fn expect(&mut self, step: &Step, _: Option<&StepDone>) -> Result<(Outcome, Option<String>)> {
        let StepKind::Expect { expr, message, paired, confidence } = &step.kind else {
            return Err(Error::Internal("`expect` was expected".to_owned()));
        };
        let mut detail = self.with_values(expr);
        let passed = if *paired {
            let confidence = confidence.unwrap_or(CONFIDENCE);
            let (passed, bound) = self.paired(expr, confidence)?;
            detail += &format!(
                " (example by example: the left side exceeds the right by {bound:.6} at least, with {}% confidence)",
                confidence.fraction() * 100.0
            );
            passed
        } else {
            self.value(expr)? != 0.0
        };
        let text = self.expectation_text(step);
        let said = message.clone().unwrap_or_else(|| text.clone());
        self.book.expectations.push(Expected { text, line: step.line, passed, detail: detail.clone(), message: message.clone() });
        if passed {
            self.options.ui.detail(format!("line {}: holds: {detail}", step.line));
        } else {
            self.options.ui.warn(format!("line {}: not met: {said} ({detail})", step.line));
        }
        let outcome = Outcome { result: json!({"passed": passed, "detail": detail}), ..Outcome::default() };
        Ok((outcome, (!passed).then(|| format!("{said} ({detail})"))))
    }

    fn expectation_text(&self, step: &Step) -> String {
        let text = self.sources.slice(step.span).split_whitespace().collect::<Vec<_>>().join(" ");
        let text = text.strip_prefix("expect ").unwrap_or(&text);
        text.split(" else ").next().unwrap_or(text).to_owned()
    }

    /// Truth is 1, falsehood 0.
    pub(super) fn value(&self, expr: &Expr) -> Result<f64> {
        evaluate(expr, &self.metrics)
    }

    /// The expression with values in the place of names.
    fn with_values(&self, expr: &Expr) -> String {
        match expr {
            Expr::Const(x) => number(*x),
            Expr::Metric(name, _) => self.metrics.get(name).map_or_else(|| name.clone(), |v| number(*v)),
            Expr::Unary("-", x) => format!("-{}", self.with_values(x)),
            Expr::Unary(op, x) => format!("{op} {}", self.with_values(x)),
            Expr::Binary(op, a, b) => format!("{} {op} {}", self.with_values(a), self.with_values(b)),
        }
    }

    /// `a >= b - c` example by example: whether the mean of left − right is at least 0 with that confidence, and its lower bound.
    fn paired(&self, expr: &Expr, confidence: Share) -> Result<(bool, f64)> {
        let refused = |what: String| Error::Refused {
            what,
            remedy: "compare sums of metrics that are means over the same examples, or leave out `paired`".to_owned(),
        };
        let (left, right) = match expr {
            Expr::Binary(">=" | ">", a, b) => (a, b),
            Expr::Binary("<=" | "<", a, b) => (b, a),
            _ => return Err(refused("a paired expectation must be one comparison".to_owned())),
        };
        let mut n = None;
        names(expr, &mut |name| {
            let values = self.examples.get(name).ok_or_else(|| refused(format!("`{name}` has no value for each example")))?;
            let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
            let value = self.metrics.get(name).copied().unwrap_or(f64::NAN);
            if (mean - value).abs() > SAME_MEAN * value.abs().max(1.0) {
                return Err(refused(format!("`{name}` = {value} is not the mean over its examples, {mean}")));
            }
            match n {
                Some(other) if other != values.len() => {
                    Err(refused(format!("`{name}` has {} examples, another metric has {other}", values.len())))
                }
                _ => {
                    n = Some(values.len());
                    Ok(())
                }
            }
        })?;
        let n = n.ok_or_else(|| refused("a paired expectation compares no metric".to_owned()))?;
        let mut differences = Vec::with_capacity(n);
        for i in 0..n {
            let at: BTreeMap<String, f64> = self.examples.iter().filter_map(|(k, v)| Some((k.clone(), *v.get(i)?))).collect();
            differences.push(evaluate(left, &at)? - evaluate(right, &at)?);
        }
        let bound = paired_lower_bound(&differences, confidence.fraction());
        Ok((bound >= 0.0, bound))
    }
}

/// Evaluates over named values.
pub(super) fn evaluate(expr: &Expr, metrics: &BTreeMap<String, f64>) -> Result<f64> {
    let truth = |b: bool| f64::from(u8::from(b));
    Ok(match expr {
        Expr::Const(x) => *x,
        Expr::Metric(name, _) => {
            *metrics.get(name).ok_or_else(|| Error::Internal(format!("metric `{name}` is used before it is measured")))?
        }
        Expr::Unary("not", x) => truth(evaluate(x, metrics)? == 0.0),
        Expr::Unary(_, x) => -evaluate(x, metrics)?,
        Expr::Binary(op, a, b) => {
            let (a, b) = (evaluate(a, metrics)?, evaluate(b, metrics)?);
            match *op {
                "+" => a + b,
                "-" => a - b,
                "*" => a * b,
                "/" => a / b,
                "<" => truth(a < b),
                "<=" => truth(a <= b),
                ">" => truth(a > b),
                ">=" => truth(a >= b),
                "==" => truth(a == b),
                "!=" => truth(a != b),
                "and" => truth(a != 0.0 && b != 0.0),
                "or" => truth(a != 0.0 || b != 0.0),
                other => return Err(Error::Internal(format!("operator `{other}` in an expectation"))),
            }
        }
    })
}

fn names(expr: &Expr, see: &mut impl FnMut(&str) -> Result<()>) -> Result<()> {
    match expr {
        Expr::Const(_) => Ok(()),
        Expr::Metric(name, _) => see(name),
        Expr::Unary(_, x) => names(x, see),
        Expr::Binary(_, a, b) => {
            names(a, see)?;
            names(b, see)
        }
    }
}

fn any_paired(steps: &[Step]) -> bool {
    steps.iter().any(|s| match &s.kind {
        StepKind::Expect { paired, .. } => *paired,
        StepKind::Repeat { rounds, .. } => rounds.iter().any(|r| any_paired(r)),
        StepKind::Sweep { cells, .. } => cells.iter().any(|c| any_paired(&c.steps)),
        _ => false,
    })
}

/// Six digits are enough to see why.
fn number(x: f64) -> String {
    let text = format!("{x:.6}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prunectl_recipe::plan::Span;

    fn m(name: &str) -> Box<Expr> {
        Box::new(Expr::Metric(name.into(), Span::default()))
    }

    #[test]
    fn expressions_evaluate() {
        let metrics: BTreeMap<String, f64> = [("after".to_owned(), 0.861), ("before".to_owned(), 0.867)].into();
        let margin = Box::new(Expr::Binary("-", m("before"), Box::new(Expr::Const(0.01))));
        let holds = Expr::Binary(">=", m("after"), margin);
        assert_eq!(evaluate(&holds, &metrics).unwrap(), 1.0);
        assert_eq!(evaluate(&Expr::Unary("not", Box::new(holds)), &metrics).unwrap(), 0.0);
        assert!(evaluate(&m("other"), &metrics).is_err());
        // A perplexity that is no number meets no bound.
        let nan: BTreeMap<String, f64> = [("p".to_owned(), f64::NAN)].into();
        assert_eq!(evaluate(&Expr::Binary("<=", m("p"), Box::new(Expr::Const(3.0))), &nan).unwrap(), 0.0);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(number(0.01), "0.01");
        assert_eq!(number(2.0), "2");
        assert_eq!(number(f64::NAN), "NaN");
    }
}
