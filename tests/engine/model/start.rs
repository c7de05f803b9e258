//! Passes that start at a layer: from the residual stream that a whole pass recorded there, they give its bits.

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::{Buffers, Transfer};
use llamaprobe::hooks::{NoTaps, Record, Selection, Site};
use llamaprobe::model::{Activations, Adaptation, Cache, Input, KvCache, Model, OutputRows, Save, Start, StartRows};
use llamaprobe::pack::{CachedSegment, Label, Pack, PackBuilder, Parent, Token, forest};

use super::{LLAMA, adapters, branching, ids, lora, models, random};

const SITES: [Site; 6] = [Site::ResidPre, Site::Q, Site::Pattern, Site::MlpPost, Site::ResidPost, Site::FINAL_NORM];

/// A pass over a pack that may continue a cache.
struct Pass<'a> {
    model: &'a Model<Cpu>,
    adaptation: &'a Adaptation<Cpu>,
    pack: &'a Pack,
    /// The rows that come out.
    rows: &'a [usize],
}

impl Pass<'_> {
    /// The states at every hook, of every row or of the output rows, and the logits after these.
    fn run(
        &self,
        b: &mut Cpu,
        cache: Option<&mut KvCache<Cpu>>,
        start: Option<Start<'_, Cpu>>,
        narrow: bool,
    ) -> (Record, Vec<f32>) {
        let Self { model, adaptation, pack, rows } = *self;
        let layout = Some(&adaptation.layout);
        let mut acts = Activations::new(b, &model.config, layout, pack.len(), Save::Layer).expect("memory");
        let device = b.pack(pack).expect("memory");
        let output = OutputRows::new(b, pack, rows.iter().copied()).expect("memory").filter(|_| narrow);
        let input = Input::new(pack, &device).adapted(adaptation).with_output_rows(output.as_ref());
        let input = Input { start, ..input };
        let layers: Vec<usize> = (0..model.config.num_hidden_layers).collect();
        let taken = if narrow { rows.to_vec() } else { (0..pack.len()).collect() };
        let mut record = Record::new(Selection::new(&SITES, &layers), taken);
        let cache = cache.map(|cache| Cache { cache, append: &[] });
        model.forward(b, &mut acts, &input, cache, &mut record).expect("a forward");
        let logits = model.logits(b, &acts, rows).expect("logits");
        (record, logits)
    }

    /// Starts at every layer against the whole pass.
    fn check(&self, b: &mut Cpu, mut cache: Option<&mut KvCache<Cpu>>) {
        let (depth, width, n) = (self.model.config.num_hidden_layers, self.model.config.hidden_size, self.pack.len());
        let (whole, logits) = self.run(b, cache.as_deref_mut(), None, false);
        for layer in 0..=depth {
            let resid = match layer == depth {
                true => whole.get(Site::ResidPost, layer - 1),
                false => whole.get(Site::ResidPre, layer),
            };
            let resid = resid.expect("recorded");
            // On the device the rows lie among others, in another order.
            let mut reversed = vec![f32::NAN; width];
            (0..n).rev().for_each(|row| reversed.extend_from_slice(&resid[row * width..][..width]));
            let rows: Vec<u32> = (0..n).map(|row| (n - row) as u32).collect();
            let (x, rows) = (reversed, rows);
            for narrow in [false, true] {
                for resid in [StartRows::Host(resid), StartRows::Device { x: &x, rows: &rows }] {
                    let start = Some(Start { layer, resid });
                    let (found, found_logits) = self.run(b, cache.as_deref_mut(), start, narrow);
                    assert_eq!(found_logits, logits, "logits of a start at {layer}");
                    self.same(&found, &whole, layer, narrow);
                }
            }
        }
    }

    /// The hooks from layer `start` on have the bits of the whole pass, those below none.
    fn same(&self, found: &Record, whole: &Record, start: usize, narrow: bool) {
        let mut hooks = 0;
        for (site, layer, width, expected) in whole.iter() {
            let name = site.name(layer);
            if site.in_block() && layer < start {
                assert!(found.get(site, layer).is_none(), "{name} of a start at {start}");
                continue;
            }
            let found = found.get(site, layer).unwrap_or_else(|| panic!("{name} of a start at {start}"));
            let rows = if narrow { self.rows.to_vec() } else { (0..self.pack.len()).collect() };
            for (i, row) in rows.into_iter().enumerate() {
                let (found, expected) = (&found[i * width..][..width], &expected[row * width..][..width]);
                assert_eq!(found, expected, "{name}, row {row} of a start at {start}");
            }
            hooks += 1;
        }
        let depth = self.model.config.num_hidden_layers;
        assert!(hooks == (depth - start) * 5 + 1, "{hooks} hooks of a start at {start}");
    }
}

fn model(b: &mut Cpu, config: &str) -> (Model<Cpu>, Adaptation<Cpu>) {
    let (model, _) = random(b, config);
    let targets = [model.config.family.modules()[0], llamaprobe::arch::Projection::Down];
    let adaptation = adapters(b, lora(&model.config, &targets), 2);
    (model, adaptation)
}

#[test]
fn start_at_any_layer_has_the_bits_of_the_whole_pass() {
    for config in models() {
        let b = &mut Cpu::new(Dtype::F32);
        let (model, adaptation) = model(b, &config);
        let pack = forest(&branching(|i| [None, Some(0), Some(1)][i / 2 % 3]), 1).pack;
        let rows = [1, 7, pack.len() - 2];
        Pass { model: &model, adaptation: &adaptation, pack: &pack, rows: &rows }.check(b, None);
    }
}

#[test]
fn start_after_a_cached_prefix_has_the_bits_of_the_whole_pass() {
    for config in models() {
        let b = &mut Cpu::new(Dtype::F32);
        let (model, adaptation) = model(b, &config);
        let tokens = |ids: &[u32]| ids.iter().map(|&t| Token::Id(t)).collect::<Vec<_>>();
        let mut cache = KvCache::new(b, model.config.num_hidden_layers, 20, model.config.kv_width()).expect("memory");
        let mut builder = PackBuilder::default();
        builder.push(&tokens(&ids(20, 5)), Parent::None, Some(1), Label::Demonstration);
        let prefix = builder.build();
        let mut acts = Activations::new(b, &model.config, Some(&adaptation.layout), 20, Save::Layer).expect("memory");
        let device = b.pack(&prefix).expect("memory");
        let caching = Cache { cache: &mut cache, append: &[0] };
        let input = Input::new(&prefix, &device).adapted(&adaptation);
        model.forward(b, &mut acts, &input, Some(caching), &mut NoTaps).expect("a forward");
        let segments: Vec<CachedSegment> = cache.segments.clone();
        let mut builder = PackBuilder::new(&segments);
        for (n, seed) in [(4, 6), (3, 7)] {
            builder.push(&tokens(&ids(n, seed)), Parent::Cached(0), Some(1), Label::Query);
        }
        let pack = builder.build();
        let pass = Pass { model: &model, adaptation: &adaptation, pack: &pack, rows: &[3, 6] };
        pass.check(b, Some(&mut cache));
        assert_eq!(cache.segments, segments);
    }
}

#[test]
fn start_above_all_taps_runs_no_layer() {
    let b = &mut Cpu::new(Dtype::F32);
    let (model, _) = random(b, LLAMA);
    let pack = forest(&branching(|_| None), 1).pack;
    let mut acts = Activations::new(b, &model.config, None, pack.len(), Save::Layer).expect("memory");
    let device = b.pack(&pack).expect("memory");
    let resid = vec![0.5; pack.len() * model.config.hidden_size];
    let mut record = Record::new(Selection::new(&[Site::ResidPost], &[0]), vec![1]);
    let input = Input::new(&pack, &device).starting(Start { layer: 2, resid: StartRows::Host(&resid) });
    model.forward(b, &mut acts, &input, None, &mut record).expect("a forward");
    assert_eq!(record.iter().count(), 0);
    // A tap at the layer of the start sees what was given.
    let mut record = Record::new(Selection::new(&[Site::ResidPre], &[2]), vec![1]);
    model.forward(b, &mut acts, &input, None, &mut record).expect("a forward");
    b.sync().expect("sync");
    assert_eq!(record.get(Site::ResidPre, 2), Some(&resid[..model.config.hidden_size]));
}

#[test]
#[should_panic(expected = "forward: a start of 30 rows for a pack of 31")]
fn start_with_other_rows_than_the_pack_panics() {
    let b = &mut Cpu::new(Dtype::F32);
    let (model, _) = random(b, LLAMA);
    let mut builder = PackBuilder::default();
    builder.push(&vec![Token::Id(1); 31], Parent::None, None, Label::Text);
    let pack = builder.build();
    let mut acts = Activations::new(b, &model.config, None, pack.len(), Save::Layer).expect("memory");
    let device = b.pack(&pack).expect("memory");
    let resid = vec![0.5; 30 * model.config.hidden_size];
    let input = Input::new(&pack, &device).starting(Start { layer: 1, resid: StartRows::Host(&resid) });
    let _ = model.forward(b, &mut acts, &input, None, &mut NoTaps);
}
