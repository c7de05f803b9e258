//! `quantize`: a model with its projections quantised, as a directory of its own.

use serde_json::json;

use super::args::QuantizeArgs;
use super::resolve;
use super::{Failure, output};
use crate::Error;
use crate::arch::Family;
use crate::formats::quantized::QuantizedView;
use crate::formats::safetensors::TensorView;
use crate::formats::{bitsandbytes, pretrained};
use crate::model::{Source, quantize};

pub fn run(args: &QuantizeArgs) -> Result<(), Failure> {
    let files = resolve::model_of(&args.model, args.revision.as_deref())?;
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
    let beside = files.beside()?;
    let source = Source::new(&files.config, &files.checkpoint)?;
    let made = quantize::quantized(&source, args.to.format())?;
    let quantization = bitsandbytes::config(args.to.format().format(), files.dtype, &quantize::skip_modules(&source));
    let changed = pretrained::Changed { quantization: Some(quantization), ..Default::default() };
    let views: Vec<&QuantizedView> = made.quantized().collect();
    let numbers: Vec<TensorView> = made.iter().collect();
    for tensor in &numbers {
        tensor.check_finite().map_err(Error::file(files.checkpoint.path()))?;
    }
    // transformers refuses files that do not name who wrote them.
    let metadata = [("format", "pt")];
    pretrained::write(&args.out, beside, changed, |weights| {
        bitsandbytes::write(weights, &views, numbers.iter().cloned(), &metadata)
    })?;
    let (before, after) = (files.checkpoint.total_bytes(), made.total_bytes());
    if args.json {
        return output::json(
            &json!({ "out": args.out, "matrices": views.len(), "bytes": after, "bytes_before": before }),
        );
    }
    output::line(format_args!(
        "{}: {} matrices in {}, {} of {}",
        args.out.display(),
        views.len(),
        args.to.format().name(),
        output::bytes(after),
        output::bytes(before)
    ))
}
