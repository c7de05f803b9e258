//! The parser of expressions, by the grammar of Jinja2's.

use super::ast::{Args, Cmp, Expr, Filter, Literal, Op, Text};
use super::budget::{DEEPEST, Fail, Res};
use super::lexer::Token;

/// The tokens of a template, and how far they are parsed.
pub struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
    /// The height of the tallest expression since it was last taken.
    height: usize,
    /// For each macro around this place, whether `varargs`, `kwargs`, `caller` were met.
    pub specials: Vec<[bool; 3]>,
}

/// The names that a macro has without saying so.
pub const SPECIALS: [&str; 3] = ["varargs", "kwargs", "caller"];

/// A parsed expression with its height.
type Tall = (Expr, usize);

impl Parser {
    /// Begins with the first token.
    pub fn new(tokens: Vec<(Token, usize)>) -> Self {
        Self { tokens, at: 0, depth: 0, height: 0, specials: Vec::new() }
    }

    /// The token at hand.
    pub fn token(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)].0
    }

    /// Line of the next token, from 1.
    pub fn line(&self) -> usize {
        self.tokens[self.at.min(self.tokens.len() - 1)].1
    }

    fn look(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].0
    }

    /// Goes on, and gives the token left behind.
    pub fn next(&mut self) -> Token {
        let token = self.token().clone();
        self.at += 1;
        token
    }

    /// The error of a token that does not belong there.
    pub fn unexpected<T>(&self, expected: &str) -> Res<T> {
        let found = match self.token() {
            Token::Data(_) => "text".to_owned(),
            Token::PrintBegin => "{{".into(),
            Token::PrintEnd => "}}".into(),
            Token::BlockBegin => "{%".into(),
            Token::BlockEnd => "%}".into(),
            Token::Name(name) => name.to_string(),
            Token::Str(_) => "a text".into(),
            Token::Int(_) | Token::Float(_) => "a number".into(),
            Token::Sign(sign) => (*sign).to_owned(),
            Token::End => "the end of the template".into(),
        };
        Err(Fail::new(format!("syntax error: expected {expected}, got {found}")).at(self.line()))
    }

    /// Whether the token is this name.
    pub fn is_name(&self, name: &str) -> bool {
        matches!(self.token(), Token::Name(found) if **found == *name)
    }

    /// Whether the token is this sign.
    pub fn is_sign(&self, sign: &str) -> bool {
        matches!(self.token(), Token::Sign(found) if *found == sign)
    }

    /// Goes on if the token is this name.
    pub fn skip_name(&mut self, name: &str) -> bool {
        let is = self.is_name(name);
        self.at += usize::from(is);
        is
    }

    /// Goes on if the token is this sign.
    pub fn skip_sign(&mut self, sign: &str) -> bool {
        let is = self.is_sign(sign);
        self.at += usize::from(is);
        is
    }

    /// Goes on, or fails.
    pub fn expect(&mut self, token: &Token, expected: &str) -> Res<()> {
        if self.token() != token {
            return self.unexpected(expected);
        }
        self.at += 1;
        Ok(())
    }

    /// Goes on behind this sign, or fails.
    pub fn expect_sign(&mut self, sign: &'static str) -> Res<()> {
        self.expect(&Token::Sign(sign), sign)
    }

    /// The next token, which must be a name.
    pub fn name(&mut self) -> Res<Text> {
        let Token::Name(name) = self.token() else { return self.unexpected("a name") };
        let name = name.clone();
        self.at += 1;
        Ok(name)
    }

    /// Goes one level deeper, into an expression or a block.
    pub fn enter(&mut self) -> Res<()> {
        self.check(self.depth)?;
        self.depth += 1;
        Ok(())
    }

    /// Comes back from it.
    pub fn leave(&mut self) {
        self.depth -= 1;
    }

    /// Parses one level deeper.
    pub fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Res<T>) -> Res<T> {
        self.enter()?;
        let result = parse(self);
        self.leave();
        result
    }

    /// Python compiles about so many parentheses within each other, which is what Jinja2 makes of an expression.
    fn check(&self, height: usize) -> Res<()> {
        if height > DEEPEST {
            let message = format!("nested more than {DEEPEST} levels deep");
            return Err(Fail::new(message).at(self.line()));
        }
        Ok(())
    }

    fn taller(&self, expr: Expr, height: usize) -> Res<Tall> {
        self.check(height)?;
        Ok((expr, height + 1))
    }

    /// An expression; `conditional` allows `a if b else c`.
    pub fn expression(&mut self, conditional: bool) -> Res<Expr> {
        let (expr, height) = self.tall(conditional)?;
        self.height = self.height.max(height);
        Ok(expr)
    }

    /// Parses what lies within an expression, and gives its height too.
    fn within<T>(&mut self, parse: impl FnOnce(&mut Self) -> Res<T>) -> Res<(T, usize)> {
        let outer = std::mem::take(&mut self.height);
        let parsed = parse(self);
        let height = std::mem::replace(&mut self.height, outer);
        Ok((parsed?, height))
    }

    fn tall(&mut self, conditional: bool) -> Res<Tall> {
        self.deeper(|this| if conditional { this.condition() } else { this.binary(0) })
    }

    fn condition(&mut self) -> Res<Tall> {
        let (mut expr, mut height) = self.binary(0)?;
        while self.skip_name("if") {
            let (test, h) = self.binary(0)?;
            height = height.max(h);
            let mut otherwise = None;
            if self.skip_name("else") {
                let (other, h) = self.deeper(Self::condition)?;
                height = height.max(h);
                otherwise = Some(Box::new(other));
            }
            (expr, height) = self.taller(Expr::Cond(Box::new(test), Box::new(expr), otherwise), height)?;
        }
        Ok((expr, height))
    }

    /// Operators from the loosest (`or`, level 0) to the tightest (`**`, level 7).
    fn binary(&mut self, level: usize) -> Res<Tall> {
        match level {
            2 if self.skip_name("not") => {
                let (inner, height) = self.deeper(|this| this.binary(2))?;
                return self.taller(Expr::Not(Box::new(inner)), height);
            }
            2 => return self.binary(3),
            3 => return self.compare(),
            5 => return self.concat(),
            8 => return self.unary(true),
            _ => {}
        }
        let (mut left, mut height) = self.binary(level + 1)?;
        loop {
            let op = match (level, self.token()) {
                (0, Token::Name(name)) if **name == *"or" => None,
                (1, Token::Name(name)) if **name == *"and" => None,
                (4, Token::Sign("+")) => Some(Op::Add),
                (4, Token::Sign("-")) => Some(Op::Sub),
                (6, Token::Sign("*")) => Some(Op::Mul),
                (6, Token::Sign("/")) => Some(Op::Div),
                (6, Token::Sign("//")) => Some(Op::FloorDiv),
                (6, Token::Sign("%")) => Some(Op::Mod),
                (7, Token::Sign("**")) => Some(Op::Pow),
                _ => return Ok((left, height)),
            };
            self.at += 1;
            let (right, h) = self.binary(level + 1)?;
            let (a, b) = (Box::new(left), Box::new(right));
            let expr = match (op, level) {
                (Some(op), _) => Expr::Binary(op, a, b),
                (None, 0) => Expr::Or(a, b),
                (None, _) => Expr::And(a, b),
            };
            (left, height) = self.taller(expr, height.max(h))?;
        }
    }

    fn compare(&mut self) -> Res<Tall> {
        let (first, mut height) = self.binary(4)?;
        let mut others = Vec::new();
        loop {
            let op = match self.token() {
                Token::Sign("==") => Cmp::Eq,
                Token::Sign("!=") => Cmp::Ne,
                Token::Sign("<") => Cmp::Lt,
                Token::Sign("<=") => Cmp::Le,
                Token::Sign(">") => Cmp::Gt,
                Token::Sign(">=") => Cmp::Ge,
                Token::Name(name) if **name == *"in" => Cmp::In,
                Token::Name(name) if **name == *"not" && *self.look() == Token::Name("in".into()) => {
                    self.at += 1;
                    Cmp::NotIn
                }
                _ => break,
            };
            self.at += 1;
            let (other, h) = self.binary(4)?;
            height = height.max(h);
            others.push((op, other));
        }
        if others.is_empty() {
            return Ok((first, height));
        }
        self.taller(Expr::Compare(Box::new(first), others), height)
    }

    fn concat(&mut self) -> Res<Tall> {
        let (first, mut height) = self.binary(6)?;
        let mut parts = vec![first];
        while self.skip_sign("~") {
            let (part, h) = self.binary(6)?;
            height = height.max(h);
            parts.push(part);
        }
        match parts.len() {
            1 => Ok((parts.remove(0), height)),
            _ => self.taller(Expr::Concat(parts), height),
        }
    }

    fn unary(&mut self, filters: bool) -> Res<Tall> {
        let tall = match self.token() {
            Token::Sign(sign @ ("-" | "+")) => {
                let negative = *sign == "-";
                self.at += 1;
                let (inner, height) = self.deeper(|this| this.unary(false))?;
                let inner = Box::new(inner);
                self.taller(if negative { Expr::Neg(inner) } else { Expr::Pos(inner) }, height)?
            }
            _ => self.primary()?,
        };
        let tall = self.postfix(tall)?;
        if filters { self.filtered(tall) } else { Ok(tall) }
    }

    fn primary(&mut self) -> Res<Tall> {
        let leaf = |literal: Literal| Ok((Expr::Const(literal), 0));
        match self.next() {
            Token::Name(name) => match &*name {
                "true" | "True" => leaf(Literal::Bool(true)),
                "false" | "False" => leaf(Literal::Bool(false)),
                "none" | "None" => leaf(Literal::None),
                _ => {
                    if let Some(i) = SPECIALS.iter().position(|special| **special == *name) {
                        self.specials.iter_mut().for_each(|met| met[i] = true);
                    }
                    Ok((Expr::Name(name), 0))
                }
            },
            Token::Str(text) => {
                let mut text = text;
                while let Token::Str(more) = self.token() {
                    text = format!("{text}{more}").into();
                    self.at += 1;
                }
                leaf(Literal::Str(text))
            }
            Token::Int(n) => leaf(Literal::Int(n)),
            Token::Float(x) => leaf(Literal::Float(x)),
            Token::Sign("(") => {
                let (tuple, height) = self.within(|this| this.tuple(true, true))?;
                self.expect_sign(")")?;
                self.taller(tuple, height)
            }
            Token::Sign("[") => {
                let (items, height) = self.within(|this| this.items("]", |this| this.expression(true)))?;
                self.taller(Expr::List(items), height)
            }
            Token::Sign("{") => {
                let pair = |this: &mut Self| {
                    let key = this.expression(true)?;
                    this.expect_sign(":")?;
                    Ok((key, this.expression(true)?))
                };
                let (pairs, height) = self.within(|this| this.items("}", pair))?;
                self.taller(Expr::Dict(pairs), height)
            }
            _ => {
                self.at -= 1;
                self.unexpected("an expression")
            }
        }
    }

    /// Items with commas between, and perhaps one behind, up to `end`.
    fn items<T>(&mut self, end: &'static str, item: impl Fn(&mut Self) -> Res<T>) -> Res<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_sign(end) {
            if !items.is_empty() {
                self.expect_sign(",")?;
                if self.is_sign(end) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        self.expect_sign(end)?;
        Ok(items)
    }

    /// One expression, or several with commas as a tuple; within `parentheses` also none.
    pub fn tuple(&mut self, conditional: bool, parentheses: bool) -> Res<Expr> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if matches!(self.token(), Token::PrintEnd | Token::BlockEnd | Token::Sign(")")) {
                break;
            }
            items.push(self.expression(conditional)?);
            if !self.skip_sign(",") {
                break;
            }
            is_tuple = true;
        }
        match items.pop() {
            Some(only) if !is_tuple => Ok(only),
            None if !parentheses => self.unexpected("an expression"),
            last => {
                items.extend(last);
                Ok(Expr::Tuple(items))
            }
        }
    }

    fn postfix(&mut self, (mut expr, mut height): Tall) -> Res<Tall> {
        loop {
            let mut inner = 0;
            let next = match self.token() {
                Token::Sign(".") => {
                    self.at += 1;
                    match self.next() {
                        Token::Name(name) => Expr::Attribute(Box::new(expr), name),
                        Token::Int(n) => Expr::Item(Box::new(expr), Box::new(Expr::Const(Literal::Int(n)))),
                        _ => {
                            self.at -= 1;
                            return self.unexpected("a name or number");
                        }
                    }
                }
                Token::Sign("[") => {
                    self.at += 1;
                    let of = expr;
                    let (item, h) = self.within(|this| this.subscript(of))?;
                    inner = h;
                    item
                }
                Token::Sign("(") => {
                    let (args, h) = self.within(Self::args)?;
                    inner = h;
                    Expr::Call(Box::new(expr), args)
                }
                _ => return Ok((expr, height)),
            };
            (expr, height) = self.taller(next, height.max(inner))?;
        }
    }

    fn subscript(&mut self, of: Expr) -> Res<Expr> {
        let of = Box::new(of);
        let bound = |this: &mut Self| -> Res<Option<Box<Expr>>> {
            let none = this.is_sign(":") || this.is_sign("]") || this.is_sign(",");
            Ok(if none { None } else { Some(Box::new(this.expression(true)?)) })
        };
        let mut items = Vec::new();
        while !self.is_sign("]") {
            if !items.is_empty() {
                self.expect_sign(",")?;
            }
            let first = bound(self)?;
            if !self.skip_sign(":") {
                let Some(first) = first else { return self.unexpected("an expression") };
                items.push(*first);
                continue;
            }
            let second = bound(self)?;
            let third = if self.skip_sign(":") { bound(self)? } else { None };
            if !items.is_empty() || !self.is_sign("]") {
                return Err(Fail::unsupported("a slice among several indices").at(self.line()));
            }
            self.at += 1;
            return Ok(Expr::Slice(of, [first, second, third]));
        }
        self.at += 1;
        let index = if items.len() == 1 { items.remove(0) } else { Expr::Tuple(items) };
        Ok(Expr::Item(of, Box::new(index)))
    }

    fn args(&mut self) -> Res<Args> {
        self.expect_sign("(")?;
        let mut args = Args::default();
        let mut first = true;
        while !self.is_sign(")") {
            if !first {
                self.expect_sign(",")?;
                if self.is_sign(")") {
                    break;
                }
            }
            first = false;
            let (star, double) = (args.star.is_some(), args.double_star.is_some());
            let allowed = if self.skip_sign("*") {
                args.star = Some(Box::new(self.expression(true)?));
                !star && !double
            } else if self.skip_sign("**") {
                args.double_star = Some(Box::new(self.expression(true)?));
                !double
            } else if matches!(self.token(), Token::Name(_)) && *self.look() == Token::Sign("=") {
                let name = self.name()?;
                self.at += 1;
                if args.named.iter().any(|(known, _)| *known == name) {
                    return self.unexpected("every argument once");
                }
                let value = self.expression(true)?;
                args.named.push((name, value));
                !double
            } else {
                let value = self.expression(true)?;
                args.positional.push(value);
                !star && !double && args.named.is_empty()
            };
            if !allowed {
                return self.unexpected("arguments by position before those by name");
            }
        }
        self.at += 1;
        Ok(args)
    }

    fn filtered(&mut self, (mut expr, mut height): Tall) -> Res<Tall> {
        loop {
            let of = Box::new(expr);
            let (next, inner) = match self.token() {
                Token::Sign("|") => {
                    self.at += 1;
                    self.within(|this| Ok(Expr::Filter(of, this.filter()?)))?
                }
                Token::Name(name) if **name == *"is" => {
                    self.at += 1;
                    self.within(|this| this.test(of))?
                }
                Token::Sign("(") => self.within(|this| Ok(Expr::Call(of, this.args()?)))?,
                _ => return Ok((*of, height)),
            };
            (expr, height) = self.taller(next, height.max(inner))?;
        }
    }

    /// A filter's name and arguments.
    pub fn filter(&mut self) -> Res<Filter> {
        let name = self.dotted()?;
        let args = if self.is_sign("(") { self.args()? } else { Args::default() };
        Ok(Filter { name, args })
    }

    /// The filters behind a `|`, if there are any.
    pub fn filters(&mut self) -> Res<Vec<Filter>> {
        let mut filters = Vec::new();
        while self.skip_sign("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }

    fn dotted(&mut self) -> Res<Text> {
        let mut name = self.name()?;
        while self.skip_sign(".") {
            name = format!("{name}.{}", self.name()?).into();
        }
        Ok(name)
    }

    fn test(&mut self, expr: Box<Expr>) -> Res<Expr> {
        let negated = self.skip_name("not");
        let name = self.dotted()?;
        let mut args = Args::default();
        let value = match self.token() {
            Token::Sign("(") => {
                args = self.args()?;
                false
            }
            Token::Name(name) => !matches!(&**name, "else" | "or" | "and"),
            Token::Str(_) | Token::Int(_) | Token::Float(_) | Token::Sign("[" | "{") => true,
            _ => false,
        };
        if value {
            if self.is_name("is") {
                return self.unexpected("no second test");
            }
            let primary = self.primary()?;
            let (arg, height) = self.postfix(primary)?;
            self.height = self.height.max(height);
            args.positional.push(arg);
        }
        let test = Expr::Test(expr, Filter { name, args });
        Ok(if negated { Expr::Not(Box::new(test)) } else { test })
    }
}
