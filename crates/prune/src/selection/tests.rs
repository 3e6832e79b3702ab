use super::*;
use candle_core::{Device, Tensor};

const PERCENTS: [i64; 8] = [0, 7, 10, 29, 40, 50, 93, 100];

fn shape(layers: usize, heads: usize, groups: usize, ffn: usize) -> Shape {
    let d = LayerDims { q_heads: heads, kv_heads: groups, head_dim: 4, ffn, ..LayerDims::default() };
    Shape { dims: vec![d; layers], hidden: 16, ..Shape::default() }
}

fn percent(p: i64) -> Share {
    Share(p * 10_000_000)
}

fn share(p: i64) -> Amount {
    Amount::Share { share: percent(p), each: true }
}

fn all(kind: SiteKind, shape: &Shape) -> Sites {
    let mut sites = Sites::default();
    for layer in 0..shape.dims.len() {
        let key = Key::of(kind, layer);
        sites.add(key, 0..shape.count(key));
    }
    sites
}

/// Few distinct values, so that ties abound.
fn coarse(sites: &Sites, shape: &Shape, seed: u64) -> Scores {
    let mut scores = Scores::default();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    for key in sites.units.keys() {
        let draw = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % 5) as f32 - 2.0
        };
        scores.sites.insert(*key, (0..shape.count(*key)).map(draw).collect());
    }
    scores
}

struct Case {
    sites: Sites,
    amount: Amount,
    scope: Scope,
    protect: Sites,
    removed: Removed,
    at_least: Option<AtLeast>,
    align: Option<usize>,
    step: Option<Share>,
}

impl Case {
    fn new(sites: Sites, amount: Amount) -> Self {
        Self {
            sites,
            amount,
            scope: Scope::Global,
            protect: Sites::default(),
            removed: Removed::default(),
            at_least: None,
            align: None,
            step: None,
        }
    }

    fn select(&self, scores: &Scores, shape: &Shape) -> Result<Decision> {
        let request = Request {
            sites: &self.sites,
            amount: &self.amount,
            scope: self.scope,
            at_least: self.at_least,
            align: self.align,
            protect: &self.protect,
            removed: &self.removed,
            step: self.step,
        };
        select(scores, &request, shape)
    }
}

fn kept(d: &Decision) -> usize {
    d.sites.values().map(Vec::len).sum()
}

#[test]
fn a_share_removes_its_decimal_floor_lowest_first() {
    for seed in 0..20 {
        let shape = shape(3, 7, 7, 5);
        let sites = all(SiteKind::Heads, &shape);
        let scores = coarse(&sites, &shape, seed);
        for p in PERCENTS {
            let d = Case::new(sites.clone(), share(p)).select(&scores, &shape).unwrap();
            assert_eq!(21 - kept(&d), (21 * p as usize) / 100);
            // By hand: sort by (score, layer, index), take the first.
            let mut order: Vec<(f32, usize, usize)> = Vec::new();
            for (key, s) in &scores.sites {
                order.extend(s.iter().enumerate().map(|(i, s)| (*s, key.layer.unwrap(), i)));
            }
            order.sort_by(|a, b| a.partial_cmp(b).unwrap());
            for (n, (_, layer, unit)) in order.iter().enumerate() {
                let stays = d.sites[&Key::of(SiteKind::Heads, *layer)].contains(unit);
                assert_eq!(stays, n >= (21 * p as usize) / 100, "seed {seed} {p}% unit {layer}.{unit}");
            }
        }
    }
}

#[test]
fn twenty_nine_percent_of_a_hundred_is_29() {
    // 0.29 · 100 is 28.999… in binary.
    let shape = shape(1, 100, 100, 1);
    let sites = all(SiteKind::Heads, &shape);
    let d = Case::new(sites.clone(), share(29)).select(&coarse(&sites, &shape, 1), &shape).unwrap();
    assert_eq!(kept(&d), 71);
}

#[test]
fn selecting_again_removes_nothing_more() {
    let shape = shape(3, 6, 6, 9);
    for kind in [SiteKind::Heads, SiteKind::Neurons] {
        let sites = all(kind, &shape);
        for seed in 0..10 {
            let scores = coarse(&sites, &shape, seed);
            for scope in [Scope::Global, Scope::Layer] {
                let mut case = Case::new(sites.clone(), share(40));
                case.scope = scope;
                let first = case.select(&scores, &shape).unwrap();
                case.removed.add(&first, &shape.dims, shape.hidden).unwrap();
                assert_eq!(case.select(&scores, &shape).unwrap().sites, first.sites);
                case.amount = Amount::OfRemaining { share: percent(100), each: true };
                assert_eq!(kept(&case.select(&scores, &shape).unwrap()), 0);
            }
        }
    }
}

#[test]
fn small_steps_of_the_same_scores_come_to_the_same() {
    let shape = shape(4, 8, 8, 3);
    let sites = all(SiteKind::Heads, &shape);
    for seed in 0..10 {
        let scores = coarse(&sites, &shape, seed);
        let at_once = Case::new(sites.clone(), share(60)).select(&scores, &shape).unwrap();
        let mut case = Case::new(sites.clone(), share(60));
        case.step = Some(percent(10));
        let mut last = None;
        for round in 0.. {
            let d = case.select(&scores, &shape).unwrap();
            if last.as_ref() == Some(&d.sites) {
                assert_eq!(round, 7, "19 of 32 units in steps of 3, then nothing");
                break;
            }
            case.removed.add(&d, &shape.dims, shape.hidden).unwrap();
            last = Some(d.sites);
        }
        assert_eq!(last.unwrap(), at_once.sites);
    }
}

#[test]
fn grouped_heads_leave_equally_from_each_group() {
    for (heads, groups) in [(8, 4), (8, 2), (6, 3), (4, 1)] {
        let shape = shape(3, heads, groups, 4);
        let sites = all(SiteKind::Heads, &shape);
        for seed in 0..10 {
            let scores = coarse(&sites, &shape, seed);
            for p in PERCENTS {
                for scope in [Scope::Global, Scope::Layer] {
                    let mut case = Case::new(sites.clone(), share(p));
                    case.scope = scope;
                    let d = case.select(&scores, &shape).unwrap();
                    let size = heads / groups;
                    for kept in d.sites.values() {
                        let per: Vec<usize> = (0..groups).map(|g| kept.iter().filter(|h| **h / size == g).count()).collect();
                        assert!(per.iter().all(|n| *n == per[0]), "{per:?}");
                    }
                    let base = if scope == Scope::Global { 3 * heads } else { heads };
                    let rounded = percent(p).of(base) / groups * groups;
                    let times = if scope == Scope::Global { 1 } else { 3 };
                    assert_eq!(3 * heads - kept(&d), rounded * times);
                }
            }
        }
    }
}

#[test]
fn experts_lose_neurons_evenly() {
    let mut shape = shape(3, 4, 4, 10);
    for (d, experts) in shape.dims.iter_mut().zip([4, 2, 4]) {
        d.experts = experts;
    }
    let sites = all(SiteKind::Neurons, &shape);
    let experts = |key: &Key| shape.dims[key.layer.unwrap()].experts;
    let widths =
        |key: &Key, kept: &[usize]| -> Vec<usize> { (0..experts(key)).map(|e| kept.iter().filter(|n| **n / 10 == e).count()).collect() };
    for seed in 0..10 {
        let scores = coarse(&sites, &shape, seed);
        for p in PERCENTS {
            for scope in [Scope::Global, Scope::Layer] {
                let mut case = Case::new(sites.clone(), share(p));
                case.scope = scope;
                let d = case.select(&scores, &shape).unwrap();
                for (key, kept) in &d.sites {
                    let width = widths(key, kept);
                    assert!(width.iter().all(|n| *n == width[0]), "{key} {width:?}");
                    // Within an expert the lowest have gone.
                    for e in 0..experts(key) {
                        let score = |n: usize| scores.sites[key][n];
                        let (stay, go): (Vec<usize>, Vec<usize>) = (e * 10..(e + 1) * 10).partition(|n| kept.contains(n));
                        let least = stay.iter().map(|n| score(*n)).fold(f32::INFINITY, f32::min);
                        assert!(go.iter().all(|n| score(*n) <= least), "{key} expert {e}");
                    }
                    if scope == Scope::Layer {
                        let total = 10 * experts(key);
                        assert_eq!(total - kept.len(), percent(p).of(total) / experts(key) * experts(key));
                    }
                }
                if scope == Scope::Global {
                    let (gone, asked) = (100 - kept(&d), percent(p).of(100));
                    assert!(gone <= asked && asked < gone + 4, "{gone} of {asked} neurons, two or four at a time");
                }
            }
        }
        // `align` is of the width of an expert, not of all together.
        let mut case = Case::new(sites.clone(), share(45));
        case.align = Some(4);
        let aligned = case.select(&scores, &shape).unwrap();
        for (key, kept) in &aligned.sites {
            let width = widths(key, kept)[0];
            assert!(width % 4 == 0 || width == 10, "{key}: {width}");
        }
        // An expert that is gone takes no part.
        let mut case = Case::new(sites.clone(), share(60));
        let key = Key::of(SiteKind::Experts, 0);
        let gone = Decision { sites: [(key, vec![0, 2, 3])].into(), ..Decision::default() };
        case.removed.add(&gone, &shape.dims, shape.hidden).unwrap();
        let d = case.select(&scores, &shape).unwrap();
        let width = widths(&Key::of(SiteKind::Neurons, 0), &d.sites[&Key::of(SiteKind::Neurons, 0)]);
        assert!(width[1] == 0 && width[0] == width[2] && width[2] == width[3], "{width:?}");
    }
}

#[test]
fn protected_units_count_and_stay() {
    let shape = shape(2, 10, 10, 1);
    let sites = all(SiteKind::Heads, &shape);
    let scores = coarse(&sites, &shape, 3);
    let mut case = Case::new(sites.clone(), share(50));
    case.protect.add(Key::of(SiteKind::Heads, 0), 0..10);
    let d = case.select(&scores, &shape).unwrap();
    assert_eq!(d.sites[&Key::of(SiteKind::Heads, 0)].len(), 10);
    assert_eq!(d.sites[&Key::of(SiteKind::Heads, 1)].len(), 0);
    case.amount = share(55);
    let e = case.select(&scores, &shape).unwrap_err();
    assert!(matches!(e, PruneError::CannotRemove { wanted: 11, possible: 10, .. }), "{e}");
}

#[test]
fn at_least_holds_in_each_layer_or_is_an_error() {
    let shape = shape(2, 10, 10, 1);
    let sites = all(SiteKind::Heads, &shape);
    let mut scores = Scores::default();
    scores.sites.insert(Key::of(SiteKind::Heads, 0), vec![0.0; 10]);
    scores.sites.insert(Key::of(SiteKind::Heads, 1), vec![1.0; 10]);
    let mut case = Case::new(sites, share(50));
    case.at_least = Some(AtLeast::Units(1));
    let d = case.select(&scores, &shape).unwrap();
    assert_eq!(d.sites[&Key::of(SiteKind::Heads, 0)], [9]);
    assert_eq!(d.sites[&Key::of(SiteKind::Heads, 1)], [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    // A quarter of 10, rounded up, is 3.
    case.at_least = Some(AtLeast::Share(percent(25)));
    assert_eq!(case.select(&scores, &shape).unwrap().sites[&Key::of(SiteKind::Heads, 0)].len(), 3);
    case.amount = share(80);
    let e = case.select(&scores, &shape).unwrap_err();
    assert!(matches!(e, PruneError::CannotRemove { wanted: 16, possible: 14, .. }), "{e}");
    case.at_least = Some(AtLeast::Units(11));
    assert!(matches!(case.select(&scores, &shape).unwrap_err(), PruneError::AtLeast { wanted: 11, .. }));
}

#[test]
fn align_rounds_kept_counts_up() {
    let shape = shape(3, 8, 8, 100);
    let sites = all(SiteKind::Neurons, &shape);
    for seed in 0..10 {
        let scores = coarse(&sites, &shape, seed);
        let mut case = Case::new(sites.clone(), share(45));
        let free = case.select(&scores, &shape).unwrap();
        case.align = Some(16);
        let d = case.select(&scores, &shape).unwrap();
        for (key, kept) in &d.sites {
            let plain = &free.sites[key];
            assert_eq!(kept.len(), plain.len().div_ceil(16).saturating_mul(16).min(100));
            assert!(plain.iter().all(|u| kept.contains(u)), "what stayed without `align` stays with it");
        }
    }
}

#[test]
fn amounts_by_layer() {
    let shape = shape(3, 10, 10, 1);
    let sites = all(SiteKind::Heads, &shape);
    let scores = coarse(&sites, &shape, 5);
    let counts = |amount: Amount| -> Vec<usize> {
        let d = Case::new(sites.clone(), amount).select(&scores, &shape).unwrap();
        d.sites.values().map(|k| 10 - k.len()).collect()
    };
    assert_eq!(counts(Amount::AcrossLayers { from: percent(10), to: percent(50) }), [1, 3, 5]);
    assert_eq!(counts(Amount::PerLayer(vec![share(0), share(20), Amount::Units { n: 7, unit: Unit::Heads }])), [0, 2, 7]);
    let e = Case::new(sites.clone(), Amount::PerLayer(vec![share(0)])).select(&scores, &shape).unwrap_err();
    assert!(matches!(e, PruneError::Amount { .. }));
    assert_eq!(counts(Amount::Units { n: 12, unit: Unit::Heads }).iter().sum::<usize>(), 12);
}

#[test]
fn half_of_the_parameters_of_uneven_layers() {
    let mut shape = shape(2, 4, 4, 10);
    shape.cost.insert(Key::of(SiteKind::Heads, 0), vec![100]);
    shape.cost.insert(Key::of(SiteKind::Heads, 1), vec![10]);
    let sites = all(SiteKind::Heads, &shape);
    let mut scores = Scores::default();
    scores.sites.insert(Key::of(SiteKind::Heads, 0), vec![1.0, 2.0, 3.0, 4.0]);
    scores.sites.insert(Key::of(SiteKind::Heads, 1), vec![5.0, 6.0, 7.0, 8.0]);
    // 220 of 440 may go: two of 100, then two of 10.
    let d = Case::new(sites, Amount::OfParams(percent(50))).select(&scores, &shape).unwrap();
    assert_eq!(d.sites[&Key::of(SiteKind::Heads, 0)], [2, 3]);
    assert_eq!(d.sites[&Key::of(SiteKind::Heads, 1)], [2, 3]);
}

#[test]
fn kinds_are_ranked_on_their_own_and_a_bare_share_of_two_is_refused() {
    let shape = shape(2, 4, 4, 8);
    let mut sites = all(SiteKind::Heads, &shape);
    sites.units.extend(all(SiteKind::Neurons, &shape).units);
    let scores = coarse(&sites, &shape, 1);
    let d = Case::new(sites.clone(), share(50)).select(&scores, &shape).unwrap();
    let of = |kind| d.sites.iter().filter(|(k, _)| k.kind == kind).map(|(_, v)| v.len()).sum::<usize>();
    assert_eq!((of(SiteKind::Heads), of(SiteKind::Neurons)), (4, 8));
    let bare = Amount::Share { share: percent(50), each: false };
    assert!(matches!(Case::new(sites, bare).select(&scores, &shape), Err(PruneError::Amount { .. })));
}

#[test]
fn scores_that_do_not_fit_are_refused() {
    let shape = shape(1, 4, 4, 8);
    let sites = all(SiteKind::Heads, &shape);
    let mut scores = Scores::default();
    assert!(matches!(Case::new(sites.clone(), share(50)).select(&scores, &shape), Err(PruneError::NoScores { .. })));
    scores.sites.insert(Key::of(SiteKind::Heads, 0), vec![0.0; 5]);
    assert!(matches!(Case::new(sites.clone(), share(50)).select(&scores, &shape), Err(PruneError::ScoreShape { .. })));
    let mut case = Case::new(sites, share(50));
    case.sites.add(Key::of(SiteKind::Heads, 0), [9]);
    scores.sites.insert(Key::of(SiteKind::Heads, 0), vec![0.0; 4]);
    assert!(matches!(case.select(&scores, &shape), Err(PruneError::NoSuchUnit { unit: 9, .. })));
    assert!(matches!(
        Scores { sites: [(Key::of(SiteKind::Heads, 0), vec![f32::NAN])].into(), ..Scores::default() }.checked("test"),
        Err(PruneError::NotFinite { .. })
    ));
}

fn weights(values: &[(&str, usize, usize, Vec<f32>)]) -> (Scores, Sites, Shape) {
    let (mut scores, mut sites, mut shape) = (Scores::default(), Sites::default(), Shape::default());
    for (slot, rows, columns, v) in values {
        scores.weights.insert((*slot).into(), Tensor::from_slice(v, (*rows, *columns), &Device::Cpu).unwrap());
        sites.weights.insert((*slot).into());
        shape.weights.insert((*slot).into(), (*rows, *columns));
    }
    (scores, sites, shape)
}

fn flat(t: &Tensor) -> Vec<u8> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn weights_in_every_scope_by_hand() {
    let a = vec![1.0, 1.0, 5.0, 0.0, 9.0, 1.0];
    let b = vec![2.0, 1.0, 8.0, 7.0];
    let (scores, sites, shape) = weights(&[("layers.0.a", 2, 3, a), ("layers.10.b", 2, 2, b)]);
    let run = |scope, amount: Amount| {
        let mut case = Case::new(sites.clone(), amount);
        case.scope = scope;
        let d = case.select(&scores, &shape).unwrap();
        (flat(&d.weights["layers.0.a"]), flat(&d.weights["layers.10.b"]))
    };
    // Of ten, four: 0, then the ones, lowest layer and index first.
    assert_eq!(run(Scope::Global, share(40)), (vec![0, 0, 1, 0, 1, 0], vec![1, 1, 1, 1]));
    assert_eq!(run(Scope::Matrix, share(50)), (vec![0, 0, 1, 0, 1, 1], vec![0, 0, 1, 1]));
    assert_eq!(run(Scope::Layer, share(50)), (vec![0, 0, 1, 0, 1, 1], vec![0, 0, 1, 1]));
    assert_eq!(run(Scope::Row, share(50)), (vec![0, 1, 1, 0, 1, 1], vec![1, 0, 1, 0]));
}

#[test]
fn weights_obey_at_least_and_what_is_gone() {
    let (scores, sites, shape) = weights(&[("layers.0.a", 1, 4, vec![1.0, 2.0, 3.0, 4.0]), ("layers.1.b", 1, 4, vec![5.0, 6.0, 7.0, 8.0])]);
    let mut case = Case::new(sites, share(50));
    case.at_least = Some(AtLeast::Units(1));
    let d = case.select(&scores, &shape).unwrap();
    assert_eq!((flat(&d.weights["layers.0.a"]), flat(&d.weights["layers.1.b"])), (vec![0, 0, 0, 1], vec![0, 1, 1, 1]));
    case.removed.add(&d, &[], 0).unwrap();
    let again = case.select(&scores, &shape).unwrap();
    assert_eq!(flat(&again.weights["layers.0.a"]), flat(&d.weights["layers.0.a"]));
    case.amount = share(80);
    case.at_least = Some(AtLeast::Units(2));
    assert!(matches!(case.select(&scores, &shape), Err(PruneError::AtLeast { .. })));
}

#[test]
fn two_of_four_along_the_inputs() {
    let v = vec![1.0, 0.0, 0.0, 0.0, 9.0, 3.0, 4.0, 1.0];
    let (scores, sites, shape) = weights(&[("layers.0.a", 1, 8, v)]);
    let d = Case::new(sites.clone(), Amount::NofM { removed: 2, group: 4 }).select(&scores, &shape).unwrap();
    assert_eq!(flat(&d.weights["layers.0.a"]), [1, 0, 0, 1, 1, 0, 1, 0]);
    let odd = Case::new(sites, Amount::NofM { removed: 1, group: 3 }).select(&scores, &shape);
    assert!(matches!(odd, Err(PruneError::Amount { .. })));
}
