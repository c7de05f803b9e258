//! Edits against transformers with forward hooks (`tests/golden/edits.py`): every operation at every site, and generation
//! under a steering vector, token by token.

use std::fs;
use std::path::Path;

use llamaprobe::arch::{Dtype, ModelConfig};
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::{Cpu, CpuSettings, Isa};
use llamaprobe::formats::edits;
use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::hooks::{Edit, EditPlan, Naming, NoTaps, Selection, Site};
use llamaprobe::model::{Activations, EditSet, GenerationConfig, Input, Model, PassEdits, Prompt, Save};
use llamaprobe::pack::{Label, Sequence, forest};
use serde_json::Value;

use crate::support;

/// Largest difference of a logit: at most three times what is measured over all instruction sets (2.4e-6).
const LIMIT: f64 = 7e-6;

fn cases() -> Value {
    let text = fs::read_to_string(support::golden("edits/cases.json")).expect("the cases");
    serde_json::from_str(&text).expect("JSON")
}

fn model<B: Backend>(b: &mut B, name: &str) -> Model<B> {
    Model::load(b, &support::golden(&format!("model-{name}"))).expect("a model")
}

/// The edits that a file of this text makes, whose values are the golden ones.
fn read(dir: &Path, yaml: &str, config: &ModelConfig) -> Vec<Edit> {
    let path = dir.join("edits.yaml");
    fs::write(&path, yaml).expect("write the edits");
    Edit::of_file(edits::read(&path).expect("a file of edits"), &Naming::tl(config)).expect("edits")
}

/// A folder with the golden values beside the files of edits.
fn folder() -> tempfile::TempDir {
    let dir = support::temp();
    fs::copy(support::golden("edits/values.safetensors"), dir.path().join("values.safetensors")).expect("copy");
    dir
}

/// What a file says of an operation; of what the scripts put into both layers or the first.
fn yaml(name: &str, config: &ModelConfig, site: &str, op: &str, cases: &Value) -> String {
    let found = Selection::parse(site, &[0], &Naming::tl(config)).expect("a site").hooks[0].0;
    let width = config.stored_width(found);
    let value = |rows: &str| format!("value: values.safetensors#{name}.{width}.{rows}");
    let (rest, layers) = match op {
        "add" => (format!("{}, scale: {}", value("two"), cases["added"]), "all"),
        "replace" => (value("one"), "0"),
        "scale" => (format!("scale: {}", cases["factor"]), "[0, 1]"),
        "mean" => (value("three"), "[0]"),
        "project_out" => (value("one"), "0-1"),
        _ => ("layers: 0".to_owned(), ""),
    };
    let layers = if layers.is_empty() { String::new() } else { format!(", layers: {layers}") };
    format!("- {{site: {site}, op: {op}, positions: {}{layers}, {rest}}}\n", cases["positions"])
}

/// The logits of the golden sequence after its second and its last token.
fn logits<B: Backend>(b: &mut B, model: &Model<B>, edits: &[Edit], cases: &Value) -> Vec<f64> {
    let ids: Vec<u32> = serde_json::from_value(cases["ids"].clone()).expect("ids");
    let mut sequences = [Sequence::ids(&ids, None, Label::Text)];
    let plan = EditPlan::new(edits, &mut sequences).expect("positions");
    let packed = forest(&sequences, 1);
    let set = EditSet::new(b, &model.config, edits).expect("edits");
    let rows = plan.rows(0..1, |s, i| packed.row(s, i));
    let edited = PassEdits::new(b, &set, &rows, None).expect("memory");
    let device = b.pack(&packed.pack).expect("memory");
    let mut acts = Activations::new(b, &model.config, None, ids.len(), Save::Layer).expect("memory");
    let input = Input::new(&packed.pack, &device).edited(Some(&edited));
    model.forward(b, &mut acts, &input, None, &mut NoTaps).expect("a forward");
    let logits = model.logits(b, &acts, &[1, ids.len() - 1]).expect("logits");
    logits.into_iter().map(llamaprobe::backend::AccElement::to_f64).collect()
}

/// The largest difference of each case of a model, its edits changed by `change`.
fn differences<B: Backend>(b: &mut B, name: &str, change: fn(&mut Edit)) -> Vec<(String, f64)> {
    let (dir, cases) = (folder(), cases());
    let model = model(b, name);
    let expected = Checkpoint::open(support::golden("edits/expected.safetensors")).expect("the expected logits");
    let expected = expected.get(name).expect("the model's").to_f32().expect("floats");
    let listed: Vec<(String, String)> = serde_json::from_value(cases["cases"][name].clone()).expect("cases");
    let rows = expected.chunks_exact(2 * model.config.vocab_size);
    assert_eq!(rows.len(), listed.len());
    let mut found = Vec::new();
    for ((site, op), expected) in listed.iter().zip(rows) {
        let text = yaml(name, &model.config, site, op, &cases);
        let mut edits = read(dir.path(), &text, &model.config);
        edits.iter_mut().for_each(change);
        let logits = logits(b, &model, &edits, &cases);
        let apart = logits.iter().zip(expected).fold(0.0f64, |m, (a, &b)| m.max((a - f64::from(b)).abs()));
        found.push((format!("{name} {site} {op}"), apart));
    }
    found
}

const MODELS: [&str; 4] = ["gqa-llama3", "gpt2", "opt-behind", "bloom"];

#[test]
fn edits_of_every_site_are_those_of_transformers() {
    for name in MODELS {
        let mut all = differences(&mut Cpu::oracle(), name, |_| ());
        for &isa in Isa::available() {
            all.extend(differences(
                &mut Cpu::<f32>::open(&CpuSettings { isa, ..CpuSettings::new(Dtype::F32) }),
                name,
                |_| (),
            ));
        }
        let worst = all.iter().fold(("", 0.0), |worst, (case, far)| if *far > worst.1 { (case, *far) } else { worst });
        println!("{name}: worst {:.1e} of {} cases, {}, limit {LIMIT:.0e}", worst.1, all.len(), worst.0);
        all.iter().for_each(|(case, far)| assert!(*far <= LIMIT, "{case}: {far:.1e}"));
    }
}

#[test]
fn golden_edits_cover_every_site_and_operation() {
    let cases = cases();
    for name in MODELS {
        let config = ModelConfig::load(support::golden(&format!("model-{name}"))).expect("a configuration");
        let listed: Vec<(String, String)> = serde_json::from_value(cases["cases"][name].clone()).expect("cases");
        let editable = Site::all().into_iter().filter(|site| site.is_editable() && config.has(*site));
        for site in editable.map(Site::local) {
            for op in ["add", "replace", "scale", "zero", "mean", "project_out"] {
                assert!(listed.contains(&(site.clone(), op.to_owned())), "{name}: no case of {op} at {site}");
            }
        }
    }
}

/// The limit tells an edit from one that is left out, from its neighbours' and from a slightly weaker one.
#[test]
fn edit_limits_see_small_mistakes() {
    use llamaprobe::hooks::edit::{EditOp, Positions};
    let seen = |mistake: &str, least: f64, change: fn(&mut Edit)| {
        for name in MODELS {
            let all = differences(&mut Cpu::new(Dtype::F32), name, change);
            let seen = all.iter().filter(|(_, far)| *far > LIMIT).count();
            println!("{mistake}: seen in {seen} of {} cases of {name}", all.len());
            assert!(seen as f64 >= least * all.len() as f64, "{mistake} of {name}: {seen} of {}", all.len());
        }
    };
    seen("no edit", 0.95, |edit| edit.hooks.hooks.clear());
    seen("the next position", 0.95, |edit| edit.positions = Positions::At(vec![2, -1]));
    seen("an edit that is off by a thousandth", 0.5, |edit| match &mut edit.op {
        EditOp::Add(values) | EditOp::Replace(values) => values.rows.iter_mut().for_each(|x| *x *= 1.001),
        EditOp::Scale(factor) => *factor *= 1.001,
        EditOp::ProjectOut(direction) => direction[0] += 0.01,
        EditOp::Zero => {}
    });
}

#[test]
fn generation_under_a_steering_vector_is_that_of_transformers() {
    let (dir, cases) = (folder(), cases());
    let steer = cases["steer"].as_f64().expect("a factor");
    let mut b = Cpu::new(Dtype::F32);
    for case in cases["generations"].as_array().expect("cases") {
        let name = case["model"].as_str().expect("a name");
        let model = model(&mut b, name);
        let width = model.config.hidden_size;
        let yaml = format!(
            "- {{site: blocks.0.hook_resid_post, op: add, positions: {}, scale: {steer}, value: values.safetensors#{name}.{width}.one}}",
            case["positions"]
        );
        let edits = read(dir.path(), &yaml, &model.config);
        let ids: Vec<Vec<u32>> = serde_json::from_value(case["prompts"].clone()).expect("prompts");
        let prompts: Vec<Prompt> = ids.into_iter().map(|ids| Prompt { ids, run: None }).collect();
        for (edits, expected) in [(&edits[..], &case["steered"]), (&[], &case["plain"])] {
            let generation = GenerationConfig { edits, ..GenerationConfig::greedy(12) };
            let made = model.generate(&mut b, &prompts, None, &generation, &mut |_, _| ()).expect("continuations");
            let expected: Vec<Vec<u32>> = serde_json::from_value(expected.clone()).expect("tokens");
            assert_eq!(made, expected, "{name}, {}", case["positions"]);
        }
        assert!(case["steered"] != case["plain"], "{name}: the vector changes no token");
    }
}
