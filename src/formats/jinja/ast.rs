//! A parsed template.

use std::sync::Arc;

/// A name or text of the template.
pub type Text = Arc<str>;

/// A parsed template; macros and loops are referred to by their number, since values outlive a visit.
#[derive(Debug, Default)]
pub struct Template {
    pub body: Vec<Stmt>,
    /// All macros and bodies of `call` blocks.
    pub macros: Vec<Macro>,
    /// Every loop of the template; statements name them by index.
    pub loops: Vec<For>,
    /// Whether there is a `generation` block.
    pub marks_generation: bool,
}

/// A statement with its line.
#[derive(Debug)]
pub struct Stmt {
    /// The line it begins in, from 1.
    pub line: usize,
    pub kind: Kind,
}

/// The kinds of statements.
#[derive(Debug)]
pub enum Kind {
    /// Text outside all tags.
    Data(Text),
    /// `{{ value }}`.
    Print(Expr),
    /// Branches with their conditions, and `else`.
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    /// A loop, by number.
    For(usize),
    /// `set target = value`.
    Set(Target, Expr),
    /// `set target | filters`, a block.
    SetBlock(Target, Vec<Filter>, Vec<Stmt>),
    /// `with`: names, values, body.
    With(Vec<(Target, Expr)>, Vec<Stmt>),
    /// A macro, by number.
    Macro(usize),
    /// `call`: the body's number, and the call.
    Call(usize, Expr),
    /// `filter`: filters and the body.
    Filter(Vec<Filter>, Vec<Stmt>),
    /// `generation`: what the assistant says.
    Generation(Vec<Stmt>),
    /// `break`.
    Break,
    /// `continue`.
    Continue,
}

/// What is assigned to.
#[derive(Debug)]
pub enum Target {
    Name(Text),
    /// An attribute of a namespace.
    Attribute(Text, Text),
    /// Names or tuples again, in parentheses or not.
    Tuple(Vec<Target>),
}

impl Target {
    /// Whether a name is among them.
    pub fn sets(&self, name: &str) -> bool {
        match self {
            Self::Name(own) => **own == *name,
            Self::Attribute(..) => false,
            Self::Tuple(targets) => targets.iter().any(|target| target.sets(name)),
        }
    }
}

/// `for` with its `if`, `else` and `recursive`.
#[derive(Debug)]
pub struct For {
    pub target: Target,
    /// What is looped over.
    pub iter: Expr,
    /// `if` behind it.
    pub test: Option<Expr>,
    /// Whether `loop(…)` runs it again.
    pub recursive: bool,
    pub body: Vec<Stmt>,
    /// What is run where nothing was repeated.
    pub otherwise: Vec<Stmt>,
}

/// A macro, or the body of a `call` block.
#[derive(Debug)]
pub struct Macro {
    /// Its name, none for a `call` block.
    pub name: Option<Text>,
    /// Parameters with their defaults.
    pub parameters: Vec<(Text, Option<Expr>)>,
    pub body: Vec<Stmt>,
    /// Whether the body uses `varargs`, `kwargs`, `caller`.
    pub uses: [bool; 3],
}

/// A filter or a test with its arguments.
#[derive(Debug)]
pub struct Filter {
    pub name: Text,
    /// The arguments behind the value.
    pub args: Args,
}

/// Arguments of a call.
#[derive(Debug, Default)]
pub struct Args {
    pub positional: Vec<Expr>,
    pub named: Vec<(Text, Expr)>,
    /// `*list`.
    pub star: Option<Box<Expr>>,
    /// `**dict`.
    pub double_star: Option<Box<Expr>>,
}

#[derive(Debug, Clone)]
pub enum Literal {
    /// `none`.
    None,
    /// `true`, `false`.
    Bool(bool),
    /// `1`.
    Int(i128),
    /// `1.5`.
    Float(f64),
    /// `'text'`.
    Str(Text),
}

/// Operators between two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `+`.
    Add,
    /// `-`.
    Sub,
    /// `*`.
    Mul,
    /// `/`.
    Div,
    /// `//`.
    FloorDiv,
    /// `%`.
    Mod,
    /// `**`.
    Pow,
}

/// Operators of a chain such as `a < b < c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cmp {
    /// `==`.
    Eq,
    /// `!=`.
    Ne,
    /// `<`.
    Lt,
    /// `<=`.
    Le,
    /// `>`.
    Gt,
    /// `>=`.
    Ge,
    /// `in`.
    In,
    /// `not in`.
    NotIn,
}

/// Expressions.
#[derive(Debug)]
pub enum Expr {
    Const(Literal),
    Name(Text),
    /// `(a, b)`.
    Tuple(Vec<Expr>),
    /// `[a, b]`.
    List(Vec<Expr>),
    /// `{a: b}`.
    Dict(Vec<(Expr, Expr)>),
    /// `-a`.
    Neg(Box<Expr>),
    /// `+a`.
    Pos(Box<Expr>),
    /// `not a`.
    Not(Box<Expr>),
    /// `a and b`.
    And(Box<Expr>, Box<Expr>),
    /// `a or b`.
    Or(Box<Expr>, Box<Expr>),
    /// `a + b`.
    Binary(Op, Box<Expr>, Box<Expr>),
    /// `a ~ b`.
    Concat(Vec<Expr>),
    /// `a < b < c`.
    Compare(Box<Expr>, Vec<(Cmp, Expr)>),
    /// `a if condition else b`: condition, a, b.
    Cond(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
    /// `a | filter`.
    Filter(Box<Expr>, Filter),
    /// `a is test`.
    Test(Box<Expr>, Filter),
    /// `a.name`.
    Attribute(Box<Expr>, Text),
    /// `a[b]`.
    Item(Box<Expr>, Box<Expr>),
    /// `a[b:c:d]`.
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    /// `a(…)`.
    Call(Box<Expr>, Args),
}
