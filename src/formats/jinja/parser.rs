//! The parser of statements, by the grammar of Jinja2's.

use super::ast::{Expr, Filter, For, Kind, Macro, Stmt, Target, Template, Text};
use super::budget::{Fail, Res};
use super::expression::Parser;
use super::lexer::{Token, tokens};

/// The statements of a template, or the first error with its line.
pub fn parse(source: &str) -> Res<Template> {
    let mut statements = Statements { parser: Parser::new(tokens(source)?), template: Template::default(), loops: 0 };
    let parsed = statements.body(&[]);
    let line = statements.parser.line();
    let body = parsed.map_err(|e| e.at(line))?;
    statements.template.body = body;
    Ok(statements.template)
}

struct Statements {
    parser: Parser,
    template: Template,
    /// Loops around this place within the same macro.
    loops: usize,
}

/// The names that take other blocks of Jinja2 from a loader, or escape HTML.
const LEFT_OUT: [&str; 7] = ["extends", "block", "include", "import", "from", "autoescape", "print"];

impl Statements {
    /// Statements up to one of `ends`, whose name is the token at hand then.
    fn body(&mut self, ends: &[&str]) -> Res<Vec<Stmt>> {
        let mut out = Vec::new();
        loop {
            let line = self.parser.line();
            let kind = match self.parser.next() {
                Token::Data(text) => Kind::Data(text),
                Token::PrintBegin => {
                    let value = self.parser.tuple(true, false)?;
                    self.parser.expect(&Token::PrintEnd, "}}")?;
                    Kind::Print(value)
                }
                Token::BlockBegin => {
                    if ends.iter().any(|name| self.parser.is_name(name)) {
                        return Ok(out);
                    }
                    let kind = self.statement()?;
                    self.parser.expect(&Token::BlockEnd, "%}")?;
                    kind
                }
                Token::End if ends.is_empty() => return Ok(out),
                _ => {
                    let wanted = if ends.is_empty() { "text or a tag".to_owned() } else { ends.join(" or ") };
                    return Err(Fail::new(format!("syntax error: expected {wanted}, got the end of the template")));
                }
            };
            out.push(Stmt { line, kind });
        }
    }

    /// The statements of a block, from the end of its tag on; the name that ends it is passed.
    fn block(&mut self, end: &str) -> Res<Vec<Stmt>> {
        let body = self.branch(&[end])?;
        self.parser.next();
        Ok(body)
    }

    fn branch(&mut self, ends: &[&str]) -> Res<Vec<Stmt>> {
        self.parser.skip_sign(":");
        self.parser.expect(&Token::BlockEnd, "%}")?;
        // The parser counts the levels, but does not know of statements.
        self.parser.enter()?;
        let body = self.body(ends);
        self.parser.leave();
        body
    }

    fn statement(&mut self) -> Res<Kind> {
        let name = self.parser.name()?;
        match &*name {
            "if" => self.condition(),
            "for" => self.repetition(),
            "set" => self.assignment(),
            "with" => self.with(),
            "macro" => self.function(),
            "call" => self.call(),
            "filter" => {
                let mut filters = vec![self.parser.filter()?];
                filters.extend(self.parser.filters()?);
                Ok(Kind::Filter(filters, self.block("endfilter")?))
            }
            "generation" => {
                self.template.marks_generation = true;
                Ok(Kind::Generation(self.apart("endgeneration")?))
            }
            "break" | "continue" if self.loops == 0 => Err(Fail::new(format!("syntax error: '{name}' outside a loop"))),
            "break" => Ok(Kind::Break),
            "continue" => Ok(Kind::Continue),
            other if LEFT_OUT.contains(&other) => Err(Fail::unsupported(format!("the statement {other}"))),
            other => Err(Fail::new(format!("syntax error: unknown tag {other}"))),
        }
    }

    /// A block that Jinja2 makes a function of: loops around it cannot be left from within.
    fn apart(&mut self, end: &str) -> Res<Vec<Stmt>> {
        let loops = std::mem::take(&mut self.loops);
        let body = self.block(end);
        self.loops = loops;
        body
    }

    fn condition(&mut self) -> Res<Kind> {
        let mut branches = Vec::new();
        loop {
            let test = self.parser.tuple(false, false)?;
            branches.push((test, self.branch(&["elif", "else", "endif"])?));
            match self.parser.next() {
                Token::Name(name) if *name == *"elif" => {}
                Token::Name(name) if *name == *"else" => return Ok(Kind::If(branches, self.block("endif")?)),
                _ => return Ok(Kind::If(branches, Vec::new())),
            }
        }
    }

    fn repetition(&mut self) -> Res<Kind> {
        let target = self.target(false)?;
        if target.sets("loop") {
            return Err(Fail::new("syntax error: can't assign to special loop variable in for-loop target"));
        }
        if !self.parser.skip_name("in") {
            return self.parser.unexpected("in");
        }
        let iter = self.parser.tuple(false, false)?;
        let test = if self.parser.skip_name("if") { Some(self.parser.expression(true)?) } else { None };
        let recursive = self.parser.skip_name("recursive");
        self.loops += 1;
        let body = self.branch(&["endfor", "else"]);
        self.loops -= 1;
        let body = body?;
        let otherwise = if self.parser.skip_name("else") { self.block("endfor")? } else { self.skip() };
        self.template.loops.push(For { target, iter, test, recursive, body, otherwise });
        Ok(Kind::For(self.template.loops.len() - 1))
    }

    /// Passes the name that ended a block.
    fn skip(&mut self) -> Vec<Stmt> {
        self.parser.next();
        Vec::new()
    }

    /// What is assigned to: names, with commas as a tuple.
    fn target(&mut self, attributes: bool) -> Res<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            if !targets.is_empty() && (self.parser.is_sign("=") || *self.parser.token() == Token::BlockEnd) {
                break;
            }
            targets.push(self.one_target(attributes)?);
            if !self.parser.skip_sign(",") {
                break;
            }
            is_tuple = true;
        }
        match targets.pop() {
            Some(only) if !is_tuple => Ok(only),
            None => self.parser.unexpected("a name"),
            last => {
                targets.extend(last);
                Ok(Target::Tuple(targets))
            }
        }
    }

    fn one_target(&mut self, attributes: bool) -> Res<Target> {
        if self.parser.skip_sign("(") {
            let inner = self.parser.deeper(|parser| {
                let mut names = Vec::new();
                while !parser.is_sign(")") {
                    names.push(Target::Name(parser.name()?));
                    if !parser.skip_sign(",") {
                        break;
                    }
                }
                parser.expect_sign(")")?;
                Ok(names)
            })?;
            return Ok(Target::Tuple(inner));
        }
        let name = self.parser.name()?;
        if attributes && self.parser.skip_sign(".") {
            return Ok(Target::Attribute(name, self.parser.name()?));
        }
        assignable(&name)?;
        Ok(Target::Name(name))
    }

    fn assignment(&mut self) -> Res<Kind> {
        let target = self.target(true)?;
        if self.parser.skip_sign("=") {
            return Ok(Kind::Set(target, self.parser.tuple(true, false)?));
        }
        let filters: Vec<Filter> = self.parser.filters()?;
        Ok(Kind::SetBlock(target, filters, self.block("endset")?))
    }

    fn with(&mut self) -> Res<Kind> {
        let mut pairs = Vec::new();
        while *self.parser.token() != Token::BlockEnd {
            if !pairs.is_empty() {
                self.parser.expect_sign(",")?;
            }
            let target = self.one_target(false)?;
            self.parser.expect_sign("=")?;
            pairs.push((target, self.parser.expression(true)?));
        }
        Ok(Kind::With(pairs, self.block("endwith")?))
    }

    fn parameters(&mut self) -> Res<Vec<(Text, Option<Expr>)>> {
        let mut out: Vec<(Text, Option<Expr>)> = Vec::new();
        self.parser.expect_sign("(")?;
        while !self.parser.is_sign(")") {
            if !out.is_empty() {
                self.parser.expect_sign(",")?;
            }
            let name = self.parser.name()?;
            assignable(&name)?;
            if out.iter().any(|(known, _)| *known == name) {
                return Err(Fail::new(format!("syntax error: duplicate argument '{name}'")));
            }
            let default = if self.parser.skip_sign("=") { Some(self.parser.expression(true)?) } else { None };
            if default.is_none() && out.iter().any(|(_, default)| default.is_some()) {
                return Err(Fail::new("syntax error: non-default argument follows default argument"));
            }
            if default.is_none() && *name == *"caller" {
                return Err(Fail::new("syntax error: the argument 'caller' must be omitted or be given a default"));
            }
            out.push((name, default));
        }
        self.parser.expect_sign(")")?;
        Ok(out)
    }

    fn macro_body(&mut self, name: Option<Text>, parameters: Vec<(Text, Option<Expr>)>, end: &str) -> Res<usize> {
        self.parser.specials.push([false; 3]);
        let body = self.apart(end);
        let uses = self.parser.specials.pop().unwrap_or_default();
        self.template.macros.push(Macro { name, parameters, body: body?, uses });
        Ok(self.template.macros.len() - 1)
    }

    fn function(&mut self) -> Res<Kind> {
        let name = self.parser.name()?;
        assignable(&name)?;
        let parameters = self.parameters()?;
        Ok(Kind::Macro(self.macro_body(Some(name), parameters, "endmacro")?))
    }

    fn call(&mut self) -> Res<Kind> {
        let parameters = if self.parser.is_sign("(") { self.parameters()? } else { Vec::new() };
        let call = self.parser.expression(true)?;
        if !matches!(call, Expr::Call(..)) {
            return Err(Fail::new("syntax error: expected call"));
        }
        Ok(Kind::Call(self.macro_body(None, parameters, "endcall")?, call))
    }
}

fn assignable(name: &str) -> Res<()> {
    let literals = ["true", "false", "none", "True", "False", "None"];
    if literals.contains(&name) {
        return Err(Fail::new(format!("syntax error: can't assign to '{name}'")));
    }
    Ok(())
}
