use half::bf16;
use llamaprobe::formats::activations::{ActivationWriter, Layout};
use llamaprobe::formats::safetensors::{Checkpoint, Dtype};

use crate::support::temp;

fn layout(rows: usize, dtype: Dtype, max_rows: Option<usize>) -> Layout {
    Layout {
        sites: vec![("blocks.0.hook_resid_post".to_string(), 3), ("ln_final.hook_normalized".to_string(), 2)],
        labels: vec!["doc_id".to_string(), "pos".to_string()],
        rows,
        dtype,
        max_rows,
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
        let mut writer = ActivationWriter::create(&path, layout(20, dtype, None)).expect("creates");
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
    let mut writer = ActivationWriter::create(&path, layout(20, Dtype::F32, Some(6))).expect("creates");
    fill(&mut writer, 20);
    let index = writer.finish().expect("finishes");
    assert_eq!(index, dir.path().join("activations.safetensors.index.json"));
    let open = Checkpoint::open(&index).expect("opens");
    assert_eq!((open.len(), open.files().count()), (16, 4));
    let mut all = Vec::new();
    for shard in 1..=4 {
        let view = open.get(&format!("blocks.0.hook_resid_post/{shard:05}")).expect("there");
        all.extend(view.to_f32().expect("floats"));
    }
    assert_eq!(all, (0..60).map(|x| x as f32 + 0.001).collect::<Vec<_>>());
}

#[test]
fn an_abandoned_writer_leaves_nothing() {
    for max_rows in [None, Some(4)] {
        let dir = temp();
        let path = dir.path().join("activations.safetensors");
        let mut writer = ActivationWriter::create(&path, layout(20, Dtype::F32, max_rows)).expect("creates");
        fill(&mut writer, 10);
        drop(writer);
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 0);
    }
}

#[test]
fn no_rows_make_an_empty_file() {
    for max_rows in [None, Some(4)] {
        let dir = temp();
        let path = dir.path().join("activations.safetensors");
        let writer = ActivationWriter::create(&path, layout(0, Dtype::F32, max_rows)).expect("creates");
        let open = Checkpoint::open(writer.finish().expect("finishes")).expect("opens");
        assert_eq!(open.len(), 4);
    }
}
