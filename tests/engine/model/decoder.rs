//! A session of decoding: its bits are those of passes with buffers of their own, and its passes make none.

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::trace::Trace;
use llamaprobe::backend::{AccElement, Backend};
use llamaprobe::hooks::NoTaps;
use llamaprobe::model::{Activations, Cache, Decoder, DecoderSize, Input, KvCache, Model, Save};
use llamaprobe::pack::{Label, Pack, PackBuilder, Parent, Token};

use super::{LLAMA, ids, models, random};

/// Prompts whose length the model's rotation depends on, and others with every kind of scaling.
fn rotations() -> Vec<String> {
    let scaled = |scaling: &str| {
        let config =
            LLAMA.replace("\"rope_theta\": 100.0", &format!("\"rope_theta\": 100.0, \"rope_scaling\": {scaling}"));
        assert!(config != LLAMA);
        config
    };
    vec![
        scaled(r#"{"rope_type": "linear", "factor": 4.0}"#),
        scaled(r#"{"rope_type": "dynamic", "factor": 2.0}"#),
        scaled(r#"{"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}"#),
    ]
}

/// A pack of one segment.
fn one(tokens: &[u32], parent: Parent, cached: &[llamaprobe::pack::CachedSegment]) -> Pack {
    let mut builder = PackBuilder::new(cached);
    builder.push(&tokens.iter().map(|&t| Token::Id(t)).collect::<Vec<_>>(), parent, None, Label::Text);
    builder.build()
}

/// Logits of pass after pass, each with activations of its own.
fn alone<B: Backend>(b: &mut B, model: &Model<B>, prompt: &[u32], then: &[u32]) -> Vec<Vec<f64>> {
    let rows = prompt.len() + then.len();
    let config = &model.config;
    let mut cache = KvCache::new(b, config.num_hidden_layers, rows, config.kv_width()).expect("memory");
    let mut logits = Vec::new();
    for step in 0..=then.len() {
        let pack = match step {
            0 => one(prompt, Parent::None, &[]),
            _ => one(&then[step - 1..step], Parent::Cached(step - 1), &cache.segments),
        };
        let device = b.pack(&pack).expect("pack");
        let mut acts = Activations::new(b, config, None, pack.len(), Save::Layer).expect("memory");
        let caching = Cache { cache: &mut cache, append: &[0] };
        model.forward(b, &mut acts, &Input::new(&pack, &device), Some(caching), &mut NoTaps).expect("forward");
        let last = model.logits(b, &acts, &[pack.len() - 1]).expect("logits");
        logits.push(last.into_iter().map(AccElement::to_f64).collect());
    }
    logits
}

fn decoder<'a, B: Backend>(b: &mut B, model: &'a Model<B>, prompt: usize, then: usize) -> Decoder<'a, B> {
    let size = DecoderSize { rows: prompt, cache_rows: prompt + then, logit_rows: 1, positions: prompt + then };
    Decoder::new(b, model, None, size).expect("memory")
}

#[test]
fn decoder_gives_the_bits_of_passes_with_their_own_buffers() {
    // More tokens than a table's chunk, across the length at which dynamic scaling begins.
    let (prompt, then) = (ids(13, 3), ids(70, 4));
    for config in models().iter().chain(&rotations()) {
        for dtype in [Dtype::F32, Dtype::BF16] {
            let b = &mut Cpu::new(dtype);
            let (model, _) = random(b, config);
            let expected = alone(b, &model, &prompt, &then);
            let mut decoder = decoder(b, &model, prompt.len(), then.len());
            for (step, expected) in expected.iter().enumerate() {
                let pack = match step {
                    0 => one(&prompt, Parent::None, &[]),
                    _ => one(&then[step - 1..step], Parent::Cached(step - 1), decoder.cached()),
                };
                let found = decoder.pass(b, &pack, &[0], &[pack.len() - 1]).expect("a pass");
                let found: Vec<f64> = found.iter().map(|&x| f64::from(x)).collect();
                assert_eq!(found, *expected, "{dtype}, step {step} of {config}");
            }
        }
    }
}

#[test]
fn decoder_passes_make_no_buffers() {
    let (prompt, steps) = (ids(13, 3), 40);
    for config in models().iter().chain(&rotations()) {
        let b = &mut Trace::new();
        let (model, _) = random(b, config);
        let mut decoder = decoder(b, &model, prompt.len(), steps);
        let mut first = Vec::new();
        for step in 0..=steps {
            let pack = match step {
                0 => one(&prompt, Parent::None, &[]),
                _ => one(&[1], Parent::Cached(step - 1), decoder.cached()),
            };
            b.clear();
            decoder.pass(b, &pack, &[0], &[pack.len() - 1]).expect("a pass");
            let (ops, made) = (b.ops().to_vec(), b.allocations());
            if step == 0 {
                continue;
            }
            assert_eq!((b.elements(), made), ((0, 0), 1), "step {step}: only the pack's tables are made");
            match step {
                1 => first = ops.iter().copied().filter(|&op| op != "upload").collect(),
                _ => assert!(ops == first || ops[1..] == first && ops[0] == "upload", "step {step}: {ops:?}"),
            }
        }
    }
}
