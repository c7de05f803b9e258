//! Checkpoints that are there for a bench only: LLaMAs of any shape.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use half::bf16;
use llamaprobe::arch::ModelConfig;
use llamaprobe::model::WeightLayout;
use serde_json::{Map, json};

use super::Shape;

/// What stands in its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Nothing: a sparse file, of which a file system keeps no byte.
    Sparse,
    /// Small numbers of both signs in `f32`, or in `bf16`.
    Noise {
        /// Bytes of an element, 4 or 2.
        bytes: usize,
    },
}

/// Writes a LLaMA of `layers` layers into a directory; returns the bytes of its weights (in `bf16` if it is sparse).
pub fn write(dir: &Path, shape: Shape, layers: usize, weights: Weights) -> u64 {
    let config = json!({
        "model_type": "llama", "hidden_size": shape.width, "intermediate_size": shape.feed_forward,
        "num_hidden_layers": layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    });
    fs::write(dir.join("config.json"), config.to_string()).expect("room for a bench's files");
    let config = ModelConfig::load(dir).expect("a configuration");
    let (dtype, size) = match weights {
        Weights::Noise { bytes: 4 } => ("F32", 4),
        _ => ("BF16", 2),
    };
    let (mut header, mut end) = (Map::new(), 0);
    for (place, _) in WeightLayout::new(&config).params() {
        let start = end;
        end += size * place.len(&config) as u64;
        let tensor = json!({"dtype": dtype, "shape": place.shape(&config), "data_offsets": [start, end]});
        header.insert(place.tensor(config.family), tensor);
    }
    let mut header = json!(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let file = File::create(dir.join("model.safetensors")).expect("room for a bench's files");
    let mut out = BufWriter::new(&file);
    out.write_all(&(header.len() as u64).to_le_bytes()).expect("room for a bench's files");
    out.write_all(header.as_bytes()).expect("room for a bench's files");
    if weights != Weights::Sparse {
        let noise: Vec<u8> = super::noise_values(1 << 20).flat_map(|x| bytes_of(0.02 * x as f32, size)).collect();
        let mut left = end as usize;
        while left > 0 {
            let some = left.min(noise.len());
            out.write_all(&noise[..some]).expect("room for a bench's files");
            left -= some;
        }
    }
    out.flush().expect("room for a bench's files");
    drop(out);
    file.set_len(8 + header.len() as u64 + end).expect("room for a bench's files");
    end
}

fn bytes_of(x: f32, size: u64) -> Vec<u8> {
    if size == 4 { x.to_le_bytes().to_vec() } else { bf16::from_f32(x).to_le_bytes().to_vec() }
}
