//! Checkpoints that are not quite what their configuration says, as transformers 5.24 takes them.

use std::fs;
use std::path::Path;

use llamaprobe::formats::safetensors::{Checkpoint, Tensor, TensorView, write};

use super::{line, put, tensor, workplace};

const CAPTURE: &str = "capture --model {}/model --input {}/ids.jsonl --sites resid_post,ln_final.hook_out \
                       --device cpu --dtype f32 --out {}/";

/// Writes the tensors of the model anew, each under the name that `rename` gives it, if it gives one, and `more`.
fn rewrite(dir: &Path, rename: impl Fn(&str) -> Option<String>, more: &[(&str, &[usize], Vec<f32>)]) {
    let path = dir.join("model/model.safetensors");
    let views: Vec<TensorView> = Checkpoint::open(&path).expect("opens").iter().collect();
    let named: Vec<(String, &TensorView)> = views.iter().filter_map(|v| Some((rename(&v.name)?, v))).collect();
    let mut tensors: Vec<Tensor> =
        named.iter().map(|(name, v)| Tensor { name, dtype: v.dtype, shape: &v.shape, data: &v.data }).collect();
    for (name, shape, data) in more {
        let dtype = llamaprobe::formats::safetensors::Dtype::F32;
        tensors.push(Tensor { name, dtype, shape, data: bytemuck::cast_slice(data) });
    }
    write(&path, &tensors, &[]).expect("writes");
}

fn edit_config(dir: &Path, from: &str, to: &str) {
    let path = dir.join("model/config.json");
    let text = fs::read_to_string(&path).expect("config");
    assert!(text.contains(from), "{from}");
    fs::write(&path, text.replace(from, to)).expect("writes");
}

/// The states of a capture into `out`, and what was said on stderr.
fn states(dir: &Path, out: &str) -> ([Vec<f64>; 2], String) {
    let ran = line(dir, &format!("{CAPTURE}{out}")).ok();
    let file = dir.join(out).join("activations.safetensors");
    (["blocks.0.hook_resid_post", "ln_final.hook_out"].map(|name| tensor(&file, name).1), ran.err)
}

#[test]
fn body_alone_gives_states_and_says_what_needs_a_head() {
    let dir = workplace();
    let d = dir.path();
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7, 8]}\n");
    put(d, "train.jsonl", "{\"input_ids\": [5, 6, 7, 8]}\n");
    let (whole, said) = states(d, "whole");
    assert!(!said.contains("head"), "{said}");
    rewrite(d, |name| (name != "lm_head.weight").then(|| name.to_owned()), &[]);
    assert_eq!(states(d, "headless").0, whole);
    rewrite(d, |name| name.strip_prefix("model.").map(str::to_owned), &[]);
    assert_eq!(states(d, "bare").0, whole);
    for command in [
        "capture --model {}/model --input {}/ids.jsonl --sites logits --out {}/no",
        "generate --model {}/model --input {}/ids.jsonl",
        "train-lora --model {}/model --train {}/train.jsonl --out {}/no",
    ] {
        let error = line(d, command).refused();
        assert!(error.contains("lm_head.weight"), "{command}: {error}");
    }
    line(d, "inspect --model {}/model").ok();
}

#[test]
fn tensors_beside_the_model_are_a_note() {
    let dir = workplace();
    let d = dir.path();
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7, 8]}\n");
    let (whole, _) = states(d, "whole");
    let same = |name: &str| Some(name.to_owned());
    rewrite(d, same, &[("score.weight", &[1, 24], vec![0.5; 24]), ("v_head.summary.bias", &[1], vec![1.0])]);
    let (found, said) = states(d, "beside");
    assert_eq!(found, whole);
    assert!(said.contains("2 tensors beside the model are not used, such as score.weight"), "{said}");
    edit_config(d, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
    let (fewer, said) = states(d, "fewer");
    assert_eq!(fewer[0], whole[0], "the first layer is the same");
    assert_ne!(fewer[1], whole[1]);
    assert!(said.contains("such as model.layers.1."), "{said}");
    rewrite(d, same, &[("model.layers.0.self_attn.q_norm.weight", &[24], vec![1.0; 24])]);
    let error = line(d, &format!("{CAPTURE}no")).refused();
    assert!(error.contains("model.layers.0.self_attn.q_norm.weight"), "{error}");
}

#[test]
fn tied_head_that_is_stored_with_other_values_is_used() {
    let dir = workplace();
    let d = dir.path();
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7, 8]}\n");
    let capture = |out: &str| {
        let ran = line(d, &format!("{}{out}", CAPTURE.replace("resid_post,", "logits,"))).ok();
        (tensor(&d.join(out).join("activations.safetensors"), "logits").1, ran.err)
    };
    let (whole, _) = capture("whole");
    edit_config(d, "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    let (other, said) = capture("other");
    assert_eq!(other, whole);
    assert!(said.contains("lm_head.weight: has other values"), "{said}");
    // Tied, the table may be stored as the head alone.
    rewrite(d, |name| (name != "lm_head.weight").then(|| name.to_owned()), &[]);
    let (tied, said) = capture("tied");
    assert!(tied != whole && !said.contains("lm_head"), "{said}");
    rewrite(d, |name| Some(name.replace("model.embed_tokens", "lm_head")), &[]);
    assert_eq!(capture("head").0, tied);
}

#[test]
fn weights_that_the_configuration_names_are_those_that_are_read() {
    let dir = workplace();
    let d = dir.path();
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7, 8]}\n");
    let (whole, _) = states(d, "whole");
    fs::rename(d.join("model/model.safetensors"), d.join("model/best.safetensors")).expect("renames");
    edit_config(d, "\"model_type\"", "\"transformers_weights\": \"best.safetensors\", \"model_type\"");
    assert_eq!(states(d, "named").0, whole);
}

#[test]
fn keys_that_nobody_knows_are_one_note() {
    let dir = workplace();
    let d = dir.path();
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7, 8]}\n");
    let (whole, said) = states(d, "whole");
    assert!(!said.contains("keys"), "{said}");
    edit_config(d, "\"model_type\"", "\"my_key\": 1, \"other\": {\"a\": 2}, \"model_type\"");
    let (found, said) = states(d, "keys");
    assert_eq!(found, whole);
    assert_eq!(said.matches("config.json: keys that nothing is known to read: my_key, other").count(), 1, "{said}");
}

#[test]
fn bidirectional_models_capture_train_and_generate_and_do_not_share_rows() {
    let dir = workplace();
    let d = dir.path();
    edit_config(d, "\"model_type\"", "\"is_causal\": false, \"model_type\"");
    let both = "{\"input_ids\": [5, 6, 7, 8]}\n{\"input_ids\": [5, 6, 7, 9, 11]}\n";
    put(d, "ids.jsonl", both);
    let (together, _) = states(d, "together");
    put(d, "ids.jsonl", both.lines().next().expect("a line"));
    let (alone, _) = states(d, "alone");
    assert_eq!(together[0][..alone[0].len()], alone[0], "a text's states depend on its own tokens only");
    assert!(together[0][..24] != together[0][4 * 24..][..24], "later tokens are seen by earlier ones");
    put(d, "train.jsonl", both);
    line(d, "train-lora --model {}/model --train {}/train.jsonl --max-steps 2 --out {}/adapter").ok();
    line(d, "generate --model {}/model --input {}/train.jsonl --max-new-tokens 2 --json").json();
    let error = line(d, "probe --model {}/model --task sst2 --train {}/train.jsonl --test {}/train.jsonl --out {}/no");
    assert!(error.refused().contains("is_causal"));
}

#[test]
fn texts_beyond_the_positions_of_a_rotary_model_go_on_with_a_note() {
    let dir = workplace();
    let d = dir.path();
    edit_config(d, "\"max_position_embeddings\": 1024", "\"max_position_embeddings\": 3");
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7, 8]}\n");
    let (_, said) = states(d, "long");
    assert_eq!(said.matches("max_position_embeddings, 3 tokens").count(), 1, "{said}");
}

/// In transformers 5.24 the cached keys of a two-sided window have another edge than those of a whole text.
#[test]
fn bidirectional_windows_are_continued_within_the_window_only() {
    let dir = workplace();
    let d = dir.path();
    edit_config(d, "\"llama\"", "\"mistral\"");
    edit_config(d, "\"model_type\"", "\"is_causal\": false, \"sliding_window\": 6, \"model_type\"");
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7, 8]}\n");
    let generate = |tokens: usize| {
        line(d, &format!("generate --model {{}}/model --input {{}}/ids.jsonl --json --max-new-tokens {tokens}"))
    };
    generate(2).json();
    let error = generate(3).refused();
    assert!(error.contains("at most 6 tokens"), "{error}");
    states(d, "states");
}
