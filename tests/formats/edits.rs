//! Files of edits: what they say, and what they may not.

use std::fs;
use std::path::{Path, PathBuf};

use llamaprobe::arch::ModelConfig;
use llamaprobe::formats::control_vector::ControlVector;
use llamaprobe::formats::edits::{EditOp, Positions, Values, read};
use llamaprobe::formats::safetensors::{Dtype, Tensor, write};
use llamaprobe::hooks::{Edit, Naming, Site};

use crate::support::temp;

fn config() -> ModelConfig {
    let config = r#"{"model_type": "llama", "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 4,
        "num_attention_heads": 2, "vocab_size": 11}"#;
    ModelConfig::parse("config.json", config).expect("a configuration")
}

/// A folder with values of width 4 (`one`, `two`, `row`), of width 3 (`narrow`), zeros, a NaN, and control vectors.
fn folder() -> tempfile::TempDir {
    let dir = temp();
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (eight, zeros) = (bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]), bytes(&[0.0; 4]));
    let nan = bytes(&[1.0, f32::NAN, 0.0, 0.0]);
    let tensor = |name, shape, data| Tensor { name, dtype: Dtype::F32, shape, data };
    let tensors = [
        tensor("one", &[4], &eight[..16]),
        tensor("row", &[1, 4], &eight[..16]),
        tensor("two", &[2, 4], &eight),
        tensor("narrow", &[3], &eight[..12]),
        tensor("cube", &[1, 2, 4], &eight),
        tensor("zeros", &[4], &zeros),
        tensor("nan", &[4], &nan),
    ];
    write(dir.path().join("v.safetensors"), &tensors, &[]).expect("writes");
    let control = |layers: &[usize]| {
        let directions = layers.iter().map(|&layer| (layer, vec![layer as f32; 4])).collect();
        ControlVector { model_hint: String::new(), directions }
    };
    control(&[1, 3]).write(dir.path().join("v.gguf")).expect("writes");
    control(&[5]).write(dir.path().join("deep.gguf")).expect("writes");
    dir
}

fn put(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("edits.yaml");
    fs::write(&path, text).expect("writes");
    path
}

fn edits(dir: &Path, text: &str) -> llamaprobe::Result<Vec<Edit>> {
    let config = config();
    let edits = Edit::of_file(read(put(dir, text))?, &Naming::tl(&config))?;
    config.check_edits(&edits).map(|()| edits)
}

#[test]
fn file_of_edits_says_site_layers_positions_and_operation() {
    let dir = folder();
    let text = "
- {site: resid_post, positions: last, op: add, value: v.safetensors#one, scale: -2}
- {site: blocks.2.attn.hook_z, positions: all, op: zero}
- {site: mlp_out, layers: [3, 0], positions: [0, -1], op: replace, value: v.safetensors#two}
- {site: q, layers: 1-2, positions: query, op: scale, scale: 0.5}
- {site: resid_mid, layers: 1, positions: demonstrations, op: mean, value: v.safetensors#two, scale: 10}
- {site: ln_final.hook_out, positions: [2], op: project_out, value: v.safetensors#row}
";
    let found = edits(dir.path(), text).expect("edits");
    let one = |values: &[f32]| Values::one(values.to_vec());
    let all = |site| (0..4).map(|layer| (site, layer)).collect::<Vec<_>>();
    let expected = [
        (all(Site::ResidPost), Positions::Last, EditOp::Add(one(&[-2.0, -4.0, -6.0, -8.0]))),
        (vec![(Site::Z, 2)], Positions::All, EditOp::Zero),
        (
            vec![(Site::MlpOut, 0), (Site::MlpOut, 3)],
            Positions::At(vec![0, -1]),
            EditOp::Replace(Values { rows: (1..=8).map(|x| x as f32).collect(), width: 4 }),
        ),
        (vec![(Site::Q, 1), (Site::Q, 2)], Positions::Query, EditOp::Scale(0.5)),
        (vec![(Site::ResidMid, 1)], Positions::Demonstrations, EditOp::Replace(one(&[30.0, 40.0, 50.0, 60.0]))),
        (vec![(Site::FINAL_NORM, 0)], Positions::At(vec![2]), EditOp::ProjectOut(vec![1.0, 2.0, 3.0, 4.0])),
    ];
    assert_eq!(found.len(), expected.len());
    for (found, (hooks, positions, op)) in found.iter().zip(expected) {
        assert_eq!((&found.hooks.hooks, &found.positions, &found.op), (&hooks, &positions, &op));
    }
}

/// llama.cpp adds `direction.N` to what block N leaves, blocks counted from 0.
#[test]
fn direction_n_of_a_control_vector_is_added_to_what_block_n_leaves() {
    let dir = folder();
    let found = edits(dir.path(), "[{op: add, value: v.gguf, scale: 2}]").expect("edits");
    let added: Vec<_> = found.iter().map(|edit| (edit.hooks.hooks[0], &edit.positions, &edit.op)).collect();
    let op = |x: f32| EditOp::Add(Values::one(vec![x; 4]));
    let expected = [(1, op(2.0)), (3, op(6.0))];
    for (found, (layer, op)) in added.iter().zip(&expected) {
        assert_eq!(found, &((Site::ResidPost, *layer), &Positions::All, op));
    }
    assert_eq!(added.len(), 2);
    let some = edits(dir.path(), "[{op: add, value: v.gguf, layers: 3, positions: last}]").expect("edits");
    assert_eq!((some.len(), some[0].hooks.hooks[0].1, &some[0].positions), (1, 3, &Positions::Last));
}

#[test]
fn wrong_files_of_edits_are_refused_by_field() {
    let dir = folder();
    let add = "op: add, value: v.safetensors#one";
    for (text, expected) in [
        ("{}", "top level: expected a list"),
        ("[]", "top level: expected at least one edit"),
        ("", "top level: expected a list of edits, found an empty file"),
        ("[3]", "[0]: expected a mapping, found 3"),
        ("[{site: resid_post, site: q}]", "site: expected once, found twice"),
        (
            &format!("[{{site: resid_post, position: last, {add}}}]"),
            "[0].position: expected one of the keys site, layers",
        ),
        (&format!("[{{site: resid_post, position: last, {add}}}]"), "nearest: positions"),
        (&format!("[{{site: resid_post, {add}}}]"), "[0].positions: expected last, all, query"),
        (&format!("[{{positions: last, {add}}}]"), "[0].site: expected the name of a hook site, found nothing"),
        (
            &format!("[{{site: resid_pots, positions: last, {add}}}]"),
            "[0].site: expected a hook site (nearest: `resid_post`",
        ),
        (
            &format!("[{{site: pattern, positions: last, {add}}}]"),
            "[0].site: expected one of hook_embed, hook_resid_pre",
        ),
        (&format!("[{{site: logits, positions: last, {add}}}]"), "found logits"),
        (&format!("[{{site: ln1.hook_scale, positions: last, {add}}}]"), "found blocks.0.ln1.hook_scale"),
        (&format!("[{{site: hook_pos_embed, positions: last, {add}}}]"), "found hook_pos_embed"),
        (&format!("[{{site: blocks.4.attn.hook_z, positions: last, {add}}}]"), "[0].site: expected a layer below 4"),
        (
            &format!("[{{site: resid_post, layers: 4, positions: last, {add}}}]"),
            "[0].layers: expected layers below 4, found 4",
        ),
        (&format!("[{{site: resid_post, layers: [0, 9], positions: last, {add}}}]"), "layers below 4, found 9"),
        (
            &format!("[{{site: resid_post, layers: first, positions: last, {add}}}]"),
            "[0].layers: expected all, or layers",
        ),
        (&format!("[{{site: resid_post, layers: 0.5, positions: last, {add}}}]"), "[0].layers: expected all, a number"),
        (&format!("[{{site: resid_post, layers: [], positions: last, {add}}}]"), "[0].layers: expected all, a number"),
        (&format!("[{{site: resid_post, layers: , positions: last, {add}}}]"), "[0].layers: expected a value"),
        (&format!("[{{site: resid_post, positions: first, {add}}}]"), "found \"first\""),
        (&format!("[{{site: resid_post, positions: [], {add}}}]"), "[0].positions: expected last, all"),
        (&format!("[{{site: resid_post, positions: [0.5], {add}}}]"), "[0].positions: expected last, all"),
        (
            &format!("[{{site: mlp.hook_pre, positions: last, {add}}}]"),
            "[0].value: expected rows of 6 elements for blocks.0.mlp.hook_pre, found 4",
        ),
        ("[{site: resid_post, positions: last, op: added}]", "[0].op: expected one of add, replace"),
        (
            "[{site: resid_post, positions: last}]",
            "[0].op: expected one of add, replace, scale, zero, mean, project_out, found nothing",
        ),
        (
            "[{site: resid_post, positions: last, op: add}]",
            "[0].value: expected FILE.safetensors#tensor, or FILE.gguf, found nothing",
        ),
        (
            "[{site: resid_post, positions: last, op: add, value: v.safetensors}]",
            "[0].value: expected FILE.safetensors#tensor",
        ),
        ("[{site: resid_post, positions: last, op: add, value: v.safetensors#on}]", "v.safetensors"),
        ("[{site: resid_post, positions: last, op: add, value: none.safetensors#one}]", "none.safetensors"),
        (
            "[{site: resid_post, positions: last, op: add, value: v.safetensors#narrow}]",
            "[0].value: expected rows of 4 elements",
        ),
        (
            "[{site: resid_post, positions: last, op: add, value: v.safetensors#cube}]",
            "cube: expected a shape [width] or [rows, width]",
        ),
        ("[{site: resid_post, positions: last, op: add, value: v.safetensors#nan}]", "nan"),
        (
            "[{site: resid_post, positions: last, op: add, value: v.safetensors#two}]",
            "[0].value: expected 1 row, or a list of as many",
        ),
        (
            "[{site: resid_post, positions: [0, 1, 2], op: add, value: v.safetensors#two}]",
            "[0].value: expected 1 or 3 rows, found 2",
        ),
        (
            "[{site: resid_post, positions: last, op: project_out, value: v.safetensors#two}]",
            "[0].value: expected one direction",
        ),
        (
            "[{site: resid_post, positions: last, op: project_out, value: v.safetensors#zeros}]",
            "a direction of a length above 0",
        ),
        (
            "[{site: resid_post, positions: last, op: project_out, value: v.safetensors#one, scale: 2}]",
            "[0].scale: expected no scale of the operation project_out",
        ),
        ("[{site: resid_post, positions: last, op: scale}]", "[0].scale: expected the factor"),
        ("[{site: resid_post, positions: last, op: scale, scale: .nan}]", "[0].scale: expected a value"),
        ("[{site: resid_post, positions: last, op: scale, scale: .inf}]", "[0].scale: expected"),
        (
            "[{site: resid_post, positions: last, op: scale, scale: two}]",
            "[0].scale: expected a finite number, found \"two\"",
        ),
        (
            "[{site: resid_post, positions: last, op: scale, scale: 2, value: v.safetensors#one}]",
            "[0].value: expected no value of the operation scale",
        ),
        (
            "[{site: resid_post, positions: last, op: zero, scale: 2}]",
            "[0].scale: expected no scale of the operation zero",
        ),
        ("[{op: zero, site: z, positions: all}, {op: add, site: z}]", "[1].value: expected"),
        ("[{op: replace, value: v.gguf}]", "[0].op: expected add, of a control vector"),
        ("[{op: add, value: v.gguf, site: resid_pre}]", "[0].site: expected resid_post, of a control vector"),
        ("[{op: add, value: v.gguf, layers: 0-1}]", "[0].layers: expected layers that the control vector has, found 0"),
        (
            "[{op: add, value: deep.gguf}]",
            "[0].value: expected a control vector for layers below 4, found a direction of layer 5",
        ),
        ("[{op: add, value: edits.yaml.gguf}]", "edits.yaml.gguf"),
    ] {
        let error = edits(dir.path(), text).expect_err(text).to_string();
        let file = error.contains("edits.yaml") || error.contains(".safetensors") || error.contains(".gguf");
        assert!(file && error.contains(expected), "{text}\n  {expected}\n  {error}");
    }
}
