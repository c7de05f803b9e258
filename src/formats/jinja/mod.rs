//! Jinja2 in its immutable sandbox, with the extensions of transformers: loop controls and `generation`.
//!
//! A template is a program from a stranger's file. It reaches nothing but its variables and the time; it stops after a
//! number of steps, a length of text, an amount of memory and a depth. What is left out of Jinja2 and of Python's
//! methods is refused by its name, never done in another way. No crate prints and decides as Python does: minijinja 2.24
//! folds `and` and `or` to booleans, prints lists as JSON and floats as Rust, and its operators cannot be replaced; 3.1
//! still differs in dictionary keys named as methods, in tests, floats and line ends
//! (`findings/minijinja_writes_other_prompts.sh`).

mod args;
mod ast;
mod attributes;
mod budget;
mod checks;
mod eval;
mod expression;
mod filters;
mod format;
mod json;
mod lexer;
mod names;
mod numbers;
mod ops;
mod parser;
mod percent;
mod print;
mod run;
mod sequences;
mod strings;
mod value;

use std::thread;

pub use budget::Fail;
use budget::Res;

/// A template, parsed once.
pub struct Template(ast::Template);

/// Stack of the threads that parse and render: the depth is limited, but to more than a small stack holds in a build
/// without optimisation. Only what is touched takes memory.
const STACK: usize = 256 << 20;

/// What a template made.
pub struct Output {
    /// All that was printed.
    pub text: String,
    /// Bytes of the text that `generation` blocks made.
    pub generated: Vec<std::ops::Range<usize>>,
    /// Whether a `generation` block was within another, or within a macro or block whose text went elsewhere first.
    pub misplaced: bool,
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// It is not valid, or needs what is left out.
    pub fn parse(source: &str) -> Res<Self> {
        deep(|| parser::parse(source)).map(Self)
    }

    /// Whether there is a `generation` block.
    pub fn marks_generation(&self) -> bool {
        self.0.marks_generation
    }

    /// Renders with variables, an object; `now` gives the time in a format of `strftime`.
    ///
    /// # Errors
    /// The template fails, by itself or at a limit.
    pub fn render(&self, variables: &serde_json::Value, now: impl Fn(&str) -> String + Sync) -> Res<Output> {
        let (text, generated, placed) = deep(|| run::render(&self.0, variables, &now))?;
        Ok(Output { text, generated, misplaced: !placed })
    }
}

/// Runs on a thread of its own, with a large stack.
fn deep<T: Send>(work: impl FnOnce() -> Res<T> + Send) -> Res<T> {
    thread::scope(|scope| {
        let spawned = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        let thread = spawned.map_err(|e| Fail::new(format!("cannot start a thread: {e}")))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
