//! A step's passes of soft prompts: the rows of a run's prompt once above all its sequences, and repeated before each.
//! Elements are tokens of the sequences, the prompts' rows not counted.
#![allow(missing_docs, reason = "the macros of the harness")]

mod common;

use common::time;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llamaprobe::arch::{Dtype, ModelConfig};
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::formats::adapter::PromptKind;
use llamaprobe::hooks::NoTaps;
use llamaprobe::model::{Activations, Adaptation, FullTuning, GradientRequest, Gradients, Input, Labels, Save};
use llamaprobe::pack::{Label, Pack, PackBuilder, Parent, Token};

const RUNS: usize = 4;
const SEQUENCES: usize = 8;
const TOKENS: usize = 32;
/// The layers of a story model, with a head that does not hide them.
const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6,
    "num_attention_heads": 6, "num_key_value_heads": 6, "vocab_size": 2000, "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": true}"#;

fn pack(rows: usize, shared: bool) -> Pack {
    let mut builder = PackBuilder::default();
    let prompt: Vec<Token> = (0..rows as u32).map(Token::Virtual).collect();
    for run in 0..RUNS {
        let root = shared.then(|| builder.push(&prompt, Parent::None, Some(run), Label::Virtual));
        for sequence in 0..SEQUENCES {
            let ids = (0..TOKENS).map(|i| Token::Id(((7 * run + 31 * sequence + 3 * i) % 2000) as u32));
            match root {
                Some(root) => builder.push(&ids.collect::<Vec<_>>(), Parent::Pack(root), Some(run), Label::Text),
                None => {
                    let whole: Vec<Token> = prompt.iter().copied().chain(ids).collect();
                    builder.push(&whole, Parent::None, Some(run), Label::Text)
                }
            };
        }
    }
    builder.build()
}

fn step<B: Backend>(c: &mut Criterion, mut b: B) {
    let mut group = common::group(c, &format!("prompt/{}", b.name()));
    let config = ModelConfig::parse("config.json", CONFIG).expect("a configuration");
    let (model, _full) = FullTuning::random(&mut b, config, 0.02, 0).expect("memory for a bench");
    for rows in [20, 100] {
        let adaptation = Adaptation::zeros(&mut b, &model.config, PromptKind::PromptTuning, vec![rows; RUNS])
            .expect("memory for a bench");
        for shared in [true, false] {
            let pack = pack(rows, shared);
            let layout = Some(&adaptation.layout);
            let mut acts = Activations::new(&mut b, &model.config, layout, pack.len(), Save::All).expect("memory");
            // The last row of every sequence.
            let ends = pack.segments().iter().filter(|s| s.label == Label::Text).map(|s| s.rows.end as u32 - 1);
            let ends: Vec<u32> = ends.collect();
            let mut grads = Gradients::new(&mut b, &model.config, pack.len(), ends.len()).expect("memory");
            let labels =
                Labels::new(&mut b, None, &ends, &vec![1; ends.len()], &vec![1.0; ends.len()]).expect("memory");
            let device = b.pack(&pack).expect("memory for a bench");
            let mut d_params = b.acc(RUNS * adaptation.layout.stride).expect("memory for a bench");
            group.throughput(Throughput::Elements((RUNS * SEQUENCES * TOKENS) as u64));
            let id = format!("{rows} rows/{}", if shared { "once a run" } else { "repeated" });
            group.bench("fwd and bwd", id, |bench| {
                time(bench, &mut b, |b| {
                    let input = Input::new(&pack, &device).adapted(&adaptation);
                    model.forward(b, &mut acts, &input, None, &mut NoTaps).expect("a forward");
                    let wanted = GradientRequest { d_params: Some(&mut d_params), ..GradientRequest::none() };
                    model.backward(b, &mut acts, &mut grads, &input, &labels, wanted);
                });
            });
        }
    }
    group.finish_without_shares();
}

fn all(c: &mut Criterion) {
    step(c, Cpu::<f32>::open(&common::settings(Dtype::F32)));
}

criterion_group!(benches, all);
criterion_main!(benches);
