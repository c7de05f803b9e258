use std::path::Path;

use half::{bf16, f16};
use llamaprobe::formats::safetensors::{Bytes, Checkpoint, Dtype, Loading, Tensor, TensorFile, TensorSpec, write};
use serde_json::{Value, json};

use crate::support::{shared, temp};

/// What is written is, byte for byte, what the format's own library writes, whatever the order of the tensors.
#[test]
fn the_writer_is_the_reference_writer() {
    let dir = temp();
    let f: Vec<f32> = (0..6).map(|x| x as f32).collect();
    let data: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = vec![
        ("b", Dtype::F32, vec![2, 3], bytemuck::cast_slice(&f).to_vec()),
        ("a", Dtype::F32, vec![], 1f32.to_le_bytes().to_vec()),
        ("z", Dtype::I64, vec![2], bytemuck::cast_slice(&[1i64, -2]).to_vec()),
        ("h", Dtype::BF16, vec![3], bytemuck::cast_slice(&[bf16::ONE; 3]).to_vec()),
        ("g", Dtype::F16, vec![1], bytemuck::cast_slice(&[f16::ONE]).to_vec()),
        ("u", Dtype::U8, vec![5], vec![7; 5]),
        ("empty", Dtype::F32, vec![0, 4], vec![]),
    ];
    let view = |(name, dtype, shape, bytes): &(&'static str, Dtype, Vec<usize>, Vec<u8>)| {
        (name.to_string(), *dtype, shape.clone(), bytes.clone())
    };
    let views: Vec<_> = data.iter().map(view).collect();
    let views = views.iter().map(|(name, dtype, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).expect("valid");
        (name.clone(), view)
    });
    let meta = Some([("format".to_string(), "pt".to_string())].into());
    let want = safetensors::serialize(views, meta).expect("serialises");
    for turn in 0..data.len() {
        let mut data: Vec<_> =
            data.iter().map(|(name, dtype, shape, data)| Tensor { name, dtype: *dtype, shape, data }).collect();
        data.rotate_left(turn);
        let path = dir.path().join("x.safetensors");
        write(&path, &data, &[("format", "pt")]).expect("writes");
        assert_eq!(std::fs::read(&path).expect("reads"), want);
    }
    let open = Checkpoint::open(dir.path().join("x.safetensors")).expect("opens");
    assert_eq!(open.names().collect::<Vec<_>>(), ["a", "b", "empty", "g", "h", "u", "z"]);
    assert_eq!(open.expect("b", &[2, 3]).expect("there").as_slice::<f32>().expect("f32"), &f[..]);
    assert_eq!(open.expect("h", &[3]).expect("there").to_f32().expect("widens"), [1.0; 3]);
    assert_eq!(open.get("z").expect("there").as_slice::<i64>().expect("i64"), [1, -2]);
    assert_eq!(open.metadata()["format"], "pt");
    assert_eq!(open.get("empty").expect("there").len(), 0);
}

#[test]
fn rows_in_any_interleaving_make_the_same_file() {
    let dir = temp();
    let rows: Vec<Vec<u8>> = (0..7u8).map(|i| vec![i; 70_000 * 4]).collect();
    let labels: Vec<u8> = (0..7i64).flat_map(i64::to_le_bytes).collect();
    let whole = dir.path().join("whole.safetensors");
    let all = rows.concat();
    let tensors = [
        Tensor { name: "site", dtype: Dtype::F32, shape: &[7, 70_000], data: &all },
        Tensor { name: "pos", dtype: Dtype::I64, shape: &[7], data: &labels },
    ];
    write(&whole, &tensors, &[]).expect("writes");
    let path = dir.path().join("rows.safetensors");
    let config = |name: &str, dtype, shape| TensorSpec { name: name.to_string(), dtype, shape };
    let specs = vec![config("pos", Dtype::I64, vec![7]), config("site", Dtype::F32, vec![7, 70_000])];
    let mut file = TensorFile::create(&path, specs, &[]).expect("creates");
    for (i, row) in rows.iter().enumerate() {
        file.append("site", &row[..8]).expect("appends");
        file.append("pos", &labels[8 * i..8 * i + 8]).expect("appends");
        file.append("site", &row[8..]).expect("appends");
        assert!(!path.exists(), "an unfinished file has no name");
    }
    file.finish().expect("finishes");
    assert!(std::fs::read(&path).expect("reads") == std::fs::read(&whole).expect("reads"));
    assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 2, "no temporaries");
}

#[test]
fn an_abandoned_file_leaves_nothing() {
    let dir = temp();
    let path = dir.path().join("x.safetensors");
    let config = TensorSpec { name: "a".to_string(), dtype: Dtype::F32, shape: vec![4] };
    drop(TensorFile::create(&path, vec![config], &[]).expect("creates"));
    assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 0);
}

#[test]
fn shards_are_one_checkpoint() {
    let dir = temp();
    let one = [1f32, 2.0];
    let two = [3f32];
    let put = |file: &str, name: &str, data: &[f32]| {
        let tensor = Tensor { name, dtype: Dtype::F32, shape: &[data.len()], data: bytemuck::cast_slice(data) };
        write(dir.path().join(file), &[tensor], &[]).expect("writes");
    };
    put("model-00001-of-00002.safetensors", "a", &one);
    put("model-00002-of-00002.safetensors", "b", &two);
    let index = json!({"metadata": {"total_size": 12}, "weight_map":
        {"b": "model-00002-of-00002.safetensors", "a": "model-00001-of-00002.safetensors"}});
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).expect("writes");
    let open = Checkpoint::open(dir.path()).expect("opens");
    assert_eq!((open.len(), open.files().count(), open.total_bytes()), (2, 2, 12));
    assert_eq!(open.expect("a", &[2]).expect("there").as_slice::<f32>().expect("f32"), one);
    assert_eq!(open.expect("b", &[1]).expect("there").as_slice::<f32>().expect("f32"), two);
    let error = open.expect("c", &[1]).expect_err("absent").to_string();
    assert!(error.contains("tensor c") && error.contains("nearest"), "{error}");
}

fn one(dir: &Path, file: &str, name: &str, data: &[f32]) {
    let tensor = Tensor { name, dtype: Dtype::F32, shape: &[data.len()], data: bytemuck::cast_slice(data) };
    write(dir.join(file), &[tensor], &[]).expect("writes");
}

/// As in transformers 5.24 the index says which files there are, and the files say what they hold.
#[test]
fn index_may_omit_invent_misplace_and_repeat_tensors() {
    let dir = temp();
    let d = dir.path();
    let open = |map: Value| {
        let index = d.join("model.safetensors.index.json");
        std::fs::write(index, json!({"weight_map": map}).to_string()).expect("writes");
        let open = Checkpoint::open(d)?;
        Ok::<_, llamaprobe::Error>(["a", "b"].map(|name| open.get(name).expect(name).to_f32().expect("floats")))
    };
    one(d, "1.safetensors", "a", &[1.0, 2.0]);
    one(d, "2.safetensors", "b", &[3.0]);
    let both = [vec![1.0, 2.0], vec![3.0]];
    for map in [
        json!({"a": "1.safetensors", "x": "2.safetensors"}),
        json!({"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}),
        json!({"a": "2.safetensors", "b": "1.safetensors"}),
    ] {
        assert_eq!(open(map.clone()).expect("opens"), both, "{map}");
    }
    one(d, "3.safetensors", "a", &[1.0, 2.0]);
    let three = json!({"a": "1.safetensors", "b": "2.safetensors", "again": "3.safetensors"});
    assert_eq!(open(three.clone()).expect("the same once more"), both);
    for other in [&[1.0, 2.5][..], &[1.0]] {
        one(d, "3.safetensors", "a", other);
        let error = open(three.clone()).expect_err("two that differ").to_string();
        assert!(error.contains("3.safetensors: a: ") && error.contains("1.safetensors"), "{error}");
    }
}

#[test]
fn data_that_are_not_aligned_are_read_all_the_same() {
    let dir = temp();
    let path = dir.path().join("x.safetensors");
    for pad in 0..8 {
        let header = format!(
            r#"{{"w":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},"h":{{"dtype":"BF16","shape":[1],"data_offsets":[8,10]}}}}{}"#,
            " ".repeat(pad)
        );
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &1.5f32.to_le_bytes()].concat();
        let bytes = [&bytes[..], &(-2.0f32).to_le_bytes(), &bf16::from_f32(0.5).to_le_bytes()].concat();
        std::fs::write(&path, bytes).expect("writes");
        for loading in [Loading::Mapped, Loading::Copied] {
            let open = Checkpoint::open_as(&path, loading).expect("opens");
            assert_eq!(open.get("w").expect("w").as_slice::<f32>().expect("aligned"), [1.5, -2.0], "{pad}");
            assert_eq!(open.get("h").expect("h").as_slice::<bf16>().expect("aligned"), [bf16::from_f32(0.5)]);
            open.check_finite().expect("finite");
        }
    }
}

/// A file that is overwritten in place changes a mapped checkpoint (if the system shows it) but never a copied one, nor does
/// a file that is cut off.
#[test]
fn copied_checkpoints_do_not_change_with_their_files() {
    let dir = temp();
    let path = dir.path().join("model.safetensors");
    let data = [1f32, 2.0, 3.0];
    let tensors = [Tensor { name: "a", dtype: Dtype::F32, shape: &[3], data: bytemuck::cast_slice(&data) }];
    write(&path, &tensors, &[]).expect("writes");
    let index = json!({"weight_map": {"a": "model.safetensors"}});
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).expect("writes");
    let open = |path: &std::path::Path| Checkpoint::open_as(path, Loading::Copied).expect("opens");
    let copies = [open(dir.path()), open(&path), open(&dir.path().join("model.safetensors.index.json"))];
    let views = copies.each_ref().map(|copy| copy.get("a").expect("there"));
    let before = std::fs::read(&path).expect("reads");
    std::fs::write(&path, vec![0xFF; before.len()]).expect("writes");
    std::fs::File::options().write(true).open(&path).and_then(|file| file.set_len(8)).expect("cuts");
    for view in &views {
        assert_eq!(view.as_slice::<f32>().expect("f32"), data);
    }
    for copy in &copies {
        assert_eq!(copy.get("a").expect("there").to_f32().expect("f32"), data);
    }
    assert!(Checkpoint::open_as(dir.path(), Loading::Copied).is_err(), "the file itself is damaged");
}

#[test]
fn copies_are_the_bytes_of_the_file_and_aligned() {
    let dir = temp();
    for len in [0, 1, 7, 8, 9, 4096] {
        let path = dir.path().join("x");
        let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
        std::fs::write(&path, &data).expect("writes");
        let copy = Bytes::copy(&path).expect("copies");
        assert_eq!(&copy[..], &data[..]);
        assert_eq!(&copy[..], &Bytes::map(&path).expect("maps")[..]);
        assert!(copy.is_empty() || (copy.as_ptr() as usize).is_multiple_of(8));
    }
    assert!(Bytes::copy(dir.path()).is_err() && Bytes::map(dir.path()).is_err(), "a directory");
}

#[test]
fn the_models_at_hand_open() {
    let Some(shared) = shared() else { return };
    let open = Checkpoint::open(shared.join("models/stories260K")).expect("opens");
    let embed = open.expect("model.embed_tokens.weight", &[512, 64]).expect("there");
    assert_eq!(embed.as_slice::<f32>().expect("f32").len(), 512 * 64);
    open.check_finite().expect("finite");
    assert!(open.get("lm_head.weight").is_none(), "tied");
}
