//! Full tuning of every family's make: gradients of all weights.

use llamaprobe::arch::{Dtype, ModelConfig};
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::cuda::Cuda;
use llamaprobe::hooks::NoTaps;
use llamaprobe::model::{Activations, FullTuning, GradientRequest, Gradients, Input, Labels, Save};
use llamaprobe::pack::{Label, Sequence, forest};

use super::{child, cuda};

/// The gradients of all weights of a small random model, from a forest of two sequences.
fn gradients<B: Backend<Element = f32>>(b: &mut B, config: &str) -> Vec<f32> {
    let config = ModelConfig::parse("config.json", config).expect("a config");
    let (model, tuning) = FullTuning::random(b, config, 0.2, 0).expect("a model");
    let sequences = [&[5, 6, 7, 8, 9][..], &[5, 6, 7, 1, 2, 3]].map(|ids| Sequence::ids(ids, None, Label::Text));
    let pack = forest(&sequences, 1).pack;
    let device = b.pack(&pack).expect("a pack");
    let rows: Vec<u32> = (0..pack.len() as u32).collect();
    let targets: Vec<u32> = rows.iter().map(|row| (row * 5 + 1) % 30).collect();
    let labels = Labels::new(b, None, &rows, &targets, &vec![0.5; rows.len()]).expect("labels");
    let mut acts = Activations::new(b, &model.config, None, pack.len(), Save::All).expect("activations");
    let mut grads = Gradients::new(b, &model.config, pack.len(), rows.len()).expect("gradients");
    let mut d_weights = b.acc(tuning.layout.total).expect("gradients");
    let input = Input::new(&pack, &device);
    model.forward(b, &mut acts, &input, None, &mut NoTaps).expect("a forward");
    let d_weights_wanted = Some((&mut d_weights, &tuning.layout));
    let wanted = GradientRequest { d_weights: d_weights_wanted, d_embed: true, ..GradientRequest::none() };
    model.backward(b, &mut acts, &mut grads, &input, &labels, wanted);
    let mut found = vec![0.0; tuning.layout.total];
    b.download(&mut found, &d_weights, 0).expect("gradients");
    b.sync().expect("a backward");
    found
}

#[test]
#[ignore = "started on the fake driver"]
fn on_the_fake_driver() {
    for config in [
        r#"{"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 3, "vocab_size": 30, "n_positions": 16}"#,
        r#"{"model_type": "opt", "hidden_size": 24, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": 30, "max_position_embeddings": 16, "do_layer_norm_before": false, "word_embed_proj_dim": 8}"#,
        r#"{"model_type": "bloom", "hidden_size": 24, "n_layer": 2, "n_head": 3, "vocab_size": 30}"#,
        r#"{"model_type": "gemma2", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 10, "vocab_size": 30, "query_pre_attn_scalar": 6, "sliding_window": 4,
            "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}"#,
        r#"{"model_type": "gemma3_text", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10, "vocab_size": 30, "sliding_window": 4,
            "sliding_window_pattern": 2}"#,
        r#"{"model_type": "olmo2", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 30}"#,
        r#"{"model_type": "gpt_neox", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 2, "vocab_size": 30, "rotary_pct": 0.5}"#,
        r#"{"model_type": "phi3", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "vocab_size": 30, "partial_rotary_factor": 0.67}"#,
        r#"{"model_type": "phi", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 30, "partial_rotary_factor": 0.67}"#,
        r#"{"model_type": "smollm3", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 10, "vocab_size": 30, "no_rope_layer_interval": 2}"#,
        r#"{"model_type": "gptj", "n_embd": 24, "n_inner": 40, "n_layer": 2, "n_head": 2, "vocab_size": 30, "rotary_dim": 8}"#,
        r#"{"model_type": "starcoder2", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 30, "sliding_window": 4}"#,
        r#"{"model_type": "stablelm", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 30, "use_parallel_residual": true, "partial_rotary_factor": 0.67}"#,
    ] {
        let expected = gradients(&mut Cpu::new(Dtype::F32), config);
        let found = gradients(&mut Cuda::open(0, Dtype::F32, &cuda::settings()).expect("a device"), config);
        let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest;
        println!("{config}: {off:.1e} of the largest gradient");
        assert!(off < 1e-4, "{config}: off by {off}");
    }
}

#[test]
fn gradients_of_every_family_are_those_of_the_cpu() {
    child("families::on_the_fake_driver");
}
