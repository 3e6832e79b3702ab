//! Real models and data, where they are at hand: in the folder that `PRUNECTL_SHARED` names, or `../shared` beside the project.
//! `PRUNECTL_REQUIRE=shared` turns a skip into a failure.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use prunectl_model::{Batch, Gates, LoadOptions, Task, load};
use prunectl_prune::{Batches, Inputs, METRICS, Metric, build};
use prunectl_recipe::catalogue::Args;
use prunectl_recipe::plan::{DataDecl, DataExpr, DataSource, Span, Unit, Value};
use prunectl_run::data::{BatchSpec, Classes, DataStore, Dataset, Need, Target};
use prunectl_run::hub::Door;
use prunectl_run::tokenizer::Tokenizer;

fn shared(test: &str) -> Option<PathBuf> {
    // Models, data and golden figures are used.
    prunectl_testkit::shared("models", test).and_then(|dir| dir.parent().map(Into::into))
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).expect("reads")).expect("is JSON")
}

fn data(source: DataSource, fields: &[(&str, f64)], split: Option<&str>) -> Dataset {
    let fields = Args(fields.iter().map(|(k, v)| ((*k).to_owned(), Value::Number(*v))).collect());
    let decl = DataDecl { name: "d".into(), source, fields, span: Span::default() };
    DataStore::new(&[decl], &Door::cache_only())
        .resolve(&DataExpr::Source { name: "d".into(), split: split.map(str::to_owned) })
        .expect("opens")
}

fn tokenizer(dir: &Path) -> Tokenizer {
    Tokenizer::open(dir).expect("reads").expect("has one")
}

fn spec(target: Option<Target>, batch: usize) -> BatchSpec {
    BatchSpec { target, need: Need::Required, max_length: 128, batch, apart: false, vocabulary: 30522, token_types: 2, device: Device::Cpu }
}

#[test]
fn tokenizer_equals_transformers() {
    let Some(shared) = shared("tokenizer_equals_transformers") else { return };
    let t = tokenizer(&shared.join("models/stories260k"));
    let expected = json(&shared.join("golden/stories260k/expected.json"));
    let cases = expected["tokenizer_cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 12);
    for case in cases {
        let text = case["text"].as_str().expect("text");
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).expect("ids");
        assert_eq!(t.encode(text, None).expect("encodes").ids, ids, "{text:?}");
        assert_eq!(t.decode(&ids, true).expect("decodes"), case["decoded"].as_str().expect("decoded"), "{text:?}");
    }
    assert_eq!(t.prefix(), [1]);
    assert!(t.fits(512).is_ok() && t.fits(511).is_err());
    // This one's tokenizer.json pads every text to 128 and cuts it there.
    let t = tokenizer(&shared.join("models/all-minilm-l6-v2"));
    assert_eq!(t.encode("hello world", None).expect("encodes").ids, [101, 7592, 2088, 102]);
    assert_eq!(t.encode(&"hello ".repeat(300), None).expect("encodes").ids.len(), 302);
}

#[test]
fn the_stream_and_its_perplexities_equal_transformers() {
    let Some(shared) = shared("the_stream_and_its_perplexities_equal_transformers") else { return };
    let dir = shared.join("models/stories260k");
    let t = tokenizer(&dir);
    let expected = json(&shared.join("golden/ppl/expected.json"));
    let stream = data(DataSource::Text(shared.join("golden/ppl/text.txt")), &[], None).stream(Some(&t), 512).expect("stream");
    let whole: Vec<u32> = stream.prefix.iter().chain(&stream.ids).copied().collect();
    assert_eq!(whole.len(), 53_421);
    let bytes: Vec<u8> = whole.iter().flat_map(|id| i64::from(*id).to_le_bytes()).collect();
    let hash = <sha2::Sha256 as sha2::Digest>::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hash, expected["ids_sha256_le_i64"].as_str().expect("hash"));

    // The text is the first half of the stories: documents joined by a blank line are the same stream.
    let stories = DataSource::Jsonl(shared.join("data/tinystories/valid.jsonl"));
    let decl = DataDecl { name: "d".into(), source: stories, fields: Args::default(), span: Span::default() };
    let half = DataExpr::Take { of: Box::new(DataExpr::Source { name: "d".into(), split: None }), n: 116 };
    let joined = DataStore::new(&[decl], &Door::cache_only()).resolve(&half).expect("opens").stream(Some(&t), 512).expect("stream");
    assert!(joined == stream);

    let model = load(&dir, &LoadOptions { task: Some(Task::CausalLm), ..LoadOptions::default() }).expect("loads");
    let tokens = |n: f64| Value::Quantity(n, Unit::Tokens);
    let word = |w: &str| Value::Word(w.into());
    let cases = [
        ("windows", "tail_included", vec![("window", tokens(256.0)), ("bos", word("once"))]),
        ("windows_bos_each", "tail_included", vec![("window", tokens(256.0)), ("bos", word("each"))]),
        ("sliding", "exact", vec![("window", tokens(256.0)), ("stride", tokens(128.0)), ("bos", word("once"))]),
    ];
    for (protocol, variant, args) in cases {
        let args = Args(args.into_iter().map(|(k, v)| (k.to_owned(), v)).collect());
        let metric: Box<dyn Metric> = build(METRICS, "perplexity", &args).expect("builds");
        let mut inputs = Inputs {
            model: &model,
            batches: None,
            stream: Some(&stream),
            questions: None,
            asked: None,
            teacher: None,
            batch: 16,
            progress: &(),
        };
        let found = metric.measure(&mut inputs).expect("measures");
        let expected = &expected["protocols"][protocol][variant];
        let (ppl, scored) = (expected["perplexity"].as_f64().expect("perplexity"), expected["tokens"].as_u64());
        let error = (found.value / ppl - 1.0).abs();
        eprintln!("perplexity, {protocol}: {:.6}, expected {ppl:.6}, relative error {error:.1e}", found.value);
        assert_eq!(found.tokens, scored, "{protocol}");
        assert!(error < 2e-5, "{protocol}: {} against {ppl}", found.value);
    }
}

#[test]
fn sst2_accuracy_equals_transformers() {
    let Some(shared) = shared("sst2_accuracy_equals_transformers") else { return };
    let dir = shared.join("models/minilm-sst2");
    let model = load(&dir, &LoadOptions { task: Some(Task::Classification), ..LoadOptions::default() }).expect("loads");
    let classes = Classes::from_config(&json(&dir.join("config.json")), 2);
    let d = data(DataSource::Csv(shared.join("data/sst2")), &[], Some("validation"));
    assert_eq!(d.count(), Some(872));
    let mut batches = d.batches(Some(&tokenizer(&dir)), spec(Some(Target::Classes(classes)), 32)).expect("batches");
    let (mut right, mut seen) = (0, 0);
    while let Some(batch) = batches.next().expect("reads") {
        let Some(prunectl_model::Labels::Classes(labels)) = &batch.labels else { panic!("classes") };
        let labels = labels.to_vec1::<i64>().expect("labels");
        let logits = model.forward(&batch, &Gates::default(), &mut ()).expect("runs").to_vec2::<f32>().expect("logits");
        seen += labels.len();
        right += logits.iter().zip(labels).filter(|(z, l)| usize::from(z[1] > z[0]) as i64 == *l).count();
    }
    eprintln!("SST-2: {right} of {seen}, {:?}", batches.notes());
    assert_eq!((right, seen), (759, 872));
}

#[test]
fn other_files_read_naturally() {
    let Some(shared) = shared("other_files_read_naturally") else { return };
    let t = tokenizer(&shared.join("models/all-minilm-l6-v2"));
    let columns = [("text", 0.0), ("text_pair", 1.0), ("label", 2.0)];
    for (split, rows) in [("test", 1379), ("validation", 1500)] {
        let d = data(DataSource::Csv(shared.join("data/stsb")), &columns, Some(split));
        assert_eq!(d.count(), Some(rows));
        let mut b = d.batches(Some(&t), spec(Some(Target::Values), 64)).expect("batches");
        let batch = b.next().expect("reads").expect("one");
        assert!(batch.token_type_ids.is_some() && batch.keep.is_some());
    }
    assert_eq!(data(DataSource::Csv(shared.join("data/sst2")), &[], Some("train")).count(), Some(20_000));
    let wiki = data(DataSource::Text(shared.join("data/wikitext-2-raw/wiki.test.raw")), &[], None);
    let started = std::time::Instant::now();
    let stream = wiki.stream(Some(&t), 30522).expect("stream");
    eprintln!("wiki.test.raw: {} tokens in {:?}", stream.ids.len(), started.elapsed());
    assert_eq!(stream.prefix, [101]);
}

/// STS-B (Cer et al., 2017): the cosine of two mean-pooled embeddings, ranked against people's judgement.
#[test]
fn sentence_embeddings_rank_pairs_as_transformers_does() {
    const BATCH: usize = 64;
    let Some(shared) = shared("sentence_embeddings_rank_pairs_as_transformers_does") else { return };
    let dir = shared.join("models/all-minilm-l6-v2");
    let expected = json(&shared.join("golden/sts/expected.json"));
    let model = load(&dir, &LoadOptions { task: Some(Task::Encoder), ..LoadOptions::default() }).expect("loads");
    let tokenizer = tokenizer(&dir).limited(128).expect("limits");
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_path(shared.join("data/stsb/stsb-en-test.csv")).expect("opens");
    let rows: Vec<(String, String, f64)> = reader.deserialize().collect::<Result<_, _>>().expect("reads");
    assert_eq!(rows.len(), expected["pairs"]);
    let texts: Vec<&str> = rows.iter().flat_map(|(a, b, _)| [a.as_str(), b.as_str()]).collect();
    let ids: Vec<Vec<u32>> = texts.iter().map(|t| tokenizer.encode(t, None).expect("encodes").ids).collect();
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|i| ids[*i].len());
    let mut embeddings = vec![Vec::new(); ids.len()];
    for part in order.chunks(BATCH) {
        let longest = part.iter().map(|i| ids[*i].len()).max().expect("not empty");
        let padded: Vec<u32> = part.iter().flat_map(|i| ids[*i].iter().copied().chain(std::iter::repeat(0)).take(longest)).collect();
        let keep: Vec<u8> = part.iter().flat_map(|i| (0..longest).map(|t| u8::from(t < ids[*i].len()))).collect();
        let tensor = |shape: (usize, usize)| Tensor::from_vec(padded, shape, &Device::Cpu).expect("fits");
        let batch = Batch {
            keep: Some(Tensor::from_vec(keep, (part.len(), longest), &Device::Cpu).expect("fits")),
            ..Batch::new(tensor((part.len(), longest)))
        };
        let out = model.forward(&batch, &Gates::default(), &mut ()).expect("runs").to_vec2::<f32>().expect("rows");
        for (i, row) in part.iter().zip(out) {
            embeddings[*i] = row;
        }
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let cosines: Vec<f64> =
        embeddings.chunks(2).map(|p| dot(&p[0], &p[1]) / (dot(&p[0], &p[0]).sqrt() * dot(&p[1], &p[1]).sqrt())).collect();
    for (found, wanted) in cosines.iter().zip(expected["first_10_cosines"].as_array().expect("ten")) {
        assert!((found - wanted.as_f64().expect("a number")).abs() < 1e-5, "{found} against {wanted}");
    }
    let ranks = |values: &[f64]| -> Vec<f64> {
        values
            .iter()
            .map(|v| {
                values
                    .iter()
                    .map(|w| {
                        if w < v {
                            1.0
                        } else if w == v {
                            0.5
                        } else {
                            0.0
                        }
                    })
                    .sum()
            })
            .collect()
    };
    let (a, b) = (ranks(&cosines), ranks(&rows.iter().map(|r| r.2).collect::<Vec<_>>()));
    let mean = (a.len() as f64) / 2.0;
    let sum = |f: &dyn Fn(f64, f64) -> f64| a.iter().zip(&b).map(|(x, y)| f(x - mean, y - mean)).sum::<f64>();
    let spearman = sum(&|x, y| x * y) / (sum(&|x, _| x * x) * sum(&|_, y| y * y)).sqrt();
    println!("STS-B: Spearman {spearman:.6}, transformers {}", expected["spearman"]);
    assert!((spearman - expected["spearman"].as_f64().expect("a number")).abs() < 1e-4, "{spearman}");
}
