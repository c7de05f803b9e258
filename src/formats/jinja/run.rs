//! Statements, run.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::ast::{Expr, Filter, Kind, Macro as Parsed, Stmt, Target, Template};
use super::budget::{Fail, LONGEST, Res, fail};
use super::eval::{Again, Render, Runner, stored_name};
use super::print::print;
use super::value::{Context, Loop, Macro, Scope, Value};

/// What has been printed, and what that counts as.
struct Out {
    text: String,
    /// Whether this is the text of the template, not of a block whose value goes elsewhere.
    top: bool,
    /// Whether this is within `generation`.
    generated: bool,
}

impl Out {
    fn buffer() -> Self {
        Self { text: String::new(), top: false, generated: false }
    }

    fn check(&self) -> Res<()> {
        if self.text.len() > LONGEST { Err(Fail::Endless(format!("{LONGEST} bytes"))) } else { Ok(()) }
    }
}

/// Whether a loop goes on.
#[derive(PartialEq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// Text, ranges of `generation` blocks, and whether those are all where the text has them.
pub type Made = (String, Vec<std::ops::Range<usize>>, bool);

/// Runs a template with variables.
pub fn render(template: &Template, variables: &serde_json::Value, now: &dyn Fn(&str) -> String) -> Res<Made> {
    let render = Render {
        template,
        cx: Context::default(),
        run: Runner { body, again },
        now,
        generated: RefCell::default(),
        misplaced: Cell::new(false),
    };
    let mut out = Out { text: String::new(), top: true, generated: false };
    let root = Rc::new(Scope::default());
    let result = variables.as_object().into_iter().flatten().try_for_each(|(name, value)| {
        root.set(&name.as_str().into(), Value::json(&render.cx, value)?);
        Ok(())
    });
    // What a template sets does not change what it was given.
    let top = Scope::within(&root);
    let result = result.and_then(|()| render.block(&template.body, &top, &mut out));
    // Macros lie in the scopes that they refer to.
    let closures = render.cx.closures.take();
    closures.iter().for_each(|scope| scope.names.borrow_mut().clear());
    result?;
    Ok((out.text, render.generated.take(), !render.misplaced.get()))
}

fn body(render: &Render, number: usize, scope: &Rc<Scope>) -> Res<String> {
    let mut out = Out::buffer();
    render.block(&render.template.macros[number].body, scope, &mut out)?;
    Ok(out.text)
}

fn again(render: &Render, call: Again) -> Res<String> {
    let mut out = Out::buffer();
    render.cx.deeper(|| render.repeat(call.number, call.items, call.scope, call.level, &mut out))?;
    Ok(out.text)
}

impl Render<'_> {
    fn block(&self, body: &[Stmt], scope: &Rc<Scope>, out: &mut Out) -> Res<Flow> {
        for stmt in body {
            self.cx.step()?;
            let flow = self.cx.deeper(|| self.statement(&stmt.kind, scope, out));
            let flow = flow.map_err(|e| e.at(stmt.line))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&self, kind: &Kind, scope: &Rc<Scope>, out: &mut Out) -> Res<Flow> {
        match kind {
            Kind::Data(data) => {
                out.text.push_str(data);
                out.check()?;
            }
            Kind::Print(value) => {
                let value = self.eval(value, scope)?;
                print(&self.cx, &value, &mut out.text)?;
                out.check()?;
            }
            Kind::If(branches, otherwise) => {
                for (test, body) in branches {
                    if self.eval(test, scope)?.truth() {
                        return self.block(body, scope, out);
                    }
                }
                return self.block(otherwise, scope, out);
            }
            Kind::For(number) => {
                let items = self.eval(&self.template.loops[*number].iter, scope)?.items(&self.cx)?;
                return self.repeat(*number, items, scope, 0, out);
            }
            Kind::Set(target, value) => {
                let value = self.eval(value, scope)?;
                self.assign(target, value, scope)?;
            }
            Kind::SetBlock(target, filters, body) => match self.filtered(filters, body, scope)? {
                Ok(value) => self.assign(target, value, scope)?,
                Err(flow) => return Ok(flow),
            },
            Kind::With(pairs, body) => {
                let inner = Scope::within(scope);
                for (target, value) in pairs {
                    self.assign(target, self.eval(value, scope)?, &inner)?;
                }
                return self.block(body, &inner, out);
            }
            Kind::Macro(number) => {
                let parsed = &self.template.macros[*number];
                let value = self.closure(*number, parsed, scope)?;
                parsed.name.iter().for_each(|name| scope.set(name, value.clone()));
            }
            Kind::Call(number, call) => {
                let value = self.call_block(*number, call, scope)?;
                print(&self.cx, &value, &mut out.text)?;
                out.check()?;
            }
            Kind::Filter(filters, body) => {
                match self.filtered(filters, body, scope)? {
                    Ok(value) => print(&self.cx, &value, &mut out.text)?,
                    Err(flow) => return Ok(flow),
                }
                out.check()?;
            }
            Kind::Generation(body) => self.generation(body, scope, out)?,
            Kind::Break => return Ok(Flow::Break),
            Kind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn generation(&self, body: &[Stmt], scope: &Rc<Scope>, out: &mut Out) -> Res<()> {
        if !out.top || out.generated {
            self.misplaced.set(true);
        }
        let (start, outer) = (out.text.len(), out.generated);
        out.generated = true;
        // Jinja2 makes a function of the block: what it sets is set within.
        self.block(body, &Scope::within(scope), out)?;
        out.generated = outer;
        if out.top && !outer {
            self.generated.borrow_mut().push(start..out.text.len());
        }
        Ok(())
    }

    /// The text of a block through filters, unless a loop around it is left from within.
    fn filtered(&self, filters: &[Filter], body: &[Stmt], scope: &Rc<Scope>) -> Res<Result<Value, Flow>> {
        let mut inner = Out::buffer();
        let within = Scope::within(scope);
        let flow = self.block(body, &within, &mut inner)?;
        if flow != Flow::Next {
            return Ok(Err(flow));
        }
        let mut value = Value::str(&self.cx, inner.text)?;
        for filter in filters {
            value = self.filter(&value, filter, &within)?;
        }
        Ok(Ok(value))
    }

    fn closure(&self, number: usize, parsed: &Parsed, scope: &Rc<Scope>) -> Res<Value> {
        self.cx.make(size_of::<Macro>() + size_of::<Scope>())?;
        self.cx.closures.borrow_mut().push(scope.clone());
        Ok(Value::Macro(Rc::new(Macro { number, name: parsed.name.clone(), scope: scope.clone() })))
    }

    fn call_block(&self, number: usize, call: &Expr, scope: &Rc<Scope>) -> Res<Value> {
        let Expr::Call(callee, args) = call else { return fail("expected call") };
        let callee = self.eval(callee, scope)?;
        let mut given = self.given(args, scope)?;
        let caller = self.closure(number, &self.template.macros[number], scope)?;
        given.named.push(("caller".into(), caller));
        self.call(&callee, given)
    }

    fn assign(&self, target: &Target, value: Value, scope: &Rc<Scope>) -> Res<()> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Attribute(name, attribute) => {
                let Some(Value::Namespace(number)) = scope.get(name) else {
                    return fail(format!("cannot assign attribute on non-namespace object '{name}'"));
                };
                stored_name(attribute)?;
                let mut namespaces = self.cx.namespaces.borrow_mut();
                let known =
                    namespaces[number].iter().position(|(key, _)| key.as_str().is_some_and(|key| **key == **attribute));
                match known {
                    Some(at) => namespaces[number][at].1 = value,
                    None => {
                        self.cx.make(2 * size_of::<Value>() + attribute.len())?;
                        namespaces[number].push((Value::word(attribute), value));
                    }
                }
            }
            Target::Tuple(targets) => {
                let values = value.items(&self.cx)?;
                if values.len() != targets.len() {
                    let (want, got) = (targets.len(), values.len());
                    return fail(format!("expected {want} values to unpack, got {got}"));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value, scope)?;
                }
            }
        }
        Ok(())
    }

    fn repeat(&self, number: usize, items: Vec<Value>, scope: &Rc<Scope>, level: usize, out: &mut Out) -> Res<Flow> {
        let parsed = &self.template.loops[number];
        let mut kept = Vec::with_capacity(items.len());
        for item in items {
            if let Some(test) = &parsed.test {
                let inner = Scope::within(scope);
                self.assign(&parsed.target, item.clone(), &inner)?;
                if !self.eval(test, &inner)?.truth() {
                    continue;
                }
            }
            kept.push(item);
        }
        if kept.is_empty() {
            return self.block(&parsed.otherwise, &Scope::within(scope), out);
        }
        let recursive = parsed.recursive.then(|| (number, scope.clone()));
        if recursive.is_some() {
            self.cx.make(size_of::<Scope>())?;
            self.cx.closures.borrow_mut().push(scope.clone());
        }
        let state =
            Rc::new(Loop { recursive, items: kept, index: Cell::new(0), depth0: level, changed: RefCell::default() });
        let mut ended = false;
        for i in 0..state.items.len() {
            self.cx.step()?;
            state.index.set(i);
            let inner = Scope::within(scope);
            inner.set(&"loop".into(), Value::Loop(state.clone()));
            self.assign(&parsed.target, state.items[i].clone(), &inner)?;
            match self.block(&parsed.body, &inner, out)? {
                Flow::Break => break,
                Flow::Next => ended = true,
                Flow::Continue => {}
            }
        }
        // It may hold the loop itself.
        state.changed.take();
        // As Jinja2 compiles it, `else` follows unless some pass reached its end.
        if ended { Ok(Flow::Next) } else { self.block(&parsed.otherwise, &Scope::within(scope), out) }
    }
}
