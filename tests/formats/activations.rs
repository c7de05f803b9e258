use std::collections::BTreeSet;
use std::fs;

use half::bf16;
use llamaprobe::formats::activations::{ActivationFile, ActivationWriter, FileLayout, Layout};
use llamaprobe::formats::safetensors::{Checkpoint, Dtype, Tensor, write};

use crate::support::temp;

/// Rows of four shards.
const SHARDS: [usize; 4] = [6, 1, 10, 3];

/// One file of so many rows, or shards of these.
fn layout(rows: &[usize], dtype: Dtype, sharded: bool) -> Layout {
    let file = |(i, &rows): (usize, &usize)| FileLayout { rows, metadata: vec![("part".to_string(), i.to_string())] };
    Layout {
        sites: vec![("blocks.0.hook_resid_post".to_string(), 3), ("ln_final.hook_normalized".to_string(), 2)],
        labels: vec!["doc_id".to_string(), "pos".to_string()],
        files: rows.iter().enumerate().map(file).collect(),
        dtype,
        sharded,
        metadata: vec![("model".to_string(), "tiny".to_string())],
    }
}

/// Pushes rows in uneven parts, site by site, as a model with packs of several sizes does.
fn fill(writer: &mut ActivationWriter, rows: usize) {
    let mut at = 0;
    for n in [1, 3, 2, 7, 1].into_iter().cycle() {
        let n = n.min(rows - at);
        if n == 0 {
            return;
        }
        let wide: Vec<f32> = (at * 3..(at + n) * 3).map(|x| x as f32 + 0.001).collect();
        let narrow: Vec<f32> = (at * 2..(at + n) * 2).map(|x| -(x as f32)).collect();
        let ids: Vec<i64> = (at..at + n).map(|x| x as i64).collect();
        writer.push("blocks.0.hook_resid_post", &wide).expect("writes");
        writer.push_labels("pos", &ids).expect("writes");
        writer.push_labels("doc_id", &ids).expect("writes");
        writer.push("ln_final.hook_normalized", &narrow).expect("writes");
        at += n;
    }
}

#[test]
fn rows_arrive_in_every_dtype() {
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let dir = temp();
        let path = dir.path().join("activations.safetensors");
        let mut writer = ActivationWriter::create(&path, layout(&[20], dtype, false)).expect("creates");
        fill(&mut writer, 20);
        assert!(!path.exists(), "an unfinished file has no name");
        assert_eq!(writer.finish().expect("finishes"), path);
        let open = Checkpoint::open(&path).expect("opens");
        let wide = open.expect("blocks.0.hook_resid_post", &[20, 3]).expect("there");
        assert_eq!(wide.dtype, dtype);
        for (i, x) in wide.to_f32().expect("floats").into_iter().enumerate() {
            let exact = i as f32 + 0.001;
            let want = if dtype == Dtype::BF16 { bf16::from_f32(exact).to_f32() } else { exact };
            assert!((x - want).abs() <= if dtype == Dtype::F16 { 0.02 } else { 0.0 }, "{dtype} {i}: {x} {want}");
        }
        let pos = open.expect("pos", &[20]).expect("there");
        assert_eq!(pos.as_slice::<i64>().expect("i64"), (0..20).collect::<Vec<i64>>());
        assert_eq!(open.metadata()["model"], "tiny");
    }
}

#[test]
fn shards_cover_all_rows() {
    let dir = temp();
    let path = dir.path().join("activations.safetensors");
    let mut writer = ActivationWriter::create(&path, layout(&SHARDS, Dtype::F32, true)).expect("creates");
    fill(&mut writer, 20);
    let index = writer.finish().expect("finishes");
    assert_eq!(index, dir.path().join("activations.safetensors.index.json"));
    let map: serde_json::Value = serde_json::from_slice(&fs::read(&index).expect("reads")).expect("JSON");
    let parts = map["weight_map"].as_object().expect("a map");
    // Who loads every file of the map finds all; who looks up a name of it finds no part in the place of the whole.
    let files: BTreeSet<&str> = parts.values().filter_map(|file| file.as_str()).collect();
    assert_eq!((parts.len(), files.len()), (16, 4));
    assert!(!parts.contains_key("pos"));
    let (mut first, mut all) = (0, Vec::new());
    for (i, (file, rows)) in files.into_iter().zip(SHARDS).enumerate() {
        let said = &map["metadata"]["shards"][i];
        assert_eq!(*said, serde_json::json!({"file": file, "rows": [first, first + rows]}));
        let open = Checkpoint::open(dir.path().join(file)).expect("opens");
        assert_eq!((open.metadata()["part"].as_str(), open.metadata()["model"].as_str()), (&*i.to_string(), "tiny"));
        all.extend(open.expect("blocks.0.hook_resid_post", &[rows, 3]).expect("there").to_f32().expect("floats"));
        first += rows;
    }
    let wide: Vec<f32> = (0..60).map(|x| x as f32 + 0.001).collect();
    assert_eq!(all, wide);
    let read = ActivationFile::open(&path).expect("opens by the name that one file would have");
    assert_eq!(read.rows("blocks.0.hook_resid_post").expect("rows").values, wide);
    assert_eq!(read.labels("pos").expect("labels"), Some((0..20).collect()));
}

/// As version 0.1 wrote them: the parts numbered in the shards too.
#[test]
fn shards_with_numbered_parts_are_read() {
    let dir = temp();
    let mut map = serde_json::Map::new();
    for (part, x) in [("00001", 1.0f32), ("00002", 2.0)] {
        let (name, file) = (format!("hook_embed/{part}"), format!("a-{part}-of-00002.safetensors"));
        let data: Vec<u8> = [x, x + 0.5].iter().flat_map(|x| x.to_le_bytes()).collect();
        let tensor = Tensor { name: &name, dtype: Dtype::F32, shape: &[1, 2], data: &data };
        write(dir.path().join(&file), &[tensor], &[]).expect("writes");
        map.insert(name.clone(), file.into());
    }
    let index = dir.path().join("a.safetensors.index.json");
    fs::write(&index, serde_json::json!({"weight_map": map}).to_string()).expect("writes");
    let rows = ActivationFile::open(&index).expect("opens").rows("hook_embed").expect("rows");
    assert_eq!((rows.values, rows.width), (vec![1.0, 1.5, 2.0, 2.5], 2));
}

#[test]
fn shards_that_lack_a_tensor_are_refused() {
    let dir = temp();
    let path = dir.path().join("activations.safetensors");
    let mut writer = ActivationWriter::create(&path, layout(&SHARDS, Dtype::F32, true)).expect("creates");
    fill(&mut writer, 20);
    writer.finish().expect("finishes");
    let shard = dir.path().join("activations-00002-of-00004.safetensors");
    let data = [0u8; 24];
    let tensor = |rows: usize| {
        let shape = [rows, 3];
        let tensor = Tensor { name: "hook_embed", dtype: Dtype::F32, shape: &shape, data: &data[..rows * 12] };
        write(&shard, &[tensor], &[]).expect("writes");
        ActivationFile::open(&path).expect_err("refused").to_string()
    };
    let error = tensor(1);
    assert!(error.contains("expected 2 shards that have it, found 1"), "{error}");
    let error = tensor(2);
    let expected =
        "metadata.shards: expected 2 rows of activations-00002-of-00004.safetensors, found 1 of activations-00002";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn captures_of_another_form_are_not_left_beside_a_new_one() {
    let (three, four) = (&[10, 5, 5][..], &SHARDS[..]);
    let one = &[20][..];
    for ((first, first_sharded), (second, sharded), found) in [
        ((one, false), (four, true), Some("activations.safetensors")),
        ((four, true), (one, false), Some("activations.safetensors.index.json")),
        ((three, true), (four, true), Some("activations-00001-of-00003.safetensors")),
        ((one, false), (one, false), None),
        ((four, true), (four, true), None),
    ] {
        let dir = temp();
        let path = dir.path().join("activations.safetensors");
        let mut writer = ActivationWriter::create(&path, layout(first, Dtype::F32, first_sharded)).expect("creates");
        fill(&mut writer, 20);
        writer.finish().expect("finishes");
        let error = ActivationWriter::create(&path, layout(second, Dtype::F32, sharded)).err().map(|e| e.to_string());
        assert_eq!(error.is_some(), found.is_some(), "{error:?}");
        assert!(found.is_none_or(|found| error.is_some_and(|error| error.ends_with(found))), "{found:?}");
    }
}

#[test]
fn an_abandoned_writer_leaves_nothing() {
    for (rows, sharded) in [(&[20][..], false), (&SHARDS, true)] {
        let dir = temp();
        let path = dir.path().join("activations.safetensors");
        let mut writer = ActivationWriter::create(&path, layout(rows, Dtype::F32, sharded)).expect("creates");
        fill(&mut writer, 10);
        drop(writer);
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 0);
    }
}

#[test]
fn no_rows_make_an_empty_file() {
    for sharded in [false, true] {
        let dir = temp();
        let path = dir.path().join("activations.safetensors");
        let writer = ActivationWriter::create(&path, layout(&[0], Dtype::F32, sharded)).expect("creates");
        let open = ActivationFile::open(writer.finish().expect("finishes")).expect("opens");
        assert_eq!((open.sites().len(), open.shape("blocks.0.hook_resid_post")), (2, Some([0, 3])));
    }
}
