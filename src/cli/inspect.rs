//! `inspect`: what a model is, what a pass over it needs, and what an adapter holds.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::args::InspectArgs;
use super::device::{Job, dispatch};
use super::peft::PeftReport;
use super::plan::Plan;
use super::predicted::PredictedStep;
use super::resolve::{self, ModelFiles};
use super::{Failure, output};
use crate::Error;
use crate::arch::{ModelConfig, Norm, NormPlacement, Positions, QkNorm, RmsWeight, RopePairs};
use crate::backend::Backend;
use crate::model::{Layout, LoraShape};

pub fn run(args: &InspectArgs) -> Result<(), Failure> {
    let files = resolve::model(&args.model.model, &args.common)?;
    let adapter = resolve::adapter_dir(args.model.adapter.as_deref(), &files)?;
    let adapter = adapter.map(|dir| PeftReport::new(&dir, &files)).transpose()?;
    let dtype = files.dtype;
    let shape = lora_shape(args, &files.config)?;
    let layout = Layout::lora(&files.config, &shape);
    let predicted = args.device_model.map(|gpu| PredictedStep::new(gpu.model(), args, &files, layout.clone()));
    let predicted = predicted.transpose()?;
    dispatch(&args.common, dtype, Inspect { args, files, adapter, shape, layout, predicted })
}

/// The adapter that a training would have.
fn lora_shape(args: &InspectArgs, config: &ModelConfig) -> crate::Result<LoraShape> {
    if args.lora.r == 0 {
        return Err(Error::argument("r", "at least 1", 0));
    }
    Ok(LoraShape {
        rank: args.lora.r,
        alpha: args.lora.lora_alpha,
        rslora: false,
        dora: false,
        layers: resolve::layers(&args.lora.layers_to_transform, config.num_hidden_layers)?,
        targets: config.family.targets(&resolve::module_names(&args.lora, config.family))?,
    })
}

struct Inspect<'a> {
    args: &'a InspectArgs,
    files: ModelFiles,
    adapter: Option<PeftReport>,
    shape: LoraShape,
    layout: Layout,
    predicted: Option<PredictedStep>,
}

impl Job for Inspect<'_> {
    fn run<B: Backend>(self, backend: B) -> Result<(), Failure> {
        let Self { args, files, adapter, shape, layout, predicted } = self;
        let (config, rows) = (&files.config, args.rows as usize);
        let inference = Plan::new(&backend, &files, false).inference(&backend, config, None, rows, Vec::new());
        let names: Vec<_> = shape.targets.iter().map(|&target| config.family.short_name(target)).collect();
        let adapter_name = format!("rank {} on {}", shape.rank, names.join(" and "));
        let training = Plan::new(&backend, &files, true).tuning(&backend, config, &layout, 1, rows);
        // As PEFT's `print_trainable_parameters` counts them: those of the adapter are among all.
        let trainable = layout.stride;
        let percent = 100.0 * trainable as f64 / (config.parameters() + trainable) as f64;
        if args.common.json {
            let mut found = json!({
                "model": shapes(&files), "weights": weights(&files), "rows": args.rows, "capture": inference.json(), "train_lora": training.json(),
                "trainable_parameters": trainable, "trainable_percent": percent, "adapter": adapter.map(|report| report.json()),
            });
            if let Some(predicted) = predicted {
                found["predicted"] = predicted.json();
            }
            return output::json(&found);
        }
        output::line(files.path.display())?;
        let Value::Object(shapes) = shapes(&files) else { return Ok(()) };
        output::table(
            &["model", ""],
            shapes.iter().map(|(key, value)| vec![key.clone(), value.to_string().replace('"', "")]),
        )?;
        let line = |group: &Value| {
            let text = |key: &str| group[key].to_string().replace('"', "");
            let bytes = group["bytes"].as_u64().unwrap_or_default() as usize;
            vec![text("tensors"), text("format"), text("count"), output::bytes(bytes)]
        };
        output::line("")?;
        output::table(&["weights", "format", "tensors", "bytes"], weights(&files).iter().map(line))?;
        output::line(format_args!("\ncapture, {} rows, {}", args.rows, backend.name()))?;
        inference.print(false)?;
        output::line(format_args!("\ntrain-lora, {} rows, {adapter_name}", args.rows))?;
        output::line(format_args!("{trainable} trainable parameters, {percent:.4} % of all"))?;
        training.print(false)?;
        if let Some(predicted) = predicted {
            predicted.print(&adapter_name)?;
        }
        if let Some(report) = adapter {
            report.print()?;
        }
        Ok(())
    }
}

/// The architecture of a model, by the names that its users see.
fn shapes(files: &ModelFiles) -> Value {
    let config = &files.config;
    let mut shapes = json!({
        "family": files.config.family.name(), "dtype": files.dtype.name(), "parameters": config.parameters(),
        "vocabulary": config.vocab_size, "width": config.hidden_size, "layers": config.num_hidden_layers, "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads, "head_dim": config.head_dim, "feed_forward": config.intermediate_size, "tied": config.tie_word_embeddings,
        "qkv_bias": config.qkv_bias, "o_bias": config.o_bias, "mlp_bias": config.mlp_bias,
        "positions": config.max_position_embeddings,
    });
    let more = match &config.positions {
        Positions::Rope(ropes) => {
            json!({ "rope": format!("{:?}", ropes[0].kind), "rope_theta": ropes[0].theta,
                "windows": config.windows.iter().filter(|w| w.is_some()).count() })
        }
        positions => json!({
            "position": if *positions == Positions::Alibi { "alibi" } else { "learned" },
            "mlp": format!("{:?}", config.mlp), "post_norm": config.norm_placement == NormPlacement::Post, "final_norm": config.final_norm,
            "embedding_width": config.embed_size,
        }),
    };
    if let (Value::Object(shapes), Value::Object(more), Value::Object(rest)) = (&mut shapes, more, variants(config)) {
        shapes.extend(more);
        shapes.extend(rest);
    }
    shapes
}

/// The format of every weight of the files: those whose names differ by the layer alone together.
fn weights(files: &ModelFiles) -> Vec<Value> {
    let pattern = |name: &str| {
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        name.split('.').map(|part| if digits(part) { "*" } else { part }).collect::<Vec<_>>().join(".")
    };
    let plain = files.checkpoint.iter().map(|view| (pattern(&view.name), view.dtype.to_string(), view.data.len()));
    let quantized = files.checkpoint.quantized();
    let quantized = quantized.map(|view| (pattern(&view.name), view.format.to_string(), view.stored_bytes()));
    let mut groups: BTreeMap<(String, String), (usize, usize)> = BTreeMap::new();
    for (name, format, bytes) in plain.chain(quantized) {
        let (count, sum) = groups.entry((name, format)).or_default();
        (*count, *sum) = (*count + 1, *sum + bytes);
    }
    let group = |((tensors, format), (count, bytes))| json!({ "tensors": tensors, "format": format, "count": count, "bytes": bytes });
    groups.into_iter().map(group).collect()
}

/// Where norms stand, caps, scales, and what differs from layer to layer.
fn variants(config: &ModelConfig) -> Value {
    let norm = match config.norm {
        Norm::Rms(RmsWeight::OnePlus) => "rms, 1 + weight",
        Norm::Rms(_) => "rms",
        Norm::Layer => "layer",
    };
    let placement = match config.norm_placement {
        NormPlacement::Pre => "before each sublayer",
        NormPlacement::Post => "behind each sum",
        NormPlacement::Output => "of each sublayer's output",
        NormPlacement::PreAndOutput => "before each sublayer and of its output",
    };
    let qk_norm = match config.qk_norm {
        None => "none",
        Some(QkNorm::Head) => "each head",
        Some(QkNorm::Row) => "all heads of a row",
    };
    let mut found = json!({
        "norm": norm, "norm_placement": placement, "qk_norm": qk_norm, "parallel": config.parallel,
        "one_norm": config.one_norm, "head_bias": config.head_bias,
        "score_softcap": config.score_softcap, "logit_softcap": config.logit_softcap, "embedding_scale": config.embed_scale,
        "score_scale": match config.score_scales.iter().all(|scale| *scale == config.score_scales[0]) {
            true => json!(config.score_scales[0]),
            false => json!(config.score_scales),
        },
    });
    let full: Vec<usize> = (0..config.num_hidden_layers).filter(|&layer| config.windows[layer].is_none()).collect();
    if let Some(window) = config.windows.iter().flatten().next() {
        found["window"] = json!(window);
        found["layers_without_window"] = json!(full);
    }
    let ropes = config.ropes();
    if let Some(first) = ropes.first() {
        found["rope_width"] = json!(first.dim);
        found["layers_without_rope"] = json!(config.no_rope_layers);
        found["rope_pairs"] = json!(match first.pairs {
            RopePairs::Halves => "halves",
            RopePairs::Neighbours => "neighbours",
        });
        if let Some(other) = ropes.iter().find(|rope| *rope != first) {
            // Of the layers whose rotation is not the first.
            let layers: Vec<usize> = (0..ropes.len()).filter(|&layer| ropes[layer] != *first).collect();
            found["other_rope"] = json!(format!("{:?}", other.kind));
            found["other_rope_theta"] = json!(other.theta);
            found["other_rope_layers"] = json!(layers);
        }
    }
    found
}
