//! Edits inside a pass: what they leave at their site, which rows they touch, and their gradients.

use llamaprobe::arch::{Dtype, ModelConfig};
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::{Backend, Transfer};
use llamaprobe::hooks::edit::{Edit, EditOp, EditPlan, Positions, Values};
use llamaprobe::hooks::{Record, Selection, Site};
use llamaprobe::model::{
    Activations, Adaptation, EditSet, GenerationConfig, Input, Model, OutputRows, PassEdits, Prompt, Save,
};
use llamaprobe::pack::{Forest, Label, Sequence, forest};

use super::{LLAMA, Task, adapters, assert_slope, branching, directional, flat, lora, models, noise, prompted, random};

/// The sites that the model has and that can be edited.
pub(super) fn sites(config: &ModelConfig) -> Vec<Site> {
    Site::all().into_iter().filter(|site| site.is_editable() && config.has(*site)).collect()
}

/// Every operation on rows of `width` elements; the first has values for two positions.
fn operations(width: usize) -> Vec<EditOp> {
    let values = |rows: usize, seed: u64| Values { rows: noise(rows * width, seed, 0.8), width };
    vec![
        EditOp::Add(values(2, 1)),
        EditOp::Replace(values(1, 2)),
        EditOp::Scale(-0.6),
        EditOp::Zero,
        EditOp::mean(&values(3, 4)),
        EditOp::ProjectOut(values(1, 5).rows),
        EditOp::Add(values(1, 6)),
    ]
}

/// The edit of a site in the lowest and the highest layer, at the second token and the last.
pub(super) fn edit(site: Site, op: EditOp) -> Edit {
    Edit::new(Selection::new(&[site], &[0, 2]), Positions::At(vec![1, -1]), op)
}

/// States of a pack of edited sequences.
struct Pass<'a, B: Backend> {
    model: &'a Model<B>,
    adaptation: &'a Adaptation<B>,
    edits: &'a [Edit],
    sites: &'a [Site],
}

impl<B: Backend> Pass<'_, B> {
    /// The states of every row, or of `rows` in a pass in which only those come out.
    fn run(&self, b: &mut B, sequences: &[Sequence], pack: Packing, rows: Option<&[usize]>) -> (Forest, Record) {
        let Self { model, adaptation, edits, sites } = *self;
        let mut sequences = sequences.to_vec();
        let plan = EditPlan::new(edits, &mut sequences).expect("positions");
        let packed = pack(&sequences);
        let rows_of = plan.rows(0..sequences.len(), |s, i| packed.row(s, i));
        let layout = Some(&adaptation.layout);
        let mut acts = Activations::new(b, &model.config, layout, packed.pack.len(), Save::Layer).expect("memory");
        let device = b.pack(&packed.pack).expect("memory");
        let output = rows.and_then(|rows| OutputRows::new(b, &packed.pack, rows.iter().copied()).expect("memory"));
        let set = EditSet::new(b, &model.config, edits).expect("edits");
        let edited = PassEdits::new(b, &set, &rows_of, output.as_ref()).expect("memory");
        let input = Input::new(&packed.pack, &device).adapted(adaptation).with_output_rows(output.as_ref());
        let layers: Vec<usize> = (0..model.config.num_hidden_layers).collect();
        let taken = rows.map_or_else(|| (0..packed.pack.len()).collect(), <[usize]>::to_vec);
        let mut record = Record::new(Selection::new(sites, &layers), taken);
        model.forward(b, &mut acts, &input.edited(Some(&edited)), None, &mut record).expect("a forward");
        (packed, record)
    }
}

type Packing = fn(&[Sequence]) -> Forest;

fn tree(sequences: &[Sequence]) -> Forest {
    forest(sequences, 1)
}

/// What an operation makes of a row.
fn naive(op: &EditOp, value_row: usize, x: &[f32]) -> Vec<f32> {
    let values = |v: &Values| v.rows[value_row * v.width..][..v.width].to_vec();
    match op {
        EditOp::Add(v) => x.iter().zip(values(v)).map(|(x, v)| x + v).collect(),
        EditOp::Replace(v) => values(v),
        EditOp::Scale(s) => x.iter().map(|x| *s as f32 * x).collect(),
        EditOp::Zero => vec![0.0; x.len()],
        EditOp::ProjectOut(v) => {
            let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let (v, x) = (wide(v), wide(x));
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let factor = dot(&x, &v) / dot(&v, &v);
            x.iter().zip(&v).map(|(x, v)| (x - factor * v) as f32).collect()
        }
    }
}

#[test]
fn edit_leaves_what_its_formula_says_at_its_rows_alone() {
    for config in models() {
        let b = &mut Cpu::new(Dtype::F32);
        let (model, _) = random(b, &config);
        let adaptation = adapters(b, lora(&model.config, model.config.family.modules()), 1);
        let sequences = branching(|_| Some(0));
        for site in sites(&model.config) {
            let sites = &[site];
            let pass = Pass { model: &model, adaptation: &adaptation, edits: &[], sites };
            let (_, before) = pass.run(b, &sequences, flat, None);
            for op in operations(model.config.stored_width(site)) {
                let edits = [edit(site, op.clone())];
                let (packed, after) = Pass { edits: &edits, ..pass }.run(b, &sequences, flat, None);
                let (name, width) = (site.name(0), after.width(site, 0).expect("recorded"));
                let (before, after) = (before.get(site, 0).expect("recorded"), after.get(site, 0).expect("recorded"));
                for (s, sequence) in sequences.iter().enumerate() {
                    for i in 0..sequence.tokens.len() {
                        let at = packed.row(s, i) * width;
                        let (x, found) = (&before[at..][..width], &after[at..][..width]);
                        let value_row = [1, sequence.tokens.len() - 1].iter().position(|&edited| edited == i);
                        let Some(value_row) = value_row else {
                            assert!(site == Site::FINAL_NORM || x == found, "{name}: {op:?} at token {i}");
                            continue;
                        };
                        let several = matches!(&op, EditOp::Add(v) if v.count() > 1);
                        let expected = naive(&op, if several { value_row } else { 0 }, x);
                        let apart = expected.iter().zip(found).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
                        let limit = if matches!(op, EditOp::ProjectOut(_)) { 2e-6 } else { 0.0 };
                        assert!(apart <= limit, "{name}: {op:?} at token {i}: {apart:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn edited_sequence_shares_no_row_that_is_edited_otherwise() {
    for config in models() {
        let b = &mut Cpu::new(Dtype::F32);
        let (model, _) = random(b, &config);
        let adaptation = adapters(b, lora(&model.config, model.config.family.modules()), 2);
        let sequences = branching(|i| [None, Some(0), Some(1)][i / 2 % 3]);
        let width = model.config.hidden_size;
        let add = |seed| EditOp::Add(Values::one(noise(width, seed, 0.8)));
        let hooks = |layer| Selection::new(&[Site::ResidPost], &[layer]);
        let edits = [
            Edit::new(hooks(0), Positions::At(vec![-3]), add(1)),
            Edit::new(hooks(1), Positions::At(vec![0]), add(2)),
            Edit::new(hooks(1), Positions::All, EditOp::Scale(1.1)).of_runs(vec![1]),
        ];
        let all = [Site::ResidPre, Site::Z, Site::ResidPost, Site::FINAL_NORM];
        let pass = Pass { model: &model, adaptation: &adaptation, edits: &edits, sites: &all };
        let (packed, a) = pass.run(b, &sequences, tree, None);
        let (apart, c) = pass.run(b, &sequences, flat, None);
        assert!(packed.pack.len() < apart.pack.len(), "nothing is shared");
        let plain = Pass { edits: &[], ..pass };
        let (_, unedited) = plain.run(b, &sequences, flat, None);
        for (site, layer, width, found) in a.iter() {
            let expected = c.get(site, layer).expect("recorded");
            for (s, sequence) in sequences.iter().enumerate() {
                for i in 0..sequence.tokens.len() {
                    let (r, q) = (packed.row(s, i) * width, apart.row(s, i) * width);
                    let name = site.name(layer);
                    assert_eq!(found[r..r + width], expected[q..q + width], "{name} sequence {s} token {i}");
                }
            }
        }
        // The third edit is of one run alone: others differ only by what the first two do.
        let last = |record: &Record, s: usize| {
            let at = apart.last_row(s) * width;
            record.get(Site::ResidPost, 2).expect("recorded")[at..][..width].to_vec()
        };
        assert!((0..sequences.len()).all(|s| last(&c, s) != last(&unedited, s)), "an edit without effect");
    }
}

#[test]
fn edits_of_output_rows_have_the_bits_of_the_whole_pass() {
    for config in models() {
        let b = &mut Cpu::new(Dtype::F32);
        let (model, _) = random(b, &config);
        let adaptation = adapters(b, lora(&model.config, model.config.family.modules()), 2);
        let sequences = branching(|i| [None, Some(0), Some(1)][i / 2 % 3]);
        let every = sites(&model.config);
        let edits: Vec<Edit> =
            every.iter().map(|&site| edit(site, EditOp::Scale(0.9 + 0.01 * site.name(0).len() as f64))).collect();
        let pass = Pass { model: &model, adaptation: &adaptation, edits: &edits, sites: &every };
        let (packed, whole) = pass.run(b, &sequences, tree, None);
        let mut rows: Vec<usize> = (0..sequences.len()).map(|s| packed.last_row(s)).chain([3]).collect();
        rows.sort_unstable();
        rows.dedup();
        let (_, narrowed) = pass.run(b, &sequences, tree, Some(&rows));
        for (site, layer, width, found) in narrowed.iter() {
            let whole = whole.get(site, layer).expect("recorded");
            let expected: Vec<f32> = rows.iter().flat_map(|row| whole[row * width..][..width].to_vec()).collect();
            assert_eq!(found, expected, "{}", site.name(layer));
        }
    }
}

/// The slope of the loss along a direction of the adapters and soft prompts, or of all weights, under edits.
fn slopes(config: &str, name: &str, edits: &[Edit], weights: bool) {
    let b = &mut Cpu::oracle();
    let (mut model, mut tuning) = random(b, config);
    let layout = lora(&model.config, model.config.family.modules()).with_prompt(2);
    let sequences = prompted();
    let task = Task { sequences: &sequences, dropout: 0.0, edits, save: Save::All };
    let mut adaptation = adapters(b, layout, 3);
    let pack = |model: &Model<Cpu<f64>>| model.config.pack(&task.marked(), 2);
    let at = task.run(b, &model, &tuning, &adaptation, pack(&model));
    if weights {
        let base = tuning.params.clone();
        let (direction, slope) = directional(base.len(), 21, 1e-3, |step| {
            let moved: Vec<f64> = base.iter().zip(step).map(|(x, d)| x + d).collect();
            b.upload(&mut tuning.params, 0, &moved).expect("upload");
            tuning.refresh(b, &mut model);
            task.run(b, &model, &tuning, &adaptation, pack(&model)).total
        });
        assert_slope(&format!("{name}: weights"), &at.d_weights, &direction, slope);
        return;
    }
    let base = adaptation.params.clone();
    let (direction, slope) = directional(base.len(), 22, 1e-3, |step| {
        let moved: Vec<f64> = base.iter().zip(step).map(|(x, d)| x + d).collect();
        b.upload(&mut adaptation.params, 0, &moved).expect("upload");
        task.run(b, &model, &tuning, &adaptation, pack(&model)).total
    });
    assert_slope(&format!("{name}: adapters and prompts"), &at.d_params, &direction, slope);
}

/// A ReLU's corner must not lie within a step.
fn smooth(config: &str) -> String {
    config.replace("{\"model_type\": \"opt\",", "{\"model_type\": \"opt\", \"activation_function\": \"gelu\",")
}

#[test]
fn gradients_through_every_operation_are_slopes_of_the_loss() {
    let config = super::parsed(LLAMA);
    for site in sites(&config) {
        for op in operations(config.stored_width(site)) {
            slopes(LLAMA, &format!("{} {op:.20?}", site.name(0)), &[edit(site, op)], false);
        }
        slopes(LLAMA, &site.name(0), &[edit(site, EditOp::Scale(-0.6))], true);
    }
}

#[test]
fn gradients_through_edits_of_every_family_are_slopes_of_the_loss() {
    for config in models().iter().skip(1) {
        let config = smooth(config);
        let parsed = super::parsed(&config);
        for (i, site) in sites(&parsed).into_iter().enumerate() {
            let operations = operations(parsed.stored_width(site));
            for op in [&operations[i % 7], &operations[(i + 3) % 7]] {
                let name = format!("{} {}", parsed.family.name(), site.name(0));
                slopes(&config, &name, &[edit(site, op.clone())], i % 3 == 0);
            }
        }
    }
}

#[test]
fn gradients_through_several_edits_are_slopes_of_the_loss() {
    for config in models() {
        let config = smooth(&config);
        let parsed = super::parsed(&config);
        let all: Vec<Edit> = sites(&parsed)
            .into_iter()
            .flat_map(|site| {
                let direction: Vec<f32> = noise(parsed.stored_width(site), 9, 1.0);
                let scale = Edit::new(Selection::new(&[site], &[0, 1, 2]), Positions::All, EditOp::Scale(0.95));
                [edit(site, EditOp::ProjectOut(direction)), scale.of_runs(vec![0])]
            })
            .collect();
        slopes(&config, parsed.family.name(), &all, false);
        slopes(&config, parsed.family.name(), &all, true);
    }
}

#[test]
fn generation_under_edits_follows_the_edited_whole_pass() {
    for config in models() {
        let b = &mut Cpu::new(Dtype::F32);
        let (model, _) = random(b, &config);
        let adaptation = adapters(b, lora(&model.config, model.config.family.modules()), 1);
        let ids = |n, seed| super::ids(n, seed);
        let prompts: Vec<Prompt> = [ids(4, 1), ids(9, 2), ids(4, 1)[..2].to_vec(), ids(4, 1)]
            .into_iter()
            .zip([None, Some(0), None, Some(0)])
            .map(|(ids, run)| Prompt { ids, run })
            .collect();
        let width = model.config.hidden_size;
        let add = |seed| EditOp::Add(Values::one(noise(width, seed, 3.0)));
        let hooks = Selection::new(&[Site::ResidPost], &[1]);
        let mut changed = 0;
        for positions in [Positions::Last, Positions::All, Positions::At(vec![-1, 0])] {
            let edits = [Edit::new(hooks.clone(), positions.clone(), add(7))];
            let plain = GenerationConfig::greedy(6);
            let generation = GenerationConfig { edits: &edits, ..plain.clone() };
            let found = model.generate(b, &prompts, Some(&adaptation), &generation, &mut |_, _| ()).expect("tokens");
            let unedited = model.generate(b, &prompts, Some(&adaptation), &plain, &mut |_, _| ()).expect("tokens");
            changed += usize::from(found != unedited);
            for (prompt, found) in prompts.iter().zip(&found) {
                let n = prompt.ids.len();
                let mut ids = prompt.ids.clone();
                for &token in found {
                    // What stands for the whole so far: every last token there has been, or the prompt's positions.
                    let positions = match &positions {
                        Positions::Last => Positions::At((n as i64 - 1..ids.len() as i64).collect()),
                        Positions::At(_) => Positions::At(vec![n as i64 - 1, 0]),
                        all => all.clone(),
                    };
                    let edits = [Edit::new(hooks.clone(), positions, add(7))];
                    let pass = Pass { model: &model, adaptation: &adaptation, edits: &edits, sites: &[Site::Logits] };
                    let sequence = Sequence::ids(&ids, prompt.run, Label::Text);
                    let (_, record) = pass.run(b, &[sequence], flat, None);
                    let logits = record.get(Site::Logits, 0).expect("recorded");
                    let last = &logits[(ids.len() - 1) * 23..];
                    let best = (0..23).max_by(|&a, &b| last[a].total_cmp(&last[b]).then(b.cmp(&a)));
                    assert_eq!(
                        Some(token as usize),
                        best,
                        "{positions:?}, prompt of {n}",
                        positions = edits[0].positions
                    );
                    ids.push(token);
                }
            }
        }
        assert!(changed > 0, "no steering vector changed a token");
    }
}
