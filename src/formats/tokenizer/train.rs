//! A new tokenizer from texts: byte-level BPE, as GPT-2's (Sennrich et al. 2016; Radford et al. 2019).

use std::path::Path;

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer as Inner};

use crate::{Error, Result};

/// Begins every sequence; id 0.
pub const BOS: &str = "<s>";
/// Ends a sequence; id 1.
pub const EOS: &str = "</s>";

/// Trains on `texts` until every word is one token, or there are `vocab_size`; gives the text of a `tokenizer.json`
/// that puts [`BOS`] before every sequence.
///
/// # Errors
/// `vocab_size` has no room for the bytes and special tokens.
pub fn train(texts: &[String], vocab_size: usize) -> Result<String> {
    let alphabet = ByteLevel::alphabet();
    let least = alphabet.len() + 2;
    if vocab_size < least {
        return Err(Error::argument("vocab_size", format!("at least {least}"), vocab_size));
    }
    let specials = [BOS, EOS].map(|token| AddedToken::from(token, true)).to_vec();
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size)
        .special_tokens(specials)
        .initial_alphabet(alphabet.into_iter().collect())
        .build();
    let failed = |e| Error::file(Path::new("tokenizer.json"))(e);
    let mut inner = Inner::new(BPE::default());
    let bytes = ByteLevel::new(false, false, true);
    inner.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes));
    inner.train(&mut TrainerWrapper::BpeTrainer(trainer), texts.iter()).map_err(failed)?;
    let template = TemplateProcessing::builder()
        .try_single(format!("{BOS} $A"))
        .and_then(|b| b.special_tokens(vec![(BOS, 0)]).build().map_err(|e| e.to_string()))
        .map_err(Error::file(Path::new("tokenizer.json")))?;
    inner.with_post_processor(Some(template));
    inner.to_string(true).map_err(failed)
}
