//! What a render may use up, and why it ends early.

use std::cell::Cell;

/// Steps (values, statements) that a template may run: published ones take some hundreds for each message.
pub const FUEL: u64 = 5_000_000;
/// Bytes of text that a template may make.
pub const LONGEST: usize = 64 << 20;
/// Bytes of text and of lists that a template may make on its way, also those that it drops again.
pub const MADE: usize = 1 << 30;
/// The largest width or count that a template may give to what makes so much text or so many values.
pub const WIDEST: i128 = 100_000;
/// Values that a value may hold, at all levels.
pub const LARGEST: usize = 4 << 20;
/// Lists within lists, and calls, loops and signs within each other.
pub const DEEPEST: usize = 200;

/// Why a template does not go on.
#[derive(Debug)]
pub enum Fail {
    /// An error of the template, with its line where it is known (from 1; 0 is unknown).
    Template {
        /// What Jinja2 would say.
        message: String,
        /// The line of the template.
        line: usize,
    },
    /// A limit is used up.
    Endless(String),
}

impl std::fmt::Display for Fail {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Template { message, .. } => f.write_str(message),
            Self::Endless(limit) => write!(f, "more than {limit}"),
        }
    }
}

/// Result of everything in a template.
pub type Res<T> = std::result::Result<T, Fail>;

impl Fail {
    /// An error without its line.
    pub fn new(message: impl Into<String>) -> Self {
        Self::Template { message: message.into(), line: 0 }
    }

    /// Something of Jinja2 or Python that is left out here.
    pub fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::new(format!("{what} is not supported"))
    }

    /// The same with its line, where it has none.
    pub fn at(self, at: usize) -> Self {
        match self {
            Self::Template { message, line: 0 } => Self::Template { message, line: at },
            other => other,
        }
    }
}

/// `Err` with a message.
pub fn fail<T>(message: impl Into<String>) -> Res<T> {
    Err(Fail::new(message))
}

/// What a render has used up.
#[derive(Default)]
pub struct Budget {
    steps: Cell<u64>,
    made: Cell<usize>,
    depth: Cell<usize>,
}

impl Budget {
    /// Spends one step of the fuel.
    pub fn step(&self) -> Res<()> {
        self.steps(1)
    }

    /// Spends `n` steps of the fuel.
    pub fn steps(&self, n: usize) -> Res<()> {
        let steps = self.steps.get().saturating_add(n as u64);
        self.steps.set(steps);
        if steps > FUEL { Err(Fail::Endless(format!("{FUEL} instructions"))) } else { Ok(()) }
    }

    /// Bytes about to be made.
    pub fn make(&self, bytes: usize) -> Res<()> {
        if bytes > LONGEST {
            return Err(Fail::Endless(format!("{LONGEST} bytes")));
        }
        let made = self.made.get().saturating_add(bytes);
        self.made.set(made);
        if made > MADE { Err(Fail::Endless(format!("{MADE} bytes on its way"))) } else { Ok(()) }
    }

    /// Runs something one level deeper.
    pub fn deeper<T>(&self, run: impl FnOnce() -> Res<T>) -> Res<T> {
        let depth = self.depth.get() + 1;
        // Values, blocks and calls each count; Python's own limit on calls is of this size.
        if depth > 10 * DEEPEST {
            return fail("maximum recursion depth exceeded");
        }
        self.depth.set(depth);
        let result = run();
        self.depth.set(depth - 1);
        result
    }
}

/// Refuses a width or count above [`WIDEST`].
pub fn check_width(n: i128) -> Res<usize> {
    if n > WIDEST {
        return fail(format!("expected a width or count of at most {WIDEST}, found {n}"));
    }
    Ok(usize::try_from(n).unwrap_or(0))
}
