//! CodeLlama's way to fill a gap: a text with a mark in it becomes what is before and what is behind, between tokens
//! of their own, and the model goes on with what is in the gap.

use tokenizers::Tokenizer as Inner;

use super::Encoding;

/// The mark, and the tokens that take its place.
pub(super) struct Infill {
    /// The text that marks the gap.
    pub mark: String,
    /// Those before what is before it, before what is behind it, and at the end; none where one of them has no text.
    pub around: Option<[u32; 3]>,
    /// What stands around a text.
    pub ends: [Option<u32>; 2],
}

impl Infill {
    /// `<PRE> before <SUF> behind <MID>`. Offsets are those of the whole text.
    ///
    /// # Errors
    /// There are no such tokens, or another gap.
    pub(super) fn encode(
        &self,
        inner: &Inner,
        before: &str,
        behind: &str,
        add_special: bool,
    ) -> tokenizers::Result<Encoding> {
        let Some([prefix, suffix, middle]) = self.around else {
            return Err("prefix_token, suffix_token, middle_token: expected three tokens to fill a gap".into());
        };
        if behind.contains(&self.mark) {
            return Err(format!("fill_token: expected {:?} once in a text, found it twice", self.mark).into());
        }
        let [begin, end] = self.ends.map(|id| id.filter(|_| add_special));
        let at = before.chars().count() + self.mark.chars().count();
        // The class puts a space before the text.
        let first = inner.encode_char_offsets(format!(" {before}"), false)?;
        let second = inner.encode_char_offsets(behind, false)?;
        let mut out = Encoding::default();
        let mut push = |id: u32, offsets: (usize, usize)| {
            out.ids.push(id);
            out.offsets.push(offsets);
        };
        begin.into_iter().chain([prefix]).for_each(|id| push(id, (0, 0)));
        for (&id, &(start, end)) in first.get_ids().iter().zip(first.get_offsets()) {
            push(id, (start.saturating_sub(1), end.saturating_sub(1)));
        }
        push(suffix, (0, 0));
        for (&id, &(start, end)) in second.get_ids().iter().zip(second.get_offsets()) {
            push(id, (at + start, at + end));
        }
        [middle].into_iter().chain(end).for_each(|id| push(id, (0, 0)));
        Ok(out)
    }
}
