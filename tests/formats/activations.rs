use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use half::bf16;
use llamaprobe::formats::activations::{ActivationFile, ActivationWriter, Earlier, FileLayout, Format, Layout, Start};
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
        format: Format::Safetensors,
        earlier: None,
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
        let mut writer = ActivationWriter::create(&path, layout(&[20], dtype, false), Start::New).expect("creates");
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
    let mut writer = ActivationWriter::create(&path, layout(&SHARDS, Dtype::F32, true), Start::New).expect("creates");
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
    let mut writer = ActivationWriter::create(&path, layout(&SHARDS, Dtype::F32, true), Start::New).expect("creates");
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
        let mut writer =
            ActivationWriter::create(&path, layout(first, Dtype::F32, first_sharded), Start::New).expect("creates");
        fill(&mut writer, 20);
        writer.finish().expect("finishes");
        let error = ActivationWriter::create(&path, layout(second, Dtype::F32, sharded), Start::New)
            .err()
            .map(|e| e.to_string());
        assert_eq!(error.is_some(), found.is_some(), "{error:?}");
        assert!(found.is_none_or(|found| error.is_some_and(|error| error.ends_with(found))), "{found:?}");
    }
}

/// Every file of a folder.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("lists").map(|entry| entry.expect("an entry").path());
    let file = |path: PathBuf| {
        (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), fs::read(&path).expect("reads"))
    };
    entries.map(file).collect()
}

#[test]
fn an_abandoned_writer_leaves_whole_shards_alone() {
    for (rows, sharded, left) in [(&[20][..], false, 0), (&SHARDS, true, 2)] {
        let dir = temp();
        let path = dir.path().join("activations.safetensors");
        let mut writer =
            ActivationWriter::create(&path, layout(rows, Dtype::F32, sharded), Start::New).expect("creates");
        fill(&mut writer, 10);
        drop(writer);
        assert_eq!(files(dir.path()).len(), left);
    }
}

/// Whatever whole shards there are, one that resumes leaves what one without an interruption does; a new one may not lose them.
#[test]
fn shards_are_resumed_to_the_same_bytes() {
    let dir = temp();
    let path = dir.path().join("activations.safetensors");
    let create = |start| ActivationWriter::create(&path, layout(&SHARDS, Dtype::F32, true), start);
    let mut writer = create(Start::New).expect("creates");
    fill(&mut writer, 20);
    writer.finish().expect("finishes");
    let whole = files(dir.path());
    assert_eq!(whole.len(), 5);
    for (kept, rows) in [(0, 0), (1, 6), (2, 7), (3, 17), (4, 20)] {
        fs::remove_file(dir.path().join("activations.safetensors.index.json")).expect("removes");
        for shard in kept..4 {
            fs::remove_file(dir.path().join(format!("activations-{:05}-of-00004.safetensors", shard + 1)))
                .expect("removes");
        }
        if kept > 0 {
            let error = create(Start::New).err().expect("refused").to_string();
            assert!(error.contains("interrupted") && error.contains("-00001-of-00004"), "{error}");
        }
        let mut writer = create(Start::Resume).expect("resumes");
        assert_eq!(writer.resumed(), rows);
        // Rows of a batch may be of a shard that is whole and of one that is not.
        fill(&mut writer, 20);
        writer.finish().expect("finishes");
        assert_eq!(files(dir.path()), whole, "{kept}");
    }
    let refused = |change: &dyn Fn(&mut Layout), expected: &str| {
        let mut layout = layout(&SHARDS, Dtype::F32, true);
        change(&mut layout);
        let error = ActivationWriter::create(&path, layout, Start::Resume).err().expect("refused").to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(
        &|layout| layout.metadata[0].1 = "other".to_owned(),
        "model: expected other as in this capture, found tiny",
    );
    refused(&|layout| layout.metadata.clear(), "model: expected none as in this capture, found tiny");
    refused(
        &|layout| layout.metadata.push(("edits".into(), "e".into())),
        "edits: expected e as in this capture, found none",
    );
    refused(&|layout| layout.files[1].metadata[0].1 = "7".to_owned(), "-00002-of-00004.safetensors: part: expected 7");
    refused(
        &|layout| layout.dtype = Dtype::BF16,
        "blocks.0.hook_resid_post: expected BF16 [6, 3] as in this capture, found F32",
    );
    refused(&|layout| layout.sites[1].1 = 5, "ln_final.hook_normalized: expected F32 [6, 5]");
    refused(&|layout| drop(layout.sites.pop()), "ln_final.hook_normalized: expected no such tensor");
    refused(
        &|layout| layout.labels.push("token_id".into()),
        "token_id: expected I64 [6] as in this capture, found none",
    );
}

/// A replaced capture leaves nothing that would be read beside the new one, not even where that is interrupted.
#[test]
fn shards_of_a_replaced_capture_go_with_its_index() {
    let dir = temp();
    let path = dir.path().join("activations.safetensors");
    let create = || ActivationWriter::create(&path, layout(&SHARDS, Dtype::F32, true), Start::New).expect("creates");
    let mut writer = create();
    fill(&mut writer, 20);
    writer.finish().expect("finishes");
    let mut writer = create();
    fill(&mut writer, 5);
    drop(writer);
    assert_eq!(files(dir.path()).len(), 5, "until there is something else");
    let mut writer = create();
    fill(&mut writer, 6);
    drop(writer);
    assert_eq!(files(dir.path()).into_keys().collect::<Vec<_>>(), ["activations-00001-of-00004.safetensors"]);
}

#[test]
fn appended_shards_are_read_behind_the_earlier_ones() {
    let dir = temp();
    let path = dir.path().join("activations.safetensors");
    let first = |rows: &[usize]| {
        let mut layout = layout(rows, Dtype::F32, true);
        layout.metadata.push(("n_positions".to_owned(), "9".to_owned()));
        layout
    };
    let mut writer = ActivationWriter::create(&path, first(&SHARDS), Start::New).expect("creates");
    fill(&mut writer, 20);
    writer.finish().expect("finishes");
    let before = files(dir.path());
    let appended = |rows: &[usize]| {
        let earlier = Earlier::open(&path).expect("an index");
        assert_eq!(earlier.positions, 9);
        Layout { earlier: Some(earlier), ..first(rows) }
    };
    assert_eq!(Earlier::open(&path).expect("an index").documents, 20);
    let mut writer = ActivationWriter::create(&path, appended(&[2, 3]), Start::New).expect("creates");
    fill(&mut writer, 2);
    drop(writer);
    // Until it is whole, the earlier capture is what there is.
    let file = ActivationFile::open(&path).expect("opens");
    assert_eq!(file.shape("blocks.0.hook_resid_post"), Some([20, 3]));
    let error = ActivationWriter::create(&path, appended(&[2, 3]), Start::New).err().expect("refused").to_string();
    assert!(error.contains("interrupted") && error.contains("activations-00005-of-00006"), "{error}");
    let mut writer = ActivationWriter::create(&path, appended(&[2, 3]), Start::Resume).expect("resumes");
    assert_eq!(writer.resumed(), 2);
    fill(&mut writer, 5);
    writer.finish().expect("finishes");
    let after = files(dir.path());
    assert_eq!(after.len(), 7);
    let same =
        before.iter().filter(|(name, _)| !name.ends_with("json")).all(|(name, bytes)| after.get(name) == Some(bytes));
    assert!(same, "earlier shards stay as they are");
    let file = ActivationFile::open(&path).expect("opens");
    let column: Vec<i64> = (0..20).chain(0..5).collect();
    assert_eq!(file.labels("pos").expect("labels"), Some(column));
    let mut other = appended(&[2]);
    other.metadata[0].1 = "large".to_owned();
    let error = ActivationWriter::create(&path, other, Start::New).err().expect("refused").to_string();
    assert!(error.contains("model: expected large as in this capture, found tiny"), "{error}");
    assert!(
        Earlier::open(&dir.path().join("none.safetensors")).expect_err("refused").to_string().starts_with("append: ")
    );
}

#[test]
fn no_rows_make_an_empty_file() {
    for sharded in [false, true] {
        let dir = temp();
        let path = dir.path().join("activations.safetensors");
        let writer = ActivationWriter::create(&path, layout(&[0], Dtype::F32, sharded), Start::New).expect("creates");
        let open = ActivationFile::open(writer.finish().expect("finishes")).expect("opens");
        assert_eq!((open.sites().len(), open.shape("blocks.0.hook_resid_post")), (2, Some([0, 3])));
    }
}
