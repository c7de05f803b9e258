//! `quantize`: a model with its matrices quantised, as a directory or a file of its own.

use serde_json::json;

use super::args::{QuantizeArgs, QuantizeToArg};
use super::resolve::{self, ModelFiles};
use super::{Failure, output};
use crate::arch::Family;
use crate::formats::gguf::Gguf;
use crate::formats::quantized::QuantizedView;
use crate::formats::safetensors::TensorView;
use crate::formats::{bitsandbytes, pretrained};
use crate::model::Source;
use crate::model::quantize::{self, QuantizeTo, gguf};
use crate::{Error, Result};

/// What was written.
struct Written {
    format: &'static str,
    matrices: usize,
    /// Matrices that have other elements, since their rows are no whole blocks.
    halves: usize,
    bytes: usize,
}

pub fn run(args: &QuantizeArgs) -> Result<(), Failure> {
    let files = resolve::model_of(&args.model, args.new.revision.as_deref())?;
    let blocks = files.checkpoint.quantized().next();
    if files.gguf.is_some() || blocks.is_some() {
        let found = blocks.map_or("a GGUF file".to_owned(), |view| format!("blocks of {}", view.format));
        return Err(Error::argument("--model", "a directory whose weights are numbers", found).into());
    }
    if let Some(dir) = &files.adapter {
        let found = dir.join("adapter_config.json").display().to_string();
        return Err(Error::argument("--model", "a model without an adapter (merge makes it one)", found).into());
    }
    if files.config.family == Family::Gemma3Images {
        let found = "a model of texts and images";
        return Err(
            Error::argument("--model", "a model of texts, whose blocks are all there is to quantise", found).into()
        );
    }
    let written = match args.to {
        QuantizeToArg::Nf4 => directory(args, &files, QuantizeTo::Nf4),
        QuantizeToArg::Int8 => directory(args, &files, QuantizeTo::Int8),
        QuantizeToArg::Q8_0 => file(args, &files),
    }?;
    let Written { format, matrices, halves, bytes } = written;
    let (out, before) = (&args.new.out, files.checkpoint.total_bytes());
    if args.new.json {
        let mut said = json!({ "out": out, "matrices": matrices, "bytes": bytes, "bytes_before": before });
        if halves > 0 {
            said["matrices_f16"] = json!(halves);
        }
        return output::json(&said);
    }
    let others = if halves > 0 { format!(" and {halves} in F16") } else { String::new() };
    output::line(format_args!(
        "{}: {matrices} matrices in {format}{others}, {} of {}",
        out.display(),
        output::bytes(bytes),
        output::bytes(before)
    ))
}

/// A directory of transformers with bitsandbytes.
fn directory(args: &QuantizeArgs, files: &ModelFiles, to: QuantizeTo) -> Result<Written> {
    let beside = files.beside()?;
    let source = Source::new(&files.config, &files.checkpoint)?;
    let made = quantize::quantized(&source, to)?;
    let quantization = bitsandbytes::config(to.format(), files.dtype, &quantize::skip_modules(&source));
    let changed = pretrained::Changed { quantization: Some(quantization), ..Default::default() };
    let views: Vec<&QuantizedView> = made.quantized().collect();
    let numbers: Vec<TensorView> = made.iter().collect();
    for tensor in &numbers {
        tensor.check_finite().map_err(Error::file(files.checkpoint.path()))?;
    }
    // transformers refuses files that do not name who wrote them.
    let metadata = [("format", "pt")];
    pretrained::write(&args.new.out, beside, changed, |weights| {
        bitsandbytes::write(weights, &views, numbers.iter().cloned(), &metadata)
    })?;
    Ok(Written { format: to.name(), matrices: views.len(), halves: 0, bytes: made.total_bytes() })
}

/// A GGUF file.
fn file(args: &QuantizeArgs, files: &ModelFiles) -> Result<Written> {
    let out = &args.new.out;
    if !Gguf::is_one(out) {
        return Err(Error::argument("--out", "a name that ends in .gguf, for q8_0", out.display()));
    }
    // What lies there may be another model that took weeks.
    if out.exists() {
        return Err(Error::argument("--out", "a new file", format!("{}, which is there", out.display())));
    }
    files.config.require_head()?;
    let source = Source::new(&files.config, &files.checkpoint)?;
    let tokenizer = files.tokenizer_if_any()?;
    if tokenizer.is_none() {
        log::warn!("{}: no tokenizer: the file has no vocabulary, without which llama.cpp does not run it", args.model);
    }
    let path = files.path.canonicalize().unwrap_or_else(|_| files.path.clone());
    let name = path.file_name().map_or_else(|| args.model.clone(), |name| name.to_string_lossy().into_owned());
    let plan = gguf::Plan::new(&source, tokenizer.as_ref(), &name, out)?;
    let bar = output::progress(plan.len() as u64, "tensors");
    let written = plan.write(out, || bar.inc(1))?;
    bar.finish_and_clear();
    Ok(Written { format: "Q8_0", matrices: written.matrices, halves: written.halves, bytes: written.bytes })
}
