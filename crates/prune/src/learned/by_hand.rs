//! Every learner's gradients on two neurons, by hand.
//!
//! Neuron j has row j of `up` = (2; 3) and column j of `down` = (1, −1); ∂L/∂up = (½; 1), ∂L/∂down = (4, 2). Σ g·w over a group is
//! ½·2 + 4·1 = 5 and 1·3 + 2·(−1) = 1; where its output is read only, the gradient by a gate on it, 4 and −2.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use prunectl_model::{LayerDims, Slice};
use prunectl_recipe::catalogue::SiteKind;
use prunectl_recipe::plan::{Amount, Schedule, Scope, Unit};

use super::gum::{Follow, Gum};
use super::hard_concrete::HardConcrete;
use super::lobster::Lobster;
use super::psp::Psp;
use super::scores::{Bar, Granularity, ScoreLearner};
use super::serene::{Bound, Serene};
use super::slimming::Slimming;
use super::{Backward, Layout, Learned, Learner, Moment, Shrink, Values};
use crate::decision::Removed;
use crate::schedule::Clock;
use crate::selection::{Request, Shape};
use crate::site::{Key, Sites};

const KEY: Key = Key { kind: SiteKind::Neurons, layer: Some(0) };

fn name() -> String {
    KEY.to_string()
}

fn constant(value: f64) -> Schedule {
    Schedule::Hold { value, length: None }
}

fn layout() -> Layout {
    let slice = |slot: &str, dim, start| Slice { slot: slot.into(), dim, start, len: 1 };
    Layout {
        shapes: [("up".to_owned(), (2, 1)), ("down".to_owned(), (1, 2))].into(),
        units: [(KEY, (0..2).map(|j| vec![slice("up", 0, j), slice("down", 1, j)]).collect())].into(),
        ..Layout::default()
    }
}

fn learned(params: &[f32]) -> Learned {
    Learned { params: [(name(), params.to_vec())].into(), ..Learned::default() }
}

/// Calls with the backward pass of the title, at a moment when `removed` of what goes in the end, a half, has gone.
fn at<T>(removed: f64, call: impl FnOnce(&Backward<'_>, &Moment<'_>) -> T) -> T {
    let gradients = Values::from([("up".to_owned(), vec![0.5, 1.0]), ("down".to_owned(), vec![4.0, 2.0])]);
    let weights = BTreeMap::from([("up", [2f32, 3.0].as_slice()), ("down", [1f32, -1.0].as_slice())]);
    let clock = Clock::steps(1);
    let moment = Moment { clock: &clock, step: 0, removed, finally: 0.5, l1: 0.0, noise: 0 };
    call(&Backward { gradients: &gradients, weights: &weights }, &moment)
}

fn gradients(learner: &dyn Learner, learned: &Learned, removed: f64) -> (Vec<f32>, f64) {
    let (mut values, penalty) = at(removed, |backward, moment| learner.gradients(&layout(), learned, backward, moment).unwrap());
    (values.remove(&name()).unwrap(), penalty)
}

fn near(a: &[f32], b: &[f64]) {
    assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (f64::from(*a) - b).abs() <= 1e-6 * b.abs().max(1.0)), "{a:?} {b:?}");
}

/// At S = 0 a penalty of λ on mean σ(S) adds λ·¼/2 to each, and costs λ/2.
#[test]
fn movement() {
    let of = |penalty| ScoreLearner {
        name: "movement",
        lr: constant(1.0),
        granularity: Granularity::Unit(SiteKind::Neurons),
        bar: Bar::Hard,
        penalty: constant(penalty),
    };
    assert_eq!(gradients(&of(0.0), &learned(&[0.0, 0.0]), 0.0), (vec![5.0, 1.0], 0.0));
    assert_eq!(gradients(&of(0.8), &learned(&[0.0, 0.0]), 0.0), (vec![5.1, 1.1], 0.4));
}

/// λ·sign(γ) on top of the gate's gradient; Σ|γ| costs λ·1½.
#[test]
fn slimming() {
    let (g, penalty) = gradients(&Slimming { l1: constant(0.25) }, &learned(&[1.0, -0.5]), 0.0);
    assert_eq!((g, penalty), (vec![4.25, -2.25], 0.375));
}

/// The same with α, or λ·α of ½·α²; below ε a structure is off.
#[test]
fn psp() {
    let of = |squared| Psp { l1: constant(0.25), threshold: 0.75, squared };
    assert_eq!(gradients(&of(false), &learned(&[1.0, -0.5]), 0.0), (vec![4.25, -2.25], 0.375));
    assert_eq!(gradients(&of(true), &learned(&[1.0, -0.5]), 0.0), (vec![4.25, -2.125], 0.15625));
    let mut sites = Sites::default();
    sites.add(KEY, 0..2);
    let (removed, amount) = (Removed::default(), Amount::Units { n: 1, unit: Unit::Neurons });
    let request = Request::plain(&sites, &amount, Scope::Global, &removed);
    let shape = Shape { dims: vec![LayerDims { ffn: 2, ..LayerDims::default() }], ..Shape::default() };
    let decide = |alpha: &[f32]| {
        let decision = at(0.0, |_, moment| of(false).decide(&layout(), &learned(alpha), &request, &shape, moment, false).unwrap());
        decision.sites[&KEY].clone()
    };
    assert_eq!(decide(&[1.0, -0.5]), [0]);
    assert_eq!(decide(&[-1.0, 0.75]), [0, 1]);
}

/// A gate with log α = β·ln(0.1/1.1) is open with probability ½, and its deterministic value is σ(−ln 11)·1.2 − 0.1 = 0. Two of them keep
/// half of what is there: with an eighth asked for, 3/8 too little stays; the multipliers ascend by that and its square.
#[test]
fn hard_concrete() {
    let method = HardConcrete { lr: constant(0.1), target: None, temperature: 2.0 / 3.0 };
    let edge = (2.0 / 3.0 * (0.1f64 / 1.1).ln()) as f32;
    let mut state = learned(&[edge, edge]);
    state.params.insert("multipliers".into(), vec![0.0, 0.0]);
    let (found, gates) = at(0.125, |backward, moment| {
        let found = method.gradients(&layout(), &state, backward, moment).unwrap();
        (found.0, method.gates(&layout(), &state, moment, false).unwrap())
    });
    near(&found["multipliers"], &[-0.375, -0.140625]);
    near(&gates[&KEY], &[0.0, 0.0]);
}

/// w loses λ·relu(1 − |g|): ½·λ where g = ½, nothing where |g| ≥ 1.
#[test]
fn lobster() {
    let method = Lobster { lambda: constant(0.5), tolerance: 0.0 };
    let factors = at(0.0, |backward, moment| method.factors(&layout(), backward, moment).unwrap());
    assert_eq!((factors["up"].as_slice(), factors["down"].as_slice()), ([0.75f32, 1.0].as_slice(), [1f32, 1.0].as_slice()));
}

/// What a neuron reads loses λ·relu(1 − S), S = ½ and 2.
#[test]
fn serene() {
    let method = Serene { lambda: constant(0.5), bound: Bound::Lower, alpha: 1.0, tolerance: 0.0 };
    let (felt, weights, clock) = (Values::from([(name(), vec![0.5, 2.0])]), BTreeMap::new(), Clock::steps(1));
    let moment = Moment { clock: &clock, step: 0, removed: 0.0, finally: 0.5, l1: 0.0, noise: 0 };
    let factors = method.factors(&layout(), &Backward { gradients: &felt, weights: &weights }, &moment).unwrap();
    assert_eq!(factors["up"], [0.75, 1.0]);
    assert!(!factors.contains_key("down"));
}

/// h₁ = (1, 0) and h₂ = (1, 1) over two tokens: a cosine of √½. With λ_u = 2 and half of both kept, the multiplier is 1 + 2·√½/(2·½). At
/// S = 0 and λ = ½, when all that goes has gone, each gradient rises by ½·¼/2 of it.
#[test]
fn gum() {
    let method = Gum { lr: constant(1.0), uniqueness: 2.0, penalty: constant(0.5), follow: Follow::Removed, memory: 1.0 };
    let mut state = learned(&[0.0, 0.0]);
    let h = Tensor::new(&[[1f32, 1.0], [0.0, 1.0]], &Device::Cpu).unwrap();
    at(0.5, |_, moment| method.observe(&layout(), &mut state, &BTreeMap::from([(0, h)]), moment).unwrap());
    let multiplier = 1.0 + 2.0 * 0.5f64.sqrt();
    let (g, penalty) = gradients(&method, &state, 0.5);
    near(&g, &[5.0 + multiplier / 16.0, 1.0 + multiplier / 16.0]);
    assert!((penalty - 0.25 * multiplier).abs() < 1e-6);
    // Half way λ is half as large.
    near(&gradients(&method, &state, 0.25).0, &[5.0 + multiplier / 32.0, 1.0 + multiplier / 32.0]);
}
