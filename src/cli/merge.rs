//! `merge`: a model with a LoRA or an IA3 in its weights, as a directory of its own.

use serde_json::json;

use super::args::MergeArgs;
use super::resolve;
use super::{Failure, output};
use crate::Error;
use crate::formats::adapter::Adapter;
use crate::formats::pretrained;
use crate::model::{Source, merge};

pub fn run(args: &MergeArgs) -> Result<(), Failure> {
    let files = resolve::model_of(&args.model.model, args.new.revision.as_deref())?;
    if files.gguf.is_some() {
        let expected = "a directory of safetensors (a GGUF file is read, but not written)";
        return Err(Error::argument("--model", expected, files.path.display()).into());
    }
    if files.checkpoint.quantized().next().is_some() {
        let expected = "a model whose weights are numbers (blocks cannot take the adapter's change)";
        return Err(Error::argument("--model", expected, files.path.display()).into());
    }
    let Some(adapter) = resolve::adapter(args.model.adapter.as_deref(), &files)? else {
        return Err(Error::argument("--adapter", "an adapter to merge", "none").into());
    };
    let modules = match &adapter {
        Adapter::Lora(lora) => {
            lora.modules.len() + lora.tables.len() + lora.saved.len() + usize::from(lora.tokens.is_some())
        }
        Adapter::Ia3(ia3) => ia3.modules.len(),
        Adapter::Prompt(prompt) => {
            let expected = "a LoRA or an IA3 (a soft prompt lies before every sequence, in no weight)";
            return Err(Error::argument("--adapter", expected, prompt.config.kind.name()).into());
        }
    };
    let beside = files.beside()?;
    let dtype = args.dtype.chosen();
    let source = Source::new(&files.config, &files.checkpoint)?;
    let untied = merge::unties(&source, &adapter);
    if untied {
        log::warn!(
            "{}: tie_word_embeddings: false, since the adapter changes the embedding table or the head alone",
            args.new.out.display()
        );
    }
    let changed = pretrained::Changed { dtype, untied, quantization: None };
    pretrained::write(&args.new.out, beside, changed, |weights| merge::write(&source, &adapter, dtype, weights))?;
    if args.new.json {
        return output::json(&json!({ "out": args.new.out, "modules": modules }));
    }
    output::line(format_args!("{}: {modules} modules merged", args.new.out.display()))
}
