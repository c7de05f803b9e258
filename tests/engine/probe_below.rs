//! Layers below the first adapted one are read once, for the base model and through all adapters.

use llamaprobe::backend::Planning;
use llamaprobe::backend::trace::Trace;
use llamaprobe::model::Model;
use llamaprobe::probe::plan::Plan;
use llamaprobe::probe::{Condition, Measures, run};

use super::probe::Bench;
use crate::support::tiny_model::TinyModel;

/// A bench of four layers, of which the last two are adapted.
fn upper_half(rows: usize) -> Bench {
    let mut bench = Bench::new();
    TinyModel { tied: true, layers: 4, ..TinyModel::default() }.write(bench.dir.path());
    bench.model = Model::load(&mut bench.backend, bench.dir.path()).expect("loads");
    bench.settings.layers_to_transform = Some(vec![2, 3]);
    bench.settings.rows = rows;
    bench.settings.epochs = 1.0;
    bench.settings.measures = Measures::parse(&["sim_am", "sim_aou"]).expect("measures");
    bench
}

#[test]
fn layers_below_the_adapters_come_from_the_base_model_bit_for_bit() {
    const { assert!(<super::probe::Device as Planning>::ROW_INVARIANT) };
    // Of 20 rows a shared prefix has to be cached; of the default one pass has all.
    for rows in [20, 2048] {
        let mut bench = upper_half(rows);
        let upper = bench.conditions(&["steps=2"]).remove(0);
        let mut all = Condition { ..upper.clone() };
        all.settings.layers_to_transform = None;
        all.settings.r = 3;
        let mut lowest = upper.clone();
        lowest.settings.layers_to_transform = Some(vec![0]);
        let alone = bench.study(std::slice::from_ref(&upper)).report;
        // Beside an adapter of the first layer nothing is taken from the base model.
        let computed = bench.study(&[upper.clone(), lowest]).report;
        assert_eq!(json(&alone.conditions[0].seeds), json(&computed.conditions[0].seeds), "{rows} rows");
        // One whose adapters begin lower is read whole.
        let beside = bench.study(&[upper, all.clone()]).report;
        let whole = bench.study(&[all]).report;
        assert_eq!(json(&beside.conditions[1].seeds), json(&whole.conditions[0].seeds), "{rows} rows");
    }
}

fn json(seeds: &impl serde::Serialize) -> String {
    serde_json::to_string(seeds).expect("JSON")
}

#[test]
fn layers_below_the_adapters_are_computed_for_the_base_model_alone() {
    let mut counts = Vec::new();
    for layers in [vec![2, 3], vec![0, 3]] {
        let bench = upper_half(2048);
        let backend = &mut Trace::new();
        let mut model = Model::load(backend, bench.dir.path()).expect("loads");
        let mut settings = bench.settings.clone();
        settings.layers_to_transform = Some(layers);
        let plan = Plan::new(&bench.tokenizer, &settings.task, &bench.pool, &bench.queries, &settings).expect("a plan");
        backend.clear();
        run(backend, &mut model, "tiny", &plan, &settings, &mut |_| ()).expect("runs");
        counts.push(backend.ops().iter().filter(|op| **op == "attention_fwd").count());
    }
    // The base model's, ICL's of two seeds and a step; then the queries, and apart from them what was learnt.
    assert_eq!(counts, [4 * 4 + 2 + 4, 4 * 4 + 4]);
}
